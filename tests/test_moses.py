"""The Moses rules against sacremoses itself, with the arguments that transformers 4.35 gave it."""

import csv
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
import sacremoses
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer_xl.moses import MosesRules, detokenize_numbers, moses_rules, normalize_punctuation, tokenize_numbers

SPECIAL_TOKENS = ("<unk>", "<eos>", "<formula>")
LANGUAGES = ("en", "fr", "it", "de", "es", "cs", "fi", "ga", "ru", "ko", "not-a-language")
SENTENCES = [
    'Hello, world! (He said: "it\'s 5.50 $.") -- well-known, e.g. by Mr. Smith and the U.S. No. 5 of No. one.',
    "No. 5, no. No. five. pp. 3-4 and pp. in. The end. of. it. At 5 p.m. on Dec. 3rd etc.",
    "'Twas the dogs' bone; rock 'n' roll, the '90s, the 1990's and don't, can't, I'm, she'll, we've, 'em.'",
    "a,b,c 1,000,000 5, 5 ,5 ,,5 a,, ,,, x, ,",
    ",5 starts a text and ends it ,5",
    "'5 or ' ' or x1' '2 or 'a' 'b' or a' 'b. '' `` ` ' '",
    "«\u00a0. a\u00a0», «x\u00a0».\u00a0«\u00a0, „x“. “x”, ‘’.",
    "end in a number 5,",
    "a\rb",
    "end in an apostrophe.'",
    "end in a plural'",
    "and so on... or .. or .... Dots...like this. A...b",
    "„German“ “English” ‘single’ ‚low‘ ’tis «French» « spaced » ´acute´ ´´two´´ … – — -",
    "a–b a—b x‘y x’y don’t",
    "10 % of 5 %: yes ; no : maybe 5\u00a0% 5\u00a0: x\u00a0! x\u00a0? x\u00a0;",
    "nº\u00a05 5\u00a0ºC 5\u00a0cm a,\u00a0b 1\u00a0000\u00a0000",
    '"quoted," he said, "and more." "," ".", ",." ")." ( x ) .) ,( a)b (c',
    "C++ C# AT&T a/b/c user@example.com http://example.com/a?b=c #tag @user $5 €5 ½ ² 5² x² ٣٤,٥",
    "kept <unk>'s <UNK>, 5<Eos>.5 <formula>. <eos><eos> <UNK>.  <Unk>: x",
    "tab\there\r\nline\x0b\x1fand \x00con\x07trol \u2003wide\u3000 \u200bzero \u0085next",
    "中文，标点。「引」 ひらがな カタカナ 한국어 é naïve Ångström ﬁ ß ẞ İ",
    "DOTMULTI DOTDOTMULTI aDOTMULTI. THISISPROTECTED000 THISISPROTECTEDX <UNK>",
    "l'homme qu'il aujourd'hui d'eau dell'arte O'Neill's 5's x's's",
    "= = Heading = = @-@ @,@ @.@ 3.14.159 1.000,00",
    "\ud800 lone surrogate \udfff",
    "",
    "   \t ",
    "'",
    ",",
    ".'",
    "a.'",
]
FRAGMENTS = [
    *"',\".-`´‘’‚„“”–—…«»()[]{}%:;!?@#$&*/\\|=+~^_<> \t\n\r\u00a0\u2003\x00\x1f\u200b\u0300Aaßé5٣²½中の한ﬁſK",
    *("''", "..", "...", "--", "Mr.", "No.", "Art.", "pp.", "e.g.", "U.S.A", "n't", "'s", "'n'", "1,000", "3.14"),
    *("nº", "ºC", "cm", "@-@", "DOTMULTI", "THISISPROTECTED000", "&amp;", "word", "Word", "qu'", "\ud800", "İ", "😀"),
    *("<unk>", "<UNK>", "<Eos>", "<formula>", "5 %", "a.b.", "1.", "a. b", ".'", "' '", ") .", " ,"),
]


@cache
def reference(language: str, never_split: tuple[str, ...]) -> Callable[[str], list[str]]:
    """The pipeline of transformers 4.35 up to the numbers, which have their own test."""
    normalizer = sacremoses.MosesPunctNormalizer(language)
    tokenizer = sacremoses.MosesTokenizer(language)
    alphabetic, lower = frozenset(tokenizer.IsAlpha), frozenset(tokenizer.IsLower)
    tokenizer.isanyalpha = lambda text: not alphabetic.isdisjoint(text)  # the same answer without building sets
    tokenizer.islower = lower.issuperset

    def split(text: str) -> list[str]:
        tokens = tokenizer.tokenize(
            normalizer.normalize(text),
            aggressive_dash_splits=True,
            return_str=False,
            escape=False,
            protected_patterns=list(never_split),
        )
        return tokenize_numbers(tokens)

    return split


@pytest.mark.parametrize("language", LANGUAGES)
def test_tokens_are_those_of_sacremoses(language):
    for never_split in (SPECIAL_TOKENS, ()):
        rules, expected = moses_rules(language, never_split), reference(language, never_split)
        for text in SENTENCES:
            assert rules.tokenize(text) == expected(text), text


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_chinese_and_japanese_characters_form_words_in_their_languages(language):
    """Few texts, because sacremoses takes a second for each in these languages."""
    text = "中文，标点。「引」 ひらがな-カタカナ 한국어 'x'. a.b. 5,000"
    assert moses_rules(language, ()).tokenize(text) == reference(language, ())(text)
    assert "中文" in moses_rules(language, ()).tokenize(text)
    assert "中文" not in moses_rules("en", ()).tokenize(text)


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=25), language=st.sampled_from(LANGUAGES))
@example(parts=["x1' '2"], language="en")
@example(parts=["1\u00a02\u00a03"], language="en")
def test_tokens_of_any_mixture_are_those_of_sacremoses(parts, language):
    text = "".join(parts)
    assert moses_rules(language, SPECIAL_TOKENS).tokenize(text) == reference(language, SPECIAL_TOKENS)(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_tokens_of_any_text_are_those_of_sacremoses(text):
    assert moses_rules("en", SPECIAL_TOKENS).tokenize(text) == reference("en", SPECIAL_TOKENS)(text)


def raw_texts() -> Iterator[str]:
    """Lines of the play in the package, and of all .txt, .csv, .pos, .neg and .tokens files that the caller names."""
    yield from (files("transformer_xl") / "data" / "tiny_shakespeare.txt").read_text(encoding="utf-8").splitlines()
    folder = os.environ.get("TRANSFORMER_XL_RAW_TEXT")
    for path in sorted(Path(folder).rglob("*")) if folder else []:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                yield from (cell for row in csv.reader(file) for cell in row)
        elif path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            yield from lines
            yield from map(as_raw_text, lines)


def as_raw_text(line: str) -> str:
    """A line of tokens written as people write it, more or less."""
    line = re.sub(r" @([-,.])@ ", r"\1", line)
    line = re.sub(r" ([.,;:!?)\]%'])", r"\1", line)
    line = re.sub(r"([(\[$]) ", r"\1", line)
    return re.sub(r' " ([^"]*) " ', r' "\1" ', line)


@pytest.mark.slow
def test_tokens_of_a_corpus_are_those_of_sacremoses():
    """With TRANSFORMER_XL_RAW_TEXT naming a folder, also of every text in it."""
    rules, expected = moses_rules("en", SPECIAL_TOKENS), reference("en", SPECIAL_TOKENS)
    for text in raw_texts():
        assert rules.tokenize(text.strip()) == expected(text.strip()), text


def test_known_words_do_not_change_what_follows():
    """Units are remembered, with what a full stop needs to know about its neighbours left open."""
    rules = MosesRules("en", SPECIAL_TOKENS)
    first = rules.tokenize("It ended. and it ended. No. 5 'x', <UNK>. Then No. x ,")
    assert rules.tokenize("It ended. and it ended. No. 5 'x', <UNK>. Then No. x ,") == first
    assert rules.tokenize("It ended.") == ["It", "ended", "."]
    assert rules.tokenize("It ended. and") == ["It", "ended.", "and"]


def test_memory_of_known_words_is_bounded(monkeypatch):
    monkeypatch.setattr("transformer_xl.moses.KEPT_UNITS", 10)
    rules = MosesRules("en", ())
    for number in range(100):
        assert rules.tokenize(f"n{number}, ok") == [f"n{number}", ",", "ok"]
    assert len(rules._known) <= 12


def test_protected_tokens_stay_whole_in_any_case_and_number():
    rules = moses_rules("en", ("C++", "New York", ".NET"))
    assert rules.tokenize("c++ in new  york, .net.") == ["c++", "in", "new", "york", ",", ".net", "."]
    assert rules.tokenize("C++ " * 2000) == ["C++"] * 2000  # sacremoses gives up at 1,000


def test_numbers_are_split_and_joined():
    assert tokenize_numbers(["$", "5,000", "1.73", "m", ".5", "5.", "1.2.3"]) == [
        *("$", "5", "@,@", "000", "1", "@.@", "73", "m", ".5", "5.", "1", "@.@", "2", "@.@", "3"),
    ]
    assert detokenize_numbers("$ 5 @,@ 000 1 @.@ 73 m") == "$ 5,000 1.73 m"
    assert detokenize_numbers("5 @,@") == "5,"
    assert detokenize_numbers("@,@ 000") == "@,@ 000"


def test_text_without_punctuation_to_replace_is_given_back():
    assert normalize_punctuation("A plain text, with  nothing in it.", "en") == "A plain text, with  nothing in it."


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.sampled_from([*FRAGMENTS, "a'", "li", "mail", ":", "N"]) | st.text(max_size=4), max_size=12),
    language=st.sampled_from(LANGUAGES),
)
@example(tokens=["a'", "-", "li"], language="cs")
def test_any_tokens_become_text(tokens, language):
    assert isinstance(moses_rules(language, ()).detokenize(tokens), str)


def test_text_of_growing_tokens_only_grows():
    """What a streamer has written before the last space stays."""
    rules = moses_rules("en", ())
    tokens = re.findall(r"\S+", 'He said , " 5 @,@ 000 well @-@ known ( or so ) dogs \' bones cost $ 3 @.@ 50 . "')
    texts = [rules.detokenize(tokens[:length]) for length in range(len(tokens) + 1)]
    assert texts[-1] == 'He said, "5,000 well-known (or so) dogs\' bones cost $3.50."'
    for before, after in pairwise(texts):
        assert after.startswith(before[: before.rfind(" ") + 1])
