"""`transformer-xl evaluate` on tiny models: numbers, settings, texts and prepared corpora, and what is refused."""

import io
import json
import math
import re
import shutil
import sys

import pytest
import torch

from models import tiny_model
from transformer_xl import TransfoXLLMHeadModel, TransfoXLTokenizer
from transformer_xl.cli.app import main
from transformer_xl.data.opening import CorpusOptions, assign
from transformer_xl.data.preparation import prepare
from transformer_xl.evaluation import evaluate

TRAIN = "the cat sat on the mat\nthe dog saw the cat\nso it goes on\n"
TEST = "the cat saw the zébra\n\non the mat it sat\nso it goes\n"  # 17 tokens


def save_model(folder, tokenizer, **changes):
    settings = {"vocab_size": len(tokenizer), "cutoffs": [], "div_val": 1, "init_std": 0.3, **changes}
    tiny_model(dtype=torch.float32, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "test.txt"
    path.write_text(TEST, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared corpus of words."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "raw").mkdir()
    (folder / "raw" / "train.txt").write_text(TRAIN, encoding="utf-8")
    (folder / "raw" / "test.txt").write_text(TEST, encoding="utf-8")
    return prepare(assign([folder / "raw"]), folder / "prepared").folder


@pytest.fixture(scope="module")
def words(tmp_path_factory, data):
    tokenizer = TransfoXLTokenizer.from_pretrained(data / "tokenizer")
    return save_model(tmp_path_factory.mktemp("words"), tokenizer)


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    tokenizer = TransfoXLTokenizer.train(texts=[TEST], mode="characters", unk_token=None, eos_token=None)
    return save_model(tmp_path_factory.mktemp("characters"), tokenizer, mem_len=0)


def run(capsys, *arguments):
    """Exit status, standard output and standard error of `transformer-xl evaluate`."""
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


def report(capsys, *arguments):
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0
    return json.loads(out)


def refusal(capsys, *arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("transformer-xl: error: ").removesuffix("\n")


def loss_of(folder, text, **options):
    model = TransfoXLLMHeadModel.from_pretrained(folder)
    tokenizer = TransfoXLTokenizer.from_pretrained(folder)
    ids = [
        i for line in text.splitlines() for i in tokenizer.convert_tokens_to_ids(tokenizer.tokenize(line, add_eos=True))
    ]
    return evaluate(model, torch.tensor(ids), **options).loss_nats


def test_the_report_is_one_json_object_with_every_setting(capsys, words, text):
    found = report(capsys, words, "--text", text)
    expected = loss_of(words, TEST)
    assert found["loss_nats"] == pytest.approx(expected, abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(expected / math.log(2), abs=1e-6)
    assert (found["tokens"], found["unknown_tokens"]) == (16, 1)
    assert (found["characters"], found["bytes"]) == (len(TEST) - 3, len(TEST) - 2)
    assert found["bits_per_character"] == pytest.approx(found["bits_per_token"] * 16 / (len(TEST) - 3))
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_token"] * 16 / (len(TEST) - 2))
    assert found["tokens_per_s"] > 0
    assert (found["model"], found["text"]) == (str(words), str(text))
    assert found["settings"] == {
        "attn_type": 0,
        "mem_len": 6,
        "clamp_len": -1,
        "same_length": True,
        "span": 6,
        "initial_memory": "zeros",
        "dtype": "float32",
        "device": found["settings"]["device"],
        "attn_implementation": "sdpa",
        "ext_len": 0,
        "tgt_len": 8,
        "sentences_apart": False,
        "sliding_window": False,
        "batch_size": 1,
        "cold_starts": 1,
        "start_with_eos": False,
        "line_end": "<eos>",
        "limit": None,
        "temperature": 1.0,
    }
    assert set(found["versions"]) == {"transformer-xl", "torch", "transformers"}


def test_the_table_says_the_same(capsys, words, text):
    status, out, err = run(capsys, words, "--text", text)
    lines = dict(re.split("  +", line.strip(), maxsplit=1) for line in out.splitlines() if "  " in line.strip())
    found = report(capsys, words, "--text", text)
    assert (status, err) == (0, "")
    assert lines["loss"] == f"{found['loss_nats']:.5f} nats per token"
    assert lines["perplexity"] == f"{found['perplexity']:.4f}"
    assert lines["tokens predicted"] == "16"
    assert lines["same_length"] == "true"
    assert set(found["settings"]) <= set(lines)


def test_settings_change_the_number_and_are_reported(capsys, words, text):
    options = {"tgt_len": 3, "mem_len": 9, "clamp_len": 4, "same_length": False, "batch_size": 2, "temperature": 1.4}
    arguments = ["--no-same-length"]
    for name, value in options.items():
        if name != "same_length":
            arguments += [f"--{name.replace('_', '-')}", value]
    found = report(capsys, words, "--text", text, *arguments)
    assert found["loss_nats"] == pytest.approx(loss_of(words, TEST, **options), abs=1e-6)
    assert {name: found["settings"][name] for name in options} == options
    assert (found["settings"]["span"], found["settings"]["cold_starts"]) == (None, 2)


def test_dtype_and_device(capsys, words, text):
    found = report(capsys, words, "--text", text, "--dtype", "float64", "--device", "cpu")
    assert (found["settings"]["dtype"], found["settings"]["device"]) == ("float64", "cpu")
    assert found["loss_nats"] == pytest.approx(loss_of(words, TEST), abs=1e-5)


def test_the_first_token_is_predicted_if_the_text_starts_with_eos(capsys, words, text):
    found = report(capsys, words, "--text", text, "--start-with-eos")
    assert found["loss_nats"] == pytest.approx(loss_of(words, "\n" + TEST), abs=1e-6)
    assert (found["tokens"], found["characters"]) == (17, len(TEST))


def test_line_breaks_can_be_white_space(capsys, words, text):
    found = report(capsys, words, "--text", text, "--no-eos")
    assert (found["tokens"], found["settings"]["line_end"]) == (12, None)


@pytest.mark.parametrize("limit", [1, 5, 16, 100])
def test_a_limit(capsys, words, text, limit):
    found = report(capsys, words, "--text", text, "--limit", limit)
    assert found["tokens"] == min(limit, 16)


def test_standard_input(capsys, monkeypatch, words, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEST.encode())))
    found = report(capsys, words, "--text", "-")
    assert found["loss_nats"] == report(capsys, words, "--text", text)["loss_nats"]


def test_a_prepared_corpus_gives_the_number_of_its_text(capsys, words, data, text):
    found, of_text = report(capsys, words, "--data", data), report(capsys, words, "--text", text)
    for name in ("loss_nats", "tokens", "unknown_tokens"):
        assert found[name] == of_text[name]
    assert found["settings"] == of_text["settings"]
    assert (found["data"], found["split"]) == (str(data), "test")
    assert (found["characters"], found["bytes"]) == (len(TEST), len(TEST.encode()))
    on_train = report(capsys, words, "--data", data, "--split", "train", "--limit", 4)
    assert (on_train["tokens"], on_train["characters"], on_train["split"]) == (4, None, "train")
    with_first = [report(capsys, words, *source, "--start-with-eos") for source in (("--data", data), ("--text", text))]
    assert with_first[0]["bits_per_character"] == with_first[1]["bits_per_character"]


def test_characters_and_windows(capsys, characters, text):
    by_segment = report(capsys, characters, "--text", text)
    assert by_segment["bits_per_character"] == by_segment["bits_per_token"]
    assert by_segment["settings"]["cold_starts"] == math.ceil((len(TEST) - 1) / 8)
    by_window = report(capsys, characters, "--text", text, "--sliding-window", "--tgt-len", 8)
    assert by_window["tokens"] == by_segment["tokens"] == len(TEST) - 1
    assert by_window["loss_nats"] != by_segment["loss_nats"]
    assert (by_window["settings"]["cold_starts"], by_window["settings"]["batch_size"]) == (1, 32)
    extended = report(capsys, characters, "--text", text, "--ext-len", 5)
    assert (extended["settings"]["ext_len"], extended["settings"]["cold_starts"]) == (5, 1)


def test_sentences_are_read_apart_unless_asked_otherwise(capsys, tmp_path):
    (tmp_path / "train.txt").write_text(TRAIN)
    (tmp_path / "test.txt").write_text("the cat sat\non the mat\nso it goes\n")
    assignment = assign([tmp_path / "train.txt", tmp_path / "test.txt"], CorpusOptions(line_end="sentence"))
    data = prepare(assignment, tmp_path / "prepared").folder
    model = save_model(tmp_path / "model", TransfoXLTokenizer.from_pretrained(data / "tokenizer"))
    apart = report(capsys, model, "--data", data, "--batch-size", 2)
    assert (apart["tokens"], apart["settings"]["cold_starts"], apart["settings"]["sentences_apart"]) == (12, 3, True)
    assert apart["settings"]["line_end"] == "<S>"
    together = report(capsys, model, "--data", data, "--across-sentences")
    assert (together["tokens"], together["settings"]["cold_starts"]) == (12, 1)
    assert together["loss_nats"] != apart["loss_nats"]
    two = report(capsys, model, "--data", data, "--limit", 11)
    assert (two["tokens"], two["settings"]["cold_starts"]) == (8, 2)
    assert "sentences start with <S> already" in refusal(capsys, model, "--data", data, "--start-with-eos")


@pytest.mark.parametrize("place", ["model", "checkpoints/step-00000005/model"])
def test_a_run_stands_for_the_model_in_it(capsys, tmp_path, words, text, place):
    shutil.copytree(words, tmp_path / "run" / place)
    found = report(capsys, tmp_path / "run", "--text", text)
    assert found["model"] == str(tmp_path / "run" / place)
    assert found["tokens"] == 16


def test_the_best_checkpoint_comes_before_the_last(capsys, tmp_path, words, characters, text):
    shutil.copytree(words, tmp_path / "checkpoints" / "step-00000005" / "model")
    shutil.copytree(characters, tmp_path / "checkpoints" / "step-00000010" / "model")
    (tmp_path / "best.json").write_text('{"checkpoint": "step-00000005", "valid_loss_nats": 1.0}', encoding="utf-8")
    best = tmp_path / "checkpoints" / "step-00000005" / "model"
    assert report(capsys, tmp_path, "--text", text)["model"] == str(best)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--text or --data must be given, and only one of them: --text FILE, or --data FOLDER."),
        (["--text", "a", "--data", "b"], "--text or --data must be given, and only one of them"),
        (["--data", "b", "--no-eos"], "--no-eos must not go with --data, whose tokens are fixed: leave it out"),
        (["--text", "a", "--across-sentences"], "--across-sentences must go with --data, where sentences are marked"),
        (["--text", "no/such.txt"], "no/such.txt: no such file or directory."),
        (["--data", "no/such"], "no/such does not exist: give a prepared folder, or text"),
        (["--text", "{text}", "--sliding-window"], "sliding_window=True must not go with mem_len=6"),
        (["--text", "{text}", "--ext-len", "3"], "ext_len=3 must be 0 with memory (mem_len=6): pass mem_len=0."),
        (["--text", "{text}", "--batch-size", "99"], "batch_size=99 must be from 1 to 16, the targets of the text"),
        (["--text", "{text}", "--temperature", "0"], "temperature=0.0 must be positive and finite"),
        (["--text", "{text}", "--tgt-len", "0"], "Invalid value for '--tgt-len'"),
        (["--text", "{text}", "--device", "tpu9"], "--device tpu9 cannot be used (Invalid device string"),
        (["--data", "{data}", "--split", "dev"], "split='dev' is not in {data}: give one of train, test."),
    ],
)
def test_impossible_options_are_one_line(capsys, words, text, data, arguments, message):
    known = {"text": text, "data": data}
    line = refusal(capsys, words, *(argument.format(**known) for argument in arguments))
    assert line.startswith(message.format(**known))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path} holds no token but must hold at least two: the first is only context for the second."),
        (b"x", "{path} holds one token but must hold at least two: the first is only context for the second."),
        ("the\n€".encode(), "{path}, line 2: '€' is not among the 18 symbols of the vocabulary"),
        (
            b"the \xff",
            "{path}, line 1 is not UTF-8 (byte 0xff): convert the file, for example with iconv -t UTF-8.",
        ),
    ],
)
def test_impossible_texts_are_one_line(capsys, tmp_path, characters, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content.replace(b"x", b"t"))
    assert refusal(capsys, characters, "--text", path).startswith(message.format(path=path))


def test_impossible_models_are_one_line(capsys, tmp_path, words, text):
    assert refusal(capsys, tmp_path, "--text", text).startswith(f"MODEL {tmp_path} has no config.json, and no ")
    missing = tmp_path / "no" / "model"
    assert refusal(capsys, missing, "--text", text).startswith(f"MODEL {missing} does not exist: give a model folder")
    shutil.copytree(words, tmp_path / "untold", ignore=shutil.ignore_patterns("vocab.json", "tokenizer*"))
    assert refusal(capsys, tmp_path / "untold", "--text", text).startswith(f"{tmp_path}/untold holds no vocabulary")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    message = f"MODEL {other} is a gpt2 model but must be a Transformer-XL (transfo-xl)."
    assert refusal(capsys, other, "--text", text) == message


def test_a_model_without_its_softmax_is_refused(capsys, tmp_path, words, data):
    TransfoXLLMHeadModel.from_pretrained(words).transformer.save_pretrained(tmp_path)
    *_, line = run(capsys, tmp_path, "--data", data)[2].splitlines()  # transformers reports what is missing, too
    assert line == (
        f"transformer-xl: error: MODEL {tmp_path} lacks weights of a language model (crit.out_layers.0.bias): "
        "give one that was saved as TransfoXLLMHeadModel."
    )


def test_a_model_without_tokenizer_reads_a_prepared_corpus(capsys, tmp_path, words, data):
    shutil.copytree(words, tmp_path / "untold", ignore=shutil.ignore_patterns("vocab.json", "tokenizer*"))
    found = report(capsys, tmp_path / "untold", "--data", data)
    assert found["loss_nats"] == report(capsys, words, "--data", data)["loss_nats"]


def test_a_corpus_of_another_vocabulary_is_refused(capsys, characters, data):
    message = f"--data {data} has another vocabulary than MODEL {characters}: prepare the text with --tokenizer"
    assert refusal(capsys, characters, "--data", data).startswith(message)


def test_a_model_whose_loss_is_no_number_is_refused(capsys, tmp_path, words, text):
    model = TransfoXLLMHeadModel.from_pretrained(words)
    with torch.no_grad():
        model.transformer.layers[0].dec_attn.o_net.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path)
    TransfoXLTokenizer.from_pretrained(words).save_pretrained(tmp_path)
    message = f"The loss of {tmp_path} is nan: its weights are damaged, or --dtype is too narrow."
    assert refusal(capsys, tmp_path, "--text", text) == message
