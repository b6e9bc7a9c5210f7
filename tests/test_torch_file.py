"""Files of `torch.save`: real ones give what was saved, lying ones give one line and no memory."""

import collections
import io
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.modeling_utils import load_state_dict

from transformer_xl.pickle_reader import PickledObject, PickleError, read_pickle, read_torch_file

FIXTURES = Path(__file__).parent / "fixtures" / "legacy"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


@pytest.fixture(params=["zip", "stream"])
def save(request, tmp_path):
    """Saves an object in one of the two formats and gives the path."""

    def save_object(value):
        path = tmp_path / "saved.pt"
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return save_object


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (2, 3, 4, 5)])
def test_tensors_of_every_type_and_shape_come_out_equal(save, dtype, shape):
    torch.manual_seed(0)
    value = (torch.randn(shape) * 10).to(dtype)
    assert_close(read_torch_file(save(value)), value, rtol=0, atol=0)


def test_views_come_out_equal_and_share_their_storage(save):
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"base": base, "row": base[1], "columns": base[:, 2:4], "turned": base.T, "every second": base[::2]}
    read = read_torch_file(save(saved))
    for name, value in saved.items():
        assert_close(read[name], value, rtol=0, atol=0)
    read["base"][1, 2] = -1.0
    assert read["row"][2] == -1.0


def test_parameters_and_state_dicts_come_out_as_tensors(save):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    read = read_torch_file(save(module.state_dict()))
    assert read.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert type(read[name]) is Tensor
        assert_close(read[name], value, rtol=0, atol=0)
    assert type(read_torch_file(save(module[0].weight))) is Tensor


def test_modules_come_out_as_an_inert_tree(save):
    read = read_torch_file(save(nn.Linear(3, 4)))
    assert type(read) is PickledObject
    assert read.class_name == "torch.nn.modules.linear.Linear"
    assert read.state["in_features"] == 3
    assert read.state["_parameters"]["weight"].shape == (4, 3)


def test_what_old_programs_saved_beside_tensors_is_read(save):
    saved = {
        "counter": collections.Counter("aab"),
        "size": torch.Size([2, 3]),
        "step": 3,
        "device": "cpu",
        "none": None,
    }
    read = read_torch_file(save(saved))
    assert read == {"counter": {"a": 2, "b": 1}, "size": (2, 3), "step": 3, "device": "cpu", "none": None}


def test_weights_of_an_old_release_are_what_transformers_reads():
    path = FIXTURES / "hf-4.35" / "pytorch_model.bin"
    expected, read = load_state_dict(path), read_torch_file(path)
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(read[name], value, rtol=0, atol=0)


def test_the_vocabulary_of_an_old_release_is_that_of_its_other_file():
    bare = read_pickle((FIXTURES / "hf-4.35" / "vocab.pkl").read_bytes())
    read = read_torch_file(FIXTURES / "vocab.bin")
    for name in ("idx2sym", "sym2idx", "counter", "special"):
        assert read[name] == bare[name]
    assert len(read["idx2sym"]) == 784


def test_both_formats_of_the_authors_model_hold_the_same():
    def tensors(value, path=""):
        found = {path + name: value for name, value in value.state["_parameters"].items() if value is not None}
        for name, child in value.state["_modules"].items():
            found |= tensors(child, f"{path}{name}.")
        return found

    new, old = (tensors(read_torch_file(FIXTURES / "original" / name)) for name in ("model.pt", "model-torch04.pt"))
    assert len(new) == 46
    assert new.keys() == old.keys()
    for name in new:
        assert_close(new[name], old[name], rtol=0, atol=0)


def pickled_tensor(storage: bytes, offset: bytes, size: bytes, stride: bytes) -> bytes:
    """A pickle of one tensor, its parts given as opcodes."""
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + size
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


def storage_id(count: bytes, *, kind: bytes = b"FloatStorage", key: bytes = b"0", tag: bytes = b"storage") -> bytes:
    return b"(V" + tag + b"\nctorch\n" + kind + b"\nV" + key + b"\nVcpu\n" + count + b"tQ"


def archive(path: Path, pickled: bytes, members: dict[str, bytes] | None = None, **options: int) -> Path:
    """A zip archive like torch's, with what `members` adds."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in (members or {}).items():
            file.writestr(name, content)
    return path


FOUR_FLOATS = {"archive/data/0": struct.pack("<4f", 1, 2, 3, 4)}


def test_the_hand_made_archive_is_valid(tmp_path):
    """Otherwise the tests below would show nothing."""
    pickled = pickled_tensor(storage_id(b"K\x04"), b"K\x01", b"K\x03\x85", b"K\x01\x85")
    assert_close(read_torch_file(archive(tmp_path / "a.pt", pickled, FOUR_FLOATS)), torch.tensor([2.0, 3.0, 4.0]))


HUGE = b"\x8b\x08\x00\x00\x00" + b"\xff" * 7 + b"\x7f"  # 2**63 - 1
ENDLESS = b"\x8b\x00\x04\x00\x00" + b"\x11" * 1024  # the longest integer that is read
FOUR_ID = storage_id(b"K\x04")
LIES = [
    ("offset", FOUR_ID, b"K\x02", b"K\x03\x85", b"K\x01\x85", "does not fit its storage of 4"),
    ("offset of nothing", FOUR_ID, b"K\x05", b"K\x00\x85", b"K\x01\x85", "does not fit its storage of 4"),
    ("size", FOUR_ID, b"K\x00", b"K\x05\x85", b"K\x01\x85", "size [5], stride [1] and offset 0 that does not fit"),
    ("stride", FOUR_ID, b"K\x00", b"K\x02\x85", b"K\x04\x85", "does not fit its storage of 4"),
    ("expanded", FOUR_ID, b"K\x00", HUGE + b"\x85", b"K\x00\x85", "does not fit its storage of 4"),
    ("overflow", FOUR_ID, HUGE, HUGE + HUGE + b"\x86", HUGE + HUGE + b"\x86", "does not fit its storage"),
    ("negative offset", FOUR_ID, b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85", "that is no count; refused"),
    ("negative stride", FOUR_ID, b"K\x00", b"K\x02\x85", b"J\xff\xff\xff\xff\x85", "that is no count; refused"),
    ("negative size", FOUR_ID, b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85", "that is no count; refused"),
    ("endless size", FOUR_ID, b"K\x00", ENDLESS + b"\x85", b"K\x01\x85", "that is no count; refused"),
    ("size of text", FOUR_ID, b"K\x00", b"Vtext\n\x85", b"K\x01\x85", "that is no count; refused"),
    ("size of truth", FOUR_ID, b"K\x00", b"\x88\x85", b"K\x01\x85", "that is no count; refused"),
    ("unequal axes", FOUR_ID, b"K\x00", b"K\x01\x85", b")", "not two tuples of equal"),
    ("lists", FOUR_ID, b"K\x00", b"]", b"]", "not two tuples of equal"),
    ("nothing, but wide", FOUR_ID, b"K\x00", HUGE + HUGE + b"K\x00\x87", b"K\x01K\x01K\x01\x87", "does not fit its"),
    ("many axes", FOUR_ID, b"K\x00", b"(" + b"K\x01" * 17 + b"t", b"(" + b"K\x01" * 17 + b"t", "17 dimensions"),
    ("no storage", b"N", b"K\x00", b")", b")", "a tensor without a storage"),
    ("storage too large", storage_id(HUGE), b"K\x00", b")", b")", "more than the file has; refused"),
    ("storage too long", storage_id(b"K\x05"), b"K\x00", b")", b")", "claims 20 bytes, but 'archive/data/0' has 16"),
    ("storage too short", storage_id(b"K\x03"), b"K\x00", b")", b")", "claims 12 bytes, but 'archive/data/0' has 16"),
    ("other type", storage_id(b"K\x04", kind=b"DoubleStorage"), b"K\x00", b")", b")", "claims 32 bytes, but"),
    ("unknown type", storage_id(b"K\x04", kind=b"EvilStorage"), b"K\x00", b")", b")", "EvilStorage'; known"),
    ("missing", storage_id(b"K\x04", key=b"7"), b"K\x00", b")", b")", "has no member 'archive/data/7'"),
    ("traversal", storage_id(b"K\x04", key=b"../../etc/passwd"), b"K\x00", b")", b")", "key is no text of digits"),
    ("absolute", storage_id(b"K\x04", key=b"/etc/passwd"), b"K\x00", b")", b")", "key is no text of digits"),
    ("negative count", storage_id(b"J\xff\xff\xff\xff"), b"K\x00", b")", b")", "whose size is no count"),
    ("unknown tag", storage_id(b"K\x04", tag=b"file"), b"K\x00", b")", b")", "a persistent id that is no"),
    ("no tuple", b"Vstorage\nQ", b"K\x00", b")", b")", "a persistent id that is no"),
    ("short", b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\ntQ", b"K\x00", b")", b")", "a persistent id that is no"),
]  # fmt: skip


def read_within_a_megabyte(path: Path) -> str:
    """Reads a hostile file; gives the error, after checking that it is one line and cost next to no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(PickleError) as caught:
            read_torch_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("storage", "offset", "size", "stride", "message"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES]
)
def test_tensors_that_lie_are_refused(tmp_path, storage, offset, size, stride, message):
    path = archive(tmp_path / "lie.pt", pickled_tensor(storage, offset, size, stride), FOUR_FLOATS)
    assert message in read_within_a_megabyte(path)


def test_a_storage_of_two_types_is_refused(tmp_path):
    pickled = b"\x80\x02" + storage_id(b"K\x04") + storage_id(b"K\x04", kind=b"IntStorage") + b"\x86."
    assert "storage 0 has two sizes or types" in read_within_a_megabyte(
        archive(tmp_path / "a.pt", pickled, FOUR_FLOATS)
    )


def test_many_tensors_of_one_storage_are_refused(tmp_path):
    """A file of 100 kB that would be copied to gigabytes, a small tensor's storage each time."""
    content = {"archive/data/0": bytes(400_000)}
    tensor = pickled_tensor(storage_id(b"J\xa0\x86\x01\x00"), b"K\x00", b"J\xa0\x86\x01\x00\x85", b"K\x01\x85")[2:-1]
    path = archive(tmp_path / "a.pt", b"\x80\x02(" + tensor * 1000 + b"l.", content)
    assert "tensors of many times the size of the file share its storages; refused" in read_within_a_megabyte(path)


def test_a_compressed_archive_is_refused(tmp_path):
    """A zip bomb: 100 MB in 100 kB."""
    pickled = pickled_tensor(storage_id(b"J\x00\x00\x80\x01"), b"K\x00", b")", b")")
    path = archive(tmp_path / "bomb.pt", pickled, {"archive/data/0": bytes(4 << 23)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    assert "a compressed or encrypted member" in read_within_a_megabyte(path)


def test_members_that_overlap_are_refused(tmp_path):
    """A zip bomb without compression: many entries of the directory for the same bytes."""
    size = 1 << 20
    pickled = b"\x80\x02(" + b"".join(storage_id(b"J\x00\x00\x04\x00", key=b"%d" % i) for i in range(50)) + b"l."
    path = archive(tmp_path / "bomb.pt", pickled, {"archive/data/0": bytes(size)})
    raw = path.read_bytes()
    end = raw.rindex(b"PK\x05\x06")
    entry_at = raw.rindex(b"PK\x01\x02", 0, end)
    entry = raw[entry_at:end]
    more = b"".join(
        entry.replace(b"data/0", b"data/%d" % i).replace(b"\x0e\x00\x00\x00", b"\x0e\x00\x00\x00") for i in range(1, 10)
    )
    start, directory_size = (
        struct.unpack("<I", raw[end + 16 : end + 20])[0],
        end - struct.unpack("<I", raw[end + 16 : end + 20])[0],
    )
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 11, 11, directory_size + len(more), start, 0)
    path.write_bytes(raw[:end] + more + tail)
    with pytest.raises(PickleError, match="storage 1 claims 1048576 bytes, more than the file has; refused"):
        read_torch_file(path)


@pytest.mark.parametrize("name", ["../outside", "/outside", "archive/../../outside", "C:\\outside"])
def test_names_in_an_archive_are_never_paths(tmp_path, name, monkeypatch):
    folder = tmp_path / "inside"
    folder.mkdir()
    pickled = pickled_tensor(storage_id(b"K\x04"), b"K\x00", b"K\x04\x85", b"K\x01\x85")
    path = archive(folder / "a.pt", pickled, {**FOUR_FLOATS, name: b"content"})
    monkeypatch.chdir(folder)
    before = sorted(tmp_path.rglob("*"))
    assert read_torch_file(path).tolist() == [1, 2, 3, 4]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_claims_too_much_is_refused(tmp_path):
    path = archive(tmp_path / "a.pt", b"N.")
    raw = path.read_bytes()
    for claim in ({10: 0xFFFE}, {12: 2**32 - 2}, {16: 2**32 - 2}):
        end = bytearray(raw[-22:])
        for at, value in claim.items():
            end[at : at + (2 if at == 10 else 4)] = value.to_bytes(2 if at == 10 else 4, "little")
        path.write_bytes(raw[:-22] + end)
        assert "the zip archive " in read_within_a_megabyte(path)


def test_tensors_where_other_things_belong_are_refused(tmp_path):
    """A tensor has no truth value and compares element by element, which must not leak out as another error."""
    tensor = pickled_tensor(storage_id(b"K\x04"), b"K\x00", b"K\x04\x85", b"K\x01\x85")[2:-1]
    for program, message in [
        (b"cm\nC\n)" + tensor + b"\x92.", "calls 'm.C' with a tuple of arguments"),
        (b"cm\nC\n" + tensor + b"R.", "calls 'm.C' with a Tensor of arguments"),
        (b"c_codecs\nencode\n(Vx\n" + tensor + b"tR.", "bytes that are made of a str; refused"),
        (b"}" + tensor + b"Ns.", "a Tensor as dictionary key or set element"),
        (tensor + b"Q.", "a persistent id that is no storage; refused"),
        (b"(" + tensor + b"NNNNtQ.", "a persistent id that is no storage; refused"),
        (tensor + b"K\x01a.", "appends to a Tensor"),
        (tensor + b"}b.", "gives a Tensor a state; refused"),
    ]:
        assert message in read_within_a_megabyte(archive(tmp_path / "a.pt", b"\x80\x04" + program, FOUR_FLOATS))


def test_two_members_of_one_name_are_refused(tmp_path):
    path = archive(tmp_path / "a.pt", b"N.")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("archive/data.pkl", b"N.")
    assert "has two members 'archive/data.pkl'; refused" in read_within_a_megabyte(path)


def test_a_wrong_checksum_is_noticed(tmp_path):
    path = archive(tmp_path / "a.pt", pickled_tensor(storage_id(b"K\x04"), b"K\x00", b")", b")"), FOUR_FLOATS)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(FOUR_FLOATS["archive/data/0"], struct.pack("<4f", 1, 2, 3, 5)))
    assert "has a member 'archive/data/0' whose checksum is wrong" in read_within_a_megabyte(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"other/data.pkl": b"N."}, "has 2 files data.pkl, so torch.save did not write it"),
        ({"archive/constants.pkl": b"N."}, "is a TorchScript program, which holds code"),
        ({"archive/byteorder": b"big"}, "holds big-endian numbers; only little-endian ones are read"),
    ],
)
def test_other_archives_are_refused_by_name(tmp_path, members, message):
    assert message in read_within_a_megabyte(archive(tmp_path / "a.pt", b"N.", members))


def test_an_archive_without_a_pickle_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", b"<a/>")
    assert "has 0 files data.pkl, so torch.save did not write it; refused" in read_within_a_megabyte(path)


def test_bytes_after_the_pickle_are_refused(tmp_path):
    assert "bytes follow the end of the pickle" in read_within_a_megabyte(archive(tmp_path / "a.pt", b"N.N."))


def stream(path: Path, pickled: bytes, keys: list[object], storages: bytes) -> Path:
    """A file in the format before torch 1.6."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + pickled + pickle.dumps(keys, 2) + storages)
    return path


FOUR = struct.pack("<q4f", 4, 1, 2, 3, 4)


def test_the_hand_made_stream_is_valid(tmp_path):
    pickled = pickled_tensor(storage_id(b"K\x04N"), b"K\x00", b"K\x04\x85", b"K\x01\x85")
    assert read_torch_file(stream(tmp_path / "a.pt", pickled, ["0"], FOUR)).tolist() == [1, 2, 3, 4]


def test_stretches_of_storages_are_read(tmp_path):
    pickled = pickled_tensor(storage_id(b"K\x04(V1\nK\x01K\x02t"), b"K\x00", b"K\x02\x85", b"K\x01\x85")
    assert read_torch_file(stream(tmp_path / "a.pt", pickled, ["0"], FOUR)).tolist() == [2, 3]
    pickled = pickled_tensor(storage_id(b"K\x04(V1\nK\x03K\x02t"), b"K\x00", b")", b")")
    path = stream(tmp_path / "b.pt", pickled, ["0"], FOUR)
    assert "a stretch of a storage that does not lie inside it; refused" in read_within_a_megabyte(path)


def test_source_text_in_a_stream_is_not_looked_at(tmp_path):
    pickled = b"\x80\x02(Vmodule\ncevil\nModel\nVevil.py\nVimport os; os.system('id')\ntQ)\x81}b."
    read = read_torch_file(stream(tmp_path / "a.pt", pickled, [], b""))
    assert (read.class_name, read.state) == ("evil.Model", {})


@pytest.mark.parametrize(
    ("keys", "storages", "message"),
    [
        (["0"], struct.pack("<q4f", 5, 1, 2, 3, 4), "storage 0 holds 5 values where the tensors use 4"),
        (
            ["0"],
            struct.pack("<q4f", -1, 1, 2, 3, 4),
            "storage 0 holds 18446744073709551615 values where the tensors use 4",
        ),
        (["0"], FOUR[:-1], "storage 0 ends too early"),
        (["0"], FOUR[:8], "storage 0 ends too early"),
        (["0"], FOUR + b"x", "bytes follow the last storage"),
        (["1"], FOUR, "the list of storages does not name those that the tensors use"),
        (["0", "0"], FOUR * 2, "the list of storages does not name those that the tensors use"),
        ([], b"", "the list of storages does not name those that the tensors use"),
        ([0], FOUR, "the list of storages does not name those that the tensors use"),
        ({"0": 1}, FOUR, "the list of storages does not name those that the tensors use"),
    ],
)
def test_streams_that_lie_are_refused(tmp_path, keys, storages, message):
    pickled = pickled_tensor(storage_id(b"K\x04N"), b"K\x00", b"K\x04\x85", b"K\x01\x85")
    assert message in read_within_a_megabyte(stream(tmp_path / "a.pt", pickled, keys, storages))


def test_other_files_are_refused(tmp_path):
    for name, content, message in [
        ("bare pickle", pickle.dumps({"a": 1}), "is no file of torch.save"),
        ("text", b"vocabulary", "is no file of torch.save"),
        ("nothing", b"", "is no file of torch.save"),
        (
            "version",
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2),
            "an unknown version of the stream format",
        ),
        ("zip start", b"PK\x03\x04", "has no directory at its end"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        assert message in read_within_a_megabyte(path)


def test_only_regular_files_are_read(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_torch_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "missing")
    with pytest.raises(PickleError, match="/dev/zero: is not a regular file; only files are read"):
        read_torch_file("/dev/zero")


@pytest.mark.parametrize("name", ["original/model.pt", "original/model-torch04.pt", "vocab.bin"])
def test_truncated_files_give_one_line(name, tmp_path):
    raw = (FIXTURES / name).read_bytes()
    generator = random.Random(0)
    path = tmp_path / "cut.pt"
    for end in [0, 1, 4, 30, len(raw) - 1, *(generator.randrange(len(raw)) for _ in range(40))]:
        path.write_bytes(raw[:end])
        with pytest.raises(PickleError) as caught:
            read_torch_file(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["original/model.pt", "original/model-torch04.pt", "hf-4.35/pytorch_model.bin", "vocab.bin"]
)
def test_damaged_files_give_one_line_or_a_value(name, tmp_path):
    """A short form of what scripts/fuzz_readers.py does at length."""
    raw = (FIXTURES / name).read_bytes()
    generator = random.Random(1)
    path = tmp_path / "damaged.pt"
    for _ in range(60):
        damaged = bytearray(raw)
        for _ in range(generator.randrange(1, 8)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except PickleError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a damaged number is a value like any other


def test_zip64_archives_are_read(tmp_path):
    """Files above 4 GiB have their sizes elsewhere; here a small one is made to."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, file.open("archive/data.pkl", "w", force_zip64=True) as member:
        member.write(pickle.dumps({"word": 1}, 2))
    raw = out.getvalue()
    end = raw.rindex(b"PK\x05\x06")
    start, entry = struct.unpack("<I", raw[end + 16 : end + 20])[0], bytearray(raw[raw.index(b"PK\x01\x02") : end])
    size, header_at = struct.unpack("<I", entry[24:28])[0], struct.unpack("<I", entry[42:46])[0]
    entry[20:28] = b"\xff" * 8
    entry[42:46] = b"\xff" * 4
    name_end = 46 + len("archive/data.pkl")
    extra = struct.pack("<HHQQQ", 1, 24, size, size, header_at)
    entry[30:32] = struct.pack("<H", len(extra))
    directory = bytes(entry[:name_end]) + extra
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1)
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "large.pt"
    path.write_bytes(raw[:start] + directory + record + locator + tail)
    assert read_torch_file(path) == {"word": 1}
    path.write_bytes(raw[:start] + directory + record + locator[:-12] + struct.pack("<QI", 2**60, 1) + tail)
    assert "points to bytes" in read_within_a_megabyte(path)


def test_reading_leaves_no_file_open(tmp_path):
    path = archive(tmp_path / "a.pt", b"N.")
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_torch_file(path)
    with pytest.raises(PickleError):
        read_torch_file(archive(tmp_path / "b.pt", b"."))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
