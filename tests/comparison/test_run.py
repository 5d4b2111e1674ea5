"""A comparison through the real command line: what is run, kept, tuned on validation, and told."""

import functools
import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import yaml

from pfedst.cli import main
from pfedst.cli.compare import resolver
from pfedst.comparison import make_plan
from pfedst.comparison.plan import as_arguments
from pfedst.comparison.run import Comparison
from tests.comparison.in_process import InProcessGrid

ROOT = Path(__file__).parents[2]
BASE = {
    "seed_everything": 0,
    "method": "PFedST",
    "model": {"encoder": {"model": "vit-nano", "weights": "random", "image_size": 32}, "anchors": "prototypes"},
    "data": {
        "class_path": "SyntheticSites",
        "init_args": {
            "image_size": 32,
            "samples_per_site": [16, 12],
            "validation_fraction": 0.4,
            "test_samples_per_site": [6, 6],
            "sites": 2,
            "audit": "off",
        },
    },
    "trainer": {"accelerator": "cpu"},
    "coordinator": {"rounds": 1},
}
PLAN = {
    "base": "base.yaml",
    "options": {"data.batch_size": 4},
    "seeds": [0, 1],
    "reference": "side",
    "rows": {
        "side": {"method": "PFedST"},
        "average": {"method": "FedAvg", "method.weighting": "uniform"},
        "none": {"method": "Prototypes"},
    },
}


class CopyingGrid(InProcessGrid):
    """Copies a run that an earlier test has done: its name holds the hash of its configuration."""

    done: ClassVar[dict[str, Path]] = {}

    def run(self, runs, what):
        failed = {}
        for run in runs:
            if run.name in self.done and not self.is_finished(run):
                self.ran.append(run.name)
                shutil.copytree(self.done[run.name], self.folder / run.name)
            failed |= super().run([run], what)
            if self.is_finished(run):
                self.done.setdefault(run.name, self.folder / run.name)
        return failed


@pytest.fixture(scope="module")
def resolve():
    """The parser of a comparison; to build it takes as long as to use it."""
    return resolver()


@pytest.fixture(scope="module")
def resolve_once(resolve):
    """The same for all tests of a base that does not change: the same arguments are parsed once."""
    return functools.cache(resolve)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    file = tmp_path_factory.mktemp("base") / "base.yaml"
    file.write_text(yaml.safe_dump(BASE))
    return file


@pytest.fixture
def compare(tmp_path, monkeypatch, base, resolve_once):
    """Runs `pfedst compare`; gives the exit code, what was run, and comparison.json."""
    monkeypatch.setattr("pfedst.cli.compare.Grid", CopyingGrid)
    monkeypatch.setattr("pfedst.cli.compare.resolver", lambda: resolve_once)
    monkeypatch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])  # tests/cli/test_report.py draws

    def run(*options, **changes):
        given = PLAN | {"base": str(base)} | changes
        plan = {key: value for key, value in given.items() if value is not None}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        InProcessGrid.ran = []
        code = main(
            ["compare", "--config", str(tmp_path / "plan.yaml"), "--runs_dir", str(tmp_path / "runs"), *options]
        )
        file = tmp_path / "runs" / "compare-plan" / "comparison.json"
        return code, InProcessGrid.ran, json.loads(file.read_text()) if file.exists() else None

    return run


def test_a_grid_is_run_kept_and_extended(compare, tmp_path) -> None:
    code, ran, content = compare()
    assert code == 0
    assert [name.rsplit("-", 1)[0] for name in ran] == [f"{row}-seed{seed}" for seed in (0, 1) for row in PLAN["rows"]]
    folder = tmp_path / "runs" / "compare-plan"
    for row in content["rows"]:
        for seed, name in row["runs"].items():
            summary = json.loads((folder / "runs" / name / "summary.json").read_text())
            assert summary["protocol"]["seed"] == int(seed)
            assert summary["protocol"]["batch_size"] == 4
            assert summary["protocol"]["method"] == row["options"]["method"]
    assert (folder / "report" / "report.html").is_file()
    report = (folder / "report" / "report.json").read_bytes()
    # again: nothing is left to do, and the report is the same
    assert compare()[:2] == (0, [])
    assert (folder / "report" / "report.json").read_bytes() == report
    # a seed and a row more: what is there is kept
    more = {"method": "Prototypes", "data.batch_size": 2}
    rows = {"side": PLAN["rows"]["side"], "none": PLAN["rows"]["none"], "more": more}
    code, ran, _ = compare("--seeds", "0", "2", rows=rows)
    assert code == 0
    assert sorted(name.rsplit("-", 1)[0] for name in ran) == ["more-seed0", "more-seed2", "none-seed2", "side-seed2"]
    # an option of all runs changes all of them, a folder and threads none
    few = ("--seeds", "0", "--only", "none")
    assert len(compare(*few, "--data.batch_size=3")[1]) == 2
    assert len(compare(*few, "--coordinator.threads=2", "--data.cache_folder", str(tmp_path))[1]) == 0


def test_images_and_weights_of_the_environment_are_those_of_the_options(monkeypatch, resolve) -> None:
    """Who sets a variable on one day and gives the option on another repeats no run; other paths are other runs."""
    arguments = [f"--config={ROOT / 'configs/fed_isic_ham4.yaml'}"]
    options = {"PFEDST_DATA_ROOT": "--data.root", "PFEDST_ENCODER_WEIGHTS": "--model.encoder.weights"}
    found = {resolve(arguments)}
    for variable, option in options.items():
        for value in "ab":
            given = resolve([*arguments, f"{option}={value}"])
            with monkeypatch.context() as patch:
                patch.setenv(variable, value)
                assert resolve(arguments) == given
                patch.setenv(variable, "other")
                assert resolve([*arguments, f"{option}={value}"]) == given
            found.add(given)
    assert len(found) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--config={ROOT / 'configs/demo.yaml'}"],  # synthetic images, random weights
        [f"--config={ROOT / 'configs/manifest.yaml'}", "--data.manifest=images.csv", "--model.encoder.weights=random"],
    ],
    ids=["demo", "manifest"],
)
def test_an_environment_that_a_run_does_not_read_changes_no_name(arguments, monkeypatch, resolve) -> None:
    before = resolve(arguments)
    monkeypatch.setenv("PFEDST_DATA_ROOT", "a")
    monkeypatch.setenv("PFEDST_ENCODER_WEIGHTS", "b")
    assert resolve(arguments) == before


def test_only_some_rows(compare) -> None:
    code, ran, content = compare("--only", "none", "--seeds", "4")
    assert code == 0
    assert [name.rsplit("-", 1)[0] for name in ran] == ["side-seed4", "none-seed4"]
    assert [row["label"] for row in content["rows"]] == ["side", "none"]


def test_tuning_chooses_on_validation_with_seeds_of_its_own(compare, tmp_path) -> None:
    rates = [1e-30, 1e-2]
    bounds = {"model.optimizer.lr": [1e-30, 1e-2]}  # nothing beyond the edges
    tune = {"seeds": [7, 8], "grid": {"model.optimizer.lr": rates}, "rows": {"none": {}}, "bounds": bounds}
    code, ran, content = compare("--seeds", "0", tune=tune)
    assert code == 0
    assert [name.rsplit("-", 1)[0] for name in ran] == [
        *("side-seed7", "side-seed8") * 2,
        *("average-seed7", "average-seed8") * 2,
        *("side-seed0", "average-seed0", "none-seed0"),
    ]
    folder = tmp_path / "runs" / "compare-plan"
    scores = {}
    for name in ran[:8]:
        summary = json.loads((folder / "tuning" / name / "summary.json").read_text())
        assert summary["validation"]["personal"]["counts"].keys() == summary["protocol"]["samples"].keys()
        key = (name.split("-")[0], summary["protocol"]["optimizer"]["lr"])
        scores.setdefault(key, []).append(summary["validation"]["personal"]["mean"]["balanced_accuracy"])
    for row in content["rows"][:2]:
        label = row["label"]
        expected = max(rates, key=lambda rate: sum(scores[label, rate]))  # the first of equals
        (part,) = row["tuned"]["parts"]
        assert part["chosen"] == {"model.optimizer.lr": expected}
        assert [trial["options"]["model.optimizer.lr"] for trial in part["trials"]] == rates
        assert row["tuned"]["edges"] == []
        run = json.loads((folder / "runs" / row["runs"]["0"] / "summary.json").read_text())
        assert run["protocol"]["optimizer"]["lr"] == expected
    assert content["rows"][2]["tuned"] is None
    assert "Tuned on validation" in (folder / "report" / "report.md").read_text()


def test_a_best_value_at_an_edge_extends_the_grids_of_all_rows_once(compare, tmp_path, monkeypatch) -> None:
    """Of trials that are worse the larger the rate, the smallest is best: both rows try one more, and it is marked."""
    monkeypatch.setattr(Comparison, "_score", lambda self, runs: -rate_of(runs[0]))
    grid = {"model.optimizer.lr": [1e-4, 1e-3]}
    code, ran, content = compare("--seeds", "0", tune={"seeds": [7], "grid": grid, "rows": {"none": {}}})
    assert code == 0
    assert [name.rsplit("-", 1)[0] for name in ran] == [
        *["side-seed7"] * 2, *["average-seed7"] * 2, "side-seed7", "average-seed7",
        *("side-seed0", "average-seed0", "none-seed0"),
    ]  # fmt: skip
    for row in content["rows"][:2]:
        (part,) = row["tuned"]["parts"]
        assert [trial["options"]["model.optimizer.lr"] for trial in part["trials"]] == [1e-4, 1e-3, 1e-5]
        assert part["chosen"] == {"model.optimizer.lr": 1e-5}
        assert row["tuned"]["edges"] == [["model.optimizer.lr", "low"]]
    assert "lr lowest" in (tmp_path / "runs" / "compare-plan" / "report" / "report.md").read_text()


def rate_of(run):
    prefix = "--model.optimizer.lr="
    return next(float(argument.removeprefix(prefix)) for argument in run.arguments if argument.startswith(prefix))


@pytest.mark.parametrize("choice", ["last", "best"])
def test_a_trial_that_could_not_evaluate_a_site_is_no_candidate(tmp_path, choice) -> None:
    """Its mean over the other sites may be higher for their sake."""
    trials = SimpleNamespace(folder=tmp_path / "tuning")
    made = SimpleNamespace(_grid_of_trials=trials, round_choice=choice)
    scores = []
    for name, missing in (("whole", {}), ("missing", {"not_evaluated": ["site_b"]})):
        validation = {"personal": {"mean": {"balanced_accuracy": 0.5}, **missing}}
        best = {"validation_score": 0.5, "validation": validation}
        folder = tmp_path / "tuning" / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"validation": validation, "best_on_validation": best}))
        scores.append(Comparison._score(made, [SimpleNamespace(name=name)]))
    assert scores == [0.5, None]


FOLDS = {
    "folds": 2,
    "seeds": [0, 3],
    "reference": "average",
    "rows": {"average": PLAN["rows"]["average"], "none": PLAN["rows"]["none"]},
    "claims": [{"row": "none", "against": "average", "measure": "accuracy"}],
}


def test_folds_are_runs_of_a_seed_and_a_fold(compare, tmp_path, capsys) -> None:
    code, ran, content = compare(**FOLDS)
    assert code == 0
    where = [f"seed{seed}-fold{fold}" for seed in (0, 3) for fold in (0, 1)]
    assert [name.rsplit("-", 1)[0] for name in ran] == [f"{row}-{w}" for w in where for row in FOLDS["rows"]]
    told = capsys.readouterr().out
    assert "2 repetitions (seeds 0; 3) of 2 folds" in told
    assert "8 runs" in told
    # 40 % of the other fold is validation: n_test / n_train = 0.5 / (0.5 x 0.6)
    assert "4 differences, n_test / n_train 1.667" in told
    folder = tmp_path / "runs" / "compare-plan"
    assert (content["folds"], content["parts"], content["tuning"]) == (2, 4, None)
    assert list(content["rows"][0]["runs"]) == ["0, fold 0", "0, fold 1", "3, fold 0", "3, fold 1"]
    tested = {}
    for row in content["rows"]:
        for name in row["runs"].values():
            summary = json.loads((folder / "runs" / name / "summary.json").read_text())
            protocol = summary["protocol"]
            assert protocol["folds"] == {
                "folds": 2,
                "fold": int(name.split("-")[2][-1]),
                "split_seed": protocol["seed"],
            }
            key = (protocol["seed"], protocol["folds"]["fold"])
            tested.setdefault(key, []).append((protocol["samples"], summary["content"]["data"]))
    assert len(tested) == 4
    assert all(one == other for one, other in tested.values())  # the same images for all methods
    assert len({of[0][1] for of in tested.values()}) == 4
    report = json.loads((folder / "report" / "report.json").read_text())
    titles = [table["title"] for table in report["tables"]]
    assert "Claims named in advance" in titles
    assert "Against average, described" in titles
    assert report["title"].endswith("2 seeds x 2 folds")
    assert compare(**FOLDS)[:2] == (0, [])
    # a part of the seeds or the rows are the same runs
    assert compare("--seeds", "3", "--only", "none", **FOLDS)[:2] == (0, [])


def test_seeds_of_one_repetition_share_a_partition(compare, tmp_path) -> None:
    code, ran, content = compare(**FOLDS | {"seeds": [[5, 6]]})
    assert code == 0
    assert content["parts"] == 2
    for name in ran:
        summary = json.loads((tmp_path / "runs" / "compare-plan" / "runs" / name / "summary.json").read_text())
        assert summary["protocol"]["folds"]["split_seed"] == 5


def test_tuning_inside_each_fold_uses_its_trials_as_final_runs(compare, tmp_path) -> None:
    rates = [1e-30, 1e-2]
    rows = {"average": PLAN["rows"]["average"], "side": PLAN["rows"]["side"], "none": PLAN["rows"]["none"]}
    tune = {
        "grid": {"model.optimizer.lr": rates},
        "rows": {"none": {}},
        "bounds": {"model.optimizer.lr": [1e-30, None]},
    }
    code, ran, content = compare(**FOLDS | {"rows": rows, "tune": tune, "seeds": [0]})
    assert code == 0
    assert not (tmp_path / "runs" / "compare-plan" / "tuning").exists()
    names = [name.rsplit("-", 1)[0] for name in ran]
    first = [name for fold in (0, 1) for name in (*[f"average-seed0-fold{fold}"] * 2, *[f"side-seed0-fold{fold}"] * 2,
                                                  f"none-seed0-fold{fold}")]  # fmt: skip
    assert names[:10] == first
    # if a best rate was the highest, one more was tried by every row; else none was
    trials = len(content["rows"][0]["tuned"]["parts"][0]["trials"])
    assert names[10:] == [f"{row}-seed0-fold{fold}" for fold in (0, 1) for row in ("average", "side")] * (trials - 2)
    folder = tmp_path / "runs" / "compare-plan" / "runs"
    for row in content["rows"][:2]:
        assert [part["fold"] for part in row["tuned"]["parts"]] == [0, 1]
        for part, name in zip(row["tuned"]["parts"], row["runs"].values(), strict=True):
            assert len(part["trials"]) == trials
            best = max(part["trials"], key=lambda trial: trial["validation"])
            assert part["chosen"] == best["options"]
            summary = json.loads((folder / name / "summary.json").read_text())
            assert summary["protocol"]["optimizer"]["lr"] == best["options"]["model.optimizer.lr"]
            assert summary["validation"]["personal"]["mean"]["balanced_accuracy"] == best["validation"]
            assert name in ran
    assert content["rows"][2]["tuned"] is None
    assert compare(**FOLDS | {"rows": rows, "tune": tune, "seeds": [0]})[1] == []


def test_a_run_that_fails_is_told_and_the_rest_is_reported(compare, tmp_path, capsys) -> None:
    broken = {"method": "FedAvg", "model.optimizer": "SGD", "model.optimizer.lr": 1e30}
    code, ran, content = compare(rows=PLAN["rows"] | {"broken": broken})
    assert code == 1
    assert len(ran) == 8
    assert set(content["failed"]) == {name for name in ran if name.startswith("broken")}
    told = capsys.readouterr()
    assert "side, average, none, broken; seeds 0, 1 on" in told.out.splitlines()[0]
    assert "2 runs failed; finished runs are kept and reported" in told.err
    notes = json.loads((tmp_path / "runs" / "compare-plan" / "report" / "report.json").read_text())["notes"]
    assert any("broken, seed 0: missing" in note for note in notes)
    # where nothing is done there is nothing to report, and what failed is told all the same
    assert compare("--name=none", "--seeds", "0", rows={"broken": broken}, reference="broken")[0] == 1
    assert "1 run failed" in capsys.readouterr().err
    # mended, the rest is not repeated
    code, ran, content = compare(rows=PLAN["rows"] | {"broken": {"method": "FedAvg"}})
    assert code == 0
    assert len(ran) == 2
    assert content["failed"] == {}


@pytest.mark.parametrize(
    ("options", "changes", "told"),
    [
        (("--jobs", "0"), {}, "--jobs 0: must be 1 or more"),
        (("--name=x", "--seed_everything=3"), {}, "--seed_everything is set by the comparison"),
        (("--data.batchsize=3",), {}, 'error: row side: unknown option "--data.batchsize"'),
        (("--job", "2"), {}, 'unknown option "--job". Did you mean "jobs"?'),
        (("--rounds", "2"), {}, 'unknown option "--rounds". Did you mean "--coordinator.rounds"?'),
        (("--method=Local",), {}, "--method has no effect: every row of "),
        (("--method.rank", "2"), {}, 'error: row average: unknown option "--method.rank" of FedAvg'),
        ((), {"options": {"method.rank": 2}}, 'plan.yaml, row average: unknown option "--method.rank" of FedAvg'),
        ((), {"rows": {"side": {"method": "PFedSTT"}}}, 'row side: --method: no class "PFedSTT"'),
        ((), {"rows": {"side": {"method": "PFedST", "method.ranks": 3}}}, "ranks"),
        ((), {"base": "other.yaml"}, "no file"),
        (("--only", "sides"), {}, "--only sides: there is no such row"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_run(compare, capsys, options, changes, told) -> None:
    code, ran, _ = compare(*options, **changes)
    assert code == 2
    assert ran == []
    assert told in capsys.readouterr().err


def test_no_such_file(capsys, tmp_path) -> None:
    file = str(tmp_path / "none.yaml")
    assert main(["compare", "--config", file]) == 2
    assert f"--config {file}: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "configs/compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_row_of_a_shipped_file_is_a_configuration(file, monkeypatch, tmp_path, resolve) -> None:
    monkeypatch.setenv("PFEDST_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("PFEDST_ENCODER_WEIGHTS", "random")
    plan = make_plan(yaml.safe_load(file.read_text()), file)
    found = set()
    for row in plan.rows.values():
        options = plan.options | row.options | row.trials[0]
        found.add(resolve([f"--config={plan.base}", *as_arguments(options), "--seed_everything=0"]))
    assert len(found) == len(plan.rows)


def test_the_demo_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pfedst.cli.compare.Grid", InProcessGrid)
    monkeypatch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])  # tests/cli/test_report.py draws
    small = ["--data.samples_per_site=[12,10,8,8]", "--data.test_samples_per_site=[8,8,8,8]"]
    small += ["--model.encoder.model=vit-nano", "--model.encoder.image_size=32", "--data.image_size=32"]
    small += ["--coordinator.rounds=2", "--coordinator.evaluate_every=2", f"--data.cache_folder={tmp_path / 'taps'}"]
    arguments = ["compare", "--config", str(ROOT / "configs/compare/demo.yaml"), "--runs_dir", str(tmp_path), *small]
    assert main([*arguments, "--seeds", "0", "--only", "Prototypes"]) == 0
    report = json.loads((tmp_path / "compare-demo" / "report" / "report.json").read_text())
    assert [row[0]["text"] for row in report["tables"][0]["rows"]] == ["Prototypes", "PFedST"]


def test_printed_runs_are_run_by_hand_and_collected(compare, capsys) -> None:
    """As a scheduler would: the trials first, then the runs of the table; each command may be given again."""
    rates = [0.001, 0.01]
    tune = {"seeds": [7], "grid": {"model.optimizer.lr": rates}, "rows": {"none": {}}}
    tune["bounds"] = {"model.optimizer.lr": rates}  # nothing beyond the edges
    plan = {"seeds": [0], "tune": tune, "rows": {name: PLAN["rows"][name] for name in ("side", "none")}}
    arrays = []
    for _ in range(3):
        assert compare("--print_runs", **plan)[:2] == (0, [])
        arrays.append([shlex.split(line) for line in capsys.readouterr().out.splitlines()])
        for program, *arguments in arrays[-1]:
            assert program == "pfedst"
            assert main(arguments) == 0
            capsys.readouterr()
    assert [len(lines) for lines in arrays] == [2, 2, 0]
    assert main(arrays[0][0][1:]) == 0
    assert "is finished" in capsys.readouterr().out
    code, ran, content = compare(**plan)
    assert (code, ran) == (0, [])
    assert content["rows"][0]["tuned"]["parts"][0]["chosen"] is not None
    assert compare("--print_runs", "--jobs", "2", **plan)[0] == 2
