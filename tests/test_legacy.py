"""Old checkpoints of the authors' PyTorch code, of NVIDIA and of transformers, and the config made from what they say.

TensorFlow's are in test_legacy_tensorflow.py.
"""

import collections
import json
import resource
import shutil
import struct
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from legacy_files import AuthorsCode, authors_module
from models import FIXTURES, assert_equal, tiny_model
from transformer_xl import (
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
    TransfoXLTokenizer,
)
from transformer_xl.configuration import PRESETS
from transformer_xl.legacy.checkpoint import LegacyCheckpoint, settle_config
from transformer_xl.legacy.conversion import convert, filled_model
from transformer_xl.legacy.source import read_source, tensorflow_prefix

LEGACY = FIXTURES / "legacy"
AUTHORS_CASES = sorted((FIXTURES / "golden" / "original").iterdir())
WORDS = [f"word{i}" for i in range(119)] + ["<eos>"]


def authors_case(folder: Path) -> tuple[dict, dict, dict]:
    """Weights under the authors' names (tied ones twice, as their state dict has them), arguments, expected numbers."""
    case = load_file(folder / "case.safetensors")
    state = {name.removeprefix("state."): value for name, value in case.items() if name.startswith("state.")}
    for i in range(4):
        state.setdefault(f"word_emb.emb_layers.{i}.weight", state.get(f"crit.out_layers.{i}.weight"))
        state.setdefault(f"crit.out_layers.{i}.weight", state[f"word_emb.emb_layers.{i}.weight"])
    return state, json.loads((folder / "arguments.json").read_text()), case


def read_model(path: Path, arguments: dict | None = None) -> TransfoXLLMHeadModel:
    """What `convert` writes, without the writing."""
    checkpoint = read_source(path)
    return filled_model(checkpoint, settle_config(checkpoint, arguments or {}).config)


def assert_gives_recorded_losses(model: TransfoXLLMHeadModel, expected: dict[str, torch.Tensor]) -> None:
    """Three segments, each with the memory that the one before left."""
    mems = None
    with torch.no_grad():
        for segment in range(3):
            targets = expected[f"segment{segment}.targets"]
            out = model(expected[f"segment{segment}.input_ids"], mems=mems, shift_labels=targets)
            mems = out.mems
            assert_equal(out.losses, expected[f"segment{segment}.losses"])


# --- The authors' PyTorch model


@pytest.mark.parametrize("name", ["model.pt", "model-torch04.pt"])
def test_the_authors_models_give_their_recorded_losses(name, tmp_path):
    """The config comes from the file alone."""
    conversion = convert(LEGACY / "original" / name, tmp_path / "out")
    arguments = json.loads((LEGACY / "original" / "arguments.json").read_text())
    for field in ("n_layer", "n_head", "d_model", "d_head", "d_inner", "d_embed", "div_val", "tie_projs", "pre_lnorm",
                  "tgt_len", "ext_len", "mem_len", "cutoffs", "same_length", "attn_type", "clamp_len", "dropout",
                  "dropatt", "n_token"):  # fmt: skip
        assert getattr(conversion.config, field) == arguments[field], field
    assert conversion.config.untie_r is False
    assert conversion.config.initial_memory == "empty"
    assert conversion.config.span_counts_self is True
    assert conversion.config.eos_token_id is None
    model = TransfoXLLMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert_gives_recorded_losses(model, load_file(LEGACY / "original" / "expected.safetensors"))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # torch on the classes of a module without a file
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("folder", AUTHORS_CASES, ids=lambda folder: folder.name)
def test_pickled_modules_of_every_attention_type_give_their_recorded_losses(folder, is_zip, tmp_path):
    state, arguments, expected = authors_case(folder)
    with AuthorsCode() as code:
        torch.save(authors_module(state, arguments, code), tmp_path / "model.pt", _use_new_zipfile_serialization=is_zip)
    model = read_model(tmp_path / "model.pt")
    assert "mem_transformer" not in sys.modules
    for field in ("attn_type", "mem_len", "clamp_len", "same_length", "tgt_len", "ext_len", "pre_lnorm", "n_head"):
        assert getattr(model.config, field) == arguments[field], field
    assert_gives_recorded_losses(model, expected)


def test_a_model_in_a_wrapper_for_several_devices_is_found(tmp_path):
    state, arguments, _ = authors_case(AUTHORS_CASES[0])
    with AuthorsCode() as code:
        wrapped = code.module.DataParallel()
        wrapped.module = authors_module(state, arguments, code)
        torch.save(wrapped, tmp_path / "model.pt")
    assert read_source(tmp_path / "model.pt").sizes["n_layer"] == arguments["n_layer"]


def test_a_state_dict_with_the_authors_names_needs_the_options(tmp_path):
    folder = FIXTURES / "golden" / "original" / "relative-samelength-clamped"
    state, arguments, expected = authors_case(folder)
    path = tmp_path / "state.pt"
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    with pytest.raises(ValueError, match=r"state\.pt does not say mem_len, clamp_len, same_length: give them in a"):
        read_model(path)
    assert_gives_recorded_losses(read_model(path, arguments), expected)


def test_equal_clusters_keep_the_cutoffs_that_the_module_records(tmp_path):
    """With div_val 1 no shape shows them."""
    model = tiny_model(dtype=torch.float32, div_val=1, d_embed=8, untie_r=False, tie_projs=[False, True, True])
    state = {name.removeprefix("transformer."): value for name, value in model.state_dict().items()}
    arguments = {"n_token": 40, "d_model": 12, "d_embed": 8, "n_head": 3, "d_head": 4, "n_layer": 2, "tgt_len": 8,
                 "mem_len": 6, "ext_len": 0, "attn_type": 0, "same_length": True, "clamp_len": -1, "div_val": 1,
                 "dropout": 0.25, "dropatt": 0.0, "sample_softmax": -1, "cutoffs": [10, 20],
                 "pre_lnorm": False}  # fmt: skip
    with AuthorsCode() as code:
        torch.save(authors_module(state, arguments, code), tmp_path / "model.pt")
    read = read_model(tmp_path / "model.pt")
    assert (read.config.cutoffs, read.config.tie_projs, read.config.dropout) == ([10, 20], [False, True, True], 0.25)
    assert_close(read.crit.cluster_weight, state["crit.cluster_weight"].flip(0), rtol=0, atol=0)
    assert_close(read.crit.cluster_bias, state["crit.cluster_bias"].flip(0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_softmax": 100}, "was trained with a sampled softmax"),
        ({"n_layer": 5}, "records n_layer=5, but its weights have 2; the file is damaged"),
        ({"cutoffs": [1, 2, 3]}, "records cutoffs=[1, 2, 3], but its weights have [20, 40, 80]"),
    ],
)
def test_modules_that_contradict_their_weights_are_refused(changes, message, tmp_path):
    state, arguments, _ = authors_case(AUTHORS_CASES[0])
    with AuthorsCode() as code:
        torch.save(authors_module(state, arguments | changes, code), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt") as caught:
        read_source(tmp_path / "model.pt")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("word_emb.emb_layers.0.weight", None, "emb_layers.N.... are missing or incomplete"),
        ("layers.0.dec_attn.o_net.weight", None, "the weight transformer.layers.0.dec_attn.o_net.weight is missing"),
        ("layers.0.dec_attn.o_net.weight", torch.zeros(3), "has shape [3], but it must be a matrix"),
        ("surprise", torch.zeros(3), "the weight 'surprise' is none of a Transformer-XL; nothing was converted"),
        ("layers.1.pos_ff.CoreNet.0.bias", torch.zeros(3), "has shape [3], but by the config it must have [40]"),
        ("layers.1.pos_ff.CoreNet.0.bias", None, "lacks the weight transformer.layers.1.pos_ff.CoreNet.0.bias"),
        (
            "layers.1.extra",
            torch.zeros(3),
            "has the weight transformer.layers.1.extra, for which the config has no place",
        ),
        ("layers.1.pos_ff.CoreNet.0.bias", torch.full((40,), torch.nan), "holds values that are not finite"),
        ("layers.1.pos_ff.CoreNet.0.bias", "text", "is a str, no tensor; the file is damaged"),
        ("crit.cluster_bias", torch.zeros(2), "cutoffs must be 2 numbers by crit.cluster_bias in"),
    ],
)
def test_damaged_state_dicts_are_refused_by_name(name, value, message, tmp_path):
    state, arguments, _ = authors_case(FIXTURES / "golden" / "original" / "relative")
    state = {**state, name: value}
    if value is None:
        del state[name]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt") as caught:
        convert(tmp_path / "state.pt", tmp_path / "out", arguments=arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt"]


# --- NVIDIA


def nvidia_checkpoint(state: dict, arguments: dict, *, generation: int) -> dict:
    """What NVIDIA's train.py saves; the second generation stores tied weights once and names the softmax otherwise."""
    if generation == 2:
        for i, is_tied in enumerate(arguments["tie_projs"]):
            bias, projection = state.pop(f"crit.out_layers.{i}.bias"), state.pop(f"crit.out_projs.{i}")
            state.pop(f"crit.out_layers.{i}.weight")
            state[f"crit.out_layers_biases.{i}"] = bias
            state[f"crit.shared_out_projs.{i}"] = state[f"word_emb.emb_projs.{i}"]
            if not is_tied:
                state[f"crit.out_projs.{i}"] = projection
    config = {**arguments, "dtype": None}
    training = {"optimizer_state": {"state": {}}, "scheduler_state": {}, "amp_state": None, "epoch": 1, "batch": 2}
    return {
        "args": Namespace(**arguments, lr=0.01),
        "model_config": config,
        "model_state": state,
        **training,
        "last_iter": 0,
        "train_step": 5,
        "best_val_loss": 1.5,
    }


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("name", ["relative", "shaw", "al-rfou", "vaswani"])
def test_nvidia_checkpoints_of_both_generations_give_the_recorded_losses(name, generation, tmp_path):
    state, arguments, expected = authors_case(FIXTURES / "golden" / "original" / name)
    if name == "al-rfou":  # NVIDIA keeps this table flat
        state["r_emb"] = state["r_emb"].flatten(2)
    torch.save(nvidia_checkpoint(state, arguments, generation=generation), tmp_path / "checkpoint_best.pt")
    model = read_model(tmp_path / "checkpoint_best.pt")
    assert model.config.span_counts_self is (generation == 1)
    assert_gives_recorded_losses(model, expected)


def test_nvidia_checkpoints_without_a_model_config_use_the_arguments(tmp_path):
    state, arguments, expected = authors_case(FIXTURES / "golden" / "original" / "relative")
    checkpoint = nvidia_checkpoint(state, arguments, generation=1)
    del checkpoint["model_config"]
    torch.save(checkpoint, tmp_path / "checkpoint_best.pt")
    assert_gives_recorded_losses(read_model(tmp_path / "checkpoint_best.pt"), expected)


class Vocab:
    """Pickled as the vocabulary class of the authors and NVIDIA."""

    def __init__(self, words):
        self.idx2sym = list(words)
        self.sym2idx = collections.OrderedDict((word, i) for i, word in enumerate(words))
        self.counter = collections.Counter(words)
        self.special, self.lower_case, self.delimiter, self.min_freq, self.max_size = ["<eos>"], False, None, 0, None


def test_nvidia_checkpoints_bring_their_vocabulary(tmp_path):
    state, arguments, _ = authors_case(FIXTURES / "golden" / "original" / "relative")
    checkpoint = nvidia_checkpoint(state, arguments, generation=2) | {"vocab": Vocab(WORDS)}
    torch.save(checkpoint, tmp_path / "checkpoint_best.pt")
    conversion = convert(tmp_path, tmp_path / "out")
    assert (conversion.n_words, conversion.tokenizer_mode, conversion.config.eos_token_id) == (120, "whitespace", 119)
    assert conversion.ignored["optimizer_state"] == "state of training"
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("word3 word1 <eos>")["input_ids"] == [3, 1, 119]


def test_a_vocabulary_without_words_is_left_out_by_name(tmp_path):
    state, arguments, _ = authors_case(FIXTURES / "golden" / "original" / "relative")
    checkpoint = nvidia_checkpoint(state, arguments, generation=2) | {"vocab": Namespace(tokenizer="bpe")}
    torch.save(checkpoint, tmp_path / "checkpoint_best.pt")
    conversion = convert(tmp_path / "checkpoint_best.pt", tmp_path / "out")
    assert conversion.n_words is None
    assert conversion.ignored["vocab"] == "a argparse.Namespace, which holds no list of words"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crit.shared_out_projs.1": torch.ones(24, 12)}, "crit.shared_out_projs.1 differs from word_emb.emb_projs.1"),
        ({"crit.something": torch.ones(2)}, "has the weight crit.something, for which the config has no place"),
        ({"out_layer.weight": torch.ones(2)}, "the weight 'out_layer.weight' is none of a Transformer-XL"),
    ],
)
def test_what_is_not_established_of_nvidia_checkpoints_is_refused_by_name(changes, message, tmp_path):
    state, arguments, _ = authors_case(FIXTURES / "golden" / "original" / "relative")
    checkpoint = nvidia_checkpoint(state, arguments, generation=2)
    checkpoint["model_state"] |= changes
    torch.save(checkpoint, tmp_path / "checkpoint_best.pt")
    with pytest.raises(ValueError, match="checkpoint_best") as caught:
        convert(tmp_path / "checkpoint_best.pt", tmp_path / "out")
    assert message in str(caught.value)


def test_nvidia_checkpoints_of_a_sampled_softmax_are_refused(tmp_path):
    state, arguments, _ = authors_case(FIXTURES / "golden" / "original" / "relative")
    torch.save(nvidia_checkpoint(state, arguments | {"sample_softmax": 9}, generation=2), tmp_path / "c.pt")
    with pytest.raises(ValueError, match="was trained with a sampled softmax"):
        convert(tmp_path / "c.pt", tmp_path / "out")


# --- transformers


def test_an_old_transformers_folder_gives_its_recorded_scores(tmp_path):
    conversion = convert(LEGACY / "hf-4.35", tmp_path / "out")
    assert (conversion.n_words, conversion.tokenizer_mode) == (784, "moses")
    assert conversion.config.eos_token_id == 0
    expected = load_file(LEGACY / "hf-4.35-expected.safetensors")
    model = TransfoXLLMHeadModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert_equal(model(expected["input_ids"]).prediction_scores, expected["prediction_scores"])
    for case in json.loads((LEGACY / "hf-4.35-tokenizer-expected.json").read_text()):
        assert TransfoXLTokenizer.from_pretrained(tmp_path / "out").tokenize(case["text"]) == case["tokens"]


@pytest.mark.parametrize("folder", sorted((FIXTURES / "golden" / "hf-4.35").iterdir()), ids=lambda folder: folder.name)
@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded bin", "sharded safetensors", "lone bin"])
def test_every_way_to_store_a_transformers_model_is_read(folder, kind, tmp_path):
    case = load_file(folder / "case.safetensors")
    state = {name.removeprefix("state."): value for name, value in case.items() if name.startswith("state.")}
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(folder / "config.json", source)
    names = sorted(state)
    halves = [names[::2], names[1::2]] if kind.startswith("sharded") else [names]
    for i, half in enumerate(halves):
        part = {name: state[name].clone() for name in half}
        stem = f"-{i}" if len(halves) > 1 else ""
        if kind.endswith("safetensors"):
            save_file(part, source / f"model{stem}.safetensors")
        else:
            torch.save(part, source / f"pytorch_model{stem}.bin")
    if len(halves) > 1:
        base, suffix = ("model", "safetensors") if kind.endswith("safetensors") else ("pytorch_model", "bin")
        weight_map = {name: f"{base}-{i}.{suffix}" for i, half in enumerate(halves) for name in half}
        (source / f"{base}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = read_model(source / "pytorch_model.bin" if kind == "lone bin" else source)
    with torch.no_grad():
        out = model(case["segment0.input_ids"])
    assert_equal(out.prediction_scores, case["segment0.prediction_scores"])
    for i, memory in enumerate(out.mems or ()):
        assert_equal(memory, case[f"segment0.mems.{i}"])


@pytest.mark.parametrize("cls", [TransfoXLModel, TransfoXLForSequenceClassification])
def test_models_with_other_heads_keep_their_class(cls, tmp_path):
    model = tiny_model(cls, dtype=torch.float32, pad_token_id=0)
    model.save_pretrained(tmp_path / "source")
    conversion = convert(tmp_path / "source", tmp_path / "out")
    assert conversion.architecture == cls.__name__
    assert conversion.mean_loss is None
    loaded = cls.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_tokens_that_were_added_to_an_old_model_come_along(tmp_path):
    """As users did: `add_tokens`, then `resize_token_embeddings`."""
    source = tmp_path / "source"
    tokenizer = TransfoXLTokenizer.from_pretrained(LEGACY / "hf-4.35")
    tokenizer.add_tokens(["<new>", "<other>"])
    tokenizer.save_pretrained(source)
    tiny_model(dtype=torch.float32, vocab_size=784, eos_token_id=0).save_pretrained(source)
    with pytest.raises(ValueError, match=r"vocab.json has 786 words, but the model has 784"):
        convert(source, tmp_path / "out")
    assert convert(source, tmp_path / "words", vocabulary=source / "vocab.json").n_words == 784
    tiny_model(dtype=torch.float32, vocab_size=786, eos_token_id=0).save_pretrained(source)
    convert(source, tmp_path / "out")
    assert TransfoXLTokenizer.from_pretrained(tmp_path / "out")("<new>")["input_ids"] == [784]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_number_type_of_the_weights_is_kept(dtype, tmp_path):
    tiny_model(dtype=dtype).save_pretrained(tmp_path / "source")
    conversion = convert(tmp_path / "source", tmp_path / "out")
    assert f"torch.{conversion.dtype}" == str(dtype)
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}


@pytest.mark.parametrize(
    ("header", "length", "data"),
    [
        (b"{}", 2**60, b""),
        (b'{"a":{"dtype":"F32"', 40, b""),
        (b"[]", 2, b""),
        (b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}', None, b""),
        (b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}', None, bytes(4)),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[8,4]}}', None, bytes(12)),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', None, bytes(13)),
    ],
)
def test_a_safetensors_header_that_lies_gives_one_line(header, length, data, tmp_path):
    shutil.copy(LEGACY / "hf-4.35" / "config.json", tmp_path)
    content = struct.pack("<Q", len(header) if length is None else length) + header + data
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is no valid safetensors file: ") as caught:
        read_source(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "a/b.bin", "..", ""])
def test_an_index_that_names_files_elsewhere_is_refused(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(LEGACY / "hf-4.35" / "config.json", folder)
    shutil.copy(LEGACY / "hf-4.35" / "pytorch_model.bin", tmp_path / "secret.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="which is not in its folder; refused"):
        read_source(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "holds a list; it must hold an object"),
        ("{", "is not valid JSON (JSONDecodeError)"),
        ("[" * 100_000, "is not valid JSON (RecursionError)"),
        ("\0\0\0{", "is not valid JSON (JSONDecodeError)"),  # as UTF-32 starts, for which json would import a codec
        ('{"model_type": "gpt2"}', "says model_type='gpt2'; only 'transfo-xl' is read"),
        ('{"n_layer": 7}', "The config in it says n_layer=7, but the weights in"),
        ('{"model_type": "transfo-xl"}', "does not say mem_len, clamp_len, same_length"),
    ],
)
def test_configs_that_do_not_fit_give_one_line(config, message, tmp_path):
    shutil.copy(LEGACY / "hf-4.35" / "pytorch_model.bin", tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config|say") as caught:
        convert(tmp_path, tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_explained(tmp_path):
    shutil.copy(LEGACY / "hf-4.35" / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds a config.json but none of model.safetensors"):
        read_source(tmp_path)


# --- What a file is


def test_hostile_model_files_are_named_and_nothing_runs(tmp_path):
    """A model.pt that would start a program in the authors' code and with torch.load."""

    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w').write('x')",)

    for is_zip in (True, False):
        torch.save(Evil(), tmp_path / "model.pt", _use_new_zipfile_serialization=is_zip)
        with pytest.raises(
            ValueError, match=r"holds '(builtins|__builtin__).exec' \(byte \d+ of its pickle; it was not"
        ):
            convert(tmp_path / "model.pt", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]


def test_a_hostile_part_of_a_model_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w').write('x')",)

    state, arguments, expected = authors_case(FIXTURES / "golden" / "original" / "relative")
    with AuthorsCode() as code:
        model = authors_module(state, arguments, code)
        model.hook = Evil()
        torch.save(model, tmp_path / "model.pt")
    model = read_model(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()
    assert_gives_recorded_losses(model, expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"anything", "a.bin is in no known format: give a folder of transformers"),
        ("a.bin", b"", "a.bin is in no known format"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "a.h5 is in no known format"),
        ("a.txt", b"the\nof\n", "a.txt is in no known format"),
    ],
)
def test_unknown_files_give_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="in no known format") as caught:
        read_source(tmp_path / name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (collections.Counter("aab"), "holds a dictionary of 2 entries ('a', 'b'), not a Transformer-XL"),
        ({"idx2sym": [], "sym2idx": {}, "a": 1, "b": 2}, "a dictionary of 4 entries ('idx2sym', 'sym2idx', 'a', ...)"),
        ([1, 2], "holds a list, not a Transformer-XL"),
        (torch.zeros(3), "holds a Tensor, not a Transformer-XL"),
        (torch.nn.Linear(2, 2), "holds 'torch.nn.modules.linear.Linear' (byte"),
    ],
)
def test_torch_files_of_other_things_are_described(value, message, tmp_path):
    torch.save(value, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a Transformer-XL") as caught:
        read_source(tmp_path / "other.pt")
    assert message in str(caught.value)


def test_missing_sources_and_folders_without_a_checkpoint_are_explained(tmp_path):
    with pytest.raises(
        ValueError, match=r"nowhere does not exist, and neither does nowhere.index beside it: give a folder"
    ):
        read_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no checkpoint that is known by its name"):
        read_source(tmp_path)


def test_a_tensorflow_checkpoint_is_found_by_any_of_its_names():
    folder = FIXTURES / "golden" / "tf" / "A"
    prefix = folder / "model.ckpt-0"
    for name in ("model.ckpt-0", "model.ckpt-0.index", "model.ckpt-0.data-00000-of-00001"):
        assert tensorflow_prefix(folder / name) == prefix
    assert tensorflow_prefix(folder) == prefix
    assert tensorflow_prefix(folder / "arguments.json") is None
    assert read_source(folder).sizes["vocab_size"] == 300


@pytest.mark.parametrize("path", ["/etc/model.ckpt-0", "../../etc/model.ckpt-0", "model.ckpt-0"])
def test_the_checkpoint_file_never_leads_out_of_its_folder(path, tmp_path):
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')
    assert tensorflow_prefix(tmp_path) == tmp_path / "model.ckpt-0"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: ".."\n')
    with pytest.raises(ValueError, match="names no model_checkpoint_path"):
        tensorflow_prefix(tmp_path)


def test_several_tensorflow_checkpoints_in_a_folder_need_a_name(tmp_path):
    for step in ("1", "2"):
        shutil.copy(FIXTURES / "golden/tf/B/model.ckpt-0.index", tmp_path / f"model.ckpt-{step}.index")
    with pytest.raises(ValueError, match=r"several TensorFlow checkpoints: name one, such as .*model\.ckpt-2"):
        read_source(tmp_path)


# --- The config


def checkpoint_with(sizes: dict, options: dict | None = None, **others: object) -> LegacyCheckpoint:
    known = {"n_layer": 2, "d_model": 8, "d_embed": 8, "d_inner": 8, "n_head": 2, "d_head": 4, "vocab_size": 9,
             "cutoffs": [], "div_val": 1, "attn_type": 0}  # fmt: skip
    return LegacyCheckpoint(Path("file"), "a test", {}, known | sizes, options or {}, **others)


LENGTHS = {"mem_len": 3, "clamp_len": 5, "same_length": True}


def test_weights_win_arguments_replace_the_record_and_a_preset_fills_gaps():
    checkpoint = checkpoint_with({}, {"mem_len": 1, "clamp_len": 2, "dropout": 0.3})
    preset = {"mem_len": 7, "same_length": False, "tgt_len": 44, "dropout": 0.9}
    settled = settle_config(
        checkpoint, {"mem_len": 5, "n_token": 9, "lr": 1, "adaptive": True, "tie_projs": [True]}, preset
    )
    config = settled.config
    assert (config.mem_len, config.clamp_len, config.same_length, config.dropout, config.tgt_len) == (
        5,
        2,
        False,
        0.3,
        44,
    )
    assert settled.unused == ["lr"]
    assert settled.defaulted == ["dropatt"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_everything_that_a_tensorflow_checkpoint_lacks(name):
    preset = PRESETS[name]
    fields = ("n_layer", "d_model", "d_embed", "d_inner", "n_head", "d_head", "div_val", "vocab_size", "cutoffs")
    sizes = {field: preset[field] for field in fields if field in preset}
    sizes.setdefault("vocab_size", 267_735)
    sizes.setdefault("cutoffs", [20_000, 40_000, 200_000])
    config = settle_config(checkpoint_with(sizes), {}, preset).config
    assert (config.mem_len, config.clamp_len, config.same_length) == (preset["mem_len"], -1, False)


@pytest.mark.parametrize(
    ("key", "value"), [("n_layer", 3), ("n_token", 10), ("vocab_size", 10), ("cutoffs", [3]), ("d_head", 1)]
)
def test_arguments_that_contradict_the_weights_are_refused(key, value):
    with pytest.raises(
        ValueError, match=r"The arguments file says \w+=.*, but the weights in file have .*: correct or remove"
    ):
        settle_config(checkpoint_with({}), {**LENGTHS, key: value})
    with pytest.raises(ValueError, match="The preset says"):
        settle_config(checkpoint_with({}), LENGTHS, {key: value})


def test_a_div_val_with_the_same_widths_is_no_contradiction():
    checkpoint = checkpoint_with({"d_embed": 7, "cutoffs": [4], "div_val": 4})
    assert settle_config(checkpoint, {**LENGTHS, "div_val": 6}).config.div_val == 6
    with pytest.raises(ValueError, match="div_val=3"):
        settle_config(checkpoint, {**LENGTHS, "div_val": 3})


def test_a_setting_of_another_kind_is_refused_with_the_file():
    checkpoint = checkpoint_with({}, {"dropout": "much"})
    with pytest.raises(ValueError, match=r"^the settings for file cannot be used: dropout='much' must be"):
        settle_config(checkpoint, LENGTHS)


def test_missing_options_are_listed():
    with pytest.raises(
        ValueError, match=r"^file does not say clamp_len, same_length: give them in a JSON file with --arguments, or"
    ):
        settle_config(checkpoint_with({}), {"mem_len": 3})
    with pytest.raises(ValueError, match=r"^file does not say mem_len: give it in"):
        settle_config(checkpoint_with({}, {"clamp_len": 1, "same_length": True}), {})
    with pytest.raises(ValueError, match=r"^file does not say cutoffs, n_head, d_head: give them"):
        settle_config(checkpoint_with({"cutoffs": None, "n_head": None, "d_head": None}), LENGTHS)


def test_settings_never_ask_for_weights_that_are_not_there(tmp_path):
    """A file that claims a million heads must not get memory for them."""
    state, arguments, _ = authors_case(FIXTURES / "golden" / "original" / "vaswani")
    with AuthorsCode() as code:
        torch.save(authors_module(state, arguments | {"n_head": 10**6, "d_head": 10**6}, code), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"n_head \* d_head = 1000000 \* 1000000 must be 24 by the weights in"):
        convert(tmp_path / "model.pt", tmp_path / "out")
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"cutoffs must be 3 numbers by crit.cluster_bias in .*, but are 100000"):
        settle_config(
            LegacyCheckpoint(tmp_path, "a test", read_source(tmp_path / "state.pt").tensors, {"d_embed": 24}),
            {**LENGTHS, "n_head": 3, "d_head": 8, "cutoffs": list(range(100_000))},
        )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.0.pos_ff.CoreNet.0.weight", (1_000_000, 1)),
        ("word_emb.emb_layers.0.weight", (20, 0)),
        ("layers.0.dec_attn.o_net.weight", (0, 24)),
        ("layers.0.dec_attn.o_net.weight", (24, 2_000_000)),
    ],
)
def test_shapes_that_only_a_forger_would_write_cost_no_memory(name, shape, tmp_path):
    state, arguments, _ = authors_case(FIXTURES / "golden" / "original" / "relative")
    torch.save(state | {name: torch.zeros(1, dtype=torch.float16).expand(shape).clone()}, tmp_path / "state.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=name):
        convert(tmp_path / "state.pt", tmp_path / "out", arguments={**arguments, "d_inner": shape[0]})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kibibytes


def test_rows_of_the_position_table_fix_the_sum_of_the_lengths():
    checkpoint = checkpoint_with({"attn_type": 1}, n_position_rows=20)
    assert settle_config(checkpoint, {**LENGTHS, "ext_len": 2}).config.tgt_len == 15
    assert settle_config(checkpoint, {**LENGTHS, "tgt_len": 17}).config.n_position_rows == 20
    with pytest.raises(
        ValueError, match=r"has 20 rows, but tgt_len \+ ext_len \+ mem_len = 9 \+ 0 \+ 3: they must add up"
    ):
        settle_config(checkpoint, {**LENGTHS, "tgt_len": 9})
    with pytest.raises(ValueError, match="has 20 rows"):
        settle_config(checkpoint, {**LENGTHS, "mem_len": 30})
