"""A text as a model reads it: tokens in order, each with its place in the text, at constant memory.

The tokens are those of `transformer-xl prepare`, line by line. A line ends with the tokenizer's `eos_token` if it has
one, in character mode only if the line break itself is no symbol. Where there is none but `<S>` is in the vocabulary,
as in the authors' for One Billion Word, that stands at both ends of a line.

Shapes: T tokens of the text.
"""

import re
from array import array
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .tokenization import DOUBLE_EOS, TransfoXLTokenizer

PIECE_LEN = 1 << 16  # bytes that are read at once; a longer line is cut, word by word
_PLAIN_MARKS = str.maketrans("„“”«»´‘‚’`–—", "\"\"\"\"\"'''''--")  # what the Moses rules write for them, one for one
_ANY_LINE_BREAK = re.compile(r"\r\n|\n|\r(?=[^\n])")  # a \r at the end may be the first half of one
_NEW_LINE = re.compile(r"\n")
_FARTHEST = 64  # characters in which a token is looked for where the tokenizer wrote the text anew


class Piece(NamedTuple):
    """A line, or a part of a long one.

    Attributes:
        text: its characters, the line break included.
        line: its line, from 1.
        start: characters before it.
        starts_line, ends_line: whether it holds the start and the end of its line.
        is_last: whether the text ends with it.
    """

    text: str
    line: int
    start: int
    starts_line: bool
    ends_line: bool
    is_last: bool = False

    @property
    def is_line(self) -> bool:
        """Whether it is a whole line."""
        return self.starts_line and self.ends_line


class Token(NamedTuple):
    """What the model reads at once.

    Attributes:
        text: as the tokenizer gives it; for a token outside the vocabulary, the token itself.
        id: its id.
        line: its line, from 1.
        start, end: its place in the text, in characters from 0; equal where no character stands for the token.
        source: the characters there.
        after_space: whether white space or nothing precedes it in the line.
        is_mark: whether it is the mark of a line's end (or start), which is no part of the line.
    """

    text: str
    id: int
    line: int
    start: int
    end: int
    source: str
    after_space: bool
    is_mark: bool


@dataclass(frozen=True)
class TextIds:
    """A text as ids, and what the ids to be predicted stand for.

    Attributes:
        ids: `[T]` int64; the first is context only.
        n_characters: characters that the other ids stand for, the white space before each included.
        n_bytes: the same in UTF-8.
        n_unknown: how many of the other ids are the unknown token's.
    """

    ids: Tensor
    n_characters: int
    n_bytes: int
    n_unknown: int


class TextReader:
    """Reads one text with one tokenizer.

    Args:
        tokenizer: the model's.
        source: how error messages call the text.
        line_marks: whether the ends of lines are tokens; without, a line break is white space like any other.

    Raises:
        TypeError: the tokenizer is not a `TransfoXLTokenizer`, whose rules alone are known here.
    """

    def __init__(self, tokenizer: TransfoXLTokenizer, *, source: str, line_marks: bool = True) -> None:
        if not isinstance(tokenizer, TransfoXLTokenizer):
            raise TypeError(
                f"tokenizer is a {type(tokenizer).__name__} but must be a TransfoXLTokenizer: for tokens of another "
                "kind, pass their ids to transformer_xl.evaluation.evaluate."
            )
        self.tokenizer = tokenizer
        self.source = source
        self.is_bytes = tokenizer.mode == "bytes"
        self.is_characters = self.is_bytes or tokenizer.mode == "characters"
        known = tokenizer.get_vocab()
        eos, unk = tokenizer.eos_token, tokenizer.unk_token
        self.eos_id: int | None = None if eos is None else known[str(eos)]
        self.unknown_id: int | None = None if unk is None else known[str(unk)]
        self._before: list[str] = []
        self._after: list[str] = []
        reads_breaks = self.is_characters and "\n" in known
        self._drops_last_break = self.is_characters and not reads_breaks and unk is None
        if line_marks and not reads_breaks and eos is not None:
            self._after = [str(eos)]
        elif line_marks and not self.is_characters and DOUBLE_EOS in known:
            self._before = self._after = [DOUBLE_EOS]

    @property
    def line_mark(self) -> str | None:
        """The token at the end of a line (`<S>` also at its start); None if there is none."""
        return self._after[0] if self._after else None

    def pieces(self, file: BinaryIO) -> Iterator[Piece]:
        """The text in pieces, in order.

        Args:
            file: the text in UTF-8, opened in binary mode; a byte order mark at its start is no part of it.

        Raises:
            ValueError: the text is not UTF-8.
        """
        cut_anywhere = self.is_characters and not self.tokenizer.added_tokens_decoder
        line_break = _NEW_LINE if self.is_characters else _ANY_LINE_BREAK
        blocks = _bytes_as_characters(file) if self.is_bytes else _decoded(file, self.source)
        pieces = _pieces(blocks, line_break, cut_anywhere=cut_anywhere)
        held = next(pieces, None)
        for piece in pieces:
            assert held is not None
            yield held
            held = piece
        if held is not None:
            yield held._replace(is_last=True)

    def read(self, piece: Piece) -> tuple[list[str], list[int]]:
        """The tokens of a piece and their ids, marks included.

        Raises:
            ValueError: a symbol is not in the vocabulary and the tokenizer has no token for such.
        """
        text = piece.text
        if self.is_characters and piece.ends_line and (self._after or (self._drops_last_break and piece.is_last)):
            text = text.removesuffix("\n").removesuffix("\r")
        tokens = list(text) if self.is_bytes else self.tokenizer.tokenize(text)
        if piece.starts_line and self._before:
            tokens = [*self._before, *tokens]
        if piece.ends_line and self._after:
            tokens = [*tokens, *self._after]
        try:
            return tokens, self.tokenizer.convert_tokens_to_ids(tokens)
        except ValueError as error:
            raise ValueError(f"{self.source}, line {piece.line}: {error}") from None

    def places(self, piece: Piece, tokens: Sequence[str]) -> list[tuple[int, int]]:
        """Start and end of each token of `read` in `piece.text`."""
        n_before = len(self._before) if piece.starts_line else 0
        n_after = len(self._after) if piece.ends_line else 0
        inner = tokens[n_before : len(tokens) - n_after]
        line_end = len(piece.text.rstrip("\r\n")) if n_after else len(piece.text)
        delimiter = self.tokenizer.delimiter
        text = piece.text.replace(delimiter, " " * len(delimiter)) if delimiter else piece.text
        found = locate(inner, text, lower_case=self.tokenizer.lower_case)
        return [(0, 0)] * n_before + found + [(line_end, len(piece.text))] * n_after

    def tokens(self, piece: Piece, *, follows_space: bool = True) -> Iterator[Token]:
        """The tokens of a piece with their places; `follows_space`: whether white space precedes the piece."""
        tokens, ids = self.read(piece)
        n_before = len(self._before) if piece.starts_line else 0
        first_after = len(tokens) - (len(self._after) if piece.ends_line else 0)
        for i, (token, token_id, (start, end)) in enumerate(zip(tokens, ids, self.places(piece, tokens), strict=True)):
            yield Token(
                text=token,
                id=token_id,
                line=piece.line,
                start=piece.start + start,
                end=piece.start + end,
                source=piece.text[start:end],
                after_space=self.is_space(piece.text[start - 1]) if start else follows_space,
                is_mark=not n_before <= i < first_after,
            )

    def read_ids(self, file: BinaryIO, *, start_with_eos: bool = False, limit: int | None = None) -> TextIds:
        """A whole text as ids.

        Args:
            file: as for `pieces`.
            start_with_eos: put `<eos>` in front, so that the text's first token is predicted as well.
            limit: stop after so many tokens to be predicted.

        Raises:
            ValueError: the text has no token to predict, or holds unknown symbols; `start_with_eos` without `<eos>`.
        """
        ids = array("q", [self.need_eos()] if start_with_eos else [])
        wanted = None if limit is None else limit + 1
        read = np.zeros(2, dtype=np.int64)  # characters and bytes up to here
        context = read.copy() if start_with_eos else None  # those up to the end of the first token
        for piece in self.pieces(file):
            tokens, new_ids = self.read(piece)
            ends = len(piece.text)
            if new_ids and context is None:
                context = read + self._sizes(piece.text[: self.places(piece, tokens)[0][1]])
            if wanted is not None and len(ids) + len(new_ids) >= wanted:
                n_last = wanted - len(ids)
                ends = self.places(piece, tokens)[n_last - 1][1]
                new_ids = new_ids[:n_last]
            ids.extend(new_ids)
            read += self._sizes(piece.text[:ends])
            if len(ids) == wanted:
                break
        if len(ids) < 2:
            raise ValueError(self.too_short(len(ids)))
        assert context is not None
        tensor = torch.frombuffer(ids, dtype=torch.int64).clone()
        n_unknown = 0 if self.unknown_id is None else int((tensor[1:] == self.unknown_id).sum())
        n_characters, n_bytes = (read - context).tolist()
        return TextIds(tensor, n_characters, n_bytes, n_unknown)

    def _sizes(self, text: str) -> tuple[int, int]:
        """Characters of a text, and bytes in UTF-8."""
        if self.is_bytes:
            return sum(ord(byte) & 0xC0 != 0x80 for byte in text), len(text)
        return len(text), len(text.encode("utf-8"))

    def is_space(self, characters: str) -> bool:
        """Whether characters of the text are white space; most bytes that look like it are parts of characters."""
        return characters.isspace() and (characters.isascii() or not self.is_bytes)

    def display(self, characters: str) -> str:
        """Characters of the text as they are to be shown: bytes as the text that they are."""
        return characters.encode("latin-1").decode("utf-8", "replace") if self.is_bytes else characters

    def need_eos(self) -> int:
        """The id of `<eos>`, with which a text may be made to start.

        Raises:
            ValueError: the tokenizer has none.
        """
        if self.eos_id is None:
            raise ValueError("start_with_eos=True needs an eos_token, and the tokenizer has none: leave it out.")
        return self.eos_id

    def too_short(self, n_tokens: int) -> str:
        """What is wrong with a text of so few tokens that none can be predicted."""
        count = {0: "no token", 1: "one token"}.get(n_tokens, "only documents of one token")
        return f"{self.source} holds {count} but must hold at least two: the first is only context for the second."


def _decoded(file: BinaryIO, source: str) -> Iterator[str]:
    decode = getincrementaldecoder("utf-8-sig")().decode
    line = 1
    try:
        while data := file.read(PIECE_LEN):
            yield decode(data)
            line += data.count(b"\n")
        yield decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise ValueError(
            f"{source}, line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}): convert the file, for "
            "example with iconv -t UTF-8."
        ) from None


def _bytes_as_characters(file: BinaryIO) -> Iterator[str]:
    while data := file.read(PIECE_LEN):
        yield data.decode("latin-1")


def _pieces(blocks: Iterator[str], line_break: re.Pattern[str], *, cut_anywhere: bool) -> Iterator[Piece]:
    """Lines, and parts of long ones, which are cut after white space unless `cut_anywhere`."""
    line, start, starts_line, rest = 1, 0, True, ""
    for block in blocks:
        unread, begin = rest + block, 0
        for found in line_break.finditer(unread):
            yield Piece(unread[begin : found.end()], line, start + begin, starts_line, ends_line=True)
            line, begin, starts_line = line + 1, found.end(), True
        start, rest = start + begin, unread[begin:]
        if len(rest) >= PIECE_LEN and not rest.endswith("\r"):
            last_word = "" if cut_anywhere or rest[-1].isspace() else rest.rsplit(None, 1)[-1]
            text = rest[: len(rest) - len(last_word)]
            if text:
                yield Piece(text, line, start, starts_line, ends_line=False)
                start, starts_line, rest = start + len(text), False, last_word
    if rest or not starts_line:
        yield Piece(rest, line, start, starts_line, ends_line=True)


def locate(tokens: Sequence[str], text: str, *, lower_case: bool = False) -> list[tuple[int, int]]:
    """Start and end of each token in the text that it came from, in order and without overlap.

    The Moses rules write some of the text anew: they replace typographic marks, move some and drop some. What stands
    between two tokens then belongs to the token that is not found there, else to that of the same word. So every
    character but white space has its token, and tokens may have no character.

    Args:
        tokens: what the tokenizer made of the text, in order.
        text: the text.
        lower_case: whether the tokenizer lowered it.
    """
    searched = (_lowered(text) if lower_case else text).translate(_PLAIN_MARKS)
    places: list[tuple[int, int]] = []
    position = n_put_in = 0  # how many tokens before this one were not found
    for i, token in enumerate(tokens):
        written = _written(token)
        start = _after_space(searched, position, written)
        if not searched.startswith(written, start):
            start = _next_place(searched, position, [_written(later) for later in islice(tokens, i, i + 6)])
        if start < 0:
            places.append((position, position))
            n_put_in += 1
            continue
        end = start + len(written)
        if n_put_in:
            places[-n_put_in:] = _share(searched, position, start, n_put_in)
        elif not written[:1].isspace():
            start = _claim(searched, position, start, places)
        n_put_in, position = 0, end
        places.append((start, end))
    if n_put_in:
        places[-n_put_in:] = _share(searched, position, len(searched), n_put_in)
    else:
        _claim(searched, position, len(searched), places)
    return places


def _share(text: str, start: int, end: int, n_tokens: int) -> list[tuple[int, int]]:
    """Places of tokens between two others: all that is there for the first, nothing for the rest."""
    inner = text[start:end].strip()
    start = text.index(inner, start)
    end = start + len(inner)
    return [(start, end)] + [(end, end)] * (n_tokens - 1)


def _claim(text: str, position: int, start: int, places: list[tuple[int, int]]) -> int:
    """Where a token begins that was found at `start`, if characters between `position` and there became no token.

    What is part of the word before belongs to the last of `places`, which is changed.
    """
    dropped = text[position:start]
    words = dropped.split()
    if not words:
        return start
    ends_word = start == len(text) or any(character.isspace() for character in dropped)
    if places and ends_word and not dropped[0].isspace():
        position += len(words.pop(0))
        places[-1] = (places[-1][0], position)
    return text.index(words[0], position) if words else start


def _lowered(text: str) -> str:
    """The text in lower case, character for character."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _written(token: str) -> str:
    """The token as it stands in raw text: `@-@` there is `-`."""
    plain = token[1] if len(token) == 3 and token[0] == token[2] == "@" else token
    return plain.translate(_PLAIN_MARKS)


def _after_space(text: str, position: int, token: str) -> int:
    """The first place from `position` on that is not white space, unless white space is looked for."""
    if token[:1].isspace():
        return position
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _next_place(text: str, position: int, tokens: Sequence[str]) -> int:
    """Where the first of `tokens` begins, if some characters were dropped before it; -1 if it was itself put in.

    Whichever explains the rest with less: characters that became no token, or tokens that stand for no character.
    """
    best, place = _FARTHEST, -1
    for n_put_in, token in enumerate(tokens):
        found = text.find(token, position, position + best - n_put_in + len(token)) if token else -1
        if found >= 0 and n_put_in + found - position < best:
            best = n_put_in + found - position
            place = -1 if n_put_in else found
    return place


__all__ = ["PIECE_LEN", "Piece", "TextIds", "TextReader", "Token", "locate"]
