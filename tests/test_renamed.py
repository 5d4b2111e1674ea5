"""Names of modules from before they moved: imports, configurations and runs of others go on, and are told once."""

import importlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pfedst_baselines
import pytest
import yaml

from pfedst.cli import main
from pfedst.cli.resume import check_same_configuration
from pfedst.cli.study import results_depend_on
from pfedst.configuration.renamed_options import CONFIG_FORMAT
from pfedst.errors import ConfigurationError
from pfedst.renamed import RENAMED, RenamedModules, install, name_today

OLD_RUN = Path(__file__).parent / "fixtures" / "run_of_format_1"
METHODS = [module.stem for module in Path(pfedst_baselines.__path__[0]).glob("[!_]*.py")]
SHORT = {
    "model": {
        "encoder": {
            "class_path": "pfedst.encoders.FrozenCLIP",
            "init_args": {"model": "vit-nano", "weights": "random", "image_size": 32},
        },
        "anchors": "prototypes",
    },
    "data": {
        "class_path": "pfedst.data.SyntheticSites",
        "init_args": {
            "sites": 2,
            "image_size": 32,
            "samples_per_site": [8, 8],
            "test_samples_per_site": [4, 4],
            "audit": "off",
        },
    },
    "coordinator": {"rounds": 1},
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture
def not_yet_imported(monkeypatch):
    """No old name has been imported in this process."""
    for name in [name for name in sys.modules if name_today(name) != name]:
        monkeypatch.delitem(sys.modules, name)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if " is now " in record.getMessage()]


@pytest.mark.parametrize("old", [*RENAMED, *(f"pfedst.baselines.{name}" for name in METHODS)])
def test_an_old_name_is_the_module_of_today(old, not_yet_imported) -> None:
    found = importlib.import_module(old)
    assert found is importlib.import_module(name_today(old))
    # the module of today keeps what the import system knows of it
    assert found.__name__ == found.__spec__.name == name_today(old)


def test_no_old_name_is_a_module_of_today() -> None:
    for old in RENAMED:
        parent, _, name = old.rpartition(".")
        for folder in importlib.import_module(parent).__path__:
            assert not (Path(folder) / name).exists(), old
            assert not (Path(folder) / f"{name}.py").exists(), old


def test_every_way_to_import_gives_one_class(not_yet_imported) -> None:
    scope: dict = {}
    exec(
        "import pfedst.baselines.ditto\n"
        "import pfedst.side_tuning as side_tuning\n"
        "from pfedst.baselines import fedprox\n"
        "from pfedst.baselines.fedavg import FedAvg\n"
        "from pfedst.adapters.transport import transport_plan\n"
        "from pfedst.method import FederatedMethod, pull_towards\n"
        "from pfedst.payload import NET\n",
        scope,
    )
    from pfedst_baselines.ditto import Ditto
    from pfedst_baselines.fedavg import FedAvg
    from pfedst_baselines.fedprox import FedProx

    from pfedst.adapters.optimal_transport import transport_plan
    from pfedst.messages.payload import NET
    from pfedst.methods.interface import FederatedMethod, pull_towards
    from pfedst.methods.pfedst import PFedST

    assert scope["pfedst"].baselines.ditto.Ditto is Ditto
    assert isinstance(Ditto(), scope["FederatedMethod"])
    assert scope["side_tuning"].PFedST is PFedST
    assert scope["fedprox"].FedProx is FedProx
    today = (FedAvg, transport_plan, FederatedMethod, pull_towards, NET)
    for name, value in zip(("FedAvg", "transport_plan", "FederatedMethod", "pull_towards", "NET"), today, strict=True):
        assert scope[name] is value, name
    # every subclass is known once: short names of the command line would be ambiguous otherwise
    names = [cls.__name__ for cls in FederatedMethod.__subclasses__() if cls.__module__.startswith("pfedst")]
    assert len(names) == len(set(names))


def test_a_name_is_warned_of_once_with_the_name_of_today(not_yet_imported, caplog) -> None:
    with caplog.at_level(logging.WARNING, "pfedst"):
        assert importlib.util.find_spec("pfedst.payload") is not None
        assert warnings_of(caplog) == []  # nobody has imported the module
        for _ in range(2):
            importlib.import_module("pfedst.payload")
            importlib.import_module("pfedst.baselines.ditto")
            importlib.import_module("pfedst.baselines.apfl")
    told = "is now {}: write the new name in configurations and imports"
    assert warnings_of(caplog) == [
        "pfedst.payload " + told.format("pfedst.messages.payload"),
        "pfedst.baselines " + told.format("pfedst_baselines"),
    ]


@pytest.mark.parametrize(
    ("path", "today"),
    [
        ("pfedst.side_tuning.PFedST", "pfedst.methods.pfedst.PFedST"),
        ("pfedst.baselines.ditto.Ditto", "pfedst_baselines.ditto.Ditto"),
        ("pfedst.baselines", "pfedst_baselines"),
        ("pfedst.method", "pfedst.methods.interface"),
        ("pfedst.methods.interface", "pfedst.methods.interface"),
        ("pfedst.methodical", "pfedst.methodical"),
        ("other.pfedst.method", "other.pfedst.method"),
    ],
)
def test_the_name_today(path, today) -> None:
    assert name_today(path) == today


def test_a_name_that_never_was_is_still_missing() -> None:
    for name in ("pfedst.baselines.no_such", "pfedst.no_such"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_the_hook_is_first_and_single_and_the_package_stays_light() -> None:
    install()
    assert sum(isinstance(finder, RenamedModules) for finder in sys.meta_path) == 1
    program = (
        "import sys, pfedst\n"
        "print(type(sys.meta_path[0]).__name__)\n"
        "print({'torch', 'lightning', 'numpy', 'pfedst_baselines'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["RenamedModules", "set()"]
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("old", "module"),
    [
        ("pfedst.side_tuning.PFedST", "pfedst.side_tuning"),
        ("pfedst.baselines.ditto.Ditto", "pfedst.baselines"),
    ],
)
def test_a_configuration_with_an_old_name_runs_as_with_the_new_one(
    old, module, tmp_path, monkeypatch, caplog, not_yet_imported
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(SHORT | {"method": {"class_path": old}}))
    assert main(["fit", "--config", "mine.yaml", "--name=old"]) == 0
    told = f"{module} is now {name_today(module)}: write the new name in configurations and imports"
    assert warnings_of(caplog) == [told]
    assert main(["fit", "--config", "mine.yaml", "--method", name_today(old), "--name=new"]) == 0
    assert warnings_of(caplog) == [told]
    summaries = [json.loads(Path("runs", name, "summary.json").read_text()) for name in ("old", "new")]
    for key in ("personal", "generic", "protocol"):
        assert summaries[0][key] == summaries[1][key]


def test_the_old_and_the_new_name_are_one_setting_of_a_run(tmp_path) -> None:
    old, new = (f"method: {{class_path: {name}.local.Local}}\n" for name in ("pfedst.baselines", "pfedst_baselines"))
    assert results_depend_on(old, {}) == results_depend_on(new, {})
    old, new = (f"{text}config_format: {CONFIG_FORMAT}\n" for text in (old, new))
    (tmp_path / "config.yaml").write_text(old)
    check_same_configuration(tmp_path, new, {})
    with pytest.raises(ConfigurationError, match="method.class_path"):
        check_same_configuration(tmp_path, new.replace("local.Local", "apfl.APFL"), {})


def test_a_run_of_format_1_says_what_to_do_where_its_state_is_needed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs") / "first"
    shutil.copytree(OLD_RUN, run)
    config = ["--config", str(run / "config.yaml")]
    assert main(["test", *config, "--ckpt_path", str(run)]) == 5
    assert "identity.json names" in capsys.readouterr().err
    assert main(["fit", *config, "--method", "PFedST", "--method.rank", "4", "--name=first", "--resume"]) == 5
    assert "start a new run with --config" in capsys.readouterr().err
    # its configuration runs again
    assert main(["fit", *config, "--name=again"]) == 0
