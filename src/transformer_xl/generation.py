"""Writing: one token after the other, without end if wanted, at constant memory and constant time per token.

`model.generate` keeps all ids that it has made. Here a token leaves as soon as it is made, and only the model's memory
remains.

Shapes: V vocabulary.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .memory import TransfoXLCache
from .modeling import TransfoXLLMHeadModel
from .sampling import DrawAmongBest
from .tokenization import TransfoXLTokenizer

PROMPT_SEGMENT = 512  # tokens of a prompt that are read at once
LONGEST_LINE = 512  # tokens after which a line is cut for decoding, so that its cost stays bounded


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        greedy: always the most probable token; the others then have no effect.
        temperature: log-probabilities are divided by it; below 1 safer, above 1 wilder.
        top_k: choose among the so many most probable tokens; 0 for all.
        top_p: choose among the most probable tokens which together have this probability.
        seed: of the random numbers; None for another text each time.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be positive: for the most probable tokens use greedy."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0: 0 keeps all tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1: 1 keeps all tokens.")

    @property
    def n_best(self) -> int | None:
        """How many of the most probable tokens can be chosen; None where all can."""
        return 1 if self.greedy else self.top_k or None

    def processors(self) -> LogitsProcessorList:
        """The changes of the log-probabilities, in the order in which `model.generate` makes them."""
        processors = LogitsProcessorList()
        if self.temperature != 1:
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k > 0:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        return processors


def stream_tokens(model: TransfoXLLMHeadModel, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """Token ids after a prompt, one by one and without end; who reads them stops.

    With memory, each token costs the same however many came before. Without (`mem_len=0`) the text is read anew for
    each token: all of it, or its last `tgt_len` tokens for `attn_type` 2 and 3.

    Args:
        model: in evaluation mode.
        prompt: ids, at least one.
        sampling: how to choose.

    Raises:
        ValueError: the prompt is empty, or holds ids that the model does not know.
    """
    if not prompt:
        raise ValueError("prompt must hold at least one token: the model predicts what follows something.")
    generator = torch.Generator(model.device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    choose = _chooser(sampling, generator)
    start = _read_with_memory if model.config.mem_len else _read_again
    read = start(model, sampling.n_best)
    new = torch.tensor([list(prompt)], device=model.device)
    while True:
        with torch.no_grad():
            new = choose(read(new))
        yield int(new)


def _read_with_memory(model: TransfoXLLMHeadModel, n_best: int | None) -> Callable[[Tensor], Tensor]:
    """A function that reads new ids `[1, n]` and gives the log-probabilities of the next, `[1, V]`."""
    cache: TransfoXLCache | None = None

    def read(new: Tensor) -> Tensor:
        nonlocal cache
        for segment in new.split(PROMPT_SEGMENT, dim=1):
            output = model(segment, use_cache=True, past_key_values=cache, logits_to_keep=1, n_best=n_best)
            cache = output.past_key_values
        scores: Tensor = output.logits[:, -1]
        return scores

    return read


def _read_again(model: TransfoXLLMHeadModel, n_best: int | None) -> Callable[[Tensor], Tensor]:
    """As `_read_with_memory`, for a model without memory: it reads the whole text each time."""
    limit = model.config.tgt_len if model.config.attn_type in (2, 3) else 0  # 0 keeps all: a slice from -0
    text = torch.empty(1, 0, dtype=torch.long, device=model.device)

    def read(new: Tensor) -> Tensor:
        nonlocal text
        text = torch.cat([text, new], dim=1)[:, -limit:]
        scores: Tensor = model(text, logits_to_keep=1, n_best=n_best).logits[:, -1]
        return scores

    return read


def _chooser(sampling: Sampling, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A function that gives the next id `[1, 1]` for log-probabilities `[1, V]`."""
    if sampling.greedy:
        return lambda scores: scores.argmax(-1, keepdim=True)
    processors = sampling.processors()
    drawing = DrawAmongBest.in_place_of(processors, generator)
    if drawing is not None:
        return lambda scores: drawing.draw(scores.float())

    def choose(scores: Tensor) -> Tensor:
        # The processors here look at scores alone; the ids that they are handed serve others.
        chances = processors(scores.new_empty(1, 0, dtype=torch.long), scores.float()).softmax(-1)
        return torch.multinomial(chances, 1, generator=generator)

    return choose


def stream_text(
    model: TransfoXLLMHeadModel,
    tokenizer: Any,
    prompt: str,
    *,
    sampling: Sampling,
    length: int | None,
    stop: Sequence[str] = (),
    stop_at_eos: bool = False,
) -> Iterator[str]:
    """Text after a prompt, in pieces as they become certain.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompt: the text to go on from.
        sampling: how to choose.
        length: tokens to make; None for no end.
        stop: the text ends before the first of these.
        stop_at_eos: the text ends at the end symbol, which else is a line break.

    Raises:
        ValueError: the prompt holds no token, or symbols that the tokenizer does not know.
    """
    prompt_ids = tokenizer.encode(prompt)
    tokens: Iterator[int] = islice(stream_tokens(model, prompt_ids, sampling), length)
    if stop_at_eos:
        tokens = takewhile(lambda token: token != tokenizer.eos_token_id, tokens)
    return until_stop(decode_stream(tokens, tokenizer, before=prompt_ids), stop)


def decode_stream(tokens: Iterator[int], tokenizer: Any, *, before: Sequence[int] = ()) -> Iterator[str]:
    """The text of tokens, in pieces; an end symbol is a line break.

    In a model of words, what stands at the end of a line may still change with the next tokens (a comma moves to the
    word before, `@-@` joins two words), so the last two words are held back until more is known.

    Args:
        tokens: ids.
        tokenizer: gives their text.
        before: ids that precede; their text is not given, but decides how the first tokens are joined to it.
    """
    is_own = isinstance(tokenizer, TransfoXLTokenizer)
    if is_own and tokenizer.mode == "characters":
        yield from ("\n" if token == tokenizer.eos_token_id else tokenizer.decode([token]) for token in tokens)
        return
    if is_own and tokenizer.mode == "bytes":
        yield from _decode_bytes(tokens, tokenizer)
        return
    between_parts = " " if is_own else ""
    line = list(before)[-LONGEST_LINE // 2 :]
    printed = tokenizer.decode(line)
    for token in tokens:
        is_end = token == tokenizer.eos_token_id
        if not is_end:
            line.append(token)
        text = tokenizer.decode(line)
        if is_end or len(line) == LONGEST_LINE:
            yield text[len(printed) :] + ("\n" if is_end else between_parts)
            line, printed = [], ""
            continue
        certain = _without_last_words(text, 2)
        if len(certain) > len(printed):
            yield certain[len(printed) :]
            printed = certain
    yield tokenizer.decode(line)[len(printed) :]


def _decode_bytes(tokens: Iterator[int], tokenizer: TransfoXLTokenizer) -> Iterator[str]:
    """The text of bytes, each character when its last byte is there; what is not UTF-8 becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        symbol = "\n" if token == tokenizer.eos_token_id else str(tokenizer.convert_ids_to_tokens(token))
        data = symbol.encode("latin-1" if len(symbol) == 1 and ord(symbol) < 256 else "utf-8")
        if text := decoder.decode(data):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def _without_last_words(text: str, n_words: int) -> str:
    end = len(text)
    for _ in range(n_words):
        end = text.rfind(" ", 0, end)
        if end < 0:
            return ""
    return text[:end]


def until_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """The text of `pieces` up to the text in `stop` that is complete first, again in pieces."""
    longest = max(map(len, stop), default=0)
    held = ""  # what may be the beginning of a stop text
    for piece in pieces:
        held += piece
        found = [(place + len(text), place) for text in stop if (place := held.find(text)) >= 0]
        if found:
            yield held[: min(found)[1]]
            return
        certain = len(held) - max(longest - 1, 0)
        if certain > 0:
            yield held[:certain]
            held = held[certain:]
    yield held


__all__ = ["Sampling", "decode_stream", "stream_text", "stream_tokens", "until_stop"]
