"""The authors' TensorFlow checkpoints: real ones give TensorFlow's numbers, made ones each rule, bad ones one line."""

import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from legacy_files import message, table, tensorflow_entry, tensorflow_variables, varint, write_tensorflow
from models import FIXTURES, assert_equal, random_ids, tiny_model
from transformer_xl import TransfoXLLMHeadModel
from transformer_xl.legacy import tensorflow
from transformer_xl.legacy.checkpoint import settle_config
from transformer_xl.legacy.conversion import convert, filled_model
from transformer_xl.legacy.tensorflow_file import MAGIC, TensorFlowFile

CASES = FIXTURES / "golden" / "tf"


@pytest.mark.parametrize("case", ["A", "B"])
def test_converted_checkpoints_give_the_numbers_of_tensorflow(case, tmp_path):
    """Losses and memories of three segments, as the authors' graph computed them."""
    arguments = json.loads((CASES / case / "arguments.json").read_text())
    del arguments["layer_norm_epsilon"]  # no argument of the authors' code, but what TensorFlow does
    conversion = convert(CASES / case / "model.ckpt-0", tmp_path / "out", arguments=arguments)
    assert conversion.config.span_counts_self is False
    assert conversion.config.layer_norm_epsilon == 1e-12
    assert conversion.config.initial_memory == "zeros"
    assert conversion.config.untie_r == arguments["untie_r"]
    expected = load_file(CASES / case / "case.safetensors")
    model = TransfoXLLMHeadModel.from_pretrained(tmp_path / "out").eval()
    mems = None
    with torch.no_grad():
        for segment in range(3):
            out = model(
                expected[f"segment{segment}.input_ids"], mems=mems, shift_labels=expected[f"segment{segment}.targets"]
            )
            mems = out.mems
            assert_equal(out.losses, expected[f"segment{segment}.losses"])
            for i, memory in enumerate(mems):
                assert_equal(memory.transpose(0, 1), expected[f"segment{segment}.mems.{i}"])


def test_every_value_of_the_files_is_read():
    """All variables, and all bytes of the data file once."""
    for case, n_variables in (("A", 50), ("B", 37)):
        file = TensorFlowFile(CASES / case / "model.ckpt-0")
        assert len(file.variables) == n_variables
        n_bytes = sum(file.read(name).nbytes for name in file.variables)
        assert n_bytes == (CASES / case / "model.ckpt-0.data-00000-of-00001").stat().st_size


LAYOUTS = {
    "projections of their own": ({"tie_projs": [False, False, False]}, ()),
    "projections of the embedding": ({"tie_projs": [True, True, True]}, ()),
    "first projection of its own": ({"tie_projs": [False, True, True]}, ()),
    "shared biases": ({"untie_r": False}, ()),
    "one layer": ({"n_layer": 1}, ()),
    "equal width": ({"div_val": 1, "tie_projs": [False, False, False]}, ()),
    "equal width, projected": ({"div_val": 1, "d_embed": 8, "tie_projs": [False, True, True]}, ()),
    "equal width, own projections": ({"div_val": 1, "d_embed": 8, "tie_projs": [False, False, False]}, ()),
    "no clusters": ({"div_val": 1, "cutoffs": [], "tie_projs": [False]}, ()),
    "no clusters, projected": ({"div_val": 1, "cutoffs": [], "d_embed": 8, "tie_projs": [True]}, ()),
    "no projection of the first cluster": (
        {"tie_projs": [False, True, True]},
        ("adaptive_embed/cutoff_0/proj_W", "adaptive_softmax/cutoff_0/proj"),
    ),
    "no projection of the second cluster": (
        {"d_embed": 24, "tie_projs": [False, False, True]},
        ("adaptive_embed/cutoff_1/proj_W", "adaptive_softmax/cutoff_1/proj"),
    ),
}


@pytest.mark.parametrize(("changes", "left_out"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_the_authors_graph_is_read_exactly(changes, left_out, tmp_path):
    model = tiny_model(dtype=torch.float32, layer_norm_epsilon=1e-12, span_counts_self=False, **changes)
    for name in left_out:  # what the file lacks is the identity
        kind, cluster, _ = name.split("/")
        projections = model.transformer.word_emb.emb_projs if kind == "adaptive_embed" else model.crit.out_projs
        torch.nn.init.eye_(projections[int(cluster.removeprefix("cutoff_"))])
    weights = model.state_dict()
    prefix = write_tensorflow(
        tmp_path / "model.ckpt-5", tensorflow_variables(weights, model.config.cutoffs, left_out=left_out)
    )
    checkpoint = tensorflow.read_prefix(prefix)
    for name, value in checkpoint.tensors.items():
        assert_close(value, weights[name], rtol=0, atol=0)
    settled = settle_config(checkpoint, {"mem_len": 6, "clamp_len": -1, "same_length": True})
    assert settled.config.tie_projs == model.config.tie_projs
    assert settled.config.cutoffs == model.config.cutoffs
    loaded = filled_model(checkpoint, settled.config)
    ids = random_ids(2, 7)
    with torch.no_grad():
        assert_equal(loaded(ids).prediction_scores, model(ids).prediction_scores)


def test_state_of_the_optimizer_is_left_out(tmp_path):
    model = tiny_model(dtype=torch.float32, tie_projs=[False, True, True])
    variables = tensorflow_variables(model.state_dict(), model.config.cutoffs)
    slots = {
        f"{name}/{slot}": torch.ones_like(value) for name, value in variables.items() for slot in ("Adam", "Adam_1")
    }
    counters = {"global_step": torch.tensor(7), "beta1_power": torch.tensor(0.5), "beta2_power": torch.tensor(0.25)}
    prefix = write_tensorflow(tmp_path / "model.ckpt-7", variables | slots | counters)
    checkpoint = tensorflow.read_prefix(prefix)
    plain = tensorflow.read_prefix(write_tensorflow(tmp_path / "plain", variables))
    assert checkpoint.tensors.keys() == plain.tensors.keys()
    assert checkpoint.ignored.keys() == slots.keys() | counters.keys()
    assert checkpoint.ignored["global_step"] == "a counter of training"


def test_checkpoints_in_several_data_files_are_read(tmp_path):
    variables = tensorflow_variables(tiny_model(dtype=torch.float32).state_dict(), [10, 20])
    file = TensorFlowFile(write_tensorflow(tmp_path / "model.ckpt", variables, n_shards=3))
    for name, value in variables.items():
        assert_close(file.read(name), value, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64, torch.bfloat16, torch.float16])
def test_other_number_types_are_read(dtype, tmp_path):
    value = torch.arange(6).reshape(2, 3).to(dtype)
    file = TensorFlowFile(write_tensorflow(tmp_path / "model.ckpt", {"a": value, "b": torch.zeros(0, 2)}))
    assert_close(file.read("a"), value, rtol=0, atol=0)
    assert file.read("b").shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "removed", "message"),
    [
        (
            {"transformer/extra": torch.zeros(1)},
            None,
            "holds 'transformer/extra', which is no variable of a Transformer-XL",
        ),
        ({"Adam": torch.zeros(1)}, None, "holds 'Adam', which is no variable"),
        ({"other/Adam": torch.zeros(1)}, None, "holds 'other/Adam', which is no variable"),
        ({}, "transformer/layer_0/ff/layer_1/bias", "lacks the variable 'transformer/layer_0/ff/layer_1/bias'"),
        (
            {},
            "transformer/adaptive_embed/cutoff_1/proj_W",
            "lacks the variable 'transformer/adaptive_embed/cutoff_1/proj_W'",
        ),
        ({}, "transformer/adaptive_softmax/cutoff_0/cluster_W", "lacks the variable"),
        ({"transformer/r_w_bias": torch.zeros(5, 3, 4)}, None, "the shape [5, 3, 4]; the file is damaged"),
        ({"transformer/layer_0/rel_attn/o/kernel": torch.zeros(3)}, None, "the shape [3], but it must be a matrix"),
        ({"transformer/layer_4/x": torch.zeros(3)}, None, "lacks layers"),
        ({"transformer/adaptive_softmax/cutoff_0/cluster_W": torch.zeros(3)}, None, "a cluster_W that is no matrix"),
    ],
)
def test_variables_that_do_not_fit_are_refused_by_name(changes, removed, message, tmp_path):
    variables = tensorflow_variables(
        tiny_model(dtype=torch.float32, tie_projs=[False, False, True]).state_dict(), [10, 20]
    )
    variables.pop(removed, None)
    prefix = write_tensorflow(tmp_path / "model.ckpt-0", variables | changes)
    with pytest.raises(ValueError, match=r"model\.ckpt-0") as caught:
        tensorflow.read_prefix(prefix)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path):
    prefix = write_tensorflow(tmp_path / "model.ckpt", {"a": torch.arange(3.0), "b": torch.arange(4.0)})
    data = prefix.with_name("model.ckpt.data-00000-of-00001")
    raw = bytearray(data.read_bytes())
    raw[13] ^= 1
    data.write_bytes(raw)
    file = TensorFlowFile(prefix)
    assert file.read("a").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"data-00000-of-00001: the checksum of 'b' is wrong; the file is damaged"):
        file.read("b")


def test_a_flipped_bit_in_the_index_is_noticed(tmp_path):
    prefix = write_tensorflow(tmp_path / "model.ckpt", {f"name{i}": torch.arange(3.0) for i in range(9)})
    index = prefix.with_name("model.ckpt.index")
    raw = index.read_bytes()
    for place in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[place] ^= 4
        index.write_bytes(damaged)
        try:
            file = TensorFlowFile(prefix)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017 - the padding of the footer has no checksum
        else:
            assert place >= len(raw) - 48
            assert len(file.variables) == 9


def write_index(prefix: Path, *entries: tuple[bytes, bytes], header: bytes = message((1, 1)), **options: int) -> Path:
    prefix.with_name(f"{prefix.name}.index").write_bytes(table([(b"", header), *entries], **options))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(bytes(12))
    return prefix


FLOATS = tensorflow_entry(torch.zeros(3), offset=0)


@pytest.mark.parametrize(
    ("entry", "message_part"),
    [
        (
            tensorflow_entry(torch.zeros(3), offset=1),
            "puts 'a' at bytes that model.ckpt.data-00000-of-00001 does not have",
        ),
        (
            tensorflow_entry(torch.zeros(4), offset=0),
            "puts 'a' at bytes that model.ckpt.data-00000-of-00001 does not have",
        ),
        (tensorflow_entry(torch.zeros(3), offset=0, shard=1), "puts 'a' into data file 1 of 1"),
        (FLOATS.replace(b"\x08\x01", b"\x08\x07"), "gives 'a' the data type 7"),
        (message((1, 1), (2, message((2, message((1, 1 << 40))))), (5, 12)), "12 bytes, which does not fit its shape"),
        (FLOATS + message((7, b"slice")), "holds 'a' in slices (a partitioned variable)"),
    ],
)
def test_entries_that_lie_are_refused(entry, message_part, tmp_path):
    file = TensorFlowFile(write_index(tmp_path / "model.ckpt", (b"a", entry)))
    with pytest.raises(ValueError, match=r"model\.ckpt") as caught:
        file.read("a")
    assert message_part in str(caught.value)


def test_variables_on_the_same_bytes_are_refused(tmp_path):
    """A bomb: a thousand names for one stretch of the data file."""
    file = TensorFlowFile(write_index(tmp_path / "model.ckpt", (b"a", FLOATS), (b"b", FLOATS)))
    file.read("a")
    with pytest.raises(ValueError, match=r"puts 'b' at bytes that .* does not have, or not for itself alone"):
        file.read("b")


@pytest.mark.parametrize(
    ("content", "message_part"),
    [
        (b"", "has 0 bytes; an index has 48 to"),
        (bytes(100), "does not end like an index"),
        (table([(b"", message((1, 1)))], compression=1), "compressed with Snappy"),
        (table([(b"", message((1, 1)))], compression=4), "compressed with method 4"),
        (table([(b"a", FLOATS)]), "has no header entry"),
        (table([(b"", message((1, 0)))]), "tells no possible number of data files"),
        (table([(b"", message((1, 1), (2, 1)))]), "its numbers are big-endian"),
        (table([(b"", message((1, 1))), (b"b", FLOATS), (b"a", FLOATS)]), "has entries out of order"),
        (table([(b"", message((1, 1))), (b"a" * 5000, FLOATS)]), "has a damaged entry in the block"),
        (table([(b"", message((1, 1))), (b"a", b"\x0a\xff")]), "has a number without end"),
        (table([(b"", message((1, 1))), (b"a", b"\x0b")]), "has a damaged entry"),
        (table([(b"", message((1, 1))), (b"a", message((1, b"x")))]), "has a damaged entry"),
        (table([(b"", message((1, 1))), (b"a", message((2, 17 * message((2, b"")))))]), "damaged shape"),
        ((varint(5000) + varint(8)).ljust(40, b"\0") + struct.pack("<Q", MAGIC), "not lie inside it"),
    ],
)  # fmt: skip
def test_indexes_that_lie_are_refused(content, message_part, tmp_path):
    prefix = write_index(tmp_path / "model.ckpt")
    prefix.with_name("model.ckpt.index").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.ckpt\.index") as caught:
        TensorFlowFile(prefix)
    assert message_part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_data_file_is_named(tmp_path):
    prefix = write_index(tmp_path / "model.ckpt", header=message((1, 2)))
    with pytest.raises(ValueError, match=r"model.ckpt.data-00000-of-00002 is missing; model.ckpt.index needs it"):
        TensorFlowFile(prefix)


def test_a_missing_checksum_package_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ValueError, match=r'pip install "transformer-xl\[tensorflow-checkpoints\]"'):
        TensorFlowFile(write_index(tmp_path / "model.ckpt"))
