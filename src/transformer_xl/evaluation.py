"""How well a language model predicts a text.

Text is read either in segments, with the memory of all that came before (Dai et al. 2019, section 3.2), or through a
window that moves on by one token (Al-Rfou et al. 2019; the baseline of Dai et al. 2019, table 9).

Shapes: B parts of the text read at once, Q tokens of a segment, T tokens of the text, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .data.streams import IGNORED, Places, TokenIds, evaluation_segments, evaluation_sentences
from .memory import TransfoXLCache
from .modeling import TransfoXLLMHeadModel, check_ids

if TYPE_CHECKING:
    from accelerate import Accelerator

WINDOWS_AT_ONCE = 32  # unless asked otherwise
TOKENS_AT_ONCE = 512  # in a call, of all rows: products with fewer rows leave a processor waiting for their weights
ReadSegment = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Takes inputs and targets, `[B, Q]` each, and gives the targets' losses in nats, `[B, Q]`, 0 where ignored.

It keeps what it has read: each call goes on where the one before ended, but for the rows where the third argument,
`[B]` bool or None for nowhere, is True: these begin anew.
"""


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate`.

    Attributes:
        loss_nats: mean negative log-likelihood of a token.
        n_tokens: how many tokens were predicted.
        n_cold_starts: how often reading began without knowing what came before.
        seconds: how long it took.
        loss_by_position: mean loss in nats at each place of a segment, from the first to the last; empty for a moving
            window, which has one place only.
    """

    loss_nats: float
    n_tokens: int
    n_cold_starts: int
    seconds: float
    loss_by_position: tuple[float, ...] = ()

    @property
    def bits_per_token(self) -> float:
        """The loss in bits: bits per character for a model of characters."""
        return self.loss_nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where that is beyond all numbers."""
        return math.exp(self.loss_nats) if self.loss_nats < 709 else math.inf

    @property
    def tokens_per_s(self) -> float:
        """Tokens predicted in a second."""
        return self.n_tokens / self.seconds


def evaluate(
    model: TransfoXLLMHeadModel,
    tokens: TokenIds,
    *,
    batch_size: int | None = None,
    tgt_len: int | None = None,
    ext_len: int | None = None,
    mem_len: int | None = None,
    clamp_len: int | None = None,
    same_length: bool | None = None,
    temperature: float = 1.0,
    sliding_window: bool = False,
    sentences: Places | None = None,
    on_progress: Callable[[int], object] | None = None,
    accelerator: "Accelerator | None" = None,
) -> Evaluation:
    """Predict each token of a text but the first, once, and say how well.

    Args:
        model: the model; it is in training mode afterwards if it was before.
        tokens: `[T]`, on any device; a memory-mapped array is read as it is needed.
        batch_size: B, the parts that the text is cut into, each of which starts without memory, default 1; with
            `sliding_window`, the windows computed at once, which do not change the result, default 32.
        tgt_len: Q, the tokens of one call; with `sliding_window`, those of a window. Where the model has memory and a
            fixed span (`same_length`), it does not change the result. Default: the configuration's.
        ext_len: without memory, so many tokens before a segment are read again with it, as context. Default: the
            configuration's, 0 with memory.
        mem_len, clamp_len, same_length: see `context_lengths`; 0 for `mem_len` makes each segment stand alone.
        temperature: the log-probabilities are divided by it and normalised again; above 1 milder.
        sliding_window: read through a window that moves on by one token and predicts one. Needs `mem_len` 0.
        sentences: where unrelated sentences begin and end, `[N + 1]`, as `PreparedCorpus.sentences` gives it: each is
            then read without memory of the others, B of them at once. None for a running text.
        on_progress: called with the number of tokens that each step predicted.
        accelerator: processes that share the parts out, if there are several: all call, and all get the whole result.

    Raises:
        ValueError: the text is too short for so many parts, or holds ids that the model does not know; a setting is
            impossible for this model.
    """
    if len(tokens) < 2:
        raise ValueError(
            f"tokens holds {len(tokens)} but must hold at least 2: the first is only context for the second."
        )
    if batch_size is None:
        batch_size = WINDOWS_AT_ONCE if sliding_window else 1
    was_training = model.training
    model.eval()
    started = perf_counter()
    try:
        with context_lengths(model, mem_len=mem_len, clamp_len=clamp_len, same_length=same_length):
            read = start_reading(
                model, tgt_len=tgt_len, ext_len=ext_len, temperature=temperature, sliding_window=sliding_window
            )
            segment_len = batch_size if sliding_window else model.config.tgt_len if tgt_len is None else tgt_len
            n_at_once = 1 if sliding_window else segments_at_once(model, segment_len, batch_size)
            share = {}
            if accelerator is not None:
                share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
            if sentences is None:
                n_parts = 1 if sliding_window else batch_size
                segments = _of_running_text(tokens, n_parts, segment_len * n_at_once, **share)
            else:
                _check_sentences(model, ext_len, sliding_window)
                segments = _of_sentences(tokens, sentences, batch_size, segment_len, **share)
            keeps_context = sliding_window or model.config.mem_len > 0 or extension_len(model, ext_len) > 0
            sums, counts, n_cold_starts = _sums_by_position(read, segments, segment_len, keeps_context, on_progress)
            if accelerator is not None and accelerator.num_processes > 1:
                sums, counts, n_cold_starts = _added_up(sums, counts, n_cold_starts, accelerator)
    finally:
        model.train(was_training)
    return Evaluation(
        loss_nats=float(sums.sum() / counts.sum()),
        n_tokens=int(counts.sum()),
        n_cold_starts=n_cold_starts,
        seconds=perf_counter() - started,
        loss_by_position=() if sliding_window else tuple((sums / counts).tolist()),
    )


_Segments: TypeAlias = Iterator[tuple[Tensor, Tensor, Tensor | None]]


def _of_running_text(tokens: TokenIds, batch_size: int, segment_len: int, **share: int) -> _Segments:
    is_first = True
    for inputs, targets in evaluation_segments(tokens, batch_size=batch_size, segment_len=segment_len, **share):
        yield inputs, targets, torch.ones(len(inputs), dtype=torch.bool) if is_first else None
        is_first = False


def _of_sentences(tokens: TokenIds, sentences: Places, batch_size: int, segment_len: int, **share: int) -> _Segments:
    for segment in evaluation_sentences(tokens, sentences, batch_size=batch_size, segment_len=segment_len, **share):
        yield segment.inputs, segment.targets, segment.reset


def _check_sentences(model: TransfoXLLMHeadModel, ext_len: int | None, sliding_window: bool) -> None:
    if sliding_window or extension_len(model, ext_len):
        name = "sliding_window=True" if sliding_window else f"ext_len={extension_len(model, ext_len)}"
        raise ValueError(f"{name} must not go with sentences, whose ends it passes over: leave one out.")


@torch.no_grad()
def _sums_by_position(
    read: ReadSegment,
    segments: _Segments,
    segment_len: int,
    keeps_context: bool,
    on_progress: Callable[[int], object] | None,
) -> tuple[Tensor, Tensor, int]:
    """Losses added up, and how many, at each place of a segment, `[Q]` in float64; and how many rows began anew.

    What is read at once may be several segments.
    """
    sums = counts = torch.zeros(0, dtype=torch.float64)
    n_cold_starts = 0
    for inputs, targets, begins in segments:
        is_target = targets != IGNORED
        is_cold = is_target.any(1)
        if keeps_context:
            is_cold &= False if begins is None else begins
        n_cold_starts += int(is_cold.sum())
        if len(sums) == 0:  # the first segment is the longest
            sums, counts = (torch.zeros(min(inputs.shape[1], segment_len), dtype=torch.float64) for _ in range(2))
        losses = read(inputs, targets, begins)
        position = torch.arange(inputs.shape[1]) % segment_len
        sums.index_add_(0, position, losses.sum(0).double().cpu())
        counts.index_add_(0, position, is_target.sum(0).double())
        if on_progress is not None:
            on_progress(int(is_target.sum()))
    return sums, counts, n_cold_starts


def _added_up(
    sums: Tensor, counts: Tensor, n_cold_starts: int, accelerator: "Accelerator"
) -> tuple[Tensor, Tensor, int]:
    """What `_sums_by_position` gave on all processes together."""
    own = torch.cat([sums, counts, torch.tensor([float(n_cold_starts)], dtype=torch.float64)])
    total: Tensor = accelerator.reduce(own.to(accelerator.device), "sum").cpu()
    return total[: len(sums)], total[len(sums) : -1], int(total[-1])


@contextmanager
def context_lengths(
    model: TransfoXLLMHeadModel,
    *,
    mem_len: int | None = None,
    clamp_len: int | None = None,
    same_length: bool | None = None,
) -> Iterator[None]:
    """Let the model see more or less of the past within the block; None leaves what its configuration says.

    Args:
        model: the model; its configuration is changed and put back.
        mem_len: tokens remembered.
        clamp_len: distances beyond this count as this; 0 and below turn it off.
        same_length: whether every token sees the same number of tokens.

    Raises:
        ValueError, TypeError: a value is impossible for this model.
    """
    config = model.config
    wanted = {"mem_len": mem_len, "clamp_len": clamp_len, "same_length": same_length}
    previous = {name: getattr(config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(config, name, previous[name] if value is None else value)
        config.check()
        yield
    finally:
        for name, value in previous.items():
            setattr(config, name, value)


def start_reading(
    model: TransfoXLLMHeadModel,
    *,
    tgt_len: int | None = None,
    ext_len: int | None = None,
    temperature: float = 1.0,
    sliding_window: bool = False,
) -> ReadSegment:
    """A function that reads a text segment after segment and gives the loss of each token.

    Args:
        model: in evaluation mode.
        tgt_len, ext_len, temperature, sliding_window: as for `evaluate`. What is read in a call may have any length up
            to `tgt_len` times `segments_at_once`, with `sliding_window` any length at all.

    Raises:
        ValueError: a setting is impossible for this model.
    """
    tgt_len = model.config.tgt_len if tgt_len is None else tgt_len
    if tgt_len < 1:
        raise ValueError(f"tgt_len={tgt_len} must be at least 1.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be positive and finite: 1 leaves the model as it is.")
    mem_len = model.config.mem_len
    if not sliding_window:
        return _read_segments(model, tgt_len, temperature, extension_len(model, ext_len))
    if mem_len or ext_len:
        name = f"mem_len={mem_len}" if mem_len else f"ext_len={ext_len}"
        raise ValueError(
            f"sliding_window=True must not go with {name}, as a window sees its own tokens only: pass 0 for it, or "
            "leave sliding_window out."
        )
    return _read_windows(model, temperature, tgt_len)


def segments_at_once(model: TransfoXLLMHeadModel, tgt_len: int, batch_size: int) -> int:
    """How many segments of a running text are best read in one call, with the losses of one call for each."""
    return 1 if model.config.mem_len == 0 else max(TOKENS_AT_ONCE // (batch_size * tgt_len), 1)


def extension_len(model: TransfoXLLMHeadModel, ext_len: int | None) -> int:
    """The tokens that are read again before each segment; None asks for what `evaluate` does then.

    Raises:
        ValueError: it is negative, or there is memory, which would hold the same tokens.
    """
    if ext_len is None:
        return 0 if model.config.mem_len else model.config.ext_len
    if ext_len < 0 or (ext_len and model.config.mem_len):
        rule = "be at least 0" if ext_len < 0 else f"be 0 with memory (mem_len={model.config.mem_len}): pass mem_len=0"
        raise ValueError(f"ext_len={ext_len} must {rule}.")
    return ext_len


def _read_segments(model: TransfoXLLMHeadModel, tgt_len: int, temperature: float, ext_len: int) -> ReadSegment:
    """Segments with memory; without any (`mem_len=0`) each stands alone, but for the `ext_len` tokens before it."""
    cache: TransfoXLCache | None = None
    past: Tensor | None = None

    def read(inputs: Tensor, targets: Tensor, begins: Tensor | None) -> Tensor:
        nonlocal cache, past
        _check(model, inputs, targets)
        n_new = inputs.shape[1]
        if ext_len:
            assert begins is None or past is None  # all rows go on together
            inputs = inputs if past is None else torch.cat([past, inputs], dim=1)
            past = inputs[:, -ext_len:]
            targets = F.pad(targets, (inputs.shape[1] - n_new, 0), value=IGNORED)
        if cache is not None and begins is not None:
            cache.reset_rows(begins)
        if cache is None and model.config.mem_len:
            cache = TransfoXLCache(model.config, segment_len=tgt_len, n_segments=-(-n_new // tgt_len))
        targets = targets.to(model.device)
        output = model(
            inputs.to(model.device),
            shift_labels=targets,
            skip_logits=temperature == 1,
            past_key_values=cache,
        )
        losses: Tensor = output.losses
        if temperature != 1:
            losses = _tempered(output.logits, targets, temperature)
        return losses[:, -n_new:]

    return read


def _read_windows(model: TransfoXLLMHeadModel, temperature: float, window_len: int) -> ReadSegment:
    """For each token a window of the last `window_len`; at the start of the text, of as many as there are."""
    past = torch.empty(1, 0, dtype=torch.long)

    def read(inputs: Tensor, targets: Tensor, begins: Tensor | None) -> Tensor:
        nonlocal past
        assert len(inputs) == 1  # windows are what is computed at once
        assert begins is None or past.shape[1] == 0
        _check(model, inputs, targets)
        text = torch.cat([past, inputs.cpu()], dim=1)
        width = min(window_len, text.shape[1])
        n_missing = max(width - 1 - past.shape[1], 0)  # before the first window
        windows = F.pad(text, (n_missing, 0))[0].unfold(0, width, 1)[-inputs.shape[1] :]  # [windows, width]
        is_there = F.pad(torch.ones_like(text), (n_missing, 0))[0].unfold(0, width, 1)[-inputs.shape[1] :]
        output = model(
            windows.to(model.device),
            attention_mask=is_there.to(model.device) if n_missing else None,
            logits_to_keep=1,
        )
        past = text[:, text.shape[1] - min(window_len - 1, text.shape[1]) :]
        return _tempered(output.logits.transpose(0, 1), targets.to(model.device), temperature)

    return read


def _check(model: TransfoXLLMHeadModel, inputs: Tensor, targets: Tensor) -> None:
    """Refuse unknown ids; before they reach a GPU, which cannot say so in one line."""
    check_ids(inputs.cpu(), model.config.vocab_size, name="tokens")
    check_ids(targets.cpu(), model.config.vocab_size, name="tokens", ignored=IGNORED)


def _tempered(log_prob: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Losses `[B, Q]` of targets under the softmax of `log_prob [B, Q, V] / temperature`."""
    return F.cross_entropy((log_prob / temperature).mT, targets, reduction="none", ignore_index=IGNORED)


__all__ = [
    "WINDOWS_AT_ONCE",
    "Evaluation",
    "ReadSegment",
    "context_lengths",
    "evaluate",
    "extension_len",
    "segments_at_once",
    "start_reading",
]
