"""The corpus in the package, splits, and streams of segments."""

import re
from itertools import pairwise

import pytest
import torch

from transformer_xl.data.corpus import TRAIN_VALID_TEST, split_text, tiny_shakespeare
from transformer_xl.data.streams import IGNORED, evaluation_segments, ring_segment


def test_the_corpus_is_the_well_known_one():
    text = tiny_shakespeare()
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


def test_splits_together_are_the_text_in_order():
    text = tiny_shakespeare()
    parts = split_text(text)
    assert list(parts) == ["train", "valid", "test"]
    assert "".join(parts.values()) == text
    assert {name: len(part) for name, part in parts.items()} == {"train": 1_003_855, "valid": 55_769, "test": 55_770}
    assert sum(TRAIN_VALID_TEST.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "fractions", "message"),
    [
        ("abc", {"a": 0.5, "b": 0.4}, "fractions={'a': 0.5, 'b': 0.4} must be positive and add up to 1."),
        ("abc", {"a": 1.5, "b": -0.5}, "fractions={'a': 1.5, 'b': -0.5} must be positive and add up to 1."),
        ("ab", {"a": 0.9, "b": 0.1}, "text has 2 characters, which leaves none for 'b': pass a longer text."),
    ],
)
def test_impossible_splits_are_refused(text, fractions, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_text(text, fractions)


@pytest.mark.parametrize("length", [8, 9, 23])
def test_ring_rows_go_on_where_they_ended_and_read_everything(length):
    tokens = torch.arange(length)
    batch_size, segment_len = 3, 7
    ends = None
    seen = [[] for _ in range(batch_size)]
    for step in range(length):
        inputs, targets = ring_segment(tokens, step=step, batch_size=batch_size, segment_len=segment_len)
        assert inputs.shape == targets.shape == (batch_size, segment_len)
        assert torch.equal(targets, (inputs + 1) % length)  # the next token, in a ring of consecutive numbers
        if ends is not None:
            assert torch.equal(inputs[:, 0], ends)
        ends = targets[:, -1]
        for row, ids in zip(seen, inputs.tolist(), strict=True):
            row.extend(ids)
    # After `length` steps each row went round the ring as often as a segment has tokens.
    assert all(sorted(row) == sorted(list(range(length)) * segment_len) for row in seen)


def test_ring_rows_start_at_even_distances():
    inputs, _ = ring_segment(torch.arange(100), step=0, batch_size=4, segment_len=2)
    assert inputs[:, 0].tolist() == [0, 25, 50, 75]


def test_a_text_shorter_than_a_segment_is_refused():
    message = "segment_len=8 must be less than the 8 tokens of the text: lower it."
    with pytest.raises(ValueError, match=re.escape(message)):
        ring_segment(torch.arange(8), step=0, batch_size=1, segment_len=8)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [8, 20, 29])
@pytest.mark.parametrize("segment_len", [1, 4, 50])
def test_evaluation_predicts_every_token_but_the_first_once(batch_size, length, segment_len):
    tokens = torch.arange(length)
    targets_seen = []
    for inputs, targets in evaluation_segments(tokens, batch_size=batch_size, segment_len=segment_len):
        assert inputs.shape == targets.shape
        counts = targets != IGNORED
        assert torch.equal(targets[counts], inputs[counts] + 1)
        targets_seen += targets[counts].tolist()
    assert sorted(targets_seen) == list(range(1, length))


def test_evaluation_rows_go_on_where_they_ended():
    segments = list(evaluation_segments(torch.arange(41), batch_size=2, segment_len=6))
    for (_, before), (after, _) in pairwise(segments):
        assert torch.equal(before[:, -1], after[:, 0])


@pytest.mark.parametrize("batch_size", [0, 5])
def test_more_parts_than_targets_are_refused(batch_size):
    message = f"batch_size={batch_size} must be from 1 to 4, the targets of the text: lower it."
    with pytest.raises(ValueError, match=re.escape(message)):
        next(evaluation_segments(torch.arange(5), batch_size=batch_size, segment_len=2))
