"""`TransfoXLTokenizer`: the three modes, the vocabulary and its files, old releases, and life inside transformers."""

import copy
import inspect
import json
import logging
import pickle
import re
import shutil
from collections import Counter

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer, DataCollatorWithPadding, TextStreamer

import transformer_xl  # noqa: F401 - makes AutoTokenizer know the class
from models import FIXTURES
from transformer_xl.tokenization import TransfoXLTokenizer

LEGACY = FIXTURES / "legacy"
EXPECTED = json.loads((LEGACY / "hf-4.35-tokenizer-expected.json").read_text(encoding="utf-8"))
WORDS = ["<eos>", "<unk>", "word"]
TEXT = "The cat sat on the mat . The dog , too , sat .\nThe end .\n"


def save(folder, words, **tokenizer_config):
    """A folder as a tokenizer saves it."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    config = {"tokenizer_class": "TransfoXLTokenizer", **tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def streamed(tokenizer, ids):
    """What `TextStreamer` prints in the end, and the pieces it came in."""
    pieces = []

    class Recorder(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    streamer = Recorder(tokenizer)
    for index in ids:
        streamer.put(torch.tensor([index]))
    streamer.end()
    return "".join(pieces), pieces


# The reference.


def test_parameters_and_defaults_are_the_references():
    parameters = inspect.signature(TransfoXLTokenizer).parameters
    assert {name: p.default for name, p in parameters.items() if name not in {"mode", "kwargs"}} == {
        "special": None,
        "min_freq": 0,
        "max_size": None,
        "lower_case": False,
        "delimiter": None,
        "vocab_file": None,
        "pretrained_vocab_file": None,
        "never_split": None,
        "unk_token": "<unk>",
        "eos_token": "<eos>",
        "additional_special_tokens": ("<formula>",),
        "language": "en",
    }


def legacy_tokenizers(tmp_path):
    """The recorded vocabulary by every way in which it can come."""
    loaded = TransfoXLTokenizer.from_pretrained(LEGACY / "hf-4.35")
    yield loaded
    loaded.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["tokenizer_config.json", "vocab.json"]
    yield TransfoXLTokenizer.from_pretrained(tmp_path / "saved")
    yield AutoTokenizer.from_pretrained(LEGACY / "hf-4.35")
    yield TransfoXLTokenizer(pretrained_vocab_file=LEGACY / "vocab.bin")
    (tmp_path / "bare").mkdir()
    shutil.copy(LEGACY / "vocab.bin", tmp_path / "bare")
    yield TransfoXLTokenizer.from_pretrained(tmp_path / "bare")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("".join(f"{word} 1\n" for word in loaded.idx2sym), encoding="utf-8")
    yield TransfoXLTokenizer.from_pretrained(tmp_path / "words")
    (tmp_path / "corpus").mkdir()
    shutil.copy(LEGACY / "vocab.bin", tmp_path / "corpus" / "corpus.bin")
    yield TransfoXLTokenizer.from_pretrained(tmp_path / "corpus")


def test_difficult_texts_are_read_as_transformers_4_35_read_them(tmp_path):
    for tokenizer in legacy_tokenizers(tmp_path):
        assert type(tokenizer) is TransfoXLTokenizer
        assert tokenizer.mode == "moses"
        for row in EXPECTED:
            assert tokenizer.tokenize(row["text"]) == row["tokens"]
            assert tokenizer(row["text"])["input_ids"] == tokenizer.encode(row["text"]) == row["ids"]
            assert tokenizer.decode(row["ids"]) == row["decoded"]


def test_the_documented_example_of_moses_pipeline():
    tokens = TransfoXLTokenizer().moses_pipeline("23,000 people are 1.80 m tall")
    assert tokens == ["23", "@,@", "000", "people", "are", "1", "@.@", "80", "m", "tall"]


def test_never_split_defaults_to_the_special_tokens():
    assert TransfoXLTokenizer(special=["<eos>"]).moses_pipeline("a<UNK>.") == ["a<UNK>", "."]
    assert TransfoXLTokenizer(never_split=[]).moses_pipeline("<UNK>") == ["<", "UNK", ">"]
    assert TransfoXLTokenizer(never_split=["C#"]).moses_pipeline("C# <UNK>") == ["C#", "<", "UNK", ">"]


def test_language_chooses_the_rules():
    assert TransfoXLTokenizer(language="fr").moses_pipeline("l'eau") == ["l'", "eau"]
    assert TransfoXLTokenizer(language="en").moses_pipeline("l'eau") == ["l", "'eau"]


# Modes.


@pytest.mark.parametrize(
    ("options", "mode", "tokens"),
    [
        ({}, "moses", ["A", "b", ",", "c", ";", "d"]),
        ({"mode": "whitespace"}, "whitespace", ["A", "b,c;", "d"]),
        ({"delimiter": ";"}, "whitespace", ["A b,c", " d"]),
        ({"delimiter": ""}, "characters", list("A b,c; d")),
        ({"mode": "characters"}, "characters", list("A b,c; d")),
        ({"mode": "bytes"}, "bytes", list("A b,c; d")),
        ({"mode": "characters", "lower_case": True}, "characters", list("a b,c; d")),
        ({"mode": "whitespace", "lower_case": True}, "whitespace", ["a", "b,c;", "d"]),
        ({"lower_case": True}, "moses", ["a", "b", ",", "c", ";", "d"]),
    ],
)
def test_the_mode_is_named_and_saved(tmp_path, options, mode, tokens):
    tokenizer = TransfoXLTokenizer.train(texts=["A b,c; d"], special=["<unk>"], **options)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_bytes())["mode"] == mode
    for same in (tokenizer, TransfoXLTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert same.mode == mode
        assert same.tokenize("A b,c; d") == tokens
        assert same.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "letters"}, "mode='letters' is unknown; give one of 'moses', 'whitespace', 'characters', 'bytes'"),
        ({"mode": "moses", "delimiter": ""}, "delimiter='' means mode='characters', but mode='moses' was given; leave"),
        ({"mode": "characters", "delimiter": " "}, "delimiter=' ' means mode='whitespace', but mode='characters' was"),
        ({"min_freq": -1}, "min_freq=-1 must not be negative; 0 keeps every word"),
        ({"max_size": 0}, "max_size=0 must be at least 1 and hold the 0 special tokens; None sets no limit"),
        ({"max_size": 1, "special": ["a", "b"]}, "max_size=1 must be at least 1 and hold the 2 special tokens; None"),
    ],
)
def test_impossible_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransfoXLTokenizer(**options)


def test_an_unknown_mode_in_a_saved_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mode='letters' is unknown"):
        TransfoXLTokenizer.from_pretrained(save(tmp_path, ["a"], mode="letters"))


@given(text=st.text(max_size=80))
@example(text="a\r\nb\r\x00\ud800 <eos>  ")
def test_characters_come_back_exactly(text):
    tokenizer = TransfoXLTokenizer.train(texts=[text, "x"], mode="characters")
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text)
    assert set(tokenizer.get_vocab()) == {*text, "x"}


@given(text=st.text(max_size=80))
@example(text="\ud800é中")
def test_bytes_come_back_exactly_where_they_are_text(text):
    tokenizer = TransfoXLTokenizer.train(texts=[text, "x"], mode="bytes")
    ids = tokenizer(text)["input_ids"]
    raw = text.encode("utf-8", "surrogatepass")
    assert bytes(ord(token) for token in tokenizer.convert_ids_to_tokens(ids)) == raw
    assert tokenizer.decode(ids) == raw.decode("utf-8", "replace")


def test_longer_tokens_stand_between_bytes_as_they_are():
    tokenizer = TransfoXLTokenizer.train(texts=["é"], mode="bytes", special=["<eos>", "中国"])
    assert tokenizer.decode(tokenizer.encode("é<eos>é")) == "é<eos>é"
    assert tokenizer.decode([1, 2, 3, 0]) == "中国é<eos>"
    assert tokenizer.idx2sym == ["<eos>", "中国", "Ã", "©"]


@given(text=st.text(max_size=80))
@example(text="a\u00a0b \x1f c <unk> <eos>")
def test_words_come_back_up_to_runs_of_spaces(text):
    tokenizer = TransfoXLTokenizer.train(texts=[text, "x"], mode="whitespace")
    assert tokenizer.decode(tokenizer(text)["input_ids"]).split() == tokenizer.tokenize(text)
    if not any(token in text for token in ("<unk>", "<eos>")):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == " ".join(text.split())


@pytest.fixture(scope="module")
def small():
    """A tokenizer of each mode with an unknown token."""
    return [
        TransfoXLTokenizer.train(texts=[TEXT], mode=mode, special=["<eos>", "<unk>"])
        for mode in ("moses", "whitespace", "characters", "bytes")
    ]


@given(
    text=st.text(max_size=60) | st.lists(st.sampled_from(["<eos>", "<unk>", " ", "'", "a", "İ", "\ud800"])).map("".join)
)
def test_any_text_is_encoded_and_decoded(small, text):
    for tokenizer in small:
        batch = tokenizer([text, "a"], padding=True)
        assert len(batch["input_ids"][0]) == len(batch["input_ids"][1])
        assert isinstance(tokenizer.decode(tokenizer.encode(text)), str)


def test_special_tokens_are_whole_wherever_they_stand(small):
    _, words, characters, _ = small
    assert words.tokenize("the<eos>mat <unk>.") == ["the", "<eos>", "mat", "<unk>", "."]
    assert characters.tokenize("t<eos>m") == ["t", "<eos>", "m"]
    assert words.tokenize("the<eos>mat", split_special_tokens=True) == ["the<eos>mat"]
    assert TransfoXLTokenizer.train(texts=["<eos>"], mode="characters").tokenize("<eos>") == list("<eos>")


@given(parts=st.lists(st.sampled_from(["<eos>", "<unk>", "[x]", "[x]y", " ", "\n", "\u2003", "a", "<eos", ">"])))
def test_special_tokens_part_words_wherever_they_touch_them(small, parts):
    tokenizer = copy.deepcopy(small[1])
    tokenizer.add_tokens(["[x]", "[x]y"])
    text = "".join(parts)
    assert tokenizer.tokenize(text) == re.sub(r"<eos>|<unk>|\[x\]y|\[x\]", r" \g<0> ", text).split()


def test_special_tokens_keep_their_case_when_text_is_lowered():
    options = {"unk_token": "<UNK>", "mode": "whitespace", "lower_case": True}
    tokenizer = TransfoXLTokenizer.train(texts=["A <UNK> <formula>"], **options)
    assert tokenizer.tokenize("B <UNK>b <EOS>") == ["b", "<UNK>", "b", "<eos>"]
    assert tokenizer.tokenize("B <UNK> C") == ["b", "<UNK>", "c"]


def test_added_tokens_may_take_the_spaces_around_them(small):
    tokenizer = copy.deepcopy(small[2])
    tokenizer.add_tokens([AddedToken("[x]", lstrip=True, rstrip=True)])
    assert tokenizer.tokenize("a [x] b") == ["a", "[x]", "b"]


def test_unknown_words_without_an_unknown_token_are_refused():
    tokenizer = TransfoXLTokenizer.train(texts=["ab"], mode="characters")
    message = (
        "'é' is not among the 2 symbols of the vocabulary and no unk_token stands for it; leave it out of the text"
    )
    with pytest.raises(ValueError, match=message):
        tokenizer("aébé")
    with pytest.raises(ValueError, match=message):
        tokenizer.convert_tokens_to_ids("é")


def test_ids_outside_the_vocabulary_are_refused(small):
    for index in (-1, -100, 10_000):
        with pytest.raises(
            ValueError, match=f"id {index} is outside the vocabulary; ids go from 0 to {len(small[0]) - 1}"
        ):
            small[0].decode([0, index])


def test_unknown_words_get_the_unknown_token(small):
    assert small[1].encode("zebra the") == [1, small[1].get_vocab()["the"]]
    assert small[1].convert_tokens_to_ids("zebra") == small[1].unk_token_id == 1


# Streaming.


def test_characters_stream_as_they_are():
    tokenizer = TransfoXLTokenizer.train(texts=["Oh , no !\n  It 's  'x' .\n"], mode="characters")
    text = "Oh , no !\n  It 's  'x' .\nno"
    printed, pieces = streamed(tokenizer, tokenizer.encode(text))
    assert printed == text
    assert "Oh " in pieces


def test_words_stream_one_by_one(small):
    printed, pieces = streamed(small[1], small[1].encode(TEXT))
    assert printed == " ".join(TEXT.split())
    assert [piece for piece in pieces if piece][:3] == ["The ", "cat ", "sat "]


def test_numbers_and_punctuation_stream_joined():
    tokenizer = TransfoXLTokenizer.train(texts=["It cost $5,000.75, didn't it? He's well-known."])
    text = "It cost $5,000.75, didn't it? He's well-known."
    assert streamed(tokenizer, tokenizer.encode(text))[0] == tokenizer.decode(tokenizer.encode(text)) == text


# Special tokens and their ids.


def test_defaults_that_the_vocabulary_lacks_get_no_id(tmp_path):
    """The model has no row for them."""
    tokenizer = TransfoXLTokenizer.from_pretrained(save(tmp_path, ["a", "b"]))
    assert len(tokenizer) == tokenizer.vocab_size == 2
    assert (tokenizer.eos_token, tokenizer.unk_token, tokenizer.additional_special_tokens) == (None, None, [])
    tokenizer.save_pretrained(tmp_path)
    assert len(TransfoXLTokenizer.from_pretrained(tmp_path)) == 2
    with pytest.raises(
        ValueError, match="add_eos=True needs an eos_token, and this vocabulary has none; pass add_eos="
    ):
        tokenizer.tokenize("a", add_eos=True)


def test_special_tokens_that_the_user_names_get_new_ids(tmp_path):
    folder = save(tmp_path, ["a", "b"])
    special_tokens = {"eos_token": "</s>", "additional_special_tokens": ["<sep>"]}
    tokenizer = TransfoXLTokenizer.from_pretrained(folder, **special_tokens)
    assert (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<sep>"), len(tokenizer)) == (2, 3, 4)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = TransfoXLTokenizer.from_pretrained(tmp_path / "saved")
    assert again.encode("a</s><sep>") == [0, 2, 3]
    assert again.decode([0, 2, 3, 1], skip_special_tokens=True) == "a b"


def test_the_default_special_tokens_are_used_where_the_vocabulary_has_them(tmp_path):
    tokenizer = TransfoXLTokenizer.from_pretrained(save(tmp_path, ["a", "<formula>", "<unk>", "<eos>"]))
    assert tokenizer.all_special_ids == [3, 2, 1]
    assert tokenizer.additional_special_tokens == ["<formula>"]


def test_the_authors_spelling_of_the_unknown_token_is_understood(tmp_path):
    (tmp_path / "vocab.txt").write_text("<S>\n<UNK>\nthe\n", encoding="utf-8")
    tokenizer = TransfoXLTokenizer(vocab_file=tmp_path / "vocab.txt")
    assert tokenizer.encode("the zebra") == [2, 1]
    assert tokenizer.special_tokens_map == {"unk_token": "<UNK>"}
    assert tokenizer.encode_file(tmp_path / "vocab.txt", ordered=True, add_double_eos=True)[-3:].tolist() == [0, 2, 0]


def test_an_added_token_never_shadows_a_word(tmp_path, caplog):
    """Old files give `<formula>` the id that it had before the vocabulary was built."""
    added = {"1": {"content": "<formula>", "special": True}, "0": {"content": "<eos>", "special": True}}
    folder = save(tmp_path, ["the", "of", "<eos>"], added_tokens_decoder=added, additional_special_tokens=["<formula>"])
    with transformer_xl_log(caplog):
        tokenizer = TransfoXLTokenizer.from_pretrained(folder)
    assert "'<formula>' gets the id 3: its old id 1 is 'of'" in caplog.text
    assert tokenizer.decode([0, 1, 2]) == "the of <eos>"
    assert tokenizer.encode("the of <eos> <formula>") == [0, 1, 2, 3]


def transformer_xl_log(caplog):
    """Makes `caplog` see the tokenizer's warnings; transformers' loggers do not hand them to the root logger."""
    logger = logging.getLogger("transformer_xl.tokenization")
    logger.addHandler(caplog.handler)
    return caplog.at_level(logging.WARNING, logger=logger.name)


def test_added_tokens_file_of_old_releases_is_read(tmp_path):
    folder = save(tmp_path, ["the", "<unk>", "<eos>"])
    (folder / "added_tokens.json").write_text('{"new": 3, "<eos>": 0}', encoding="utf-8")
    tokenizer = TransfoXLTokenizer.from_pretrained(folder)
    assert tokenizer.encode("the new <eos>") == [0, 3, 2]


def test_added_tokens_come_after_the_words(small):
    tokenizer = copy.deepcopy(small[1])
    size = len(tokenizer)
    assert tokenizer.add_tokens(["zebra", "two words", "the"]) == 2
    assert tokenizer.encode("zebra two words") == [size, size + 1]
    assert tokenizer.vocab_size == size
    assert len(tokenizer) == size + 2
    assert tokenizer.decode([size + 1, size]) == "two words zebra"


def test_moving_an_added_token_keeps_every_other_token_right(small):
    tokenizer = copy.deepcopy(small[1])
    tokenizer.add_tokens(["first", "second", "third"])
    words = tokenizer.idx2sym
    tokenizer.move_added_token("second", 3)
    assert tokenizer.idx2sym == [*words[:3], "second", *words[3:]]
    assert tokenizer.sym2idx == {word: index for index, word in enumerate(tokenizer.idx2sym)}
    size = len(words) + 1
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("second", "first", "third")] == [3, size, size + 1]
    assert tokenizer.convert_ids_to_tokens(list(range(size + 2))) == [*tokenizer.idx2sym, "first", "third"]
    tokenizer.move_added_token("third", 0)
    assert tokenizer.encode("<eos> <unk> third") == [1, 2, 0]
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2)
    tokenizer.move_added_token("first", tokenizer.vocab_size)
    assert len(tokenizer) == tokenizer.vocab_size == len(words) + 3


def test_moved_tokens_are_saved(tmp_path, small):
    tokenizer = copy.deepcopy(small[1])
    tokenizer.add_tokens(["first", "second"])
    tokenizer.move_added_token("second", 0)
    tokenizer.save_pretrained(tmp_path)
    again = TransfoXLTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.encode("second first <eos>") == tokenizer.encode("second first <eos>")


def test_only_added_tokens_can_be_moved(small):
    with pytest.raises(
        ValueError, match="token='the' is no added token outside the vocabulary; add it with add_tokens"
    ):
        small[1].move_added_token("the", 0)
    with pytest.raises(ValueError, match="token='<eos>' is no added token outside the vocabulary"):
        small[1].move_added_token("<eos>", 3)
    tokenizer = copy.deepcopy(small[1])
    tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match=f"target_idx=99 must lie between 0 and vocab_size={tokenizer.vocab_size}"):
        tokenizer.move_added_token("new", 99)


# Padding, truncation, batches.


def test_padding_is_on_the_left_by_eos_and_masked(small):
    tokenizer = small[1]
    batch = tokenizer(["the mat .", "sat"], padding=True, return_tensors="pt")
    the, mat, stop, sat = tokenizer.encode("the mat . sat")
    assert batch["input_ids"].tolist() == [[the, mat, stop], [0, 0, sat]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert tokenizer.pad_token is None
    assert tokenizer.pad_token_id is None


def test_a_pad_token_is_used_if_there_is_one(tmp_path, small):
    tokenizer = copy.deepcopy(small[1])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    for same in (tokenizer, TransfoXLTokenizer.from_pretrained(tmp_path)):
        assert same(["the mat", "sat"], padding=True)["input_ids"][1] == [same.vocab_size, same.encode("sat")[0]]
        assert same.pad_token_id == same.vocab_size


def test_a_vocabulary_without_eos_pads_by_its_first_symbol_masked():
    tokenizer = TransfoXLTokenizer.train(texts=["abc"], mode="characters")
    batch = tokenizer(["abc", "c"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[0, 1, 2], [0, 0, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_padding_options_of_the_base_class_work(small):
    tokenizer = small[1]
    sat = tokenizer.encode("sat")[0]
    assert tokenizer("sat", padding="max_length", max_length=3)["input_ids"] == [0, 0, sat]
    assert tokenizer("sat", padding=True, pad_to_multiple_of=4)["attention_mask"] == [0, 0, 0, 1]
    assert tokenizer(["sat", "the mat"], padding=True, padding_side="right")["input_ids"][0] == [sat, 0]
    assert tokenizer.pad([{"input_ids": [5]}, {"input_ids": [5, 6]}])["input_ids"] == [[0, 5], [5, 6]]
    collated = DataCollatorWithPadding(tokenizer)([{"input_ids": [5]}, {"input_ids": [5, 6]}])
    assert collated["attention_mask"].tolist() == [[0, 1], [1, 1]]
    assert tokenizer.pad_token is None


def test_truncation_keeps_the_start_or_the_end(small):
    tokenizer = small[1]
    the, cat, sat = tokenizer.encode("The cat sat")
    assert tokenizer("The cat sat", truncation=True, max_length=2)["input_ids"] == [the, cat]
    other_side = copy.deepcopy(tokenizer)
    other_side.truncation_side = "left"
    assert other_side("The cat sat", truncation=True, max_length=2)["input_ids"] == [cat, sat]
    batch = tokenizer(["The cat sat", "sat"], truncation=True, padding=True, max_length=2, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[the, cat], [0, sat]]


def test_words_that_are_given_one_by_one_are_encoded(small):
    tokenizer = small[0]
    assert tokenizer(["The", "cat."], is_split_into_words=True)["input_ids"] == tokenizer.encode("The cat .")


def test_a_tokenizer_can_be_copied_and_pickled(small):
    for tokenizer in small:
        tokenizer.encode("The cat.")
        assert copy.deepcopy(tokenizer).get_vocab() == tokenizer.get_vocab()
        assert len(pickle.dumps(tokenizer)) < 20_000, "remembered words stay behind"


# Vocabularies from text.


def test_training_puts_the_most_frequent_first_and_equals_in_the_order_of_the_text():
    tokenizer = TransfoXLTokenizer.train(texts=["b a c a\n", "c d b a\n"], mode="whitespace")
    assert tokenizer.idx2sym == ["<eos>", "<unk>", "a", "b", "c", "d"]
    assert tokenizer.counter == Counter({"a": 3, "b": 2, "c": 2, "d": 1, "<eos>": 2})
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, len(tokenizer)) == (0, 1, 6)


def test_training_reads_files_and_texts(tmp_path):
    (tmp_path / "one").write_text("a b\n", encoding="utf-8")
    (tmp_path / "two").write_text("b\nc", encoding="utf-8")
    from_files = TransfoXLTokenizer.train([tmp_path / "one", str(tmp_path / "two")], texts=["d"], mode="whitespace")
    assert from_files.idx2sym == ["<eos>", "<unk>", "b", "a", "c", "d"]
    assert from_files.counter["<eos>"] == 4
    assert TransfoXLTokenizer.train(tmp_path / "one", mode="whitespace").idx2sym == ["<eos>", "<unk>", "a", "b"]


def test_training_in_moses_mode_splits_raw_text():
    tokenizer = TransfoXLTokenizer.train(texts=["It's <unk>, isn't it?"])
    assert tokenizer.encode("It's <unk>") == [tokenizer.get_vocab()[token] for token in ("It", "'s", "<unk>")]
    assert "<" not in tokenizer.get_vocab()


def test_training_finds_special_tokens_that_stick_to_words():
    tokenizer = TransfoXLTokenizer.train(texts=["b<unk>b a<eos>"], mode="whitespace")
    assert tokenizer.idx2sym == ["<eos>", "<unk>", "b", "a"]


def test_characters_get_no_needless_symbols(tmp_path):
    (tmp_path / "text").write_bytes(b"ab\r\nb\n")
    tokenizer = TransfoXLTokenizer.train(tmp_path / "text", mode="characters")
    assert tokenizer.idx2sym == ["b", "\n", "a", "\r"]
    assert (tokenizer.eos_token, tokenizer.unk_token, len(tokenizer)) == (None, None, 4)
    with_unknown = TransfoXLTokenizer.train(tmp_path / "text", mode="characters", special=["<unk>"])
    assert with_unknown.encode("bé") == [1, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_size": 4}, ["<eos>", "<unk>", "a", "b"]),
        ({"min_freq": 2}, ["<eos>", "<unk>", "a", "b"]),
        ({"special": ["<eos>"]}, ["<eos>", "a", "<unk>", "b", "c"]),
        ({"special": ["<eos>"], "max_size": 2}, ["<eos>", "<unk>"]),
        ({"special": ["<pad>"], "unk_token": None}, ["<pad>", "a", "<eos>", "<unk>", "b", "c"]),
        ({"special": ["z"], "eos_token": None, "unk_token": None}, ["z", "a", "<unk>", "b", "c"]),
        ({"additional_special_tokens": ["<sep>"]}, ["<eos>", "<unk>", "<sep>", "a", "b", "c"]),
    ],
)
def test_the_vocabulary_is_bounded_and_holds_the_special_tokens(options, words):
    text = "a a a a a\n<unk> <unk> <unk> b\nb\nc"
    tokenizer = TransfoXLTokenizer.train(texts=[text], mode="whitespace", **options)
    assert tokenizer.idx2sym == words
    assert len(tokenizer) == len(words)


def test_the_unknown_token_comes_even_if_the_text_never_has_it():
    tokenizer = TransfoXLTokenizer.train(texts=["a b"], mode="whitespace", special=["<eos>"])
    assert tokenizer.idx2sym == ["<eos>", "<unk>", "a", "b"]


def test_training_without_text_is_refused(tmp_path):
    (tmp_path / "empty").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="train found no text: give files or texts that are not empty"):
        TransfoXLTokenizer.train(tmp_path / "empty")
    with pytest.raises(
        ValueError, match="none cannot be read: No such file or directory; give the path of a text file"
    ):
        TransfoXLTokenizer.train(tmp_path / "none")


def test_old_scripts_count_build_and_encode(tmp_path):
    """As the authors do for Penn Treebank; `<unk>` is a word of that text."""
    path = tmp_path / "train.txt"
    path.write_text(" The <unk> cat \n the cat\n\n", encoding="utf-8")
    tokenizer = TransfoXLTokenizer(special=["<eos>"], lower_case=True, delimiter=" ")
    assert tokenizer.count_file(path, add_eos=True) == [
        ["the", "<unk>", "cat", "<eos>"],
        ["the", "cat", "<eos>"],
        ["<eos>"],
    ]
    tokenizer.build_vocab()
    assert tokenizer.idx2sym == ["<eos>", "the", "cat", "<unk>"]
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, len(tokenizer)) == (0, 3, 4)
    assert tokenizer.encode_file(path, ordered=True).tolist() == [1, 3, 2, 0, 1, 2, 0, 0]
    lines = tokenizer.encode_file(path, add_eos=False)
    assert [line.tolist() for line in lines] == [[1, 3, 2], [1, 2], []]
    assert lines[0].dtype == torch.int64


def test_lists_of_tokens_are_counted_and_encoded():
    tokenizer = TransfoXLTokenizer(special=["<unk>"])
    tokenizer.count_sents([["a", "b"], ["b"]])
    tokenizer.build_vocab()
    assert [ids.tolist() for ids in tokenizer.encode_sents([["b"], [], ["a", "x"]])] == [[1], [], [2, 0]]
    assert tokenizer.encode_sents([["b"], [], ["a", "x"]], ordered=True).tolist() == [1, 2, 0]
    assert tokenizer.convert_to_tensor(["a"]).tolist() == [2]


def test_a_character_file_is_encoded_exactly_or_by_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("transformer_xl.tokenization.BLOCK_LEN", 3)
    path = tmp_path / "text"
    path.write_bytes(b"abba\r\nb\n")
    tokenizer = TransfoXLTokenizer.train(path, mode="characters")
    assert tokenizer.decode(tokenizer.encode_file(path, ordered=True, add_eos=False)) == "abba\r\nb\n"
    assert [tokenizer.decode(line) for line in tokenizer.encode_file(path, add_eos=False)] == ["abba\r\n", "b\n"]
    with_eos = TransfoXLTokenizer.train(path, mode="characters", special=["<eos>"])
    assert with_eos.decode(with_eos.encode_file(path, ordered=True)) == "abba<eos>b<eos>"
    with pytest.raises(ValueError, match="add_eos=True needs an eos_token"):
        tokenizer.encode_file(path)


def test_a_vocabulary_is_built_again_without_a_trace_of_the_old(small):
    tokenizer = copy.deepcopy(small[1])
    tokenizer.add_tokens(["zebra"])
    tokenizer.counter = Counter({"sat": 2, "zebra": 1})
    tokenizer.build_vocab()
    assert tokenizer.idx2sym == ["<eos>", "<unk>", "sat", "zebra"]
    assert len(tokenizer) == 4
    assert tokenizer.encode("The sat zebra<eos>") == [1, 2, 3, 0]


def test_added_tokens_follow_a_vocabulary_that_is_built_again(small):
    tokenizer = copy.deepcopy(small[1])
    tokenizer.add_tokens(["zebra"])
    tokenizer.counter = Counter({"sat": 2})
    tokenizer.build_vocab()
    assert tokenizer.encode("sat zebra") == [2, 3]
    assert len(tokenizer) == 4


def test_an_empty_vocabulary_is_neither_built_nor_saved(tmp_path):
    message = (
        "counter has no word that occurs min_freq=2 times or more; count a text with count_file, or lower min_freq"
    )
    tokenizer = TransfoXLTokenizer(special=["<eos>"], min_freq=2)
    tokenizer.count_sents([["a", "b"]])
    with pytest.raises(ValueError, match=message):
        tokenizer.build_vocab()
    with pytest.raises(
        ValueError, match=r"the vocabulary is empty; call build_vocab, or TransfoXLTokenizer\.train, before"
    ):
        TransfoXLTokenizer().save_vocabulary(tmp_path)


def test_cutoffs_are_proposed_from_the_counts():
    tokenizer = TransfoXLTokenizer.train(texts=[" ".join(f"w{n // 2}" for n in range(60_000))], mode="whitespace")
    assert tokenizer.propose_cutoffs(2) == sorted(tokenizer.propose_cutoffs(2))
    assert len(tokenizer.propose_cutoffs(2)) == 2
    assert TransfoXLTokenizer.train(texts=["a"]).propose_cutoffs() == []


# Files.


def test_a_vocabulary_is_saved_where_it_is_asked_for(tmp_path, small):
    (path,) = small[1].save_vocabulary(tmp_path / "new", filename_prefix="my")
    assert path == str(tmp_path / "new" / "my-vocab.json")
    assert json.loads((tmp_path / "new" / "my-vocab.json").read_bytes()) == small[1].idx2sym
    with pytest.raises(ValueError, match="is a file; give a directory"):
        small[1].save_vocabulary(path)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"holds no vocabulary; it needs one of vocab\.json, vocab\.pkl, vocab\.bin, vocab\.txt"
    ):
        TransfoXLTokenizer.from_pretrained(tmp_path)


def test_a_damaged_vocabulary_in_a_folder_is_refused_in_one_line(tmp_path):
    save(tmp_path, ["a", "a"])
    with pytest.raises(ValueError, match=r"vocab\.json: 'a' has the ids 0 and 1; each word must occur once$"):
        TransfoXLTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"vocab\.json is not UTF-8: byte 0 is 0xff; save the file as UTF-8$"):
        TransfoXLTokenizer.from_pretrained(tmp_path)


def test_our_own_file_is_preferred_to_old_ones(tmp_path):
    shutil.copytree(LEGACY / "hf-4.35", tmp_path / "old")
    save(tmp_path / "old", ["only", "these"], mode="whitespace")
    assert TransfoXLTokenizer.from_pretrained(tmp_path / "old").idx2sym == ["only", "these"]


def test_options_in_an_old_vocabulary_count_unless_the_caller_gives_others(tmp_path):
    """The authors keep them with the words; there is no tokenizer_config.json beside a cache.pt."""
    state = {"idx2sym": ["<eos>", "a"], "sym2idx": {"<eos>": 0, "a": 1}, "lower_case": True, "delimiter": " "}
    torch.save({"vocab": {**state, "special": ["<eos>"]}}, tmp_path / "cache.pt")
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.lower_case, tokenizer.mode, tokenizer.special) == (True, "whitespace", ["<eos>"])
    assert TransfoXLTokenizer(pretrained_vocab_file=tmp_path / "cache.pt", special=["x"]).special == ["x"]


def test_clean_up_that_old_releases_saved_for_every_mode_leaves_symbols_alone(tmp_path):
    words = [*"a .'", "<unk>"]
    tokenizer = TransfoXLTokenizer.from_pretrained(
        save(tmp_path, words, delimiter="", clean_up_tokenization_spaces=True)
    )
    assert tokenizer.mode == "characters"
    assert tokenizer.decode(tokenizer.encode("a . ' a")) == "a . ' a"


def test_spaces_before_contractions_are_cleaned_up_in_moses_mode_as_they_were():
    tokenizer = TransfoXLTokenizer.train(texts=["do x"], special=["n't"], additional_special_tokens=[])
    ids = tokenizer.convert_tokens_to_ids(["do", "n't"])
    assert tokenizer.decode(ids) == "don't"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "do n't"


def test_state_in_an_old_tokenizer_config_is_read_without_fuss_and_not_saved_again(tmp_path):
    save(tmp_path, ["a", "<unk>"], counter={}, punctuation_symbols="!", max_len=512, never_split=["a."], min_freq=3)
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.model_max_length, tokenizer.never_split, tokenizer.min_freq) == (512, ["a."], 3)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert not {"counter", "punctuation_symbols", "vocab_file", "pretrained_vocab_file"} & saved.keys()
    assert saved["never_split"] == ["a."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"special": "<eos>"}, "special='<eos>' must be a list of texts"),
        ({"special": [1]}, r"special=\[1\] must be a list of texts"),
        ({"min_freq": "3"}, "min_freq='3' must be an integer"),
        ({"max_size": True}, "max_size=True must be an integer"),
        ({"lower_case": "no"}, "lower_case='no' must be True or False"),
        ({"lower_case": 1}, "lower_case=1 must be True or False"),
        ({"delimiter": 5}, "delimiter=5 must be a text"),
        ({"never_split": {"a": 1}}, "never_split={'a': 1} must be a list of texts"),
        ({"language": None, "min_freq": 1.5}, "min_freq=1.5 must be an integer"),
        ({"special": ["x" * 200, 1]}, r"special=\['x{78} must be a list of texts"),
    ],
)
def test_options_of_another_type_are_refused_in_one_line(options, message, tmp_path):
    with pytest.raises(TypeError, match=f"^{message}$"):
        TransfoXLTokenizer(**options)
    save(tmp_path, WORDS, **options)
    with pytest.raises(TypeError, match=f"^{message}$"):
        TransfoXLTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["vocab_file", "pretrained_vocab_file", "pretrained_vocab_file_pickle", "name_or_path"])
def test_a_saved_config_cannot_name_a_file_outside_its_folder(key, tmp_path):
    (tmp_path / "secret.txt").write_text("password\n")
    folder = save(tmp_path / "model", WORDS, **{key: str(tmp_path / "secret.txt")})
    tokenizer = TransfoXLTokenizer.from_pretrained(folder)
    assert tokenizer.idx2sym == WORDS
    assert str(tokenizer.vocab_file) != str(tmp_path / "secret.txt")


@pytest.mark.parametrize("name", ["vocab.pkl", "vocab.bin"])
def test_an_old_model_on_the_hub_is_read_by_its_name(name, tmp_path):
    """As it lies in the Hub's cache: links to files of other names."""
    model = tmp_path / "models--someone--transfo-xl-wt103"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    sources = [LEGACY / "hf-4.35" / "config.json", LEGACY / ("hf-4.35/vocab.pkl" if name == "vocab.pkl" else name)]
    for source in sources:
        (snapshot / source.name).symlink_to(source)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    for tokenizer in (
        TransfoXLTokenizer.from_pretrained("someone/transfo-xl-wt103", **options),
        AutoTokenizer.from_pretrained("someone/transfo-xl-wt103", **options),
    ):
        assert type(tokenizer) is TransfoXLTokenizer
        assert len(tokenizer) == 784
