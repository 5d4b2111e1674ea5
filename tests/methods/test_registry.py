"""A broken method of another wheel does not stop the others; wrong entry points are refused (see also the tutorial)."""

import logging
from importlib.metadata import EntryPoint

import pytest

from pfedst.errors import ConfigurationError
from pfedst.methods import registry
from pfedst.methods.registry import get_method


def points(*pairs):
    return lambda group: [EntryPoint(name, value, group) for name, value in pairs]


def test_broken_methods_are_one_warning_with_the_reasons(monkeypatch, caplog) -> None:
    given = [("Bad", "no.such:Bad"), ("Worse", "no.such:Worse"), ("Gone", "pfedst_baselines.local:Gone")]
    monkeypatch.setattr(registry, "entry_points", points(*given, ("Local", "pfedst_baselines.local:Local")))
    with caplog.at_level(logging.WARNING, "pfedst"):
        assert list(registry.registered_methods()) == ["Local"]
    assert len(caplog.records) == 1
    assert "Bad, Worse (ModuleNotFoundError(\"No module named 'no'\"))" in caplog.text
    assert "Gone (AttributeError(" in caplog.text


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


def test_a_method_is_found_by_its_import_path_too() -> None:
    assert get_method("pfedst_baselines.fedavg.FedAvg") is get_method("FedAvg")
    with pytest.raises(ConfigurationError, match="is no method"):
        get_method("pathlib.Path")
    with pytest.raises(ConfigurationError, match='there is no module "nowhere"'):
        get_method("nowhere.Method")
