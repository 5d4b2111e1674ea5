"""The benchmarks' page is what their results say, and their scripts still fit the package."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == BENCHMARKS:
            del sys.modules[name]


def test_the_page_is_rendered_from_the_results(scripts) -> None:
    assert (BENCHMARKS / "README.md").read_text() == scripts("render").render()


def test_every_result_says_what_it_was_measured_with() -> None:
    files = list((BENCHMARKS / "results").rglob("*.json"))
    assert len(files) > 20
    for file in files:
        environments = json.dumps(json.loads(file.read_text()))
        assert '"torch"' in environments, file
        assert '"python"' in environments, file


def test_changed_states_are_found_and_runs_go_on_as_in_the_long_form(scripts) -> None:
    _, result = scripts("faults_mutations").mutations(16)
    assert result["wrong"] == []
    assert result["damaged_snapshots"].keys() == {"found"}
    assert sum(result["resumed"].values()) == 2


def test_the_cache_benchmark_measures_a_small_encoder(scripts, tmp_path) -> None:
    from pfedst.testing.small import encoder

    cache = scripts("cache")
    images, _ = cache.images_of(None, encoder(), 8)
    rows = cache.measure(encoder(), images, tmp_path)
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16", "float16", "int8"]
    assert rows[0]["relative_error"] == 0
    assert rows[0]["row_bytes"] == 4 * (4 * 17 * 64 + 32)
    assert 0 < rows[1]["relative_error"] < 0.01
    assert all(row["cosine_worst"] > 0.99 for row in rows)
