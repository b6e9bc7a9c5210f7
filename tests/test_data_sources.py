"""Finding and reading text files: compressed or not, cut into blocks, damaged, or no text at all."""

import gzip
import lzma
import re
import zipfile

import pytest
from backports import zstd

from transformer_xl.data import sources as module
from transformer_xl.data.sources import (
    TextError,
    decode,
    file_sha256,
    find_sources,
    next_boundary,
    open_source,
    read_blocks,
    text_bytes,
)

TEXT = "first line\nsécond line €\n\nlast, without an end".encode()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


WRITERS = {
    "a.txt": lambda path, data: path.write_bytes(data),
    "a.txt.gz": lambda path, data: path.write_bytes(gzip.compress(data)),
    "a.txt.xz": lambda path, data: path.write_bytes(lzma.compress(data)),
    "a.txt.zst": lambda path, data: path.write_bytes(zstd.compress(data)),
    "a.zip": lambda path, data: write_zip(path, {"deep/a.txt": data}),
}


@pytest.fixture(params=WRITERS)
def stored(request, tmp_path):
    """A function that stores a text in one of the formats, and gives its source."""

    def store(data):
        path = tmp_path / request.param
        WRITERS[request.param](path, data)
        (source,) = find_sources([path])
        return source

    return store


def test_every_format_gives_the_same_text(stored):
    source = stored(TEXT)
    with open_source(source) as file:
        assert file.read() == TEXT
    assert source.text_name == "a.txt"
    assert text_bytes(source) == len(TEXT)
    assert source.is_plain == (source.path.name == "a.txt")


@pytest.mark.parametrize("boundary", ["line", "character", "byte"])
@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 1000])
def test_blocks_together_are_the_text_from_any_place(stored, boundary, block_bytes, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    source = stored(TEXT)
    for wanted_start, wanted_end in [(0, None), (3, 30), (12, len(TEXT)), (17, 24)]:
        start = next_boundary(source, wanted_start, boundary)
        end = None if wanted_end is None else next_boundary(source, wanted_end, boundary)
        place = start
        for block in read_blocks(source, start, end, boundary):
            assert block.start == place
            place += len(block.data)
            assert TEXT[block.start : place] == block.data
            if boundary == "line":
                assert block.ends_line
                assert block.data.endswith(b"\n") or place == len(TEXT)
            if boundary == "character":
                block.data.decode()
        assert place == (len(TEXT) if end is None else end)


def test_boundaries_are_found_forward(tmp_path):
    (tmp_path / "t").write_bytes(TEXT)
    (source,) = find_sources([tmp_path / "t"])
    lines = [0, 11, 28, 29, len(TEXT)]
    for offset in range(len(TEXT) + 1):
        assert next_boundary(source, offset, "line") == min(place for place in lines if place >= offset)
        place = next_boundary(source, offset, "character")
        assert offset <= place <= offset + 2
        TEXT[:place].decode()
        assert next_boundary(source, offset, "byte") == offset


def test_a_long_line_is_cut_at_white_space(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 10)
    monkeypatch.setattr(module, "LONGEST_LINE", 25)
    (tmp_path / "t").write_bytes(b"abcd " * 20)
    (source,) = find_sources([tmp_path / "t"])
    blocks = list(read_blocks(source, 0, None, "line"))
    assert [block.ends_line for block in blocks[:-1]] == [False] * (len(blocks) - 1)
    assert all(block.data.endswith(b" ") for block in blocks)
    assert max(len(block.data) for block in blocks) <= 35
    assert blocks[-1].ends_line


def test_a_long_line_without_white_space_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LINE", 25)
    (tmp_path / "t").write_bytes(b"x\n" + b"a" * 100)
    (source,) = find_sources([tmp_path / "t"])
    with pytest.raises(TextError, match=r"t has 25 bytes without white space \(from byte 2\).*--mode characters"):
        list(read_blocks(source, 2, None, "line"))


def test_what_is_not_utf8_is_reported_by_line_and_offset(stored):
    source = stored(b"one\ntwo\ncaf\xe9 three\n")
    (block,) = read_blocks(source, 0, None, "line")
    message = (
        f"{source.name}, line 3 is not UTF-8: byte 0xe9 at offset 11; convert the file (iconv -t UTF-8), or use "
        "--mode bytes."
    )
    with pytest.raises(TextError, match=re.escape(message)):
        decode(block, source)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfabc\n\xef\xbb\xbfd\n")
    (source,) = find_sources([tmp_path / "t"])
    (block,) = read_blocks(source, 0, None, "line")
    assert decode(block, source) == "abc\n\ufeffd\n"


def test_folders_are_searched_in_the_order_of_names_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/2.txt", "a/10.txt", ".hidden", ".git/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    write_zip(tmp_path / "c.zip", {"z": b"1", "dir/": b"", "dir/y": b"22"})
    found = find_sources([tmp_path])
    assert [source.name for source in found] == ["a/10.txt", "a/2.txt", "b.txt", "c.zip/z", "c.zip/dir/y"]
    assert [source.stored_bytes for source in found] == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.txt"])
def test_a_file_cut_short_is_reported(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, bytes(range(256)) * 4000)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(TextError, match=rf"{name} is damaged or cut short \(.+\): fetch it again\."):
        [text_bytes(source) for source in find_sources([path])]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.zst", "a.zip"])
def test_a_file_that_is_something_else_is_reported(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is not compressed at all" * 9)
    with pytest.raises(TextError, match=rf"{name} is damaged or cut short \(.+\): fetch it again\."):
        [text_bytes(source) for source in find_sources([tmp_path / name])]


def test_a_damaged_member_is_reported(tmp_path):
    data = bytearray()
    write_zip(tmp_path / "a.zip", {"t": b"abc" * 1000})
    data[:] = (tmp_path / "a.zip").read_bytes()
    data[40] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(TextError, match=r"a\.zip/t is damaged or cut short"):
        [text_bytes(source) for source in find_sources([tmp_path / "a.zip"])]


def test_an_encrypted_zip_is_refused(tmp_path):
    write_zip(tmp_path / "a.zip", {"t": b"abc"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory at the end
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(TextError, match=r"a\.zip is encrypted: unpack it, and give the files\."):
        find_sources([tmp_path / "a.zip"])


def test_zstd_without_a_package_names_the_extra(tmp_path, monkeypatch):
    WRITERS["a.txt.zst"](tmp_path / "a.txt.zst", TEXT)
    (source,) = find_sources([tmp_path / "a.txt.zst"])
    monkeypatch.setattr(module, "_zstd_module", lambda: None)
    with pytest.raises(TextError, match=r"pip install 'transformer-xl\[zstd\]'"):
        text_bytes(source)


def test_missing_and_empty_files_are_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(TextError, match=r"missing\.txt does not exist: give text files or a folder that holds some\."):
        find_sources([tmp_path / "missing.txt"])
    with pytest.raises(TextError, match=r"empty\.txt is empty: leave it out, or give a file that holds text\."):
        find_sources([tmp_path / "empty.txt"])
    with pytest.raises(TextError, match=r"folder is a folder without files"):
        find_sources([tmp_path / "folder"])


def test_the_hash_is_that_of_the_stored_file(tmp_path):
    (tmp_path / "t").write_bytes(b"abc")
    assert file_sha256(tmp_path / "t") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
