"""Writing token by token, and text in pieces."""

import re
from itertools import chain, islice, pairwise, repeat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel, TransfoXLTokenizer
from transformer_xl.generation import LONGEST_LINE, Sampling, decode_stream, stream_text, stream_tokens, until_stop


def tiny_model(**changes):
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 12, "n_layer": 2, "mem_len": 5}
    settings = {
        "vocab_size": 11,
        "cutoffs": [],
        "div_val": 1,
        "eos_token_id": None,
        "init_std": 0.5,
        **sizes,
        **changes,
    }
    return TransfoXLLMHeadModel(TransfoXLConfig(**settings)).eval()


class Scripted:
    """A model whose log-probabilities are given, in place of a trained one."""

    def __init__(self, scores):
        self._scores = iter(scores)
        self.config = TransfoXLConfig(vocab_size=16, cutoffs=[], div_val=1, mem_len=4)
        self.device = torch.device("cpu")

    def __call__(self, ids, **_options):
        output = {"logits": next(self._scores).view(1, 1, -1), "past_key_values": None}
        return type("Output", (), output)


@pytest.mark.parametrize("initial_memory", ["zeros", "empty"])
@pytest.mark.parametrize("mem_len", [0, 5])
def test_greedy_tokens_are_those_of_generate(mem_len, initial_memory):
    model = tiny_model(mem_len=mem_len, initial_memory=initial_memory)
    prompt = [1, 2, 3, 4, 5, 6, 7]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
    assert list(islice(stream_tokens(model, prompt, Sampling(greedy=True)), 20)) == expected


@pytest.mark.parametrize("attn_type", [2, 3])
def test_models_of_absolute_positions_see_their_last_tgt_len_tokens(attn_type):
    model = tiny_model(attn_type=attn_type, mem_len=0, tgt_len=4)
    text = [1, 2, 3, 4, 5, 6]
    for token in islice(stream_tokens(model, text[:], Sampling(greedy=True)), 10):
        scores = model(torch.tensor([text[-4:]])).logits[0, -1]
        assert token == scores.argmax().item()
        text.append(token)


def test_a_long_prompt_is_read_in_segments_with_the_same_result():
    model = tiny_model(same_length=True)
    prompt = torch.randint(11, (1200,), generator=torch.Generator().manual_seed(0)).tolist()
    scores = model(torch.tensor([prompt])).logits[0, -1]
    assert next(stream_tokens(model, prompt, Sampling(greedy=True))) == scores.argmax().item()


@pytest.mark.parametrize("top_k", [0, 7])
def test_a_seed_gives_the_same_tokens_and_another_seed_others(top_k):
    model = tiny_model()
    runs = [list(islice(stream_tokens(model, [1], Sampling(seed=seed, top_k=top_k)), 30)) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("top_k", [0, 7])
def test_the_global_random_state_is_left_alone(top_k):
    model = tiny_model()
    before = torch.get_rng_state()
    list(islice(stream_tokens(model, [1], Sampling(top_k=top_k)), 5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2, seed=0), lambda p: p.topk(2).indices.tolist()),
        (Sampling(top_p=1e-6, seed=0), lambda p: [p.argmax().item()]),
        (Sampling(temperature=1e-4, seed=0), lambda p: [p.argmax().item()]),
    ],
)
def test_tokens_come_from_the_allowed_ones(sampling, allowed):
    model = tiny_model()
    scores = model(torch.tensor([[1, 2]])).logits[0, -1]
    seen = {next(stream_tokens(model, [1, 2], Sampling(**{**vars(sampling), "seed": seed}))) for seed in range(40)}
    assert seen == set(allowed(scores))


def test_temperature_changes_frequencies_as_the_formula_says():
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    model = Scripted(repeat(scores))
    tokens = stream_tokens(model, [1], Sampling(temperature=0.5, seed=0))
    counts = torch.bincount(torch.tensor(list(islice(tokens, 4000))), minlength=4)
    expected = torch.tensor([0.25, 0.09, 0.0225, 0.0025]) / 0.365  # squares, normalised
    assert (counts / 4000 - expected).abs().max() < 0.03  # four standard deviations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive: for the most probable tokens use greedy."),
        ({"temperature": float("nan")}, "temperature=nan must be positive: for the most probable tokens use greedy."),
        ({"top_k": -1}, "top_k=-1 must be at least 0: 0 keeps all tokens."),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1: 1 keeps all tokens."),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1: 1 keeps all tokens."),
    ],
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**options)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt must hold at least one token"):
        next(stream_tokens(tiny_model(), [], Sampling()))


WORDS = ["<eos>", "<unk>", "the", "cat", "sat", ",", ".", '"', "@-@", "@,@", "'s", "(", ")", "23", "000"]


def tokenizer(mode):
    symbols = list("abc \n") if mode == "characters" else WORDS
    names = {"unk_token": None, "eos_token": None} if mode == "characters" else {}
    made = TransfoXLTokenizer(special=symbols, mode=mode, **names)
    made.count_sents([symbols])
    made.build_vocab()
    return made


@pytest.mark.parametrize("mode", ["moses", "whitespace", "characters"])
@given(data=st.data())
def test_pieces_add_up_to_the_text_line_by_line(mode, data):
    """What was printed cannot be taken back, so each piece must be right when it comes."""
    made = tokenizer(mode)
    line = st.lists(st.integers(1, len(made) - 1), max_size=12)
    lines = data.draw(st.lists(line, min_size=1, max_size=3))
    tokens = (
        [token for ids in lines for token in [*ids, 0]][:-1]
        if mode != "characters"
        else list(chain.from_iterable(lines))
    )
    text = "".join(decode_stream(iter(tokens), made))
    expected = "\n".join(made.decode(ids) for ids in lines) if mode != "characters" else made.decode(tokens)
    assert text == expected


def test_new_words_join_the_prompt_as_in_one_text():
    made = tokenizer("moses")
    before = made.convert_tokens_to_ids(["the", "cat"])
    new = made.convert_tokens_to_ids([",", "the", "cat", "@-@", "cat", "sat", "."])
    assert "".join(decode_stream(iter(new), made, before=before)) == ", the cat-cat sat."


def test_a_line_without_end_is_cut_and_goes_on():
    made = tokenizer("whitespace")
    cat = made.convert_tokens_to_ids("cat")
    n_tokens = 2 * LONGEST_LINE + 10
    assert "".join(decode_stream(iter([cat] * n_tokens), made)) == " ".join(["cat"] * n_tokens)


def test_words_come_before_the_line_ends():
    made = tokenizer("moses")
    ids = made.convert_tokens_to_ids(["the", "cat", "sat", "the", "cat"])
    pieces = decode_stream(iter(ids), made)
    assert [next(pieces), next(pieces)] == ["the", " cat"]


@given(
    text=st.text("ab", max_size=30),
    cuts=st.lists(st.integers(0, 30)),
    stop=st.lists(st.text("ab", min_size=1, max_size=4)),
)
def test_text_ends_before_the_first_stop_text_however_it_is_cut(text, cuts, stop):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    found = [(place + len(s), place) for s in stop if (place := text.find(s)) >= 0]
    expected = text[: min(found)[1]] if found else text
    assert "".join(until_stop(iter(pieces), stop)) == expected


def test_stopping_takes_no_more_tokens_than_needed():
    taken = []

    def pieces():
        for piece in ["a", "b", "STOP", "c"]:
            taken.append(piece)
            yield piece

    assert "".join(until_stop(pieces(), ["STOP"])) == "ab"
    assert taken == ["a", "b", "STOP"]


def written(words, **options):
    made = tokenizer("whitespace")
    certain = torch.eye(len(made)).log()  # one row a token, which has all the probability
    model = Scripted(certain[made.convert_tokens_to_ids(words)])
    settings = {"sampling": Sampling(greedy=True), "length": len(words), **options}
    return "".join(stream_text(model, made, "the", **settings))


def test_an_end_symbol_is_a_line_break_unless_asked_to_stop():
    words = ["cat", "<eos>", "the", "cat"]
    assert written(words) == " cat\nthe cat"
    assert written(words, stop_at_eos=True) == " cat"


def test_text_ends_at_length_and_at_stop_texts():
    words = ["cat", "sat", ".", "the", "cat"]
    assert written(words, length=2) == " cat sat"
    assert written(words, stop=["nothing", ". the"]) == " cat sat "


def test_streamed_bytes_are_characters_as_soon_as_they_are_whole():
    tokenizer = TransfoXLTokenizer.train(texts=["aé€😀\n"], mode="bytes", unk_token=None, eos_token=None)
    ids = tokenizer.encode("é€a😀")
    assert list(decode_stream(iter(ids), tokenizer)) == ["é", "€", "a", "😀"]
    assert list(decode_stream(iter(ids[:-1]), tokenizer)) == ["é", "€", "a", "\ufffd"]
    assert "".join(decode_stream(iter(ids[1:] * 200), tokenizer)).count("€a😀") == 200
