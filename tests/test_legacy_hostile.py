"""Files that ask for more than they hold: each costs little time and memory, and ends in one line."""

import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from legacy_files import (
    block,
    masked_checksum,
    message,
    tensorflow_entry,
    tensorflow_variables,
    varint,
    write_tensorflow,
)
from models import FIXTURES, tiny_model
from test_legacy import authors_case, nvidia_checkpoint
from transformer_xl.cli.errors import user_message
from transformer_xl.legacy import tensorflow
from transformer_xl.legacy.checkpoint import LegacyCheckpoint, settle_config
from transformer_xl.legacy.conversion import convert
from transformer_xl.legacy.sizes import cluster_widths, sizes_of
from transformer_xl.legacy.source import read_source
from transformer_xl.legacy.tensorflow_file import MAGIC, TensorFlowFile

OLD_FOLDER = FIXTURES / "legacy" / "hf-4.35"
RELATIVE = FIXTURES / "golden" / "original" / "relative"
LENGTHS = {"mem_len": 3, "clamp_len": 5, "same_length": True}


def refusal(action: Callable[[], object], *, seconds: float = 3.0, mebibytes: int = 300) -> str:
    """What a check of ours says in one line, after little time and memory."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises((ValueError, TypeError)) as caught:
        action()
    assert time.process_time() - start < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024 < mebibytes
    said = user_message(caught.value)
    assert said is not None, f"no check of ours: {caught.value!r}"
    assert len(said) < 1000
    return said


def old_folder(folder: Path, **config: object) -> Path:
    """A folder of transformers 4.35 with other settings."""
    shutil.copytree(OLD_FOLDER, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


# --- Numbers of layers and clusters


@pytest.mark.parametrize("name", ["transformer.layers.{}.x", "transformer.word_emb.emb_layers.{}.weight"])
def test_a_thousand_layers_or_clusters_are_refused(name, tmp_path):
    """Each would cost 6 ms and 40 kB for 150 bytes in the file, even without weights."""
    one = torch.zeros(1, 1)
    names = ["transformer.word_emb.emb_layers.0.weight", *(name.format(i) for i in range(1000))]
    names += [f"transformer.layers.0.{matrix}.weight" for matrix in ("dec_attn.o_net", "pos_ff.CoreNet.0")]
    torch.save(dict.fromkeys(names, one), tmp_path / "a.pt")
    assert "has 1000 values, more than 256; refused" in refusal(lambda: read_source(tmp_path / "a.pt"))


def test_the_divisor_of_the_widths_is_found_in_short_time(tmp_path):
    """A million divisors to try, each with powers of thousands of digits, if all widths were computed for each."""
    with torch.device("meta"):
        tensors = {f"transformer.word_emb.emb_layers.{i}.weight": torch.empty(1, 3) for i in range(256)}
        tensors["transformer.word_emb.emb_layers.0.weight"] = torch.empty(1, 1 << 20)
        tensors["transformer.layers.0.dec_attn.o_net.weight"] = torch.empty(4, 4)
        tensors["transformer.layers.0.pos_ff.CoreNet.0.weight"] = torch.empty(4, 4)
    assert "which no div_val gives; the file is damaged" in refusal(lambda: sizes_of(tensors, tmp_path))


def test_an_endless_div_val_is_compared_in_short_time():
    sizes = {"d_embed": 1000, "cutoffs": list(range(1, 200)), "div_val": 2}
    checkpoint = LegacyCheckpoint(Path("file"), "a test", {}, sizes)
    assert "The arguments file says div_val=1" in refusal(lambda: settle_config(checkpoint, {"div_val": 10**4000}))


@pytest.mark.parametrize("d_embed", [1, 7, 64, 1023])
@pytest.mark.parametrize("div_val", [1, 2, 3, 4, 100])
def test_widths_of_clusters_are_those_of_the_powers(d_embed, div_val):
    assert cluster_widths(d_embed, div_val, 9) == [d_embed // div_val**i for i in range(9)]


def test_many_names_of_the_clusters_of_a_softmax_are_refused(tmp_path):
    state, arguments, _ = authors_case(RELATIVE)
    checkpoint = nvidia_checkpoint(state, arguments, generation=2)
    checkpoint["model_state"] |= {"crit.cluster_bias": torch.zeros(10**6), "crit.cluster_weight": torch.zeros(10**6, 1)}
    torch.save(checkpoint, tmp_path / "a.pt")
    said = refusal(lambda: read_source(tmp_path / "a.pt"))
    assert "crit.cluster_bias has shape [1000000], but it must be a row of less than 256 numbers" in said


# --- Weights


@pytest.mark.parametrize("generation", [0, 1, 2])
@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_cluster_biases_of_another_shape_are_refused(generation, shape, tmp_path):
    state, arguments, _ = authors_case(RELATIVE)
    checkpoint = nvidia_checkpoint(state, arguments, generation=generation)["model_state"] | {
        "crit.cluster_bias": torch.zeros(shape)
    }
    if generation:
        checkpoint = {"model_state": checkpoint, "model_config": arguments}
    torch.save(checkpoint, tmp_path / "a.pt")
    said = refusal(lambda: convert(tmp_path / "a.pt", tmp_path / "out", arguments=arguments))
    assert "crit.cluster_bias" in said


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype, tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "in")
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    weights = load_file(tmp_path / "in" / "model.safetensors")
    name = "transformer.layers.0.dec_attn.qkv_net.weight"
    save_file(weights | {name: weights[name].to(dtype)}, tmp_path / "in" / "model.safetensors")
    said = refusal(lambda: convert(tmp_path / "in", tmp_path / "out"))
    assert f"the weight {name} is of {dtype}; weights are floating-point numbers of 16, 32 or 64 bits" in said


def test_embeddings_with_gaps_in_nvidia_checkpoints_are_refused(tmp_path):
    state, arguments, _ = authors_case(RELATIVE)
    checkpoint = nvidia_checkpoint(state, arguments, generation=2)
    checkpoint["model_state"]["word_emb.emb_layers.7.weight"] = torch.zeros(2, 2)
    torch.save(checkpoint, tmp_path / "a.pt")
    assert "are missing or incomplete" in refusal(lambda: read_source(tmp_path / "a.pt"))


def test_a_list_for_a_number_in_nvidia_checkpoints_is_refused(tmp_path):
    state, arguments, _ = authors_case(RELATIVE)
    torch.save(nvidia_checkpoint(state, arguments | {"sample_softmax": [1]}, generation=2), tmp_path / "a.pt")
    assert "trained with a sampled softmax" in refusal(lambda: read_source(tmp_path / "a.pt"))


# --- Settings


@pytest.mark.parametrize(
    "setting",
    [
        {"attribute_map": {"n_layer": "x"}}, {"base_model_tp_plan": 5}, {"extra_files": ["../../x"]},
        {"auto_map": {"AutoConfig": "evil.Evil"}}, {"_auto_class": "Evil"}, {"sub_configs_defaults": {"a": 1}},
        {"is_encoder_decoder": True}, {"quantization_config": {"a": 1}}, {"torch_dtype": "os.system"},
        {"num_labels": 10**9}, {"_name_or_path": "/etc"}, {"head_mask": "x"},
    ],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_settings_that_are_not_this_models_play_no_part(setting, tmp_path):
    assert settle_config(read_source(old_folder(tmp_path / "in", **setting)), {}).config == (
        settle_config(read_source(OLD_FOLDER), {}).config
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"id2label": {"a": "x"}}, "says id2label={'a': 'x'}, but it must map the numbers of classes to their names"),
        ({"id2label": ["x"]}, "says id2label=['x'], but it must map"),
        ({"n_layer": "x" * 5000}, "The config in it says n_layer='xxxx"),
        ({"model_type": {}}, "says model_type={}; only 'transfo-xl' is read"),
    ],
)
def test_impossible_settings_give_one_short_line(setting, said, tmp_path):
    folder = old_folder(tmp_path / "in", **setting)
    assert said in refusal(lambda: convert(folder, tmp_path / "out"))


def test_a_number_of_ten_thousand_digits_is_refused(tmp_path):
    folder = old_folder(tmp_path / "in")
    (folder / "config.json").write_text('{"mem_len": ' + "9" * 10_000 + "}")
    assert "config.json is not valid JSON (ValueError)" in refusal(lambda: convert(folder, tmp_path / "out"))


@pytest.mark.parametrize(
    "setting", [{"added_tokens_decoder": [1]}, {"added_tokens_decoder": {"x": 1}}, {"unk_token": 5}, {"min_freq": "x"}]
)
def test_a_damaged_tokenizer_in_an_old_folder_gives_one_line(setting, tmp_path):
    folder = old_folder(tmp_path / "in")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    assert "in: the tokenizer in it cannot be used: " in refusal(lambda: convert(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- Files that have no end


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert "is no regular file: give " in refusal(lambda path=path: read_source(path))
    folder = old_folder(tmp_path / "in")
    (folder / "vocab.pkl").unlink()
    (folder / "vocab.pkl").symlink_to("/dev/zero")
    assert convert(folder, tmp_path / "out").n_words is None  # what is no regular file is not there


# --- The output folder


def test_what_appears_at_the_output_meanwhile_is_not_lost(tmp_path, monkeypatch):
    from transformer_xl.legacy import conversion  # noqa: PLC0415

    def busy(*_: object, **__: object) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")

    monkeypatch.setattr(conversion, "_verify", busy)
    assert "is a folder with files in it" in refusal(lambda: convert(OLD_FOLDER, tmp_path / "out"))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


@pytest.mark.parametrize("name", [".", "/", "a/.."])
def test_an_output_without_a_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "has no name of its own; name a folder that does not exist" in refusal(
        lambda: convert(OLD_FOLDER, Path(name))
    )


def test_a_file_where_a_folder_must_be_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file/out could not be written: Not a directory; nothing was left there"):
        convert(OLD_FOLDER, tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


# --- TensorFlow


def index_of(data_blocks: list[bytes], named: list[int]) -> bytes:
    """An index that names blocks of a file, some of them several times."""
    starts = [sum(map(len, data_blocks[:i])) for i in range(len(data_blocks))]
    out = b"".join(data_blocks)
    handles = [
        (b"%08d" % i, varint(starts[which]) + varint(len(data_blocks[which]) - 5)) for i, which in enumerate(named)
    ]
    places = []
    for written in (block([]), block(handles, restart_every=1)):
        places.append(varint(len(out)) + varint(len(written) - 5))
        out += written
    return out + b"".join(places).ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def test_a_block_that_is_named_again_and_again_is_refused(tmp_path):
    """A file of a megabyte of which five gigabytes would be read."""
    header = block([(b"", message((1, 1)))])
    (tmp_path / "a.index").write_bytes(
        index_of([header, block([(b"b", message((9, bytes(1 << 20))))])], [0] + [1] * 5000)
    )
    assert "again or out of order; the file is damaged" in refusal(lambda: TensorFlowFile(tmp_path / "a"))


def test_blocks_out_of_order_are_refused(tmp_path):
    header, entry = block([(b"", message((1, 1)))]), block([(b"b", tensorflow_entry(torch.zeros(1), offset=0))])
    for named, is_refused in (([0, 1], False), ([0, 1, 1], True), ([1, 0], True)):
        (tmp_path / "a.index").write_bytes(index_of([header, entry], named))
        (tmp_path / "a.data-00000-of-00001").write_bytes(bytes(4))
        if is_refused:
            assert "again or out of order" in refusal(lambda: TensorFlowFile(tmp_path / "a"))
        else:
            assert list(TensorFlowFile(tmp_path / "a").variables) == ["b"]


def test_names_that_share_a_long_beginning_take_little_memory(tmp_path):
    """Eleven bytes in the file for a name of a kilobyte."""
    first = varint(0) + varint(1008) + varint(0) + b"n" * 1000 + b"%08d" % 0
    others = (varint(1000) + varint(8) + varint(0) + b"%08d" % i for i in range(1, 20_000))
    contents = first + b"".join(others) + struct.pack("<II", 0, 1) + b"\0"
    names = contents + struct.pack("<I", masked_checksum(contents))
    (tmp_path / "a.index").write_bytes(index_of([block([(b"", message((1, 1)))]), names], [0, 1]))
    assert "names more than 16384 variables" in refusal(lambda: TensorFlowFile(tmp_path / "a"))


def test_projections_are_made_up_only_for_models_of_a_real_width(tmp_path):
    """The identity of a model of width 100,000 would take 40 GB."""
    width = 100_000
    model = {
        **{f"transformer/layer_0/{name}/kernel": torch.zeros(1, width) for name in ("rel_attn/o", "ff/layer_2")},
        **{f"transformer/layer_0/{name}/kernel": torch.zeros(width, 1) for name in ("rel_attn/r", "ff/layer_1")},
        "transformer/layer_0/rel_attn/qkv/kernel": torch.zeros(width, 3),
        **{f"transformer/layer_0/{name}/LayerNorm/{which}": torch.zeros(width)
           for name in ("rel_attn", "ff") for which in ("gamma", "beta")},
        "transformer/layer_0/ff/layer_1/bias": torch.zeros(1),
        "transformer/layer_0/ff/layer_2/bias": torch.zeros(width),
        **{f"transformer/{name}": torch.zeros(1, 1) for name in ("r_w_bias", "r_r_bias")},
        "transformer/adaptive_embed/cutoff_0/lookup_table": torch.zeros(1, width),
        "transformer/adaptive_softmax/cutoff_0/cluster_W": torch.zeros(1, width),
        "transformer/adaptive_softmax/cutoff_0/cluster_b": torch.zeros(1),
        "transformer/adaptive_softmax/cutoff_0/b": torch.zeros(1),
    }  # fmt: skip
    prefix = write_tensorflow(tmp_path / "model.ckpt-0", model)
    said = refusal(lambda: tensorflow.read_prefix(prefix))
    assert "lacks the variable 'transformer/adaptive_embed/cutoff_0/proj_W'" in said


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_biases_of_another_shape_are_refused(shape, tmp_path):
    variables = tensorflow_variables(tiny_model(dtype=torch.float32, div_val=1).state_dict(), [10, 20])
    name = "transformer/adaptive_softmax/cutoff_1/b"
    assert name in variables
    prefix = write_tensorflow(tmp_path / "model.ckpt-0", variables | {name: torch.zeros(shape)})
    assert "has an adaptive_softmax/cutoff_N/b that is no row of numbers" in refusal(
        lambda: tensorflow.read_prefix(prefix)
    )


def test_a_cluster_matrix_of_endless_rows_is_refused(tmp_path):
    variables = tensorflow_variables(tiny_model(dtype=torch.float32).state_dict(), [10, 20])
    name = "transformer/adaptive_softmax/cutoff_0/cluster_W"
    prefix = write_tensorflow(tmp_path / "model.ckpt-0", variables | {name: torch.zeros(10**6, 0)})
    assert "cluster_W that is no matrix of less than 256 rows" in refusal(lambda: tensorflow.read_prefix(prefix))
