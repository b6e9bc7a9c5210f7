"""Surprisal: the negative log-probability of each token or word of a text given all before it, text of any length.

The numbers are those of `evaluate` with a batch of one: same segments, same memory, same sum.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import BinaryIO, NamedTuple

import torch

from .evaluation import WINDOWS_AT_ONCE, segments_at_once, start_reading
from .modeling import TransfoXLLMHeadModel
from .reading import Piece, TextReader, Token


class TokenSurprisal(NamedTuple):
    """One token of a text.

    Attributes:
        document: its document, from 1.
        line: its line in the file, from 1.
        word_index: its word in the document, from 1; 0 for what belongs to no word: the mark of a line's end, and white
            space before the first word.
        start, end: its place in the file, in characters from 0.
        token: as the tokenizer gives it; outside the vocabulary, the token itself.
        surprisal_nats: None for the first token of a document, which nothing precedes.
        is_unknown: whether the model reads it as `<unk>`.
        source: the characters at its place.
    """

    document: int
    line: int
    word_index: int
    start: int
    end: int
    token: str
    surprisal_nats: float | None
    is_unknown: bool
    source: str


class WordSurprisal(NamedTuple):
    """One word: what stands between white space, punctuation included, or a mark of a line's end.

    Attributes:
        document, line, word_index, start, end: as for its tokens.
        word: its characters; for a mark, the mark.
        n_tokens: its tokens; in character mode with the white space after it, which tells that the word has ended.
        n_scored: those that have a surprisal; one less than `n_tokens` where the first of a document is among them.
        surprisal_nats: the sum of its tokens' surprisals; None if there is none.
        is_unknown: whether one of its tokens is.
    """

    document: int
    line: int
    word_index: int
    start: int
    end: int
    word: str
    n_tokens: int
    n_scored: int
    surprisal_nats: float | None
    is_unknown: bool


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How a text is read.

    Attributes:
        document_separator: where memory is reset: "none" nowhere, "line" at every line, "blank" at blank lines; any
            other text at lines that consist of it. Blank and separating lines are then no part of a document.
        start_with_eos: whether each document is preceded by `<eos>`, so that its first token has a surprisal too.
        tgt_len, ext_len, temperature, sliding_window: as for `evaluate`.
    """

    document_separator: str = "none"
    start_with_eos: bool = False
    tgt_len: int | None = None
    ext_len: int | None = None
    temperature: float = 1.0
    sliding_window: bool = False


def token_surprisals(
    model: TransfoXLLMHeadModel, reader: TextReader, file: BinaryIO, options: ScoringOptions | None = None
) -> Iterator[TokenSurprisal]:
    """The surprisal of every token of a text, in order.

    Args:
        model: in evaluation mode; `context_lengths` decides how much of the past it sees.
        reader: for the model's tokenizer.
        file: the text in UTF-8, opened in binary mode; it is read as far as the result is.
        options: how.

    Raises:
        ValueError: the text is empty, is no UTF-8 or holds unknown symbols; a setting is impossible.
    """
    options = ScoringOptions() if options is None else options
    eos_id = reader.need_eos() if options.start_with_eos else None
    n_tokens = n_scored = 0
    for document, pairs in groupby(_documents(reader, file, options.document_separator), key=lambda pair: pair[0]):
        words = _count_words((token for _, token in pairs), reader)
        for token, word, loss in _losses(model, words, eos_id, options):
            n_tokens += 1
            n_scored += loss is not None
            yield TokenSurprisal(
                document=document,
                line=token.line,
                word_index=word,
                start=token.start,
                end=token.end,
                token=token.text,
                surprisal_nats=loss,
                is_unknown=token.id == reader.unknown_id,
                source=token.source,
            )
    if not n_scored:
        raise ValueError(reader.too_short(n_tokens))


def _documents(reader: TextReader, file: BinaryIO, separator: str) -> Iterator[tuple[int, Token]]:
    """Tokens, each with the number of its document; documents without any do not count."""
    document, is_begun, follows_space = 1, False, True
    for piece in reader.pieces(file):
        if _separates(piece, separator):
            document, is_begun, follows_space = document + is_begun, False, True
            continue
        for token in reader.tokens(piece, follows_space=follows_space):
            is_begun = True
            yield document, token
        follows_space = piece.ends_line or reader.is_space(piece.text[-1:])
        if separator == "line" and piece.ends_line:
            document, is_begun = document + is_begun, False


def _separates(piece: Piece, separator: str) -> bool:
    if separator == "none" or not piece.is_line:
        return False
    line = piece.text.strip()
    return line == "" if separator in ("line", "blank") else line == separator.strip()


def _count_words(tokens: Iterable[Token], reader: TextReader) -> Iterator[tuple[Token, int]]:
    """The tokens of a document, each with the number of its word."""
    word = 0
    for token in tokens:
        is_space = reader.is_space(token.text) and not token.is_mark
        begins_word = not is_space and (token.after_space or bool(reader.tokenizer.delimiter))
        if begins_word and not token.is_mark:
            word += 1
        # In character mode the end of a line ends a word, as white space does.
        yield token, 0 if token.is_mark and not reader.is_characters else word


def _losses(
    model: TransfoXLLMHeadModel, words: Iterator[tuple[Token, int]], eos_id: int | None, options: ScoringOptions
) -> Iterator[tuple[Token, int, float | None]]:
    """The tokens of a document, each with its word and its surprisal."""
    read = start_reading(
        model,
        tgt_len=options.tgt_len,
        ext_len=options.ext_len,
        temperature=options.temperature,
        sliding_window=options.sliding_window,
    )
    segment_len = model.config.tgt_len if options.tgt_len is None else options.tgt_len
    n_segments = segments_at_once(model, segment_len, batch_size=1)
    n_at_once = WINDOWS_AT_ONCE if options.sliding_window else segment_len * n_segments
    last_id = eos_id
    if last_id is None:
        first, word = next(words)
        yield first, word, None
        last_id = first.id
    while segment := list(islice(words, n_at_once)):
        ids = [last_id, *(token.id for token, _ in segment)]
        with torch.no_grad():
            losses = read(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]), None)
        yield from ((token, word, loss) for (token, word), loss in zip(segment, losses[0].tolist(), strict=True))
        last_id = ids[-1]


def word_surprisals(tokens: Iterable[TokenSurprisal], reader: TextReader) -> Iterator[WordSurprisal]:
    """Adds the surprisals of the tokens of each word up; what belongs to no word stands for itself.

    Args:
        tokens: from `token_surprisals`.
        reader: the one that read them.
    """
    members: list[TokenSurprisal] = []
    for token in tokens:
        if members and not _is_same_word(members[0], token):
            yield _word(members, reader)
            members = []
        members.append(token)
    if members:
        yield _word(members, reader)


def _is_same_word(one: TokenSurprisal, other: TokenSurprisal) -> bool:
    return one.word_index == other.word_index > 0 and one.document == other.document


def _word(members: list[TokenSurprisal], reader: TextReader) -> WordSurprisal:
    first = members[0]
    inner = [token for token in members if not reader.is_space(token.source)] or members
    scored = [token.surprisal_nats for token in members if token.surprisal_nats is not None]
    return WordSurprisal(
        document=first.document,
        line=first.line,
        word_index=first.word_index,
        start=first.start,
        end=inner[-1].end,
        word=reader.display("".join(token.source for token in inner)) if first.word_index else first.token,
        n_tokens=len(members),
        n_scored=len(scored),
        surprisal_nats=math.fsum(scored) if scored else None,
        is_unknown=any(token.is_unknown for token in members),
    )


def bits(nats: float | None) -> float | None:
    """Nats in bits; None stays None."""
    return None if nats is None else nats / math.log(2)


__all__ = ["ScoringOptions", "TokenSurprisal", "WordSurprisal", "bits", "token_surprisals", "word_surprisals"]
