"""The Moses rules for raw text, token for token as `sacremoses` gives them with the arguments of transformers 4.35.

Source: the scripts `normalize-punctuation.perl` and `tokenizer.perl` of Moses (Koehn et al. 2007) as sacremoses ports
them: punctuation is normalised (`MosesPunctNormalizer`), text is split, dashes aggressively, nothing escaped and some
tokens protected (`MosesTokenizer`), then numbers are split at `,` and `.`. Character classes, abbreviations and the way
back from tokens to text are taken from sacremoses itself.

Why not call it for all: a rule sees only a word and the characters next to it, so the pieces between spaces ("units")
are split one by one and the result is kept. What reaches further is done on the whole text: normalisation, the few
places where the start or the end of a text or two apostrophes in a row matter, and the full stop, which stays on its
word before a lower-case letter.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeAlias

NBSP = "\u00a0"
KEPT_UNITS = 1 << 17  # units remembered per language; about 30 MB when full
_NUMBER_POINT = re.compile(r"(?<=\d)[,.](?=\d)")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b]")  # the others of the first 32 are white space
_DOTS_MARK = re.compile(r"((?:DOT)+)MULTI")
_Finish: TypeAlias = Callable[[Sequence[str]], list[str]]
_Rule: TypeAlias = tuple[
    str, Callable[..., str], Callable[[re.Match[str]], str]
]  # what it starts from, sub, replacement
_EDGE = "\n"  # no unit holds white space
_SPACE_BETWEEN_UNITS = re.compile(r"(?<!') | (?!')")


def tokenize_numbers(tokens: Iterable[str]) -> list[str]:
    """Splits numbers at `,` and `.` between digits: `["5,000", "m"]` gives `["5", "@,@", "000", "m"]`."""
    return _split_numbers(" ".join(tokens))


def detokenize_numbers(text: str) -> str:
    """Joins numbers that `tokenize_numbers` split; one cut off at the end of the text is joined as far as it goes.

    The latter keeps streamed text from changing what was already written.
    """
    for point in ",.":
        text = text.replace(f" @{point}@ ", point)
        if text.endswith(f" @{point}@"):
            text = text[:-4] + point
    return text


def _split_numbers(text: str) -> list[str]:
    return _NUMBER_POINT.sub(" @{0[0]}@ ".format, text).split()


# Normalisation of punctuation: `_TOUCHED` finds every character that a rule starts from. The script's rules that only
# move spaces next to a character that becomes a token of its own ("( x" to "(x", "5 %" to "5%") change no token and are
# left out.
_TOUCHED = re.compile(f"[\r`'\"´„“”–—‘’‚…«»{NBSP}]")
_QUOTE_BEFORE_POINT = re.compile(r'"([,.]+)')
_POINT_BEFORE_QUOTE = re.compile(r'(\.+)"(\s*[^<])')
_NBSP_IN_NUMBER = re.compile(rf"(\d){NBSP}(\d)")
_DECIMAL_COMMA = {"de", "es", "cz", "cs", "fr"}  # "cz" is what the script calls Czech
_TYPOGRAPHIC = {"„": '"', "“": '"', "”": '"', "–": "-", "—": " - ", "´": "'", "‘": "'", "‚": "'", "’": "'"}
_FRENCH_QUOTES = (f"{NBSP}«{NBSP}", f"«{NBSP}", "«", f"{NBSP}»{NBSP}", f"{NBSP}»", "»")


def normalize_punctuation(text: str, language: str) -> str:
    """Gives the text with plain quotes and dashes, and with points and closing quotes in the order of the language."""
    if not _TOUCHED.search(text):
        return text
    text = text.replace("\r", "").replace("`", "'").replace("''", ' " ')
    if not text.isascii():
        for mark, plain in _TYPOGRAPHIC.items():
            text = text.replace(mark, plain)
        text = text.replace("''", '"').replace("…", "...")
        for mark in _FRENCH_QUOTES:
            text = text.replace(mark, '"')
        if NBSP in text:
            text = _NBSP_IN_NUMBER.sub(r"\1,\2" if language in _DECIMAL_COMMA else r"\1.\2", text)
    if '"' not in text:
        return text
    if language == "en":
        return _QUOTE_BEFORE_POINT.sub(r'\1"', text)
    if language in ("de", "es", "fr"):
        return _POINT_BEFORE_QUOTE.sub(r'"\1\2', text.replace(',"', '",'))
    return text


class _Unit(NamedTuple):
    """The tokens of a piece of text between spaces.

    `kept` are the tokens if a full stop at the end stays on its word: before a lower-case letter, or before a digit as
    well if `numeric`. It is None where what follows does not matter.
    """

    tokens: list[str]
    kept: list[str] | None = None
    numeric: bool = False


class MosesRules:
    """The rules for one language and one list of protected tokens; get it from `moses_rules`."""

    def __init__(self, language: str, never_split: Sequence[str]) -> None:
        import sacremoses  # noqa: PLC0415 - takes a second, and only raw text needs it

        source = sacremoses.MosesTokenizer(language)
        self.language = language
        self._alphabetic = frozenset(source.IsAlpha)
        self._lower = frozenset(source.IsLower)
        self._number_abbreviations = frozenset(source.NUMERIC_ONLY_PREFIXES)
        self._abbreviations = frozenset(source.NONBREAKING_PREFIXES) - self._number_abbreviations
        self._rules = _unit_rules(_class(source.IsAlnum), _class(source.IsAlpha), _class(source.IsN), language)
        self._join: Callable[[Sequence[str]], str] = sacremoses.MosesDetokenizer(language).detokenize
        tokens = sorted(filter(None, never_split), key=len, reverse=True)
        patterns = [r"\s+".join(map(re.escape, token.split())) for token in tokens]
        self._protected = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None
        self._known: dict[str, _Unit] = {}

    def tokenize(self, text: str) -> list[str]:
        """Gives the tokens of a text."""
        text = normalize_punctuation(text, self.language)
        if not text.isprintable():
            text = _CONTROL.sub("", text)
        if self._protected is not None and self._protected.search(text):
            text, finish = _hide(self._protected, text)
            return self._split(_units(text), {}, finish)  # stand-ins mean something else in the next text
        if len(self._known) > KEPT_UNITS:
            self._known.clear()
        return self._split(_units(text), self._known, _finish)

    def detokenize(self, tokens: Iterable[str]) -> str:
        """Gives the text of tokens: punctuation, contractions, quotes, dashes and numbers joined back."""
        text = " ".join(tokens)
        if self.language == "cs":  # sacremoses 0.2.0 fails at this rule of the Perl script
            text = re.sub(r"(\w') ([-–]) (li\b|mail)", r"\1\2\3", text)
        return detokenize_numbers(self._join([text])).strip()

    def _split(self, units: Sequence[str], known: dict[str, _Unit], finish: _Finish) -> list[str]:
        """Puts the tokens of the units together; what follows a unit decides about its full stop."""
        tokens: list[str] = []
        for place, unit in enumerate(units, start=1):
            found = known.get(unit)
            if found is None:
                found = known[unit] = self._read(unit, finish)
            split, kept, numeric = found
            if kept is not None and place < len(units) and self._holds_stop(units[place][0], numeric=numeric):
                split = kept
            tokens += split
        return tokens

    def _read(self, unit: str, finish: _Finish) -> _Unit:
        """Splits one unit; there are spaces around it but where `_EDGE` marks the start or end of the text."""
        at_end = unit[-1] == _EDGE
        text = unit[1:] if unit[0] == _EDGE else f" {unit}"
        text = text[:-1] if at_end else f"{text} "
        for trigger, substitute, replacement in self._rules:
            if trigger in text:
                text = substitute(replacement, text)
        *inner, final = text.split()
        tokens: list[str] = []
        for token, follower in pairwise([*inner, final]):
            leaves = self._may_lose_stop(token) and not self._holds_stop(
                follower[0], numeric=self._is_number_word(token)
            )
            tokens += [token[:-1], "."] if leaves else [token]
        if at_end and final.endswith(".'"):
            return _Unit(finish([*tokens, final[:-2], ".", "'"]))
        if not self._may_lose_stop(final):
            return _Unit(finish([*tokens, final]))
        return _Unit(finish([*tokens, final[:-1], "."]), finish([*tokens, final]), self._is_number_word(final))

    def _may_lose_stop(self, token: str) -> bool:
        """Whether the token ends in a full stop and is neither an abbreviation nor made of letters and full stops."""
        word = token[:-1]
        if not word or token[-1] != "." or word in self._abbreviations:
            return False
        return "." not in word or self._alphabetic.isdisjoint(word)

    def _is_number_word(self, token: str) -> bool:
        return token[:-1] in self._number_abbreviations

    def _holds_stop(self, follower: str, *, numeric: bool) -> bool:
        """Whether a full stop stays on its word before a token that starts with `follower`."""
        return follower in self._lower or (numeric and follower in "0123456789")


def _units(text: str) -> list[str]:
    """The pieces between spaces.

    Apostrophes on both sides of a space stay together, as one rule reads across it. Where apostrophes and commas are
    read otherwise at the start and end of a text than between spaces, `_EDGE` is added to the unit.
    """
    units = text.split()
    if not units:
        return units
    if "'" in text and "' '" in (text := " ".join(units)):
        units = _SPACE_BETWEEN_UNITS.split(text)
    if units[0][0] in "',":
        units[0] = _EDGE + units[0]
    if units[-1][-1] in "',":
        units[-1] += _EDGE
    return units


def _finish(tokens: Sequence[str]) -> list[str]:
    """Puts runs of dots back and splits numbers."""
    text = " ".join(tokens)
    if "MULTI" in text:
        text = _DOTS_MARK.sub(lambda mark: "." * (len(mark[1]) // 3), text)
    return _split_numbers(text)


def _hide(protected: re.Pattern[str], text: str) -> tuple[str, _Finish]:
    """Gives the text with a stand-in for each protected token, and a `_finish` that puts the tokens back first."""
    mark = "THISISPROTECTED"  # as in sacremoses: the rules for the neighbours see upper-case letters, then digits
    while mark in text:
        mark += "X"
    width = len(str(len(text)))
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        hidden.append(match.group())
        return f"{mark}{len(hidden) - 1:0{width}}"

    text = protected.sub(hide, text)
    stand_in = re.compile(rf"{mark}(\d{{{width}}})")

    def finish(tokens: Sequence[str]) -> list[str]:
        return _finish([stand_in.sub(lambda match: hidden[int(match.group(1))], token) for token in tokens])

    return text, finish


def _class(characters: Iterable[str]) -> str:
    """The inside of a regular expression's character class, as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and code <= ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)


def _unit_rules(alnum: str, alpha: str, number: str, language: str) -> list[_Rule]:
    """The rules of the tokenizer script that look at a character and its neighbours, in their order."""
    apart, before, after = "{0[1]} ' {0[2]}".format, "{0[1]} '{0[2]}".format, "{0[1]}' {0[2]}".format
    rules: list[tuple[str, str, Callable[[re.Match[str]], str]]] = [
        ("", rf"[^{alnum}\s.'`,-]", " {0[0]} ".format),  # any other character stands alone
        ("-", rf"([{alnum}])-(?=[{alnum}])", "{0[1]} @-@ ".format),
        ("..", r"(\.{2,})", lambda dots: f" {'DOT' * len(dots[0])}MULTI "),
        (",", rf"([^{number}]),", "{0[1]} , ".format),
        (",", rf",([^{number}])", " , {0[1]}".format),
        (",", rf"([{number}]),$", "{0[1]} , ".format),
    ]
    if language == "en":
        rules += [
            ("'", rf"([^{alpha}])'([^{alpha}])", apart),
            ("'", rf"([^{alpha}{number}])'([{alpha}])", apart),
            ("'", rf"([{alpha}])'([^{alpha}])", apart),
            ("'", rf"([{alpha}])'([{alpha}])", before),
            ("'", rf"([{number}])'(s)", before),
        ]
    elif language in ("fr", "it"):
        rules += [
            ("'", rf"([^{alpha}])'([^{alpha}])", apart),
            ("'", rf"([^{alpha}])'([{alpha}])", apart),
            ("'", rf"([{alpha}])'([^{alpha}])", apart),
            ("'", rf"([{alpha}])'([{alpha}])", after),
        ]
    else:
        rules.append(("'", "'", " {0[0]} ".format))
    return [(trigger, re.compile(pattern).sub, replacement) for trigger, pattern, replacement in rules]


@lru_cache(maxsize=16)
def moses_rules(language: str, never_split: tuple[str, ...]) -> MosesRules:
    """Gives the rules for a language and its protected tokens, made once."""
    return MosesRules(language, never_split)


__all__ = ["MosesRules", "detokenize_numbers", "moses_rules", "normalize_punctuation", "tokenize_numbers"]
