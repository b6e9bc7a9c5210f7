"""Vocabulary files: our own, the authors' text files, and what old releases pickled.

    vocab.json            a JSON list of words in the order of their ids, one a line, so that any text can be a word
    vocab.txt             the authors' word list: the first field of each line
    vocab.pkl, vocab.bin  the dictionary of an old tokenizer, pickled or saved with `torch.save`
    corpus.bin, cache.pt  an old corpus that holds its vocabulary

Old files are read by `pickle_reader.py`, which executes nothing; only `vocab.json` is ever written.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, count
from pathlib import Path
from types import UnionType
from typing import Any

from .pickle_reader import PickledObject, read_pickle, read_torch_file
from .word_lookup import WordLookup

VOCABULARY_FILES = ("vocab.json", "vocab.pkl", "vocab.bin", "vocab.txt", "corpus.bin", "cache.pt")
MIN_CLUSTER = 1000  # words; a smaller cluster costs a device as much as this one
PLAIN_SOFTMAX_WORDS = 20_000  # below this the whole softmax is computed faster than its parts
_TORCH_ZIP = b"PK\x03\x04"
_TORCH_STREAM = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the magic number before torch 1.6
_OPTIONS: dict[str, tuple[type | UnionType, str]] = {
    "special": (list | tuple, "a list of texts"),
    "min_freq": (int, "an integer"),
    "max_size": (int, "an integer"),
    "lower_case": (bool, "True or False"),
    "delimiter": (str, "a text"),
    "never_split": (list | tuple, "a list of texts"),
    "language": (str, "a text"),
}


@dataclass(frozen=True, slots=True)
class StoredVocabulary:
    """What a vocabulary file holds."""

    words: list[str]  # in the order of their ids
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the tokenizer that wrote an old file
    counts: dict[str, int] = field(default_factory=dict)  # occurrences in the text it was built from, if recorded


class TokenIds(dict[str, int]):
    """From token to id; `unk_id` answers for tokens that are not there, or a ValueError if it is None."""

    unk_id: int | None = None

    @cached_property
    def lookup(self) -> WordLookup:
        """The same for all words of a text at once; made when it is first needed."""
        return WordLookup(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"unk_id": self.unk_id}  # copies and pickles make their own `lookup`

    def __missing__(self, token: str) -> int:
        if self.unk_id is None:
            raise ValueError(
                f"{token!r} is not among the {len(self)} symbols of the vocabulary and no unk_token stands for it; "
                "leave it out of the text, or train a vocabulary that has it"
            )
        return self.unk_id


def place_added_tokens(tokens: Sequence[tuple[int, str]], word_ids: Mapping[str, int]) -> list[int]:
    """Gives each added token the id of the word that it is, else its own id, else one after all others.

    Old files hold ids that belong to another word (they were given out before the vocabulary was built).

    Args:
        tokens: wanted ids and tokens.
        word_ids: of the vocabulary, 0 to its size less 1.
    """
    n_words = len(word_ids)
    kept = [word_ids.get(token, index if index >= n_words else None) for index, token in tokens]
    free_ids = count(max([n_words, *(index + 1 for index in kept if index is not None)]))
    return [next(free_ids) if index is None else index for index in kept]


def read_vocabulary(path: str | os.PathLike[str]) -> StoredVocabulary:
    """Gives the vocabulary in a file of any kind that the top of this module names, told apart by content.

    Raises:
        ValueError: the file cannot be read, is damaged, or holds no vocabulary.
    """
    path = Path(path)
    data = _read_bytes(path)
    if path.suffix == ".txt":
        return StoredVocabulary(_words_of_lines(data, path))
    if data.lstrip()[:1] in (b"[", b"{") or path.suffix == ".json":
        return StoredVocabulary(_words_of_json(data, path))
    if data.startswith((_TORCH_ZIP, _TORCH_STREAM)):
        return _find_vocabulary(read_torch_file(path), path)
    return _find_vocabulary(read_pickle(data, source=str(path)), path)


def read_word_list(path: str | os.PathLike[str]) -> StoredVocabulary:
    """Gives the vocabulary of the authors' text files, whatever their name; a name in `.json` means our own format."""
    path = Path(path)
    parse = _words_of_json if path.suffix == ".json" else _words_of_lines
    return StoredVocabulary(parse(_read_bytes(path), path))


def write_vocabulary(path: str | os.PathLike[str], words: Sequence[str]) -> None:
    """Writes `vocab.json`; a file that is there already is replaced only by a whole one."""
    path = Path(path)
    # Control characters, lone surrogates and the like are escaped, so that the file is valid UTF-8 and shows them.
    lines = ",\n".join(json.dumps(word, ensure_ascii=not word.isprintable()) for word in words)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_bytes(path: Path) -> bytes:
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):  # a device or pipe may have no end
            what = "a directory" if stat.S_ISDIR(kind) else "no regular file"
            raise ValueError(f"{path} is {what}; give a vocabulary file, one of {', '.join(VOCABULARY_FILES)}")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; give a vocabulary file, one of {', '.join(VOCABULARY_FILES)}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from None


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; save the file as UTF-8"
        ) from None


def _words_of_lines(data: bytes, path: Path) -> list[str]:
    """The first field of each line; a word that comes again keeps its first id, as in the authors' code."""
    text = _decode(data, path).replace("\r\n", "\n").replace("\r", "\n").rstrip()
    words: dict[str, None] = {}
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        fields = line.split(maxsplit=1)
        if not fields:
            raise ValueError(
                f"{path}, line {number} is empty; each line starts with a word, its id is the line's place"
            )
        words[fields[0]] = None
    return _check_words(list(words), path)


def _words_of_json(data: bytes, path: Path) -> list[str]:
    text = _decode(data, path)
    try:
        words = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: line {error.lineno}, {error.msg}; it must be a list of words"
        ) from None
    except (RecursionError, ValueError) as error:  # the latter: an integer of thousands of digits
        reason = "is nested too deeply" if isinstance(error, RecursionError) else "holds a number"
        raise ValueError(f"{path} {reason}; it must be a list of words") from None
    return _check_words(words, path)


def _check_words(words: Any, source: object) -> list[str]:
    """Gives `words` back if they can be a vocabulary: a list of texts, not empty, none twice."""
    if not isinstance(words, list):
        raise ValueError(
            f"{source} holds a {type(words).__name__}; it must be a list of words in the order of their ids"
        )
    if not words:
        raise ValueError(f"{source} holds no words; a vocabulary needs at least one")
    if set(map(type, words)) != {str}:
        index, word = next((index, word) for index, word in enumerate(words) if not isinstance(word, str))
        raise ValueError(f"{source}: id {index} is {word!r:.80}, a {type(word).__name__}; each word must be a text")
    if len(set(words)) < len(words):
        ids: dict[str, int] = {}
        word, index = next((word, index) for index, word in enumerate(words) if ids.setdefault(word, index) != index)
        raise ValueError(f"{source}: {word!r:.80} has the ids {ids[word]} and {index}; each word must occur once")
    return words


def _find_vocabulary(stored: Any, path: Path) -> StoredVocabulary:
    """The vocabulary in what an old file holds: a dictionary, an object's state, or the corpus around either."""
    for _ in range(4):  # file -> corpus object -> its state -> vocabulary object -> its state
        if isinstance(stored, PickledObject):
            stored = stored.state
        elif isinstance(stored, Mapping) and "vocab" in stored and "idx2sym" not in stored:
            stored = stored["vocab"]
    if not isinstance(stored, Mapping) or not ("idx2sym" in stored or "sym2idx" in stored):
        raise ValueError(
            f"{path} holds no vocabulary (neither idx2sym nor sym2idx); where it is an old corpus.bin, take the "
            "vocab.bin beside it"
        )
    return StoredVocabulary(
        words=_ordered_words(stored.get("idx2sym"), stored.get("sym2idx"), path),
        options={name: stored[name] for name in _OPTIONS if _fits(name, stored.get(name))},
        counts=_plain_counts(stored.get("counter")),
    )


def _plain_counts(counts: Any) -> dict[str, int]:
    if not isinstance(counts, Mapping):
        return {}
    if set(map(type, counts)) <= {str} and set(map(type, counts.values())) <= {int}:
        return dict(counts)
    return {word: count for word, count in counts.items() if isinstance(word, str) and isinstance(count, int)}


def _fits(option: str, value: Any) -> bool:
    kind, _ = _OPTIONS[option]
    is_flag = isinstance(value, bool)  # which is an int as well
    entries = value if isinstance(value, list | tuple) else ()
    return isinstance(value, kind) and is_flag == (kind is bool) and all(isinstance(entry, str) for entry in entries)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses options of a tokenizer that are of another type than they must be; None stands for a default.

    Raises:
        TypeError: one is.
    """
    for name, value in options.items():
        if value is not None and not _fits(name, value):
            raise TypeError(f"{name}={value!r:.80} must be {_OPTIONS[name][1]}")


def _ordered_words(by_id: Any, ids: Any, path: Path) -> list[str]:
    """The words in the order of their ids; both directions of an old vocabulary must say the same."""
    if ids is not None and not isinstance(ids, Mapping):
        raise ValueError(f"{path}: sym2idx is a {type(ids).__name__}; it must map each word to its id")
    if ids is not None and not set(map(type, ids.values())) <= {int}:
        word, index = next((word, index) for word, index in ids.items() if type(index) is not int)
        raise ValueError(f"{path}: sym2idx gives {word!r:.80} a {type(index).__name__}; each word must have an id")
    if ids and (by_id is None or by_id == []):
        by_id = sorted(ids, key=ids.__getitem__)
    words = _check_words(by_id, f"{path}, idx2sym")
    if ids is not None and ids != dict(zip(words, range(len(words)), strict=True)):
        wrong = next((word for index, word in enumerate(words) if ids.get(word) != index), None)
        culprit = wrong if wrong is not None else next(iter(ids.keys() - set(words)))
        raise ValueError(
            f"{path}: idx2sym and sym2idx disagree about {culprit!r:.80}; the file is damaged, take another copy"
        )
    return words


def find_vocabulary(
    saved_files: Sequence[str | os.PathLike[str] | None],
    word_list: str | os.PathLike[str] | None,
    folder: str | None,
) -> StoredVocabulary:
    """Gives the vocabulary of the first file that was found, an empty one if nothing was to be loaded.

    Args:
        saved_files: paths for `read_vocabulary`; None for those that are not there.
        word_list: path for `read_word_list`, likewise.
        folder: what is being loaded, a folder or a Hub id; an old corpus in it is the last resort.

    Raises:
        ValueError: there is no vocabulary in `folder`, or the file cannot be used.
    """
    saved = next((file for file in saved_files if file is not None), None)
    if saved is not None:
        return read_vocabulary(saved)
    if word_list is not None:
        return read_word_list(word_list)
    if not folder:
        return StoredVocabulary([])
    corpora = (Path(folder, name) for name in VOCABULARY_FILES if name in ("corpus.bin", "cache.pt"))
    corpus = next((path for path in corpora if path.is_file()), None)
    if corpus is None:
        raise ValueError(f"{folder} holds no vocabulary; it needs one of {', '.join(VOCABULARY_FILES)}")
    return read_vocabulary(corpus)


def read_lines(path: str | os.PathLike[str], *, keep_line_ends: bool, longest: int = -1) -> Iterator[str]:
    """Gives the lines of a UTF-8 text one by one, with their ends.

    Args:
        path: the file.
        keep_line_ends: whether `\\r\\n` stays what it is instead of becoming `\\n`.
        longest: characters after which a line is cut; -1 cuts none.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="" if keep_line_ends else None) as file:
            yield from iter(partial(file.readline, longest), "")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; give the path of a text file") from None


def propose_cutoffs(counts: Sequence[int], n_cutoffs: int = 3) -> list[int]:
    """Gives the first ids of the tail clusters that make an adaptive softmax cheapest, in round numbers.

    The cost of a token is what is multiplied for it: the head with one column a cluster, and the tail cluster that
    holds the word, weighted by how often that happens (Grave et al. 2017, section 4; instead of their constant for
    small matrices, no cluster is smaller than `MIN_CLUSTER` words). Small vocabularies get none.

    Args:
        counts: occurrences of each word, in the order of the ids.
        n_cutoffs: most cutoffs wanted.
    """
    n_words, total = len(counts), sum(counts)
    if n_cutoffs < 1:
        raise ValueError(f"n_cutoffs={n_cutoffs} must be at least 1; for a plain softmax pass cutoffs=[] to the model")
    if total <= 0:
        raise ValueError("there are no counts to propose cutoffs from; they come from train or count_file")
    if n_words < PLAIN_SOFTMAX_WORDS:
        return []
    round_numbers = (digit * 10**power // 2 for power in range(3, 9) for digit in (2, 3, 4, 5, 6, 8, 10, 12, 16))
    cuts = sorted({cut for cut in round_numbers if MIN_CLUSTER <= cut <= n_words - MIN_CLUSTER})
    seen = [0, *accumulate(counts)]

    def tail_cost(first: int, end: int) -> float:
        return 1 + (seen[end] - seen[first]) / total * (end - first)  # 1 for the cluster's column in the head

    # cheapest[cut]: cost of everything from `cut` on, and the cutoffs used, with up to so many cutoffs
    cheapest = {cut: (tail_cost(cut, n_words), [cut]) for cut in cuts}
    for _ in range(n_cutoffs - 1):
        longer = {
            cut: min(
                (tail_cost(cut, later) + cheapest[later][0], [cut, *cheapest[later][1]])
                for later in cuts
                if later - cut >= MIN_CLUSTER
            )
            for cut in cuts
            if cut + MIN_CLUSTER <= cuts[-1]
        }
        cheapest |= {cut: min(found, cheapest[cut]) for cut, found in longer.items()}
    return min((cut + cost, cutoffs) for cut, (cost, cutoffs) in cheapest.items())[1]


__all__ = [
    "VOCABULARY_FILES",
    "StoredVocabulary",
    "TokenIds",
    "check_options",
    "find_vocabulary",
    "place_added_tokens",
    "propose_cutoffs",
    "read_lines",
    "read_vocabulary",
    "read_word_list",
    "write_vocabulary",
]
