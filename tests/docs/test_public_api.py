"""Public names since the last version: what breaks a program is found before it is released."""

import subprocess
from pathlib import Path

import pytest

import pfedst

griffe = pytest.importorskip("griffe", reason="the extra dev has it")
pytestmark = pytest.mark.docs
ROOT = Path(__file__).parents[2]


def breakages(old, new, names):
    """What breaks between two versions of a package, of these public names."""
    gone = [f"{name} is gone" for name in names if name not in new.members]
    paths = [old[name].final_target.path if old[name].is_alias else old[name].path for name in names]
    changed = {
        f"{of.obj.path}: {of.kind.value}": None
        for of in griffe.find_breaking_changes(old, new)
        if any(f"{of.obj.path}(".startswith((f"{path}.", f"{path}(")) for path in paths)
    }
    return [*changed, *gone]


def last_tag():
    listed = subprocess.run(
        ["git", "tag", "--list", "v*", "--sort=-v:refname"], cwd=ROOT, capture_output=True, text=True
    )
    return listed.stdout.split()[0] if listed.returncode == 0 and listed.stdout.split() else None


def test_no_public_name_breaks_since_the_last_tag() -> None:
    tag = last_tag()
    if tag is None:
        pytest.skip("no version has a tag yet")
    loaders = {"search_paths": [ROOT], "resolve_aliases": True, "allow_inspection": False}
    old = griffe.load_git("pfedst", ref=tag, repo=ROOT, **{**loaders, "search_paths": ["."]})
    new = griffe.load("pfedst", **loaders)
    assert breakages(old, new, [name for name in old.exports or () if name != "__version__"]) == []


def test_a_public_name_that_breaks_is_found(tmp_path) -> None:
    made = []
    for number, text in enumerate(("def f(a, b=1): ...\ndef g(): ...\n", "def f(a): ...\n")):
        package = tmp_path / str(number) / "small"
        package.mkdir(parents=True)
        (package / "work.py").write_text(text)
        names = ("f", "g")[: 2 - number]
        (package / "__init__.py").write_text(f"from small.work import {', '.join(names)}\n__all__ = {list(names)}\n")
        made.append(griffe.load("small", search_paths=[package.parent], resolve_aliases=True, allow_inspection=False))
    found = breakages(*made, ["f", "g"])
    assert found == [
        "small.work.f: Parameter was removed",
        "small.work.g: Public object was removed",
        "g is gone",
    ]


def test_every_public_name_is_seen_as_one() -> None:
    loaded = griffe.load("pfedst", search_paths=[ROOT], resolve_aliases=True, allow_inspection=False)
    for name in pfedst.__all__:
        if name != "__version__":
            assert loaded[name].final_target.docstring is not None, name
