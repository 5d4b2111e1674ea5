"""The options that results depend on: what enters a summary, and the hash of a run in a comparison."""

import inspect
import json
import pkgutil
from importlib import import_module
from pathlib import Path

import pfedst_baselines
import pytest
import yaml
from pfedst_baselines.fedavg import FedAvg

import pfedst.adapters
import pfedst.data
import pfedst.encoders
import pfedst.methods
from pfedst.adapters import Adapter
from pfedst.cli import main
from pfedst.cli.start import parse_only
from pfedst.cli.study import results_depend_on, study_options
from pfedst.data import FederatedDataModule
from pfedst.encoders import Encoder, FrozenCLIP
from pfedst.methods.criteria import Criterion
from pfedst.methods.interface import FederatedMethod
from pfedst.options import EFFECTS, FIRST_DEFAULTS, WEIGHTS, Effect, effect_of
from tests.cli.test_main import SMALL

METHOD = f"{__name__}.Child"
DEFAULTS = {"coordinator.rounds": 20, "trainer.precision": None, "model.prompts": ("a photo of a {}",)}


class Parent(FedAvg):
    """Has an option whose default its child changes, and one that its child never names."""

    def __init__(self, mu: float = 1.0, nu: float = 2.0, **options) -> None:
        super().__init__(**options)


class Child(Parent):
    """The method of the configurations below."""

    def __init__(self, mu: float = 5.0, folder: Path = Path("here"), sizes: tuple[int, ...] = (1, 2), **options):
        super().__init__(mu, **options)


def text(method=None, **groups) -> str:
    """A resolved configuration as YAML."""
    tree = {"seed_everything": 0, "method": {"class_path": METHOD, "init_args": method or {}}} | groups
    return yaml.safe_dump(tree)


AT_DEFAULT = {
    "mu": 5.0,  # of the class itself
    "nu": 2.0,  # of its base
    "weighting": "samples",  # of the base of all: its first default, which is another today
    "folder": "here",
    "sizes": [1, 2],
}


@pytest.mark.parametrize("option", AT_DEFAULT)
def test_an_option_of_a_class_at_its_default_changes_nothing(option) -> None:
    """So a new option of a class, or of a base of it, orphans no run that was made before there was one."""
    old, new = text(), text({option: AT_DEFAULT[option]})
    assert results_depend_on(new, DEFAULTS) == results_depend_on(old, DEFAULTS)
    assert (
        study_options(new, DEFAULTS)
        == study_options(old, DEFAULTS)
        == {"method.class_path": METHOD, "seed_everything": 0}
    )


@pytest.mark.parametrize(("option", "value"), [("mu", 1.0), ("nu", 5.0), ("weighting", "uniform"), ("sizes", [2, 1])])
def test_an_option_of_a_class_that_is_set_counts(option, value) -> None:
    """1.0 is the default of `mu` in the base, and not in the class."""
    new = text({option: value})
    assert results_depend_on(new, DEFAULTS) != results_depend_on(text(), DEFAULTS)
    assert study_options(new, DEFAULTS)[f"method.init_args.{option}"] == value


def test_an_option_outside_of_classes_counts_unless_it_is_at_its_default() -> None:
    old = results_depend_on(text(), DEFAULTS)
    groups = {"coordinator": {"rounds": 20}, "trainer": {"precision": None}, "model": {"prompts": ["a photo of a {}"]}}
    assert results_depend_on(text(**groups), DEFAULTS) == old
    for group in ({"coordinator": {"rounds": 21}}, {"trainer": {"precision": "bf16-mixed"}}, {"unknown": {"x": 1}}):
        assert results_depend_on(text(**group), DEFAULTS) != old


def test_a_class_that_cannot_be_imported_keeps_all_its_options() -> None:
    tree = yaml.safe_load(text({"mu": 5.0}))
    tree["method"]["class_path"] = "nowhere.to_be.Found"
    found = study_options(yaml.safe_dump(tree), DEFAULTS)
    assert found["method.init_args.mu"] == 5.0


def test_last_digits_and_places_are_in_no_hash_but_paths_of_images_are() -> None:
    def data(**options):
        return text(data={"class_path": "pfedst.data.FedISIC2019", "init_args": options})

    old = results_depend_on(data(), DEFAULTS)
    for same in ({"cache": "taps"}, {"num_workers": 4}, {"cache_folder": "/x"}, {"audit": "off"}):
        assert results_depend_on(data(**same), DEFAULTS) == old, same
    for other in ({"root": "/x"}, {"images": "/x"}, {"split_file": "/x"}, {"metadata": "/x"}, {"batch_size": 3}):
        assert results_depend_on(data(**other), DEFAULTS) != old, other
        assert not [key for key, value in study_options(data(**other), DEFAULTS).items() if value == "/x"]
    assert study_options(data(cache="taps"), DEFAULTS)["data.init_args.cache"] == "taps"


@pytest.mark.parametrize(
    ("weights", "kept"), [("/home/someone/clip.safetensors", "clip.safetensors"), ("random", "random"), (None, None)]
)
def test_of_a_file_of_weights_the_name_is_kept(weights, kept) -> None:
    model = {"encoder": {"class_path": "pfedst.encoders.FrozenCLIP", "init_args": {"weights": weights}}}
    assert study_options(text(model=model), DEFAULTS)["model.encoder.init_args.weights"] == kept


@pytest.mark.parametrize(
    ("name", "kept"),
    [("local-dir:/home/someone/BiomedCLIP", "local-dir:BiomedCLIP"), ("hf-hub:org/name", "hf-hub:org/name")],
)
def test_of_a_folder_of_a_model_the_name_is_kept(name, kept) -> None:
    options = {"model": name, "std": [0.5, 0.5, 0.5], "resize_mode": "squash", "mean": None}
    model = {"encoder": {"class_path": "pfedst.encoders.FrozenCLIP", "init_args": options}}
    found = study_options(text(model=model), DEFAULTS)
    assert found["model.encoder.init_args.model"] == kept
    assert found["model.encoder.init_args.resize_mode"] == "squash"
    assert [key for key in found if key.endswith((".std", ".std.0"))]
    assert "model.encoder.init_args.mean" not in found


@pytest.fixture(scope="module")
def resolve():
    return parse_only()


def test_every_listed_option_exists(resolve) -> None:
    """Else a renamed option would silently become part of the study."""
    known = {"config", *resolve.__self__.defaults()}
    known |= {key.partition(".")[0] for key in known}  # groups
    bases = [base for name in pfedst.data.__all__ if isinstance(base := getattr(pfedst.data, name), type)]
    for base in bases:
        known |= {f"data.init_args.{name}" for name in inspect.signature(base.__init__).parameters}
    assert sorted(set(EFFECTS) - known) == []
    assert effect_of(WEIGHTS) is Effect.STUDY
    assert "weights" in inspect.signature(FrozenCLIP.__init__).parameters


@pytest.mark.parametrize(
    "options",
    [
        ["--coordinator.transport=processes", "--coordinator.workers=2"],
        ["--coordinator.threads=1"],
        ["--trainer.accelerator=auto"],
        ["--data.cache=taps"],
        ["--trainer.enable_progress_bar=true"],
        ["--method.mu=0.01", "--coordinator.participation=1"],  # these are the defaults
        ["--model.optimizer.lr=0.0003"],
    ],
)
def test_the_hash_of_a_real_configuration_stays(resolve, options) -> None:
    common = [*SMALL, "--method=FedProx"]
    assert resolve([*common, *options]) == resolve(common)


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.precision=bf16-mixed"],
        ["--trainer.accumulate_grad_batches=4"],
        ["--trainer.gradient_clip_val=1"],
        ["--method.mu=0.02"],
        ["--model.optimizer=SGD", "--model.optimizer.lr=0.001"],
        ["--seed_everything=1"],
        ["--data.heterogeneity=2"],
    ],
)
def test_the_hash_of_a_real_configuration_changes(resolve, options) -> None:
    common = [*SMALL, "--method=FedProx"]
    assert resolve([*common, *options]) != resolve(common)


def test_a_summary_holds_the_options_of_its_study_and_no_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.accumulate_grad_batches=2", "--coordinator.threads=1", "--seed_everything=3"]
    options += [f"--data.cache_folder={tmp_path / 'taps'}", f"--runs_dir={tmp_path / 'runs'}", "--name=a"]
    assert main(["fit", *SMALL, *options]) == 0
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    study = summary["study"]
    assert all(effect_of(key) is Effect.STUDY for key in study)
    assert study == {
        # what has another default than in older versions is named: such a run is none of theirs
        "coordinator.optimizer_state": "keep",
        "coordinator.rounds": 2,
        "data.class_path": "pfedst.data.SyntheticSites",
        "data.init_args.samples_per_site": [12, 10],
        "data.init_args.sites": 2,
        "data.init_args.test_samples_per_site": [8, 8],
        "method.class_path": "pfedst.methods.pfedst.PFedST",
        "method.init_args.weighting": "uniform",
        "model.anchors": "prototypes",
        "model.encoder.class_path": "pfedst.encoders.FrozenCLIP",
        "model.encoder.init_args.model": "vit-nano",
        "model.encoder.init_args.weights": "random",
        "model.loss.class_path": "pfedst.methods.criteria.BalancedSoftmax",
        "model.optimizer.class_path": "torch.optim.AdamW",
        "model.optimizer.init_args.lr": 0.0003,
        "seed_everything": 3,
        "trainer.accumulate_grad_batches": 2,
    }
    assert summary["last_digits"] == {"coordinator.threads": 1, "trainer.accelerator": "cpu"}
    assert str(tmp_path) not in json.dumps(summary)


def test_of_a_file_of_class_frequencies_the_name_is_of_the_study_and_the_default_is_not() -> None:
    """A path may name a person, and differs from machine to machine."""
    defaults = DEFAULTS | {"model.prior": "training"}
    for prior, kept in (("balanced", "balanced"), ("/home/someone/clinic.json", "clinic.json")):
        assert study_options(text(model={"prior": prior}), defaults)["model.prior"] == kept
    assert "model.prior" not in study_options(text(model={"prior": "training"}), defaults)
    assert "prior" not in results_depend_on(text(model={"prior": "training"}), defaults)


# -- first defaults ----------------------------------------------------------------------------------------------------

FIRST = Path(__file__).parents[1] / "fixtures/first_defaults.json"
"""Option -> its first default, as YAML has it: by dotted key, or by class and name. An option that is new is added."""
KINDS = (FederatedMethod, Adapter, Encoder, FederatedDataModule, Criterion)
"""Classes of a configuration."""
PACKAGES = (pfedst.methods, pfedst_baselines, pfedst.adapters, pfedst.encoders, pfedst.data)
"""Where they are."""


def classes_of_configurations():
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for found in vars(import_module(module.name)).values():
                if isinstance(found, type) and issubclass(found, KINDS) and found.__module__ == module.name:
                    yield found


def defaults_today(resolve):
    found = {key: value for key, value in resolve.__self__.defaults().items() if effect_of(key) is Effect.STUDY}
    for kind in classes_of_configurations():
        for parameter in inspect.signature(vars(kind).get("__init__", object)).parameters.values():
            if parameter.default is not inspect.Parameter.empty:
                found[f"{kind.__module__}.{kind.__name__}.{parameter.name}"] = parameter.default
    return json.loads(json.dumps(found, default=str))


def test_a_default_that_changes_keeps_its_first_one(resolve) -> None:
    """Else runs from before and after a change would stand in one row of a table, as if they were equal."""
    first, today = json.loads(FIRST.read_text()), defaults_today(resolve)
    assert sorted(today.keys() - first.keys()) == [], f"new options: add them and their defaults to {FIRST.name}"
    changed = {key: first[key] for key in today if today[key] != first[key]}
    assert changed == FIRST_DEFAULTS, "a default has changed: FIRST_DEFAULTS names its first one"
