"""Drawing among the most probable tokens gives what sampling among all of them gives."""

from itertools import islice

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel
from transformer_xl.generation import Sampling, stream_tokens
from transformer_xl.sampling import PART, DrawAmongBest, k_highest

VOCABULARY = 40
SIZES = {"d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 12, "n_layer": 2, "mem_len": 5}


def random_scores(n_rows):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_rows, VOCABULARY, generator=generator, dtype=torch.float64).log_softmax(-1)


def probabilities(processors, scores):
    """What transformers samples by."""
    return LogitsProcessorList(processors)(torch.empty(len(scores), 0, dtype=torch.long), scores.clone()).softmax(-1)


CHAINS = {
    "top-k": [TopKLogitsWarper(7)],
    "all tokens": [TopKLogitsWarper(VOCABULARY)],
    "more than all tokens": [TopKLogitsWarper(VOCABULARY + 3)],
    "temperature": [TemperatureLogitsWarper(0.6), TopKLogitsWarper(7)],
    "temperature after": [TopKLogitsWarper(7), TemperatureLogitsWarper(1.7)],
    "top-p": [TemperatureLogitsWarper(0.6), TopKLogitsWarper(9), TopPLogitsWarper(0.7)],
    "min-p": [TopKLogitsWarper(9), TopPLogitsWarper(0.9), MinPLogitsWarper(0.3)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_chances_are_those_of_the_processors(name):
    scores = random_scores(5)
    tokens, chances = DrawAmongBest.in_place_of(LogitsProcessorList(CHAINS[name])).chances(scores.clone())
    assert_close(torch.zeros_like(scores).scatter(-1, tokens, chances), probabilities(CHAINS[name], scores))


@pytest.mark.parametrize("n_tokens", [1, PART - 1, PART, 4 * 5 * PART + PART, 50 * PART, 50 * PART + PART // 2 + 1])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("n_levels", [None, 3])
def test_the_highest_scores_are_found_part_by_part(n_tokens, k, n_levels):
    """Also where clusters were left out, where scores are alike, and where the highest lie beside each other."""
    scores = torch.randn(4, n_tokens, generator=torch.Generator().manual_seed(n_tokens))
    scores = scores if n_levels is None else scores.mul(n_levels).round()
    scores[1, n_tokens // 2 :] = float("-inf")
    scores[2, -3:] = torch.tensor([7.0, 9.0, 8.0])[-n_tokens:]
    scores[3, : n_tokens // 3] += 10
    k = min(k, n_tokens)
    best, tokens = k_highest(scores, k)
    assert torch.equal(best, scores.topk(k).values)
    assert torch.equal(scores.gather(-1, tokens), best)
    assert all(row.unique().numel() == k for row in tokens)


@pytest.mark.parametrize(
    "processors",
    [
        [],
        [TemperatureLogitsWarper(0.6)],
        [TopPLogitsWarper(0.9)],
        [TopPLogitsWarper(0.9), TopKLogitsWarper(3)],  # what top-p keeps depends on all tokens
        [RepetitionPenaltyLogitsProcessor(1.2), TopKLogitsWarper(3)],
        [TopKLogitsWarper(3), TypicalLogitsWarper(0.9)],
        [TopKLogitsWarper(3, filter_value=-1e4)],  # what is ruled out keeps a chance
    ],
)
def test_where_all_tokens_matter_nothing_draws_among_the_best(processors):
    assert DrawAmongBest.in_place_of(LogitsProcessorList(processors)) is None


def test_a_draw_leaves_one_token_of_each_row_possible():
    scores = random_scores(3)
    drawing = DrawAmongBest.in_place_of(LogitsProcessorList([TopKLogitsWarper(4)]))
    for _ in range(20):
        left = drawing(torch.empty(3, 0, dtype=torch.long), scores.clone())
        assert left.isfinite().sum(-1).tolist() == [1, 1, 1]
        assert all(left[row].argmax() in scores[row].topk(4).indices for row in range(3))


def tiny_model(cutoffs=()):
    torch.manual_seed(0)
    settings = {"cutoffs": list(cutoffs), "div_val": 1, "eos_token_id": None, "init_std": 0.5}
    return TransfoXLLMHeadModel(TransfoXLConfig(vocab_size=VOCABULARY, **settings, **SIZES)).eval()


@pytest.mark.parametrize("cutoffs", [[], [10, 20]])
def test_generate_draws_tokens_as_often_as_the_processors_say(cutoffs):
    model, n_rows = tiny_model(cutoffs), 4000
    prompt = torch.tensor([[3, 1], [2, 9]])
    torch.manual_seed(1)
    options = {"do_sample": True, "top_k": 6, "top_p": 0.9, "temperature": 1.5, "num_return_sequences": n_rows}
    drawn = model.generate(prompt, max_new_tokens=1, **options)[:, 2].view(2, n_rows)
    chain = [TemperatureLogitsWarper(1.5), TopKLogitsWarper(6), TopPLogitsWarper(0.9)]
    expected = probabilities(chain, model(prompt).logits[:, -1].double())
    for row in range(2):
        frequencies = torch.bincount(drawn[row], minlength=VOCABULARY) / n_rows
        assert (frequencies[expected[row] == 0] == 0).all()
        assert (frequencies - expected[row]).abs().max() < 4 * 0.5 / n_rows**0.5  # four standard deviations


@pytest.mark.parametrize("top_k", [0, 6])
def test_random_numbers_are_drawn_for_tokens_that_can_be_chosen_alone(top_k, monkeypatch):
    model, multinomial, widths = tiny_model(), torch.multinomial, []

    def watched(chances, *args, **options):
        widths.append(chances.shape[-1])
        return multinomial(chances, *args, **options)

    monkeypatch.setattr(torch, "multinomial", watched)
    model.generate(torch.tensor([[3, 1]]), max_new_tokens=3, do_sample=True, top_k=top_k)
    list(islice(stream_tokens(model, [3, 1], Sampling(top_k=top_k)), 3))
    assert widths == [top_k or VOCABULARY] * 6
