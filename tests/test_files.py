"""Output is whole or not there."""

import pytest

from transformer_xl.files import written_whole


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with written_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(TypeError), written_whole(path) as partial:
        partial.write_text("half") + "a number and a text do not add up"
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path, fails):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    try:
        with written_whole(folder) as partial:
            partial.mkdir()
            (partial / "new").touch()
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert [entry.name for entry in folder.iterdir()] == ["old" if fails else "new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
