"""A broken method of another wheel does not stop the others; wrong entry points are refused (see also the tutorial)."""

import logging
from importlib.metadata import EntryPoint

import pytest

from pfedst.errors import ConfigurationError
from pfedst.methods import registry


def points(*pairs):
    return lambda group: [EntryPoint(name, value, group) for name, value in pairs]


def test_a_broken_method_is_a_warning(monkeypatch, caplog) -> None:
    monkeypatch.setattr(
        registry, "entry_points", points(("Bad", "no.such:Bad"), ("Local", "pfedst_baselines.local:Local"))
    )
    with caplog.at_level(logging.WARNING, "pfedst"):
        assert list(registry.registered_methods()) == ["Local"]
    assert "Bad" in caplog.text


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("A", "a:A"), ("A", "b:A")], ["two installed packages", "a:A", "b:A"]),
        ([("Other", "pfedst_baselines.local:Local")], ["Other", "is called Other"]),
        ([("Path", "pathlib:Path")], ["subclass"]),
    ],
)
def test_wrong_entry_points_are_refused(monkeypatch, pairs, words) -> None:
    monkeypatch.setattr(registry, "entry_points", points(*pairs))
    with pytest.raises(ConfigurationError) as caught:
        registry.registered_methods()
    assert [word for word in words if word not in str(caught.value)] == []
