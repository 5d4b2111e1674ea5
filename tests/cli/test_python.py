"""The public Python API: the commands as functions, runs as objects, objects of one's own program."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import pfedst
from pfedst.cli import main
from pfedst.errors import ConfigurationError, DataError, StateError
from pfedst.methods.interface import FederatedMethod
from tests.fake_data.folder.data import make as make_folder

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_of_format_1"
MODEL = {"model.encoder.model": "vit-nano", "model.encoder.weights": "random", "model.encoder.image_size": 32}
SMALL = MODEL | {
    "data.image_size": 32,
    "data.sites": 2,
    "data.samples_per_site": [12, 10],
    "data.test_samples_per_site": [8, 8],
    "data.cache": "none",
    "coordinator.rounds": 1,
}


class Mine(FederatedMethod):
    """FedAvg of this file."""

    source = "this test"


class Small(nn.Sequential):
    """A torch module that knows nothing of pfedst."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, classes)


class Pictures:
    """A Dataset of noise, of two classes in turn."""

    classes = ("light", "dark")

    def __init__(self, number, seed, kind="array"):
        draws = np.random.default_rng(seed).integers(0, 255, (number, 40, 40, 3), np.uint8)
        kinds = {"array": draws, "tensor": torch.tensor(draws).permute(0, 3, 1, 2), "float": draws / 255}
        self.images = [Image.fromarray(of) for of in draws] if kind == "pillow" else kinds[kind]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 2


def pictures(kind="array", **options):
    sites = {
        name: {"train": Pictures(10, seed, kind), "test": Pictures(6, seed + 9, kind)} for seed, name in enumerate("ab")
    }
    return pfedst.DatasetSites(sites, batch_size=4, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(folder):
    return pfedst.fit("demo", overrides=SMALL, name="first", runs_dir=folder)


@pytest.fixture(scope="module")
def run_of_datasets(folder):
    config = {"model": {"anchors": "prototypes"}, "coordinator": {"rounds": 1}}
    return pfedst.fit(config, overrides=MODEL, method=Mine, data=pictures(), name="mine", runs_dir=folder)


def test_every_public_name_is_there_and_import_alone_loads_no_torch() -> None:
    for name in pfedst.__all__:
        assert getattr(pfedst, name) is not None
        assert name == "__version__" or getattr(pfedst, name).__doc__, name
    program = "import sys, pfedst; print([name for name in ('torch', 'lightning', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = pfedst.fitt


def test_fit_is_the_command_fit(run, folder, capsys) -> None:
    arguments = ["fit", "--config", "demo", *(f"--{key}={value}" for key, value in SMALL.items())]
    assert main([*arguments, f"--runs_dir={folder}", "--name=command"]) == 0
    of_command = pfedst.load(folder / "command")
    for key in ("personal", "generic", "study", "protocol"):
        assert run.summary[key] == of_command.summary[key]
    capsys.readouterr()
    again = pfedst.fit("demo", overrides=SMALL, name="first", runs_dir=folder, resume=True)
    assert again.summary == run.summary
    assert capsys.readouterr().out == ""  # a program prints for itself
    with pytest.raises(ConfigurationError, match="a run is never overwritten"):
        pfedst.fit("demo", overrides=SMALL, name="first", runs_dir=folder)
    with pytest.raises(ConfigurationError, match="dry_run"):
        pfedst.fit("demo", overrides=SMALL | {"dry_run": True}, runs_dir=folder)


def test_a_run_has_its_table_models_and_report(run, tmp_path) -> None:
    assert run.sites == ["site_a", "site_b"]
    assert run.protocol["method"] == "PFedST"
    assert run.config["coordinator"]["rounds"] == 1
    table = run.table().set_index(["site", "model"])
    assert list(table.index) == [(site, model) for model in ("personal", "generic") for site in run.sites]
    assert table.loc[("site_b", "generic"), "accuracy"] == run.summary["generic"]["clients"]["site_b"]["accuracy"]
    assert set(table["images"]) == {8}
    assert run.model("site_a", "generic").id == run.model().id != run.model("site_a").id
    predicted = run.model("site_a").predict(np.stack([np.asarray(Image.new("RGB", (40, 40)))] * 2))
    assert len(predicted) == 2
    assert predicted["error"].eq("").all()
    assert "first" in run.report(tmp_path / "report").title
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_run_is_evaluated_again(run) -> None:
    assert run.evaluate()["personal"] == run.summary["personal"]
    alone = run.evaluate(site="site_b")
    assert list(alone["personal"]["clients"]) == ["site_b"]
    with pytest.raises(ConfigurationError, match="round 7"):
        run.evaluate("validation", round="7")


def test_a_run_of_torch_datasets_and_of_a_class_of_this_file(run_of_datasets) -> None:
    run = run_of_datasets
    assert run.protocol["method"] == "Mine"
    assert run.protocol["classes"] == ["light", "dark"]
    assert run.config["method"]["class_path"] == f"{__name__}.Mine"
    assert run.config["data"]["class_path"] == "pfedst.data.sets.objects.DatasetSites"
    assert run.config["data"]["init_args"]["batch_size"] == 4
    assert run.evaluate(data=pictures())["personal"] == run.summary["personal"]
    assert set(run.model("a").predict(Pictures(2, 5).images)["prediction"]) <= {"light", "dark"}


def test_a_torch_module_is_an_adapter_as_it_is(folder, capsys) -> None:
    pixels = {"model": {"encoder": {"class_path": "Pixels", "init_args": {"image_size": 32}}}, "data": "SyntheticSites"}
    small = {key: value for key, value in SMALL.items() if key not in MODEL}
    run = pfedst.fit(pixels, method="FedBN", adapter=Small, overrides=small, name="module", runs_dir=folder)
    assert run.protocol["adapter"] == "TorchModule"
    assert run.config["model"]["adapter"]["init_args"]["module"]["class_path"] == f"{__name__}.Small"
    model = run.model("site_a")
    assert "module.1.running_mean" in model.adapter.state_dict()
    assert model.predict(Pictures(1, 5).images[0])["error"].eq("").all()
    # the command line makes the same of the same options
    assert main(["fit", "--config", str(run.folder / "config.yaml"), f"--runs_dir={folder}", "--name=again"]) == 0
    assert pfedst.load(folder / "again").summary["personal"] == run.summary["personal"]


def test_the_command_line_says_what_it_cannot_rebuild(run_of_datasets, tmp_path, capsys) -> None:
    config = str(run_of_datasets.folder / "config.yaml")
    assert main(["fit", "--config", config, f"--runs_dir={tmp_path}"]) == 2
    assert "torch Datasets of a Python program, which the command line cannot make" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tensor", "pillow"])
def test_items_of_a_dataset_may_be_of_several_kinds(kind) -> None:
    wanted, found = pictures().found(), pictures(kind).found()
    for (_, _, ours), (_, _, theirs) in zip(wanted.parts(), found.parts(), strict=True):
        assert [ours.source.digest(i) for i in range(len(ours.labels))] == [
            theirs.source.digest(i) for i in range(len(theirs.labels))
        ]


def test_datasets_that_cannot_be_used_are_refused() -> None:
    good = {"train": Pictures(4, 0), "test": Pictures(4, 1)}
    with pytest.raises(ConfigurationError, match='site "a": no split is called "tset"'):
        pfedst.DatasetSites({"a": good | {"tset": Pictures(2, 0)}}).found()
    with pytest.raises(ConfigurationError, match="give class_names; list has no classes"):
        pfedst.DatasetSites({"a": {"train": [], "test": []}})
    with pytest.raises(DataError, match=r"a train image 0: the Dataset must return \(image, class index\)"):
        pfedst.DatasetSites({"a": good | {"train": [1]}}, ["x", "y"]).found()
    # once, and not once an image
    with pytest.raises(DataError, match="a train image 0: its values are float64 and must be uint8.*take ToTensor"):
        pfedst.DatasetSites({"a": good | {"train": Pictures(2, 0, "float")}}).found()
    for sites, told in (
        ({"a": Pictures(2, 0)}, 'site "a": give .* not a Pictures'),
        ({"a": {"train": 3}}, 'site "a", train: a int has no length'),
        (Pictures(2, 0), "not a Pictures"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            pfedst.DatasetSites(sites)
    grouped = Pictures(4, 0)
    grouped.groups = ["one", "one", None]
    with pytest.raises(DataError, match="3 groups for 4 images"):
        pfedst.DatasetSites({"a": good | {"train": grouped}}).found()


class Wide(Small):
    """A class more than there are."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes + 1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": Mine()}, "method: give the class Mine, not an object of it"),
        ({"method": Small}, "method: Small is no method; derive it from pfedst.FederatedMethod"),
        ({"adapter": Small(2)}, "adapter: give the class Small, not an object"),
        ({"adapter": Pictures}, "adapter: Pictures is no torch.nn.Module"),
        ({"adapter": nn.Conv2d}, "adapter: Conv2d is called with the number of classes alone .*missing"),
        ({"data": {"a": {"train": Pictures(2, 0)}}}, "data: give pfedst.DatasetSites.*, not a dict"),
    ],
)
def test_objects_of_another_kind_are_refused(folder, given, told) -> None:
    with pytest.raises(ConfigurationError, match=told):
        pfedst.fit("demo", overrides=SMALL, name="never", runs_dir=folder, **given)
    assert not (folder / "never").exists()


def test_data_of_another_kind_are_refused_wherever_they_are_given(run) -> None:
    with pytest.raises(ConfigurationError, match=r"data: give a data module, such as .*, not a dict"):
        run.evaluate(data={"a": {}})
    with pytest.raises(ConfigurationError, match=r"source: give a data module, such as .*, not a dict"):
        pfedst.audit({"a": {}})


def test_a_module_with_other_logits_is_refused_before_the_first_round(folder) -> None:
    pixels = {"model": {"encoder": {"class_path": "Pixels", "init_args": {"image_size": 32}}}}
    with pytest.raises(ConfigurationError, match=r"Wide returns \(\d+, 3\), where logits \(images, 2 classes\) belong"):
        pfedst.fit(pixels, method=Mine, adapter=Wide, data=pictures(), name="wide", runs_dir=folder)


def test_objects_say_what_they_are(run) -> None:
    assert repr(run) == f"Run('{run.folder}')"
    assert str(pictures()) == "DatasetSites: torch Datasets"


def test_groups_of_a_dataset_are_known_to_the_audit() -> None:
    train, test = Pictures(4, 0), Pictures(4, 1)
    train.groups, test.groups = [1, 1, 2, 2], [2, 3, 4, 5]
    report = pfedst.audit(pfedst.DatasetSites({"a": {"train": train, "test": test}}))
    assert "data audit: 1 error," in report.headline()


def test_the_audit_takes_a_folder_and_writes_a_page(tmp_path) -> None:
    report = pfedst.audit(make_folder(tmp_path / "data"), page=tmp_path / "pages" / "audit.html")
    assert report.headline().startswith("data audit: ")
    assert "<html" in (tmp_path / "pages" / "audit.html").read_text()
    with pytest.raises(DataError, match="no such file or folder"):
        pfedst.audit(tmp_path / "none")


def test_methods_by_name() -> None:
    assert {"PFedST", "FedAvg", "Ditto"} <= set(pfedst.list_methods())
    assert pfedst.get_method("Ditto").__name__ == "Ditto"
    with pytest.raises(ConfigurationError, match='no method "Dito". Did you mean "Ditto"'):
        pfedst.get_method("Dito")


def test_a_comparison_and_its_report(tmp_path) -> None:
    overrides = SMALL | {"coordinator.evaluate_every": 1}
    folder = pfedst.compare("demo", seeds=[0], only=["FedAvg"], overrides=overrides, runs_dir=tmp_path)
    assert folder == tmp_path / "compare-demo"
    assert (folder / "report" / "report.html").is_file()
    report = pfedst.report(folder, to=tmp_path / "again", metric="auroc")
    assert report.title.startswith("demo: ")
    with pytest.raises(ConfigurationError, match="jobs 0"):
        pfedst.compare("demo", jobs=0)
    with pytest.raises(ConfigurationError, match="is set by the comparison"):
        pfedst.compare("demo", overrides={"name": "x"}, runs_dir=tmp_path)


def test_a_run_of_an_older_version_is_read(tmp_path) -> None:
    old = pfedst.load(OLD_RUN)
    assert old.sites == ["site_a", "site_b", "site_c"]
    assert old.config["method"]["class_path"] == "pfedst.side_tuning.PFedST"
    assert isinstance(old.table(), pd.DataFrame)
    assert old.report(tmp_path / "report").title.startswith("run_of_format_1")
    with pytest.raises(StateError, match="version"):
        old.model("site_a")


def test_a_run_that_is_not_finished_says_so(run, tmp_path) -> None:
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    (copy / "summary.json").unlink()
    with pytest.raises(StateError, match="not finished; continue it with --name copy --resume"):
        pfedst.load(copy).table()
