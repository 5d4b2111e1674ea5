"""Files that are written whole or not at all."""

import json
import os

import pytest

from pfedst.errors import StateError
from pfedst.state.files import clear_unfinished, discard, json_bytes, write_atomically, write_json, writing


def test_a_file_is_replaced_whole(tmp_path) -> None:
    file = tmp_path / "a"
    write_atomically(file, b"one")
    write_atomically(file, b"other")
    assert file.read_bytes() == b"other"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    def refuse(_) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "a"
    write_atomically(file, b"one")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"other")
    assert file.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with (
        pytest.raises(StateError, match=r"a cannot be written \(No space left on device\).*--resume true"),
        writing(file),
    ):
        write_atomically(file, b"other")


def test_another_error_stays_as_it_is(tmp_path) -> None:
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError


def test_json_is_readable_and_holds_no_nan(tmp_path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "x"})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, None], "a": "x"}
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        json_bytes({"a": float("nan")})


def test_what_a_killed_process_left_is_cleared(tmp_path) -> None:
    (tmp_path / ".a.1.part").write_text("x")
    (tmp_path / ".b.1.new.part").mkdir()
    (tmp_path / ".b.1.new.part" / "file").write_text("x")
    (tmp_path / "a.part").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    clear_unfinished(tmp_path)
    clear_unfinished(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.part"]


def test_a_link_is_discarded_and_what_it_points_to_stays(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    discard(tmp_path / "link")
    discard(tmp_path / "none")
    assert (tmp_path / "folder" / "file").read_text() == "x"
    assert not (tmp_path / "link").is_symlink()
