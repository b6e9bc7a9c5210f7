"""`generate` in all the ways that transformers offers: each equals a loop over `forward`, or is refused."""

import copy
import warnings

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache, TextStreamer

from models import random_ids, tiny_model
from transformer_xl import TransfoXLCache, TransfoXLTokenizer

RECURRENT = {
    "transformer-xl": {},
    "empty-start": {"initial_memory": "empty"},
    "whole-memory": {"same_length": False},
    "whole-memory-empty-start": {"same_length": False, "initial_memory": "empty"},
    "shaw": {"attn_type": 1, "clamp_len": 5},
    "pre-norm": {"pre_lnorm": True, "clamp_len": 4},
    "plain-softmax": {"cutoffs": []},
    "span-beside-self": {"span_counts_self": False},
}
WITHOUT_MEMORY = {
    "transformer-xl": {"mem_len": 0},
    "shaw": {"mem_len": 0, "attn_type": 1},
    "vaswani": {"mem_len": 0, "attn_type": 2},
    "al-rfou": {"mem_len": 0, "attn_type": 3},
}
STARTS_AND_SPANS = ["transformer-xl", "empty-start", "whole-memory", "whole-memory-empty-start"]
FIXED_SPAN = ["transformer-xl", "empty-start", "shaw"]  # how a text is cut into segments changes nothing
PADDED_LENGTHS = [3, 9, 6]  # below, above and equal to mem_len


def greedy_by_hand(model, ids: Tensor, n_new: int, mems: list[Tensor] | None = None) -> Tensor:
    """The most probable continuation of unpadded rows: the prompt as one segment, then token by token, with `mems`."""
    new, tokens = ids, ids
    with torch.no_grad():
        for _ in range(n_new):
            output = model(new, mems=mems)
            new, mems = output.logits[:, -1].argmax(-1, keepdim=True), output.mems
            tokens = torch.cat([tokens, new], dim=1)
    return tokens


def left_padded(rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows `[1, length]` as a batch whose padding is token 5, which is a word like any other."""
    longest = max(row.shape[1] for row in rows)
    padding = [longest - row.shape[1] for row in rows]
    ids = torch.cat([torch.nn.functional.pad(row, (n, 0), value=5) for row, n in zip(rows, padding, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
    return {"input_ids": ids, "attention_mask": mask}


# Searching and sampling.


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.5},
        {"do_sample": True, "top_k": 3},
        {"do_sample": True, "top_k": 3, "top_p": 0.8, "temperature": 0.7},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_k": 0, "top_p": 0.8},
        {"do_sample": True, "top_k": 3, "repetition_penalty": 1.5},
        {"do_sample": True, "top_k": 3, "typical_p": 0.5},
        {"do_sample": True, "top_k": 3, "output_scores": True, "return_dict_in_generate": True},
    ],
)
def test_clusters_that_cannot_be_chosen_are_left_out_and_change_nothing(options, monkeypatch):
    model, ids = tiny_model(), random_ids(1, 4)
    model.crit.cluster_bias.data.fill_(-2.0)
    seen = []
    log_prob = model.crit.log_prob

    def watched(hidden, *, n_best=None):
        seen.append(log_prob(hidden, n_best=n_best))
        return seen[-1]

    def generated():
        torch.manual_seed(1)
        output = model.generate(ids, max_new_tokens=25, **options)
        return output if isinstance(output, Tensor) else output.sequences

    monkeypatch.setattr(model.crit, "log_prob", watched)
    tokens = generated()
    are_all_needed = options.get("top_k") == 0 or {"repetition_penalty", "typical_p", "output_scores"} & options.keys()
    assert any(scores.shape[-1] < model.config.vocab_size for scores in seen) != bool(are_all_needed)
    monkeypatch.setattr(model.crit, "log_prob", lambda hidden, n_best=None: log_prob(hidden))
    assert torch.equal(tokens, generated())


@pytest.mark.parametrize("name", RECURRENT)
def test_greedy_search_equals_the_loop_over_segments(name):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(3, 4)
    assert torch.equal(model.generate(ids, max_new_tokens=20, do_sample=False), greedy_by_hand(model, ids, 20))


@pytest.mark.parametrize("name", FIXED_SPAN)
@pytest.mark.parametrize("n_beams", [1, 3])
def test_search_with_a_cache_equals_recomputation_when_the_span_is_fixed(name, n_beams):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(3, 4)
    options = {"max_new_tokens": 15, "do_sample": False, "num_beams": n_beams}
    cached = model.generate(ids, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("name", STARTS_AND_SPANS)
def test_beam_scores_are_the_mean_log_probabilities_of_their_tokens(name):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(2, 4)
    found = model.generate(
        ids,
        max_new_tokens=9,
        num_beams=4,
        num_return_sequences=2,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert found.sequences.shape == (4, 13)
    assert not torch.equal(found.sequences[0], found.sequences[1])
    prompt, rest = found.sequences[:, :4], found.sequences[:, 4:]
    with torch.no_grad():
        output = model(prompt)
        log_probs = [output.logits[:, -1:]]
        for new in rest[:, :-1].split(1, dim=1):
            output = model(new, mems=output.mems)
            log_probs.append(output.logits)
    taken = torch.cat(log_probs, dim=1).gather(2, rest[..., None])[..., 0]
    assert_close(found.sequences_scores.double(), taken.mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STARTS_AND_SPANS)
def test_beam_search_finds_nothing_worse_than_greedy_search(name):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(1, 4)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    greedy = model.generate(ids, **options)
    steps = zip(greedy.scores, greedy.sequences[0, 4:], strict=True)
    total = sum(scores.log_softmax(-1)[0, token] for scores, token in steps)
    beam = model.generate(ids, num_beams=40, **options)
    assert beam.sequences_scores[0] * 4 >= total - 1e-4


@pytest.mark.parametrize("n_sequences", [1, 3])
def test_sampling_depends_on_the_seed_and_not_on_the_cache(n_sequences):
    model, ids = tiny_model(init_std=0.2), random_ids(2, 4)

    def sample(seed, **options):
        torch.manual_seed(seed)
        return model.generate(ids, max_new_tokens=15, do_sample=True, num_return_sequences=n_sequences, **options)

    first = sample(0)
    assert first.shape == (2 * n_sequences, 19)
    assert torch.equal(first[:, :4], ids.repeat_interleave(n_sequences, dim=0))
    assert len(set(map(tuple, first.tolist()))) == 2 * n_sequences
    assert torch.equal(first, sample(0))
    assert torch.equal(first, sample(0, use_cache=False))
    assert not torch.equal(first, sample(1))
    assert torch.equal(sample(2, top_k=1)[::n_sequences], greedy_by_hand(model, ids, 15))


def test_sampled_tokens_follow_the_probabilities():
    model, ids = tiny_model(init_std=0.2), random_ids(1, 4)
    torch.manual_seed(0)
    sampled = model.generate(ids, max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=4000)[:, -1]
    frequencies = torch.bincount(sampled, minlength=40) / 4000
    assert_close(frequencies.double(), model(ids).logits[0, -1].exp(), rtol=0, atol=0.03)  # 4 standard deviations


def test_beams_are_sampled_with_a_cache_as_without():
    model, ids = tiny_model(), random_ids(2, 4)
    options = {"max_new_tokens": 8, "do_sample": True, "num_beams": 3, "num_return_sequences": 2}
    torch.manual_seed(0)
    cached = model.generate(ids, **options)
    torch.manual_seed(0)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_model_without_memory_recomputes_what_it_can_see(name):
    """Types 2 and 3 know positions of at most `tgt_len` tokens; type 0 and 1 see all of them."""
    model, ids = tiny_model(**WITHOUT_MEMORY[name]), random_ids(2, 4)
    expected = ids
    for _ in range(14):
        seen = expected[:, -model.config.tgt_len :] if model.config.attn_type in (2, 3) else expected
        expected = torch.cat([expected, model(seen).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    generated = model.generate(ids, max_new_tokens=14, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(generated.sequences, expected)
    assert generated.past_key_values is None
    assert model.generate(ids, max_new_tokens=14, num_beams=3, do_sample=False).shape == (2, 18)


def test_generation_stops_at_eos_and_fills_with_padding():
    model, ids = tiny_model(), random_ids(2, 4)
    free = greedy_by_hand(model, ids, 12)
    eos = int(free[0, 4 + 2])
    stopped = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=eos, pad_token_id=39)
    for row, whole in zip(stopped, free, strict=True):
        ends = (whole[4:] == eos).nonzero()
        n_kept = 4 + int(ends[0]) + 1 if len(ends) else whole.shape[0]
        assert torch.equal(row[:n_kept], whole[:n_kept])
        assert (row[n_kept:] == 39).all()
    assert int((stopped[0] == eos).sum()) >= 1


def test_default_length_is_twenty_new_tokens_beyond_any_prompt():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers recommends to set a length
        assert tiny_model().generate(random_ids(1, 30), do_sample=False).shape == (1, 50)


def test_scores_attentions_and_hidden_states_come_with_each_step():
    model, ids = tiny_model(), random_ids(2, 4)
    output = model.generate(
        ids,
        max_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert_close(torch.stack(output.logits).exp().sum(-1), torch.ones(3, 2))
    n_keys = [6 + 4, 6 + 1, 6 + 1]
    for step, q_len in enumerate([4, 1, 1]):
        assert [a.shape for a in output.attentions[step]] == [(2, 3, q_len, n_keys[step])] * 2
        assert [h.shape for h in output.hidden_states[step]] == [(2, q_len, 12)] * 3
    assert isinstance(output.past_key_values, TransfoXLCache)
    assert output.past_key_values.get_seq_length() == 4 + 2


class Listener(TextStreamer):
    """Keeps what a TextStreamer would print."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True)
        self.pieces = []

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append(text)


def test_streamer_hears_the_text_as_it_is_written():
    words = [f"w{i}" for i in range(40)]
    tokenizer = TransfoXLTokenizer.train(texts=[" ".join(words)], special=words, mode="whitespace", eos_token=None)
    model, ids = tiny_model(vocab_size=len(tokenizer)), random_ids(1, 4)
    listener = Listener(tokenizer)
    generated = model.generate(ids, max_new_tokens=12, do_sample=False, streamer=listener)
    assert "".join(listener.pieces) == tokenizer.decode(generated[0, 4:])
    assert len(listener.pieces) > 6


# Padding.


@pytest.mark.parametrize("name", [*STARTS_AND_SPANS, "shaw"])
@pytest.mark.parametrize("n_beams", [1, 3])
def test_left_padded_batch_equals_one_by_one(name, n_beams):
    model = tiny_model(**RECURRENT[name])
    rows = [random_ids(1, length, seed=length) for length in PADDED_LENGTHS]
    options = {"max_new_tokens": 14, "do_sample": False, "num_beams": n_beams}
    together = model.generate(**left_padded(rows), **options)
    for row, generated in zip(rows, together, strict=True):
        assert torch.equal(generated[-14:], model.generate(row, **options)[0, -14:])
        if n_beams == 1:
            assert torch.equal(generated[-14:], greedy_by_hand(model, row, 14)[0, -14:])


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
@pytest.mark.parametrize("n_beams", [1, 3])
def test_left_padded_batch_equals_one_by_one_without_memory(name, n_beams):
    model = tiny_model(**WITHOUT_MEMORY[name])
    rows = [random_ids(1, length, seed=length) for length in PADDED_LENGTHS]
    options = {"max_new_tokens": 14, "do_sample": False, "num_beams": n_beams}
    together = model.generate(**left_padded(rows), **options)
    for row, generated in zip(rows, together, strict=True):
        assert torch.equal(generated[-14:], model.generate(row, **options)[0, -14:])


# Continuing.


@pytest.mark.parametrize("name", STARTS_AND_SPANS)
@pytest.mark.parametrize("passes_all_ids", [True, False])
def test_generation_continues_from_a_returned_cache(name, passes_all_ids):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(3, 4)
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=9, **options)
    assert first.past_key_values.get_seq_length() == 4 + 8  # all but the newest token
    prompt = first.sequences if passes_all_ids else first.sequences[:, -1:]
    more = model.generate(prompt, past_key_values=first.past_key_values, max_new_tokens=8, **options)
    assert torch.equal(more.sequences[:, -8:], greedy_by_hand(model, ids, 17)[:, -8:])
    assert more.past_key_values is first.past_key_values
    assert more.past_key_values.get_seq_length() == 4 + 16


@pytest.mark.parametrize("name", STARTS_AND_SPANS)
@pytest.mark.parametrize("passes_all_ids", [True, False])
def test_padded_generation_continues_from_a_returned_cache(name, passes_all_ids):
    model = tiny_model(**RECURRENT[name])
    rows = [random_ids(1, length, seed=length) for length in PADDED_LENGTHS]
    batch = left_padded(rows)
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**batch, max_new_tokens=5, **options)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 5, dtype=torch.long)], dim=1)
    prompt = first.sequences if passes_all_ids else first.sequences[:, -1:]
    more = model.generate(
        prompt, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=8, **options
    )
    for row, generated in zip(rows, more.sequences, strict=True):
        assert torch.equal(generated[-8:], greedy_by_hand(model, row, 13)[0, -8:])


def test_cache_of_a_forward_pass_continues_in_generate():
    model, ids = tiny_model(), random_ids(2, 9)
    cache = model(ids[:, :8], use_cache=True).past_key_values
    generated = model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated, greedy_by_hand(model, ids, 6))


def test_copied_cache_starts_two_continuations():
    model, ids = tiny_model(init_std=0.2), random_ids(2, 4)
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=4, **options)
    copied = copy.deepcopy(first.past_key_values)
    greedy = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=6, **options)
    again = model.generate(first.sequences, past_key_values=copied, max_new_tokens=6, **options)
    assert torch.equal(greedy.sequences, again.sequences)


@pytest.mark.parametrize("name", STARTS_AND_SPANS)
@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"do_sample": True, "top_k": 1, "num_return_sequences": 3}], ids=str
)
def test_mems_prime_generation(name, options):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(2, 11)
    mems, prompt = model(ids[:, :7]).mems, ids[:, 7:]
    before = [mem.clone() for mem in mems]
    generated = model.generate(prompt, mems=mems, max_new_tokens=8, **options)
    expected = greedy_by_hand(model, prompt, 8, mems)
    assert torch.equal(generated, expected.repeat_interleave(options.get("num_return_sequences", 1), dim=0))
    assert all(torch.equal(mem, old) for mem, old in zip(mems, before, strict=True))


@pytest.mark.parametrize("name", STARTS_AND_SPANS)
def test_mems_prime_beam_search_as_a_cache_does(name):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(2, 11)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    generated = model.generate(ids[:, 7:], mems=model(ids[:, :7]).mems, **options)
    cache = model(ids[:, :7], use_cache=True).past_key_values
    cache.batch_repeat_interleave(3)
    assert torch.equal(generated, model.generate(ids, past_key_values=cache, **options)[:, 7:])


@pytest.mark.parametrize("name", FIXED_SPAN)
@pytest.mark.parametrize("chunk", [1, 4, 20])
def test_prompt_read_in_chunks_gives_the_same(name, chunk):
    model, ids = tiny_model(**RECURRENT[name]), random_ids(2, 13)
    generated = model.generate(ids, prefill_chunk_size=chunk, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated, greedy_by_hand(model, ids, 8))


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", FIXED_SPAN)
def test_padded_prompt_read_in_chunks_gives_the_same(name, chunk):
    model = tiny_model(**RECURRENT[name])
    rows = [random_ids(1, length, seed=length) for length in PADDED_LENGTHS]
    options = {"max_new_tokens": 8, "do_sample": False}
    generated = model.generate(**left_padded(rows), prefill_chunk_size=chunk, **options)
    assert torch.equal(generated, model.generate(**left_padded(rows), **options))


def test_embeddings_start_generation():
    model, ids = tiny_model(), random_ids(2, 5)
    embedded = model.transformer.word_emb(ids)
    generated = model.generate(inputs_embeds=embedded, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated, greedy_by_hand(model, ids, 8)[:, 5:])


# Refused, in one line.


def refused(kind: type[Exception], message: str):
    return pytest.raises(kind, match=rf"^[^\n]*{message}[^\n]*$")


def test_assisted_generation_is_refused():
    with refused(ValueError, "assisted generation is not supported with stateful models"):
        tiny_model().generate(random_ids(1, 4), assistant_model=tiny_model(seed=1), max_new_tokens=4)


def test_being_the_assistant_of_another_model_is_refused():
    torch.manual_seed(0)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=None))
    with refused(
        ValueError, "assistant_model must not be a Transformer-XL: its memory cannot take rejected tokens back"
    ):
        other.generate(random_ids(1, 4), assistant_model=tiny_model(dtype=torch.float32), max_new_tokens=12)


def test_prompt_lookup_is_refused():
    with refused(ValueError, "not supported with stateful models"):
        tiny_model().generate(random_ids(1, 8), prompt_lookup_num_tokens=2, max_new_tokens=4)


@pytest.mark.parametrize("kind", ["static", "quantized", "offloaded", "dynamic"])
def test_other_cache_implementations_are_refused(kind):
    with refused(
        ValueError, f"cache_implementation='{kind}' must be None: this model generates with its own TransfoXLCache"
    ):
        tiny_model().generate(random_ids(1, 4), cache_implementation=kind, max_new_tokens=4)


def other_caches():
    config = GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2)
    return [DynamicCache(), StaticCache(config=config, max_cache_len=20)]


@pytest.mark.parametrize("cache", other_caches(), ids=lambda cache: type(cache).__name__)
def test_caches_of_other_models_are_refused(cache):
    with refused(
        TypeError, f"past_key_values is a {type(cache).__name__} but must be a TransfoXLCache: pass the one that"
    ):
        tiny_model().generate(random_ids(1, 4), past_key_values=cache, max_new_tokens=4)


@pytest.mark.parametrize(
    "method", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"]
)
def test_continuous_batching_is_refused(method):
    with refused(
        ValueError, r"generate_batch \(continuous batching\) is not possible with a TransfoXLCache: use generate"
    ):
        getattr(tiny_model(), method)([[1, 2, 3]])


def test_cache_that_has_seen_the_whole_prompt_is_refused():
    model, ids = tiny_model(), random_ids(1, 4)
    cache = model(ids, use_cache=True).past_key_values
    with refused(ValueError, "input_ids has 4 tokens, and past_key_values has seen all: pass one more"):
        model.generate(ids, past_key_values=cache, max_new_tokens=4)


def test_mems_of_another_batch_are_refused():
    model = tiny_model()
    mems = model(random_ids(2, 4)).mems
    for n_rows in (1, 3, 4):
        with refused(
            ValueError, rf"mems\[0\] has shape \[6, 2, 12\] but must be \[M <= 6, batch {n_rows}, d_model 12\]"
        ):
            model.generate(random_ids(n_rows, 4), mems=mems, max_new_tokens=4)


@pytest.mark.parametrize(
    ("given", "mem_len", "use_cache"), [("mems", 6, False), ("mems", 0, True), ("inputs_embeds", 0, True)]
)
def test_start_other_than_ids_needs_a_cache(given, mem_len, use_cache):
    """Transformers itself turns the cache on for embeddings."""
    model = tiny_model(mem_len=mem_len)
    inputs = {"inputs_embeds": torch.zeros(1, 4, 12, dtype=torch.float64)}
    if given == "mems":
        inputs = {"input_ids": random_ids(1, 4), "mems": [torch.zeros(0, 1, 12)] * 2}
    with refused(ValueError, f"{given} must come with a cache in generate: set use_cache=True and mem_len > 0"):
        model.generate(**inputs, use_cache=use_cache, max_new_tokens=4)


def test_misspelt_argument_is_refused():
    with refused(ValueError, r"not used by the model: \['memory'\]"):
        tiny_model().generate(random_ids(1, 4), memory=[torch.zeros(6, 1, 12)], max_new_tokens=4)
