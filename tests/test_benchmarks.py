"""The page of the benchmarks is rendered from their results, and each script runs on the package as it is."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from pfedst.client.predictions import Predictions
from pfedst.methods.registry import registered_methods
from pfedst.testing import small
from tests import programs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(file.stem for file in BENCHMARKS.glob("*.py"))


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == BENCHMARKS:
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_imports(scripts, name) -> None:
    assert scripts(name).__doc__


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
    cache = scripts("cache")
    images, _ = cache.images_of(None, small.encoder(), 8)
    rows = cache.measure(small.encoder(), images, tmp_path)
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16", "float16", "int8"]
    assert rows[0]["relative_error"] == 0
    assert rows[0]["row_bytes"] == 4 * (4 * 17 * 64 + 32)
    assert 0 < rows[1]["relative_error"] < 0.01
    assert all(row["cosine_worst"] > 0.99 for row in rows)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_round_has_the_bits_of_the_bare_loop(scripts, tmp_path, one_thread) -> None:
    script = scripts("round")
    measured = script.measure(steps=2, batch_size=4, rounds=3, folder=tmp_path)
    assert measured["bits_equal"]
    assert script.batch_size_for(0, tmp_path) == 4
    assert [point["fits"] for point in script.endure(10, tmp_path)["points"]] == [2, 4, 6, 8, 10]


def test_the_simulator_benchmark_compares_a_run_with_the_bare_loop(scripts, tmp_path, one_thread) -> None:
    simulator = scripts("simulator")
    ((name, row),) = simulator.pfedst_rows("in_process", None, "small", str(tmp_path), rounds=4)
    assert name == simulator.IN_PROCESS
    assert row["digest"] == row["bare_digest"]
    assert len(row["rounds_seconds"]) == 4


def test_the_redraw_study_finds_an_overconfident_model_and_no_harm_without_a_temperature(scripts) -> None:
    calibration = scripts("calibration")
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (200,), generator=source)
    logits = 3 * (torch.randn(200, 3, generator=source) + torch.nn.functional.one_hot(labels, 3))
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    tensors = {"label": labels, "logits.personal": logits, "effective.personal": even, "site_prior": even}
    pool = calibration.Pool([Predictions("a", ("x", "y", "z"), tensors)])
    found = pool.redraw(40, seed=1, draws=5)
    assert found == pool.redraw(40, seed=1, draws=5)
    assert found["none"] | {"nll": 0, "ece": 0} == {"temperature": 1, "nll": 0, "ece": 0, "worse": 0, "harm": 0}
    for variant in ("grid", "prior", "prior and floor"):
        assert found[variant]["temperature"] > 1.5
        assert found[variant]["nll"] < found["none"]["nll"]
        assert (found[variant]["worse"], found[variant]["harm"] < 0) == (0, True)
    forms = pool.forms(40, seed=1, draws=5)
    # where no prior differs from another both forms are one
    assert forms[calibration.LOGITS] == pytest.approx(forms[calibration.AT_SITE], abs=1e-5)
    assert forms[calibration.LOGITS]["balanced_nll"] < forms[calibration.NONE]["balanced_nll"]


def test_the_wire_benchmark_counts_messages(scripts) -> None:
    measure = scripts("wire").measure
    rows = {
        name: measure(registered_methods()[name](), small.encoder()) for name in ("FedAvg", "SCAFFOLD", "Prototypes")
    }
    sent = rows["FedAvg"]["parameters_sent"]
    assert rows["FedAvg"]["upload_bytes"] == rows["FedAvg"]["download_bytes"] == 4 * sent
    assert rows["SCAFFOLD"]["upload_bytes"] == 2 * 4 * sent  # control variates
    assert rows["Prototypes"]["upload_bytes"] == 0 < rows["Prototypes"]["setup_upload_bytes"]
    assert rows["FedAvg"]["setup_upload_bytes"] == 8 * (8 * 32 + 8)  # float64 sums (K, E), counts (K,)


def test_the_epoch_benchmark_trains_every_site(scripts) -> None:
    data = small.data(validation_fraction=0)
    measured = scripts("epoch").measure(small.encoder(), data)
    assert measured["images"] == 24 + 18 + 15
    assert len(measured["train_losses"]) == 3


def test_the_rows_of_the_step_benchmark_train(scripts) -> None:
    rows = scripts("step_rows")
    setting = rows.Setting("vit-nano", 32, 2, torch.device("cpu"))
    for name, make in rows.ROWS.items():
        if name != rows.COMPILED:
            row = make(setting)
            before = [parameter.detach().clone() for parameter in row.parameters]
            row.step()
            assert any(not torch.equal(a, b) for a, b in zip(before, row.parameters, strict=True)), name


def test_the_gpu_benchmark_runs_on_a_cpu(scripts) -> None:
    gpu = scripts("gpu")
    found = gpu.measure(("vit-nano",), torch.device("cpu"), 32, 4, 8, limit=600)
    assert found["left_out"] == []
    rows = found["rows"]["vit-nano"]
    mapped, held = rows["epoch, taps in mapped files"], rows["epoch, taps on the device"]
    assert (mapped["held"], held["held"]) == (False, True)
    assert mapped["train_losses"] == held["train_losses"]
    # the small encoder is one of open_clip's, once a test has made it
    assert {"taps", "embeddings"} <= set(rows["encoder"]["images_per_second"])
    assert all(gpu._lines(name, row, 1.0) for name, row in rows.items())
    late = gpu.measure(("vit-nano",), torch.device("cpu"), 32, 4, 8, limit=-1)
    assert (late["rows"], len(late["left_out"])) == ({}, 5)


def test_the_pixels_benchmark_takes_the_steps_of_every_method(scripts, tmp_path, one_thread) -> None:
    pixels = scripts("pixels")
    pixels.SIZES = {"train": (20, 12), "test": (6, 5)}
    for name in pixels.METHODS:
        ours, bare = pixels.sides_of(name, None, tmp_path / name)
        for number in (1, 2):
            ours.round(number)
            bare.round(number)
        ours.wait()
        weights = {key: value for key, value in ours.shared().items() if value.is_floating_point()}
        assert max(float((value - bare.shared()[key]).abs().max()) for key, value in weights.items()) < 1e-5, name


def one_run(folder: Path, script: str, *arguments: object) -> dict:
    """Run one row in a process of its own, as the benchmark does."""
    output = folder / "output"
    code = programs.finished(programs.script, output, BENCHMARKS / f"{script}.py", "one", *arguments)
    assert code == 0, output.read_text()
    return json.loads(output.read_text().splitlines()[-1])


def test_the_clients_benchmark_makes_a_run(tmp_path) -> None:
    measured = one_run(tmp_path, "clients", "PFedST", "vit-nano", 32, 3)
    assert measured["peak_bytes"] >= measured["encoder_built_bytes"] > 0
    assert measured["image_bytes_a_client"] == 16 * 3 * 32 * 32
    assert measured["message_bytes_a_client"] == 93184


def test_the_sites_benchmark_makes_a_run(tmp_path) -> None:
    measured = one_run(tmp_path, "sites", 8, 2, 3)
    assert measured["peak_bytes"] >= measured["encoder_built_bytes"] > 0
    assert measured["evaluated_sites"] == 8
    assert len(measured["seconds"]) == len(measured["processor_seconds"]) == measured["rounds"] == 3


def test_the_scale_benchmark_makes_a_run(scripts, tmp_path) -> None:
    row = one_run(tmp_path, "scale", 10, 3)
    assert (row["sites"], row["participants"], row["evaluated_sites"]) == (10, 1, 10)
    few, many = (
        row | {"sites": sites, "peak_bytes": row["image_bytes"] + of} for sites, of in ((100, 100), (1000, 111))
    )
    assert scripts("scale").targets([few, many]).endswith("| peak memory without images: 1.110x | MISSED |")


def test_the_sites_benchmark_compares_runs(scripts) -> None:
    row = {"seconds": [9, 1, 3, 9], "processor_seconds": [9, 1, 2, 9]}
    few, many = row | {"sites": 100, "participants": 1, "peak_bytes": 100}, row | {"sites": 1000, "participants": 10}
    alike = row | {"sites": 100, "participants": 10, "peak_bytes": 100, "processor_seconds": [9, 1, 1, 9]}
    lines = scripts("sites").targets([few, many | {"peak_bytes": 109}, alike]).splitlines()
    assert lines[2].endswith("| 1.090x | met |")
    assert lines[3].endswith("| 1.500x | MISSED |")


def test_draws_of_labels_are_nested_and_stratified(scripts) -> None:
    targets = [0] * 60 + [1] * 30 + [2] * 10
    order = scripts("joining").nested_order(targets, seed=3)
    assert sorted(order) == list(range(100))
    for number in (10, 30, 50):
        drawn = [targets[index] for index in order[:number]]
        assert all(abs(drawn.count(of) - number * targets.count(of) / 100) <= 1 for of in range(3))
    assert order != scripts("joining").nested_order(targets, seed=4)
