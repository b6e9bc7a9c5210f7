"""Streams of segments: rows that go on where they ended, places that can be restored, on any number of processes."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch

from transformer_xl.data.streams import (
    IGNORED,
    OrderedStream,
    SentenceStream,
    evaluation_segments,
    evaluation_sentences,
    shuffled,
)


def text(length):
    """Every token is its own place, so a segment tells where it comes from."""
    return np.arange(length, dtype=np.uint16)


def sentences_of(lengths):
    """Tokens and boundaries of sentences with so many words; 0 is the boundary, other tokens count on."""
    tokens, places, word = [0], [0], 1
    for length in lengths:
        tokens += [*range(word, word + length), 0]
        word += length
        places.append(len(tokens) - 1)
    return np.array(tokens, dtype=np.uint16), np.array(places, dtype=np.uint32)


def same(one, other):
    resets = (one.reset is None) == (other.reset is None) and (one.reset is None or torch.equal(one.reset, other.reset))
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets) and resets


ORDERED = [
    {"segment_len": 4},
    {"segment_len": 3, "roll": True},
    {"segment_len": 20, "varied": True, "roll": True, "ext_len": 5},
    {"segment_len": 20, "varied": True, "ext_len": 30},
]


def ordered(options, n_tokens=331, **more):
    return OrderedStream(text(n_tokens), batch_size=4, seed=3, **options, **more)


def sentence_stream(options, **more):
    tokens, places = sentences_of([3, 1, 0, 12, 5, 4, 2, 9, 1])
    return SentenceStream(tokens, places, batch_size=4, segment_len=4, seed=3, **options, **more)


STREAMS = [(ordered, options) for options in ORDERED] + [(sentence_stream, {"packed": p}) for p in (False, True)]


# The ordered stream.


@pytest.mark.parametrize("n_tokens", [80, 83])
def test_rows_go_on_where_they_ended_and_start_evenly(n_tokens):
    stream = OrderedStream(text(n_tokens), batch_size=4, segment_len=7)
    before = stream.next_segment()
    assert before.inputs.shape == before.targets.shape == (4, 7)
    assert before.inputs.dtype == before.targets.dtype == torch.int64
    assert before.inputs[:, 0].tolist() == [n_tokens * row // 4 for row in range(4)]
    for _ in range(30):
        segment = stream.next_segment()
        assert torch.equal(segment.inputs[:, 0], (before.inputs[:, -1] + 1) % n_tokens)
        before = segment


def test_the_ring_reads_every_token_equally_often_and_resets_where_it_closes():
    n_tokens, n_steps = 30, 30
    stream = OrderedStream(text(n_tokens), batch_size=3, segment_len=4)
    seen = Counter()
    closed = torch.zeros(3, dtype=torch.bool)
    for _ in range(n_steps):
        segment = stream.next_segment()
        seen.update(segment.inputs.flatten().tolist())
        assert torch.equal(closed, torch.zeros(3, dtype=torch.bool) if segment.reset is None else segment.reset)
        is_last = segment.inputs == n_tokens - 1
        assert (segment.targets[is_last] == IGNORED).all()
        assert torch.equal(segment.targets[~is_last], segment.inputs[~is_last] + 1)
        closed = is_last.any(1)
    assert set(seen.values()) == {3 * 4 * n_steps // n_tokens}
    assert stream.epochs == 4 * n_steps / (n_tokens // 3)


def test_each_rolled_round_begins_elsewhere_with_a_reset_and_reads_every_token_once():
    n_tokens, starts = 41, set()
    stream = OrderedStream(text(n_tokens), batch_size=4, segment_len=5, roll=True)
    for round_number in range(6):
        segments = [stream.next_segment(), stream.next_segment()]
        starts.add(int(segments[0].inputs[0, 0]))
        assert segments[1].reset is None or not segments[1].reset.all()
        if round_number == 0:
            assert segments[0].reset is None
        else:
            assert segments[0].reset.all()
        seen = torch.cat([segment.inputs for segment in segments], dim=1)
        assert len(seen.unique()) == seen.numel() == 40
    assert len(starts) > 3


def test_varied_lengths_have_the_stated_distribution():
    stream = OrderedStream(text(60_000), batch_size=1, segment_len=70, varied=True)
    lengths = np.array([stream.next_segment().inputs.shape[1] for _ in range(4000)])
    assert lengths.min() >= 5
    assert lengths.max() <= 85
    is_short = lengths < 52
    assert 0.04 < is_short.mean() < 0.06
    assert abs(lengths[~is_short].mean() - 69.5) < 0.5
    assert abs(lengths[~is_short].std() - 5) < 0.3
    assert abs(lengths[is_short].mean() - 34.5) < 1.5


def test_context_before_a_segment_is_what_the_row_read_and_no_target():
    stream = OrderedStream(text(100), batch_size=2, segment_len=4, ext_len=6)
    assert [stream.next_segment().context_len for _ in range(4)] == [0, 4, 6, 6]
    segment = stream.next_segment()
    assert segment.inputs.shape == (2, 10)
    assert segment.inputs[0].tolist() == list(range(10, 20))
    assert (segment.targets[:, :6] == IGNORED).all()
    assert torch.equal(segment.targets[:, 6:], segment.inputs[:, 6:] + 1)


def test_context_does_not_reach_over_the_start_of_a_round():
    stream = OrderedStream(text(41), batch_size=4, segment_len=5, roll=True, ext_len=3)
    assert [stream.next_segment().context_len for _ in range(5)] == [0, 3, 0, 3, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"segment_len": 11},
            "batch_size=4 leaves 10 of 40 tokens to a row, but a segment may have 11: lower batch_size",
        ),
        ({"segment_len": 5, "varied": True}, "to a row, but a segment may have 20: lower batch_size or segment_len."),
        ({"segment_len": 5, "world_size": 3}, "batch_size=4 must be a multiple of 3, the number of processes"),
    ],
)
def test_impossible_streams_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ordered(options, n_tokens=40)


# All streams.


@pytest.mark.parametrize(("make", "options"), STREAMS)
@pytest.mark.parametrize("n_before", [0, 1, 7, 40])
def test_a_restored_place_goes_on_exactly(make, options, n_before):
    stream = make(options)
    for _ in range(n_before):
        stream.next_segment()
    state = json.loads(json.dumps(stream.state()))
    restored = make(options)
    restored.restore(state)
    for _ in range(25):
        assert same(stream.next_segment(), restored.next_segment())
    assert stream.state() == restored.state()
    assert stream.epochs == restored.epochs


@pytest.mark.parametrize(("make", "options"), STREAMS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_read_what_one_reads_also_after_a_change_of_their_number(make, options, world_size):
    whole = make(options)
    for n_processes in (world_size, 1, 4 // world_size):
        parts = [make(options, rank=rank, world_size=n_processes) for rank in range(n_processes)]
        for part in parts:
            part.restore(whole.state())
        for _ in range(12):
            expected, got = whole.next_segment(), [part.next_segment() for part in parts]
            assert torch.equal(expected.inputs, torch.cat([segment.inputs for segment in got]))
            assert torch.equal(expected.targets, torch.cat([segment.targets for segment in got]))
            n_rows = 4 // n_processes
            resets = [torch.zeros(n_rows, dtype=torch.bool) if s.reset is None else s.reset for s in got]
            expected_reset = torch.zeros(4, dtype=torch.bool) if expected.reset is None else expected.reset
            assert torch.equal(expected_reset, torch.cat(resets))
        assert all(part.state() == whole.state() for part in parts)


@pytest.mark.parametrize(("make", "options"), STREAMS)
def test_another_seed_gives_another_stream_only_where_something_is_random(make, options):
    one, other = make(options), make(options)
    other._seed = 99
    segments = [(one.next_segment(), other.next_segment()) for _ in range(9)]
    is_random = options.get("roll") or options.get("varied") or make is sentence_stream
    assert all(same(*pair) for pair in segments) != bool(is_random)


def test_a_place_of_another_stream_is_refused():
    stream = ordered({"segment_len": 4})
    with pytest.raises(ValueError, match="The saved place is in a stream with tokens=400, this one has 331: resume"):
        stream.restore(ordered({"segment_len": 4}, n_tokens=400).state())


# Sentences.


def test_a_row_reads_one_sentence_at_a_time_and_foretells_it_whole():
    tokens, places = sentences_of([3, 1, 0, 12, 5, 4, 2, 9, 1])
    stream = SentenceStream(tokens, places, batch_size=2, segment_len=4, seed=1)
    read = [[], []]
    finished = []
    for _ in range(40):
        segment = stream.next_segment()
        for row in range(2):
            counts = segment.targets[row] != IGNORED
            inputs, targets = segment.inputs[row][counts].tolist(), segment.targets[row][counts].tolist()
            if segment.reset is not None and segment.reset[row]:
                finished.append(tuple(read[row]))
                read[row] = [0]
                assert inputs[0] == 0
            assert inputs == [read[row][-1], *targets[:-1]]
            read[row] += targets
    known = {tuple(tokens[places[i] : places[i + 1] + 1].tolist()) for i in range(len(places) - 1)}
    assert {sentence for sentence in finished if sentence} == known


def test_rounds_have_other_orders():
    tokens, places = sentences_of([1] * 50)
    stream = SentenceStream(tokens, places, batch_size=1, segment_len=2, seed=1)
    rounds = [[int(stream.next_segment().targets[0, 0]) for _ in range(50)] for _ in range(3)]
    assert all(sorted(order) == sorted(range(1, 51)) for order in rounds)
    assert rounds[0] != rounds[1] != rounds[2] != sorted(rounds[2])


def test_packed_segments_are_full_and_have_each_sentence_once_a_round():
    lengths = [3, 1, 0, 12, 5, 4, 2, 9, 1]
    tokens, places = sentences_of(lengths)
    n_targets = sum(lengths) + len(lengths)
    stream = SentenceStream(tokens, places, batch_size=1, segment_len=n_targets, packed=True)
    for _ in range(3):
        segment = stream.next_segment()
        assert segment.reset is None
        assert sorted(segment.targets[0].tolist()) == sorted(tokens[1:].tolist())
        starts = segment.inputs[0] == 0
        assert int(starts.sum()) == len(lengths)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 20])
@pytest.mark.parametrize("segment_len", [1, 4, 50])
def test_sentences_are_evaluated_in_order_with_every_target_once(batch_size, segment_len):
    lengths = [3, 1, 0, 12, 5, 4, 2, 9, 1]
    tokens, places = sentences_of(lengths)
    targets, n_resets = [], 0
    for segment in evaluation_sentences(tokens, places, batch_size=batch_size, segment_len=segment_len):
        targets += segment.targets[segment.targets != IGNORED].tolist()
        n_resets += 0 if segment.reset is None else int(segment.reset.sum())
    assert sorted(targets) == sorted(tokens[1:].tolist())
    assert n_resets == len(lengths)


def test_a_text_without_sentences_is_refused():
    with pytest.raises(ValueError, match="must mark at least one sentence: prepare the text with --line-end sentence"):
        SentenceStream(text(5), np.array([0]), batch_size=1, segment_len=2)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000])
def test_a_shuffled_order_has_everything_once(n):
    for seed in range(3):
        order = shuffled(np.arange(n), n, (seed, 0))
        assert sorted(order.tolist()) == list(range(n))


def test_a_shuffled_order_is_no_trace_of_the_old_one():
    n = 20_000
    order = shuffled(np.arange(n), n, (7, 1))
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.03
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
    other = shuffled(np.arange(n), n, (7, 2))
    assert (order == other).mean() < 0.001
    # Which half of the order a thing lands in does not depend on its parity or its own half.
    for group in (np.arange(n) % 2 == 0, np.arange(n) < n // 2):
        assert abs((order[group] < n // 2).mean() - 0.5) < 0.02


# Evaluation.


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("ext_len", [0, 3, 100])
def test_evaluation_has_every_target_once_whatever_the_context_and_processes(ext_len, world_size):
    tokens, targets = text(47), []
    parts = [
        evaluation_segments(tokens, batch_size=4, segment_len=5, ext_len=ext_len, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for segments in zip(*parts, strict=True):
        for inputs, expected in segments:
            counts = expected != IGNORED
            assert torch.equal(inputs[counts] + 1, expected[counts])
            assert inputs.shape == (4 // world_size, inputs.shape[1])
            targets += expected[counts].tolist()
    assert sorted(targets) == list(range(1, 47))


def test_evaluation_context_is_what_precedes_in_the_same_part():
    segments = list(evaluation_segments(text(41), batch_size=2, segment_len=6, ext_len=8))
    assert [inputs.shape[1] for inputs, _ in segments] == [6, 12, 14, 10]
    for number, (inputs, targets) in enumerate(segments):
        context_len = min(8, 6 * number)
        assert inputs[:, 0].tolist() == [6 * number - context_len, 20 + 6 * number - context_len]
        assert (targets[:, :context_len] == IGNORED).all()


def test_arrays_and_tensors_are_read_alike():
    array = text(33)
    tensor = torch.from_numpy(array.astype(np.int64))
    for one, other in zip(
        evaluation_segments(array, batch_size=2, segment_len=5),
        evaluation_segments(tensor, batch_size=2, segment_len=5),
        strict=True,
    ):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
