"""Snapshots: whole or not there, verified on reading."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import StateError
from pfedst.state.snapshot import (
    FORMAT,
    flatten,
    name_snapshot,
    read_snapshot,
    remove_folder,
    saved_table,
    unflatten,
    write_snapshot,
)

PARTS = {
    "server": {"method": {"net": {"side.up.weight": torch.arange(6.0).reshape(2, 3)}}},
    "client": {"model": {"n": torch.tensor(3)}, "memo": {"h": {"w": torch.ones(2).bfloat16()}}},
}


def saved(folder, parts=PARTS, about=None):
    """A snapshot in a folder."""
    name_snapshot(write_snapshot(folder, about or {}, parts), folder)
    return folder


def equal(one, other) -> bool:
    a, b = flatten(one), flatten(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_round_trip(tmp_path) -> None:
    found = read_snapshot(saved(tmp_path / "round-000003", about={"after": {"a": 3}, "text": "x"}))
    assert (found.name, found.about) == ("round-000003", {"after": {"a": 3}, "text": "x"})
    assert equal(found.parts, PARTS)
    assert list(read_snapshot(tmp_path / "round-000003", "client").parts) == ["client"]
    assert [path.name for path in tmp_path.iterdir()] == ["round-000003"]


def test_it_takes_the_place_of_what_bears_its_name(tmp_path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "a", {"server": {"w": torch.ones(1)}})
    (tmp_path / "b").write_text("a file")
    saved(tmp_path / "b", {"server": {"w": torch.ones(1)}})
    for name in "ab":
        assert equal(read_snapshot(tmp_path / name).parts, {"server": {"w": torch.ones(1)}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_before_it_has_its_name_nothing_is_there(tmp_path) -> None:
    temporary = write_snapshot(tmp_path / "a", {}, PARTS)
    assert not (tmp_path / "a").exists()
    with pytest.raises(StateError, match="missing or damaged"):
        read_snapshot(tmp_path / "a")
    with pytest.raises(StateError, match="its content has changed"):
        read_snapshot(temporary)


@given(
    st.recursive(
        st.integers(0, 9).map(torch.tensor),
        lambda t: st.dictionaries(st.text("ab.", min_size=1), t, min_size=1),
    )
)
def test_flatten_and_back(tree) -> None:
    tree = {"root": tree}
    assert equal(unflatten(flatten(tree)), tree)


@pytest.mark.parametrize("tree", [{"a|b": torch.ones(1)}, {"a": 3}, {"a": {"b": "text"}}])
def test_what_cannot_be_saved_is_named(tree) -> None:
    with pytest.raises(StateError, match="a"):
        flatten(tree)


@pytest.mark.parametrize(
    ("saved", "words"),
    [({"a": torch.ones(1)}, None), ({}, {}), ({"a": {"b": 1}}, {"b": 1})],
    ids=["tensor", "none", "table"],
)
def test_a_tensor_in_the_place_of_a_table_is_told(saved, words) -> None:
    if words is None:
        with pytest.raises(StateError, match='a tensor under "a"'):
            saved_table(saved, "a")
    else:
        assert saved_table(saved, "a") == words


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_format(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def other_about(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"about": {"site": "another"}}))


def huge(path):
    with path.open("r+b") as file:
        file.truncate(2**42)  # a hole: four terabytes that take no room


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("server.safetensors", flip, ["server.safetensors", "damaged"]),
        ("server.safetensors", lambda path: path.unlink(), ["missing or damaged"]),
        ("manifest.json", lambda path: path.unlink(), ["manifest.json", "missing or damaged"]),
        ("manifest.json", lambda path: path.write_text("{"), ["manifest.json", "missing or damaged"]),
        ("manifest.json", lambda path: path.write_text("{}"), ["manifest.json", "missing or damaged"]),
        ("manifest.json", other_format, ["format 99", f"reads {FORMAT}"]),
        ("manifest.json", other_about, ["manifest.json", "damaged"]),
        ("manifest.json", huge, ["manifest.json", "larger than any manifest"]),
        ("server.safetensors", huge, ["server.safetensors", "its size differs"]),
    ],
)
def test_damage_is_told(tmp_path, file, damage, words) -> None:
    damage(saved(tmp_path / "a") / file)
    with pytest.raises(StateError) as caught:
        read_snapshot(tmp_path / "a")
    assert all(word in str(caught.value) for word in words)


def test_a_snapshot_under_another_name_is_refused(tmp_path) -> None:
    saved(tmp_path / "after-000001").rename(tmp_path / "after-000002")
    with pytest.raises(StateError, match="its content has changed"):
        read_snapshot(tmp_path / "after-000002")


@pytest.mark.parametrize("file", ["../other/server.safetensors", "/etc/passwd", "manifest.json", "a/b.safetensors"])
def test_a_manifest_names_files_of_its_own_folder_only(tmp_path, file) -> None:
    """Whoever can write a folder can make its sums right."""
    from pfedst.state.snapshot import _sealed

    manifest = json.loads((saved(tmp_path / "a") / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest["parts"]["server"]["file"] = file
    (tmp_path / "a/manifest.json").write_bytes(_sealed(manifest))
    with pytest.raises(StateError, match="is not a file of a snapshot"):
        read_snapshot(tmp_path / "a")
