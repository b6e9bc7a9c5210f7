"""`TransfoXLTokenizer`: words or characters to ids and back, with a vocabulary that is a plain JSON list.

Four modes, named in `tokenizer_config.json`:
    moses       raw text, split by the Moses rules as transformers 4.35 did (`moses.py`); the reference's behaviour
    whitespace  text that is already tokenised (WikiText, Penn Treebank): words are what stands between white space
    characters  every character is a symbol, spaces and line ends included (text8, plays, music as text)
    bytes       every byte of the UTF-8 text is a symbol, named by the character of its number (enwik8)

Vocabulary files, ours and old ones, are the business of `vocabulary.py`. `docs/tokenizer.md` has examples.
"""

import copy
import os
import re
from array import array
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from transformers import AddedToken, PythonBackend
from transformers.utils import logging

from .moses import MosesRules, moses_rules
from .vocabulary import (
    TokenIds,
    check_options,
    find_vocabulary,
    place_added_tokens,
    propose_cutoffs,
    read_lines,
    read_word_list,
    write_vocabulary,
)
from .word_lookup import ABSENT

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

logger = logging.get_logger(__name__)

SINGLE_SYMBOL_MODES = ("characters", "bytes")
MODES = ("moses", "whitespace", *SINGLE_SYMBOL_MODES)
UNK_TOKEN, EOS_TOKEN, ADDITIONAL_SPECIAL_TOKENS = "<unk>", "<eos>", ("<formula>",)
DOUBLE_EOS = "<S>"  # stands at both ends of a One Billion Word sentence in the authors' code
BLOCK_LEN = 1 << 20  # characters of text that are read or looked up at once
LONG_TEXT = 1 << 16  # characters from which `WordLookup` is worth being built
_SPACE = re.compile(r"\s")
# What old tokenizers saved beside their parameters; nothing here reads it.
_OLD_STATE = {"counter", "idx2sym", "sym2idx", "punctuation_symbols"}


class TransfoXLTokenizer(PythonBackend):
    """A word-level or character-level tokenizer with the interface of every transformers tokenizer.

    Padding is on the left, by `pad_token` if there is one, else by `eos_token`, else by the first word; the attention
    mask is 0 there, and `pad_token` itself stays None, so that nothing mistakes a real `<eos>` for padding.

    Args:
        special: tokens that `build_vocab` puts first.
        min_freq: occurrences below which `build_vocab` leaves a word out.
        max_size: most words that `build_vocab` keeps, `special` included; None keeps all.
        lower_case: whether text is lower-cased first.
        delimiter: "" means `mode="characters"`, another text means `mode="whitespace"` split at that text.
        vocab_file: the authors' word list, see `read_word_list`; our own format if the name ends in `.json`.
        pretrained_vocab_file: a `vocab.json`, or what an old release saved (`vocab.pkl`, `vocab.bin`, `cache.pt`).
        never_split: tokens that the Moses rules leave whole in any case of letters; None means the special tokens.
        unk_token: stands for words outside the vocabulary. Where the vocabulary has neither it nor `<UNK>`, the default
            is dropped: an id that the model has no row for would be worse than a clear error.
        eos_token: the end of a line or document; dropped like `unk_token`.
        additional_special_tokens: further tokens that are never split; the default is dropped like `unk_token`.
        language: two letters, for the Moses rules.
        mode: one of `MODES`; None means what `delimiter` says, and `"moses"` without one.

    Raises:
        ValueError: a parameter is impossible, or a vocabulary file cannot be used.
    """

    vocab_files_names = {  # noqa: RUF012 - the base class declares it so; the first file that is there is read
        "pretrained_vocab_file": "vocab.json",
        "pretrained_vocab_file_pickle": "vocab.pkl",
        "pretrained_vocab_file_torch": "vocab.bin",
        "vocab_file": "vocab.txt",
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - the base class declares it so
    padding_side = "left"
    unk_token: Any  # these three are set and read through the base class
    eos_token: Any
    extra_special_tokens: Any

    def __init__(
        self,
        special: Sequence[str] | None = None,
        min_freq: int = 0,
        max_size: int | None = None,
        lower_case: bool = False,
        delimiter: str | None = None,
        vocab_file: str | os.PathLike[str] | None = None,
        pretrained_vocab_file: str | os.PathLike[str] | None = None,
        never_split: Sequence[str] | None = None,
        unk_token: str | AddedToken | None = UNK_TOKEN,
        eos_token: str | AddedToken | None = EOS_TOKEN,
        additional_special_tokens: Sequence[str | AddedToken] | None = ADDITIONAL_SPECIAL_TOKENS,
        language: str = "en",
        *,
        mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        old_files = [kwargs.pop(name, None) for name in ("pretrained_vocab_file_pickle", "pretrained_vocab_file_torch")]
        stored = find_vocabulary([pretrained_vocab_file, *old_files], vocab_file, kwargs.get("name_or_path"))
        check_options(
            {"special": special, "min_freq": min_freq, "max_size": max_size, "lower_case": lower_case}
            | {"delimiter": delimiter, "never_split": never_split, "language": language}
        )
        old = stored.options  # an argument with its default gives way to what an old file says
        self.vocab_file = vocab_file
        self.special = list(special if special is not None else old.get("special", []))
        self.min_freq = min_freq or old.get("min_freq", 0)
        self.max_size = max_size if max_size is not None else old.get("max_size")
        self.lower_case = lower_case or old.get("lower_case", False)
        self.delimiter = delimiter if delimiter is not None else old.get("delimiter")
        self.language = language if language != "en" else old.get("language", "en")
        self.mode = mode if mode is not None else _mode_of(self.delimiter)
        # Old releases saved this as true in every mode; elsewhere it would swallow symbols. `decode` can be told to.
        clean_up = kwargs.pop("clean_up_tokenization_spaces", True) and self.mode == "moses"
        self._check_options()

        self.counter: Counter[str] = Counter(stored.counts)
        self._set_words(stored.words)
        added = self._placed(kwargs.pop("added_tokens_decoder", {}).items())
        extra = kwargs.pop("extra_special_tokens", None)
        self._requested = (unk_token, eos_token, list(additional_special_tokens or ()) if extra is None else extra)
        for name in _OLD_STATE & kwargs.keys():
            del kwargs[name]
        never_split = never_split if never_split is not None else old.get("never_split")
        super().__init__(
            special=self.special,
            min_freq=self.min_freq,
            max_size=self.max_size,
            lower_case=self.lower_case,
            delimiter=self.delimiter,
            never_split=never_split,
            language=self.language,
            mode=self.mode,
            clean_up_tokenization_spaces=clean_up,
            added_tokens_decoder=added,
            **self._usable_special_tokens({token.content for token in added.values()}),
            **kwargs,
        )
        self.never_split = list(never_split) if never_split is not None else None

    def _check_options(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown; give one of {', '.join(map(repr, MODES))}")
        if self.delimiter is not None and _mode_of(self.delimiter) != self.mode:
            raise ValueError(
                f"delimiter={self.delimiter!r} means mode={_mode_of(self.delimiter)!r}, but mode={self.mode!r} was "
                "given; leave one of them out"
            )
        if self.min_freq < 0:
            raise ValueError(f"min_freq={self.min_freq} must not be negative; 0 keeps every word")
        if self.max_size is not None and self.max_size < max(1, len(self.special)):
            raise ValueError(
                f"max_size={self.max_size} must be at least 1 and hold the {len(self.special)} special tokens; "
                "None sets no limit"
            )

    @property
    def has_single_symbols(self) -> bool:
        """Whether every character or byte is a symbol of its own, line ends included."""
        return self.mode in SINGLE_SYMBOL_MODES

    @property
    def _has_plain_words(self) -> bool:
        """Whether words are what stands between white space."""
        return self.mode == "whitespace" and self.delimiter is None

    # The vocabulary: words first, then added tokens that are no word.

    def _set_words(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._word_ids = dict(zip(words, range(len(words)), strict=True))
        self._ids = TokenIds(self._word_ids)
        self._special_pattern: re.Pattern[str] | None = None
        self._special_takes_spaces = False
        self._stuck_special_pattern: re.Pattern[str] | None = None  # where a special token touches other text

    def _placed(self, tokens: Iterable[tuple[int, AddedToken]]) -> dict[int, AddedToken]:
        """Added tokens under the ids that they get; a warning tells where that is not the one that the file says."""
        listed = list(tokens)
        new_ids = place_added_tokens([(index, token.content) for index, token in listed], self._word_ids)
        for (index, token), new_id in zip(listed, new_ids, strict=True):
            if new_id != index and token.content not in self._word_ids:
                logger.warning(f"{token.content!r} gets the id {new_id}: its old id {index} is {self._words[index]!r}")
        return dict(zip(new_ids, (token for _, token in listed), strict=True))

    def _usable_special_tokens(self, added: Iterable[str]) -> dict[str, Any]:
        """The requested special tokens that have an id or, once there are words, may get a new one.

        Defaults get none: the model has no row for it.
        """
        known = ChainMap(self._word_ids, dict.fromkeys(added, 0))
        unk_token, eos_token, extra = self._requested
        if str(unk_token) == UNK_TOKEN and UNK_TOKEN not in known and "<UNK>" in known:
            unk_token = "<UNK>"  # noqa: S105 - as the authors' One Billion Word vocabulary spells it

        def usable(token: object, *defaults: str) -> bool:
            return token is not None and (str(token) in known or (bool(self._words) and str(token) not in defaults))

        if not isinstance(extra, Mapping):  # a mapping names tokens, which is the base class's business
            extra = [token for token in extra if usable(token, *ADDITIONAL_SPECIAL_TOKENS)]
        return {
            "unk_token": unk_token if usable(unk_token, UNK_TOKEN) else None,
            "eos_token": eos_token if usable(eos_token, EOS_TOKEN) else None,
            "extra_special_tokens": extra,
        }

    def _unbuilt_special_tokens(self) -> list[str]:
        """The special tokens while there are no words: they have no ids yet, but are not split when text is counted."""
        unk_token, eos_token, extra = self._requested
        if self._words:
            return []
        if self.has_single_symbols:  # they are symbols only if `special` says so
            return self.special
        named = extra.values() if isinstance(extra, Mapping) else extra
        tokens = [*self.special, *(str(token) for token in (unk_token, eos_token, *named) if token is not None)]
        return list(dict.fromkeys(tokens))

    def _adopt(self, words: Sequence[str], added: Iterable[tuple[int, AddedToken]]) -> None:
        """Takes another vocabulary, in which `added` have the given ids unless they are words."""
        self._set_words(words)
        self._added_tokens_decoder = self._placed(added)
        self._added_tokens_encoder = {token.content: index for index, token in self._added_tokens_decoder.items()}
        usable = self._usable_special_tokens(self._added_tokens_encoder)
        self.extra_special_tokens = list(dict.fromkeys([*self.extra_special_tokens, *usable["extra_special_tokens"]]))
        self.unk_token = self.unk_token or usable["unk_token"]
        self.eos_token = self.eos_token or usable["eos_token"]
        fresh = [token for token in self.all_special_tokens if token not in self._added_tokens_encoder]
        self._add_tokens(fresh, special_tokens=True)

    def _update_total_vocab_size(self) -> None:
        """Called by the base class after each change of the added tokens."""
        added = {token.content: index for index, token in self._added_tokens_decoder.items()}
        self._ids = TokenIds({**self._word_ids, **added})
        longest_first = sorted({*added, *self._unbuilt_special_tokens()}, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._special_takes_spaces = any(
            token.lstrip or token.rstrip or token.single_word for token in self._added_tokens_decoder.values()
        )
        self._stuck_special_pattern = None
        are_words = all(token.split() == [token.lower() if self.lower_case else token] for token in longest_first)
        self._special_word_ids: dict[str, int] | None = None
        if self._has_plain_words and are_words:
            if self._words and not self._special_takes_spaces:
                self._special_word_ids = {token: self._ids[token] for token in longest_first}
            stuck = (rf"{token}(?:(?<!\s{token})|(?!\s))" for token in map(re.escape, longest_first))
            self._stuck_special_pattern = re.compile("|".join(stuck))
        self.total_vocab_size = len(self._ids)

    @property
    def vocab_size(self) -> int:
        """Words in the vocabulary, added tokens not counted; `len(tokenizer)` counts both."""
        return len(self._words)

    def get_vocab(self) -> dict[str, int]:
        """Gives a new dictionary from each word and added token to its id."""
        return dict(self._ids)

    @property
    def idx2sym(self) -> list[str]:
        """A copy of the words in the order of their ids, under the name that old code knows."""
        return list(self._words)

    @property
    def sym2idx(self) -> dict[str, int]:
        """A copy of the dictionary from word to id, under the name that old code knows."""
        return dict(self._word_ids)

    @property
    def additional_special_tokens(self) -> list[str]:
        """What transformers v5 calls `extra_special_tokens`."""
        return list(self.extra_special_tokens)

    @property
    def do_lower_case(self) -> bool:
        """`lower_case` under the name that the base class looks for."""
        return self.lower_case

    def move_added_token(self, token: str, target_idx: int) -> None:
        """Moves an added token into the vocabulary, at `target_idx`; later words move up by one.

        Needed after a cluster of the model other than the last one was resized, because new ids come last.
        """
        if token not in self._added_tokens_encoder or token in self._word_ids:
            raise ValueError(f"token={token!r} is no added token outside the vocabulary; add it with add_tokens first")
        if not 0 <= target_idx <= len(self._words):
            raise ValueError(f"target_idx={target_idx} must lie between 0 and vocab_size={len(self._words)}")
        old_id = self._added_tokens_encoder[token]
        n_words, added = len(self._words), self._added_tokens_decoder.items()
        moved_on = [(index + (n_words <= index < old_id), added_token) for index, added_token in added]
        self._adopt([*self._words[:target_idx], token, *self._words[target_idx:]], moved_on)

    # Text to tokens to ids.

    def tokenize(self, text: str, *, add_eos: bool = False, add_double_eos: bool = False, **kwargs: Any) -> list[str]:
        """Gives the tokens of a text; added tokens are whole wherever they stand.

        Args:
            text: any text.
            add_eos: whether `eos_token` follows; in character mode it then stands for the line end of `text`.
            add_double_eos: whether `<S>` precedes and follows, as in the authors' One Billion Word data.
            kwargs: `split_special_tokens=True` treats added tokens like any text; the base class ignores others, too.
        """
        if add_eos and self.has_single_symbols:
            text = text.rstrip("\r\n")
        tokens = self._tokenize_around_special(text, **kwargs)
        if add_double_eos:
            return [DOUBLE_EOS, *tokens, DOUBLE_EOS]
        if add_eos:
            tokens.append(self._need_eos())
        return tokens

    def _tokenize_around_special(self, text: str, **kwargs: Any) -> list[str]:
        if self._special_pattern is None or kwargs.get("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        if self._special_takes_spaces:
            return super().tokenize(text, **kwargs)  # type: ignore[no-any-return]
        stuck = self._stuck_special_pattern
        if stuck is not None and not stuck.search(f" {text} "):
            return self._tokenize(text)  # special tokens are words there; a good part of the time saved
        pieces = self._special_pattern.split(text)
        tokens: list[str] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                tokens.append(piece)
            elif piece:
                tokens += self._tokenize(piece)
        return tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if self.lower_case:
            text = text.lower()
        if self.mode == "characters":
            return list(text)
        if self.mode == "bytes":
            return list(text.encode("utf-8", "surrogatepass").decode("latin-1"))
        if self.mode == "moses":
            return self.moses_pipeline(text.strip())
        if self.delimiter is None:
            return text.split()
        return [word for word in text.strip().split(self.delimiter) if word]

    def moses_pipeline(self, text: str) -> list[str]:
        """Gives the tokens of raw text: punctuation normalised, split by the Moses rules, numbers split at `,` and `.`.

        `"23,000 people are 1.80 m tall"` gives `23 @,@ 000 people are 1 @.@ 80 m tall`.
        """
        return self._moses_rules().tokenize(text)

    def _moses_rules(self) -> MosesRules:
        special_tokens = self.all_special_tokens or self._unbuilt_special_tokens()
        return moses_rules(self.language, tuple(special_tokens if self.never_split is None else self.never_split))

    def _need_eos(self) -> str:
        eos_token = self._special_tokens_map["eos_token"] or (None if self._words else self._requested[1])
        if eos_token is None:
            raise ValueError("add_eos=True needs an eos_token, and this vocabulary has none; pass add_eos=False")
        return str(eos_token)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Gives the id of a token, or the list of ids of several; unknown ones get the id of `unk_token`.

        Raises:
            ValueError: a token is unknown and there is no `unk_token`.
        """
        ids = self._ids_with_unknown()
        return ids[tokens] if isinstance(tokens, str) else list(map(ids.__getitem__, tokens))

    def _ids_with_unknown(self) -> TokenIds:
        ids = self._ids
        unk_token = self._special_tokens_map["unk_token"]
        ids.unk_id = ids[str(unk_token)] if unk_token is not None and str(unk_token) in ids else None
        return ids

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        """Called by the base class for each text, of which it gives ids that it gets as they are."""
        split_special_tokens = bool(kwargs.get("split_special_tokens", self.split_special_tokens))
        is_plain = self._has_plain_words and (split_special_tokens or self._special_word_ids is not None)
        changes_tokens = kwargs.keys() & {"add_eos", "add_double_eos", "sanitize_control_tokens"}
        if isinstance(text, str) and len(text) >= LONG_TEXT and is_plain and not changes_tokens:
            ids = array("q")
            for block in _cut_at_spaces(text, BLOCK_LEN):
                self._append_ids(ids, block, split_special_tokens=split_special_tokens)
            text = ids.tolist() if ids else ""  # the base class takes an empty list for an empty batch
        return super()._encode_plus(text, text_pair, **kwargs)

    def _append_ids(self, ids: "array[int]", text: str, *, split_special_tokens: bool) -> None:
        """Appends what `tokenize` and `convert_tokens_to_ids` give, in whitespace mode; fast for long texts."""
        found = self._find_ids(text, split_special_tokens=split_special_tokens)
        if found is not None:
            ids.frombytes(found.tobytes())
        else:
            ids.fromlist(self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens=split_special_tokens)))

    def _find_ids(self, text: str, *, split_special_tokens: bool) -> "npt.NDArray[np.int64] | None":
        """The ids of words between white space; None where that is not all there is to it.

        Which is where a special token is no word, or touches other text, or nothing stands for an unknown word.
        """
        special_ids = {} if split_special_tokens else self._special_word_ids
        if special_ids is None:
            return None
        text = text.lower() if self.lower_case else text
        ids = self._ids_with_unknown()
        found = ids.lookup.find(text)
        if any(text.count(token) != (found == index).sum() for token, index in special_ids.items()):
            return None
        is_unknown = found == ABSENT
        if ids.unk_id is None:
            return None if is_unknown.any() else found
        found[is_unknown] = ids.unk_id
        return found

    def convert_to_tensor(self, symbols: Sequence[str]) -> "torch.Tensor":
        """Gives the ids of tokens as an int64 tensor."""
        return _tensor(array("q", self.convert_tokens_to_ids(symbols)))

    # Ids to tokens to text.

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self._words):
            raise ValueError(f"id {index} is outside the vocabulary; ids go from 0 to {len(self) - 1}")
        return self._words[index]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Gives the text of tokens: joined back by the Moses rules, by `delimiter` or a space, or by nothing."""
        if self.mode == "moses":
            return self._moses_rules().detokenize(tokens)
        if self.mode == "bytes":
            return _text_of_bytes(tokens)
        separator = " " if self.delimiter is None else self.delimiter
        return ("" if self.mode == "characters" else separator).join(tokens)

    # Padding without a pad token.

    def pad(self, *args: Any, **kwargs: Any) -> Any:
        """Pads as the base class does; without `pad_token`, by `eos_token` or else the first word."""
        return super(TransfoXLTokenizer, self._with_pad_token()).pad(*args, **kwargs)

    def _get_padding_truncation_strategies(self, padding: Any = False, **kwargs: Any) -> Any:
        filled = self if padding is False else self._with_pad_token()
        return super(TransfoXLTokenizer, filled)._get_padding_truncation_strategies(padding=padding, **kwargs)

    def _with_pad_token(self) -> "TransfoXLTokenizer":
        """Gives itself, or a shallow copy that has a pad token; what it pads is hidden by the attention mask."""
        if self.pad_token is not None or not self._words:
            return self
        filled = copy.copy(self)
        filled._special_tokens_map = dict(self._special_tokens_map)
        filled.pad_token = self.eos_token or self._words[0]
        return filled

    # Files.

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str]:
        """Writes `vocab.json` into a directory, made if it is missing, and gives the path; never a pickle."""
        if not self._words:
            raise ValueError("the vocabulary is empty; call build_vocab, or TransfoXLTokenizer.train, before saving it")
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"save_directory={str(save_directory)!r} is a file; give a directory")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ((f"{filename_prefix}-" if filename_prefix else "") + "vocab.json")
        write_vocabulary(path, self._words)
        return (str(path),)

    def count_file(self, path: str | os.PathLike[str], verbose: bool = False, add_eos: bool = False) -> list[list[str]]:
        """Adds the tokens of a file to `counter` and gives them line by line; `train` does not keep them."""
        lines = [self.tokenize(line, add_eos=add_eos) for line in self._open(path, verbose=verbose)]
        self.count_sents(lines)
        return lines

    def count_sents(self, sents: Iterable[Sequence[str]], verbose: bool = False) -> None:
        """Adds lists of tokens to `counter`."""
        for tokens in sents:
            self.counter.update(tokens)

    def build_vocab(self) -> None:
        """Takes the words of `vocab_file` if one was given, else `special` and then the words of `counter`.

        The most frequent come first; among equals, what was counted first, as in the authors' code. `min_freq` and
        `max_size` bound the list.
        """
        if self.vocab_file is not None:
            words = read_word_list(self.vocab_file).words
        else:
            counted = [word for word, n in self.counter.most_common() if n >= self.min_freq]
            if not counted:
                raise ValueError(
                    f"counter has no word that occurs min_freq={self.min_freq} times or more; count a text with "
                    "count_file, or lower min_freq"
                )
            words = list(dict.fromkeys([*self.special, *counted]))[: self.max_size]
        known, free_ids = set(words), count(len(words))
        added = self.added_tokens_decoder.values()
        self._adopt(words, [(0 if token.content in known else next(free_ids), token) for token in added])

    def encode_file(
        self,
        path: str | os.PathLike[str],
        ordered: bool = False,
        verbose: bool = False,
        add_eos: bool = True,
        add_double_eos: bool = False,
    ) -> Any:
        """Gives the ids of a text file.

        Args:
            path: a UTF-8 file.
            ordered: whether to give one int64 tensor of the whole file instead of a list of one tensor a line.
            verbose: whether to log the start.
            add_eos: whether `eos_token` follows each line; in character mode it replaces the line end.
            add_double_eos: whether `<S>` stands at both ends of each line.
        """
        lines = self._open(path, verbose=verbose, cut=ordered and not (add_eos or add_double_eos))
        ids = array("q")
        if ordered and self._has_plain_words and not add_double_eos:
            for block in self._joined(lines, add_eos=add_eos):
                self._append_ids(ids, block, split_special_tokens=bool(self.split_special_tokens))
            return _tensor(ids)
        options = {"add_double_eos": True} if add_double_eos else {"add_eos": add_eos}
        token_lists = (self.tokenize(line, **options) for line in lines)
        if not ordered:
            return [self.convert_to_tensor(tokens) for tokens in token_lists]
        for tokens in token_lists:
            ids.fromlist(self.convert_tokens_to_ids(tokens))
        return _tensor(ids)

    def encode_sents(self, sents: Iterable[Sequence[str]], ordered: bool = False, verbose: bool = False) -> Any:
        """Gives the ids of lists of tokens: a list of int64 tensors, or one tensor if `ordered`."""
        if ordered:
            return self.convert_to_tensor(list(chain.from_iterable(sents)))
        return [self.convert_to_tensor(tokens) for tokens in sents]

    def _open(self, path: str | os.PathLike[str], *, verbose: bool = False, cut: bool = False) -> Iterator[str]:
        """The lines of a file; where their ends are symbols, as they are, and very long ones in blocks if `cut`."""
        if verbose:
            logger.info(f"reading {path}")
        may_cut = cut and self.has_single_symbols and self._special_pattern is None
        return read_lines(path, keep_line_ends=self.has_single_symbols, longest=BLOCK_LEN if may_cut else -1)

    def _joined(self, lines: Iterable[str], *, add_eos: bool) -> Iterator[str]:
        """Many lines at a time as one text of the same words; only where words stand between white space."""
        line_end = f" {self._need_eos()} " if add_eos else "\n"
        for block in _in_blocks(lines, BLOCK_LEN):
            yield (block if block.endswith("\n") else f"{block}\n").replace("\n", line_end)

    @classmethod
    def train(
        cls,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        *,
        texts: Iterable[str] = (),
        special: Sequence[str] | None = None,
        unk_token: str | None = UNK_TOKEN,
        eos_token: str | None = EOS_TOKEN,
        additional_special_tokens: Sequence[str] = (),
        mode: str | None = None,
        delimiter: str | None = None,
        **options: Any,
    ) -> Self:
        """Gives a tokenizer with a vocabulary of the user's own text.

        Words come with the most frequent first; among equals, what occurs first. In the word modes `<eos>` has id 0 and
        `<unk>` id 1 unless `special` says otherwise; each line counts one `<eos>`. Character mode takes the symbols of
        the text and nothing else: pass `special=["<unk>"]` if text with other symbols is to come.

        Args:
            files: paths of UTF-8 texts, or one path.
            texts: texts that are counted after the files.
            special: tokens that come first in the vocabulary.
            unk_token, eos_token, additional_special_tokens, mode, delimiter, options: as for the class.

        Raises:
            ValueError: there is no text, or a parameter is impossible.
        """
        mode = mode if mode is not None else _mode_of(delimiter)
        has_words = mode not in SINGLE_SYMBOL_MODES
        needed = [token for token in (eos_token, unk_token) if token is not None and has_words]
        tokenizer = cls(
            special=[*(needed if special is None else special), *additional_special_tokens],
            unk_token=unk_token,
            eos_token=eos_token,
            additional_special_tokens=list(additional_special_tokens),
            mode=mode,
            delimiter=delimiter,
            **options,
        )
        paths = [files] if isinstance(files, str | os.PathLike) else files
        file_lines = (tokenizer._open(path, cut=True) for path in paths)
        text_lines = (StringIO(text, newline="" if tokenizer.has_single_symbols else None) for text in texts)
        add_eos = eos_token in needed
        for lines in chain(file_lines, text_lines):
            if tokenizer._has_plain_words:
                tokenizer.count_sents(map(tokenizer.tokenize, tokenizer._joined(lines, add_eos=add_eos)))
            else:
                tokenizer.count_sents(tokenizer.tokenize(line, add_eos=add_eos) for line in lines)
        if not tokenizer.counter:
            raise ValueError("train found no text: give files or texts that are not empty")
        tokenizer.build_vocab()
        missing = [token for token in needed if token not in tokenizer._word_ids]
        if missing:
            tokenizer.special += missing
            tokenizer.build_vocab()
        return tokenizer

    def propose_cutoffs(self, n_cutoffs: int = 3) -> list[int]:
        """Gives cutoffs for an adaptive softmax over this vocabulary, from the counts of `train` or `count_file`."""
        return propose_cutoffs([self.counter[word] for word in self._words], n_cutoffs)


def _text_of_bytes(tokens: Iterable[str]) -> str:
    """Gives the text of bytes by their names; a longer token stands for itself, what is not UTF-8 for U+FFFD."""
    encodings = (("latin-1" if len(token) == 1 and ord(token) < 256 else "utf-8", token) for token in tokens)
    return b"".join(token.encode(encoding, "surrogatepass") for encoding, token in encodings).decode(
        "utf-8", errors="replace"
    )


def _mode_of(delimiter: str | None) -> str:
    if delimiter is None:
        return "moses"
    return "whitespace" if delimiter else "characters"


def _in_blocks(lines: Iterable[str], length: int) -> Iterator[str]:
    """As many lines at a time as have at least so many characters; the last block may be shorter."""
    block, block_len = [], 0
    for line in lines:
        block.append(line)
        block_len += len(line)
        if block_len >= length:
            yield "".join(block)
            block, block_len = [], 0
    if block:
        yield "".join(block)


def _cut_at_spaces(text: str, length: int) -> Iterator[str]:
    """Parts of a text of at least so many characters, save the last, whose words are whole."""
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + length)
        end = space.start() if space else len(text)
        yield text[start:end]
        start = end


def _tensor(ids: "array[int]") -> "torch.Tensor":
    import torch  # noqa: PLC0415 - text alone needs no torch

    return torch.frombuffer(ids, dtype=torch.long).clone() if ids else torch.empty(0, dtype=torch.long)


__all__ = ["MODES", "TransfoXLTokenizer"]
