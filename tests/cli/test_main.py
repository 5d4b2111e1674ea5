"""The command line: exit codes, readable errors, what a run leaves."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pfedst import __version__, load
from pfedst.cli import main
from pfedst.cli.main import RUNNERS, USAGE, _runner
from pfedst.cli.method_pages import method_cost
from pfedst.cli.parser_errors import explain
from pfedst.client.lightning_options import UNUSED
from pfedst.client.predictions import Predictions
from pfedst.data import SyntheticSites
from pfedst.methods.registry import registered_methods
from pfedst.reporting import bytes_text

SMALL = [
    "--method=PFedST",
    "--model.encoder.model=vit-nano",
    "--model.encoder.weights=random",
    "--model.anchors=prototypes",
    "--data=SyntheticSites",
    "--data.sites=2",
    "--data.samples_per_site=[12,10]",
    "--data.test_samples_per_site=[8,8]",
    "--coordinator.rounds=2",
    "--trainer.accelerator=cpu",
]
QUICK = [*SMALL, "--data.audit=off", "--data.image_size=32"]
"""The same with smaller images, which no audit looks at."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, which tests copy."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["fit", *QUICK, f"--runs_dir={folder}", "--name=a"]) == 0
    return folder / "a"


def test_help_version_and_no_command(capsys) -> None:
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        assert "usage: pfedst" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pfedst {__version__}\n"


def test_every_command_of_the_usage_has_a_function_and_no_other() -> None:
    in_usage = [line.split()[0] for line in USAGE.splitlines() if line.startswith("  ")]
    assert sorted(in_usage) == sorted(RUNNERS)
    assert all(callable(_runner(command)) for command in RUNNERS)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fitt"], 2, ['no command "fitt"', 'Did you mean "fit"']),
        (["fit", *SMALL, "--coordinator.round=3"], 2, ["--coordinator.round", 'Did you mean "rounds"', "known:"]),
        (["fit", *SMALL, "--coordinator.rounds=x"], 2, ["--coordinator.rounds", "Expected a int", "x"]),
        (["fit", *SMALL, "--coordinator.rounds=0"], 2, ["--coordinator.rounds 0", "1 or more"]),
        (["fit", *SMALL, "--coordinator.participation=0"], 2, ["participation 0", "above 0"]),
        (["fit", *SMALL, "--method=FedAgv"], 2, ["--method", 'Did you mean "FedAvg"', "ZeroShot"]),
        (["fit", *SMALL, "--method.rnak=3"], 2, ['"--method.rnak" of PFedST', 'Did you mean "rank"']),
        (["fit", *SMALL, "--method.rank=abc"], 2, ["--method.rank", "int", "abc"]),
        (["fit", *SMALL, "--method.rank=0"], 2, ["LoRA rank 0"]),
        (["fit", *SMALL, "--method=FedProx", "--method.mu=-1"], 2, ["--method.mu -1.0 of FedProx", "0 or more"]),
        (["fit", *SMALL, "--method=FedProx", "--method.weihting=uniform"], 2, ['Did you mean "weighting"']),
        (["fit", *SMALL, "--data.validation_fraction=4"], 2, ["--data.validation_fraction 4.0", "[0, 1)"]),
        (["fit", *SMALL, "--coordinator.held_out_sites=[site_c]"], 2, ['no site "site_c"', "site_a, site_b"]),
        (["fit", *SMALL, "--coordinator.held_out_sites=[site_a,site_b]"], 2, ["all sites are held out"]),
        (["fit", *SMALL, "--method=PromptFL", "--model.adapter=LinearHead"], 2, ["PromptFL runs on PromptLearner"]),
        (["fit", *SMALL, "--method=FedRep"], 2, ["--trainer.max_epochs 2"]),
        (["fit", *SMALL, "--trainer.precision=bf16-true"], 2, ["--trainer.precision bf16-true", "bf16-mixed"]),
        (["fit", *SMALL, "--model.loss=BalancedSoftmax", "--model.loss.tau=-1"], 2, ["--model.loss.tau -1.0: must be"]),
        (["fit", *SMALL, "--model.loss=BalancedSoftmx"], 2, ["--model.loss", 'Did you mean "BalancedSoftmax"', "Focal"]),
        (["fit", *SMALL, "--model.loss=BalancedSoftmax", "--model.loss.taw=1"], 2, ['Did you mean "tau"', "pseudo_count"]),
        (["fit", *SMALL, "--model.loss=Focal", "--method=FedCLIP", "--method.objective=infonce"], 2, ["--model.loss Focal()"]),
        (["fit", *SMALL, "--method=PFedMe"], 2, ["PFedMe needs SGD", "--model.optimizer SGD"]),
        (["fit", *SMALL, "--method=FACMIC", "--method.target=held_out_site"], 2, ["--method.target_site None"]),
        (["fit", *SMALL, "--method=FACMIC", "--method.target=held_out_site", "--method.target_site=site_b"], 2, ["held_out_sites [site_b]"]),
        (["fit", *SMALL, "--method.schedule=alternate"], 2, ["--trainer.max_epochs 2"]),
        (["fit", *SMALL, "--data.noize=3"], 2, ['Did you mean "noise"', "batch_size"]),
        (["fit", *SMALL, "--data=SyntheticSite"], 2, ['Did you mean "SyntheticSites"', "FolderSites"]),
        (["fit", *SMALL, "--model.adapter=SideNetwrk"], 2, ['Did you mean "SideNetwork"']),
        (["fit", *SMALL, "--model.adapter.widht=3"], 2, ['Did you mean "width"']),
        (["fit", *SMALL, "--model.encoder.modell=x"], 2, ['Did you mean "model"', "weights"]),
        (["fit", *SMALL, "--model.anchors=txt"], 2, ["--model.anchors", "prototypes", "txt"]),
        (["fit", *SMALL, "--model.optimizer=SGD", "--model.optimizer.momentm=1"], 2, ['Did you mean "momentum"']),
        (["fit", *SMALL, "--trainer.max_epoch=3"], 2, ['Did you mean "max_epochs"']),
        (["fit", *SMALL, "--trainer.max_steps=3"], 2, ["max_epochs"]),
        (["fit", *SMALL, "--trainer.enable_checkpointing=true"], 2, ["state/"]),
        (["fit", *SMALL, "--seed_everything=false"], 2, ["--seed_everything"]),
        (["fit", *SMALL, "--name=../x"], 2, ["--name", "letters"]),
        (["fit", "--config=none.yaml"], 2, ["--config", "none.yaml"]),
        (["fit", *SMALL, "--data=FolderSites", "--data.root=none"], 3, ["--data.root none", "no such folder"]),
        (["fit", *SMALL, "--model.encoder.weights=none.safetensors"], 4, ["none.safetensors", "no such file"]),
        (["fit", "--config=folder", "--data.root=nowhere", "--model.encoder.weights=no.safetensors"], 3, ["--data.root nowhere"]),
        (["fit", *SMALL, "--model.encoder.model=RN50"], 2, ["RN50", "ModifiedResNet", "--model.adapter"]),
        (["fit", *SMALL, "--method=ZeroShot", "--model.anchors=learned"], 2, ["ZeroShot runs on the class anchors text", "--model.anchors text", "Prototypes"]),
        (["fit", *SMALL, "--method.rank=null"], 2, ["--method.rank", "int", "None"]),
        (["fit", *SMALL, "--data.batch_size=null"], 2, ["--data.batch_size", "int", "None"]),
        (["fit", *SMALL, "--model.optimizer.lr=null"], 2, ["--model.optimizer.lr", "None is no float"]),
        (["fit", *SMALL, "--model.adapter=LoRATower", "--model.adapter.rank=null"], 2, ["--model.adapter.rank", "int"]),
        (["fit", *SMALL, "--trainer.callbacks=EarlyStopping"], 2, ["--trainer.callbacks: ", "required: monitor"]),
        (["fit", *SMALL, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.mode=b"], 2, ["--trainer.callbacks: `mode`"]),
        (["fit", *SMALL, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=a"], 2, ["EarlyStopping: no round logs 'a'", "federation/test/auroc"]),
        (["fit", *SMALL, "--trainer.callbacks=ModelCheckpoint"], 2, ["--trainer.callbacks ModelCheckpoint", "state/"]),
        (["fit", *SMALL, "--trainer.accelerator=tpu"], 2, ["--trainer.accelerator tpu", "accelerators here: cpu"]),
        (["fit", *SMALL, "--trainer.precision=16-mixed"], 2, ["--trainer.precision 16-mixed", "GPU", "bf16-mixed"]),
        (["fit", *SMALL, "--trainer.devices=0"], 2, ["--trainer.devices 0"]),
        (["fit", *SMALL, "--trainer.strategy=ddp"], 2, ["--trainer.strategy DDPStrategy", "one device"]),
        (["fit", *SMALL, "--trainer.precision=foo"], 2, ["--trainer.precision: foo is no "]),
        (["fit", *SMALL, "--trainer.limit_train_batches=1.5"], 2, ["--trainer.limit_train_batches 1.5"]),
        (["fit", *SMALL, "--model.optimizer=LBFGS"], 2, ["--model.optimizer: LBFGS"]),
        (["fit", *SMALL, "--model.optimizer.lr=-1"], 2, ["--model.optimizer: Invalid learning rate: -1"]),
        (["fit", *SMALL, "--seed_everything=-1"], 2, ["--seed_everything: -1"]),
        (["fit", *SMALL, "--coordinator.min_clients=3"], 2, ["--coordinator.min_clients 3", "2 clients"]),
        (["fit", *SMALL, "--model.prior=nope"], 2, ["--model.prior nope: no such file of frequencies"]),
        (["fit", *SMALL, "--model.prior=site", "--model.loss=CrossEntropy"], 2, ["--model.prior", "add --coordinator.share_class_counts true"]),
        (["fit", *SMALL, "--model.prior=site", "--model.loss=Focal"], 2, ["--model.loss Focal", "no class prior"]),
        (["fit", *SMALL, "--runs_dir=file"], 2, ["--runs_dir file cannot be written"]),
        (["test"], 2, ["pfedst test runs/NAME"]),
        (["test", *SMALL, "--ckpt_path=.", "--dry_run"], 2, ["--dry_run: only pfedst fit"]),
        (["cache", "build", *SMALL, "--data.cache=auto", "--dry_run"], 2, ["--dry_run: only pfedst fit"]),
        (["data", "audit", *SMALL, "--audit.images=false", "--dry_run"], 2, ["--dry_run: only pfedst fit"]),
        (["validate", "none"], 2, ["validate none", "config.yaml"]),
        (["test", *SMALL], 2, ["--ckpt_path None"]),
        (["validate", *SMALL, "--ckpt_path=none"], 2, ["--ckpt_path none", "runs/NAME"]),
        (["test", *SMALL, "--ckpt_path=."], 5, ["no saved round"]),
    ],
)  # fmt: skip
def test_one_clear_error(tmp_path, capsys, monkeypatch, arguments, code, words) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(arguments) == code
    printed = capsys.readouterr()
    message = printed.err[printed.err.index("pfedst: error: ") :]
    assert [word for word in words if word not in message] == [], message
    assert "Traceback" not in message
    assert "NestedArg" not in message
    # PFedMe sees its optimiser in the first step
    left = ["file", "runs"] if "--method=PFedMe" in arguments else ["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left, "a mistake has left something behind"


def test_null_in_a_file_is_an_error_of_the_option(tmp_path, capsys) -> None:
    file = tmp_path / "a.yaml"
    for text, words in (
        ("coordinator: {rounds: null}", "--coordinator.rounds: Expected a int"),
        ("method: {class_path: PFedST, init_args: {rank: null}}", "--method.init_args.rank: Expected a int"),
        ("trainer: {accumulate_grad_batches: null}", "--trainer.accumulate_grad_batches: Expected a int"),
    ):
        file.write_text(text)
        assert main(["fit", *SMALL, "--config", str(file)]) == 2
        assert words in capsys.readouterr().err


def test_wrong_configs(tmp_path, capsys) -> None:
    file = tmp_path / "a.yaml"
    for text, words in (
        ("method: PFedST\ncoordinatr:\n  rounds: 3\n", ["coordinatr", 'Did you mean "coordinator"']),
        ("method: [PFedST\n", ["parsing"]),
        (
            "method:\n  class_path: PFedST\n  init_args:\n    rnak: 2\n",
            ["method.init_args.rnak", 'Did you mean "rank"'],
        ),
    ):
        file.write_text(text)
        assert main(["fit", "--config", str(file)]) == 2
        message = capsys.readouterr().err
        assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data=FolderSites", "--data.class_names=[0, 1]"], ["--data.class_names", "Got value: 0", "given: [0, 1]", "in quotes"]),
        (["--data=FolderSites", "--data.site_names=[no, yes]"], ["--data.site_names", "Got value: False", "in quotes"]),
        (["--data=ManifestSites", "--data.columns={path: [1]}"], ["--data.columns", "Got value: 1", "{'path': [1]}", "in quotes"]),
        (["--data=ManifestSites", "--data.test_fraction=x"], ["--data.test_fraction: x is no float or null"]),
        (["--data=SyntheticSites", "--coordinator.held_out_sites=[0]"], ["--coordinator.held_out_sites", "Got value: 0", "in quotes"]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_comes_with_its_reason(capsys, options, words) -> None:
    assert main(["fit", "--method=FedAvg", *options]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
    assert len(message.splitlines()) == 1


def test_a_message_without_a_key_stays_as_it_is() -> None:
    assert explain("something else", [], {}) == "something else"


def test_a_run_leaves_its_folder_and_is_never_overwritten(finished, tmp_path, capsys) -> None:
    arguments = ["fit", *QUICK, f"--runs_dir={tmp_path}"]
    run = Path(shutil.copytree(finished, tmp_path / "a"))
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "identity.json",
        "rounds.jsonl",
        "sites",
        "state",
        "summary.json",
    }
    assert {path.name for path in (run / "sites").iterdir()} == {"site_a", "site_b"}
    assert [path.name for path in sorted((run / "state").iterdir())] == ["round-000001", "round-000002"]
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [(r["round"], r["client"]) for r in records] == [(r, f"site_{s}") for r in (0, 1, 2) for s in "ab"]
    for record in records[2:]:
        assert record["participated"]
        assert record["upload_bytes"] > 0 < record["download_bytes"]
        assert record["train_loss"] > 0
        assert set(record["trained"]) == set(record["received"]) == {"validation", "test"}
    before = (run / "summary.json").read_bytes()
    capsys.readouterr()
    assert main([*arguments, "--name=a"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (run / "summary.json").read_bytes() == before
    assert main(["validate", str(run), "--data.evaluation_batch_size=3"]) == 0
    assert json.loads((run / "validation.json").read_text())["protocol"]["split"] == "validation"
    for expected in ("PFedST-SyntheticSites-seed0", "PFedST-SyntheticSites-seed0-2"):
        assert main([*arguments, "--coordinator.rounds=1"]) == 0
        assert (tmp_path / expected / "summary.json").is_file()


def test_a_finished_run_is_tested_at_another_class_prior(tmp_path, capsys) -> None:
    """Its sites sent no counts: they are asked for them, and for nothing else is the run changed."""
    run = tmp_path / "a"
    assert main(["fit", *QUICK, "--model.loss=CrossEntropy", f"--runs_dir={tmp_path}", "--name=a"]) == 0
    capsys.readouterr()
    assert main(["test", str(run), "--model.prior=balanced"]) == 2
    assert "add --coordinator.share_class_counts true" in capsys.readouterr().err
    names = json.loads((run / "summary.json").read_text())["protocol"]["classes"]
    (tmp_path / "clinic.json").write_text(json.dumps({name: 1 / len(names) for name in names}))
    found = []
    for prior in ("balanced", str(tmp_path / "clinic.json")):
        assert main(["test", str(run), f"--model.prior={prior}", "--coordinator.share_class_counts=true"]) == 0
        printed = capsys.readouterr().out
        found.append(json.loads((run / "test.json").read_text()))
        assert "At stated class priors" in printed
        assert f"prior    {found[-1]['protocol']['prior'].split(':')[0]}" in printed
    assert found[0]["personal"] == found[1]["personal"]


def test_a_state_of_another_configuration_is_refused(finished, tmp_path, capsys) -> None:
    shutil.copytree(finished, tmp_path / "a")
    capsys.readouterr()
    assert main(["test", *QUICK, "--method.rank=4", f"--ckpt_path={tmp_path / 'a'}"]) == 5
    assert "lora_A" in capsys.readouterr().err


def numbers(folder, name="test.json"):
    """The metrics of the generic model by site."""
    return json.loads((folder / name).read_text())["generic"]["clients"]


def write_test_images(folder, site, sites):
    """Write the test images of a synthetic site as SITE/test/CLASS/*.png, and nothing to train on."""
    found = SyntheticSites(**sites).read()
    images = found.splits[site]["test"]
    for row, label in enumerate(images.labels):
        place = folder / "clinic" / "test" / found.class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        images.source.load(row).save(place / f"{row}.png")


THREE = {"sites": 3, "samples_per_site": [12, 10, 14], "test_samples_per_site": [8, 8, 8]}
AS_OPTIONS = [f"--data.{key}={value}" for key, value in THREE.items()]


def test_a_run_is_tested_on_the_folders_of_a_new_hospital_whose_classes_come_in_another_order(
    finished, tmp_path, capsys
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "a"))
    write_test_images(tmp_path / "images", "site_c", THREE | {"image_size": 32})
    assert main(["test", str(run), "--data=FolderSites", f"--data.root={tmp_path / 'images'}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not in the run, evaluated with the generic model: clinic" in printed
    assert "no numbers at the prior of some sites, as the site has no training images" in printed
    of_folders = numbers(run)["clinic"]
    assert main(["test", str(run), *AS_OPTIONS]) == 0
    assert numbers(run)["site_c"] == pytest.approx(of_folders, nan_ok=True)
    assert main(["test", str(run), *AS_OPTIONS, "--site=site_c"]) == 0
    assert numbers(run, "test-site_c.json") == {"site_c": numbers(run)["site_c"]}
    capsys.readouterr()
    assert main(["test", str(run), "--site=site_x"]) == 3
    assert 'there is no site "site_x"' in capsys.readouterr().err


def test_a_new_hospital_joins_a_run_and_its_folder_is_tested(finished, tmp_path, capsys) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "a"))
    options = [*AS_OPTIONS, f"--runs_dir={tmp_path}"]
    assert main(["join", str(run), *options, "--site=site_c", "--epochs=1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "site_c on test, 8 images",
        "generic + prior of the site",
        "has joined: its personal tensors, 1 passes",
    ):
        assert words in printed
    folder = tmp_path / "a-site_c"
    assert {path.name for path in folder.iterdir()} == {path.name for path in run.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    assert main(["test", str(folder)]) == 0
    tested = json.loads((folder / "test.json").read_text())
    assert tested["personal"] == summary["personal"]
    assert tested["protocol"]["when"] == summary["protocol"]["when"]
    capsys.readouterr()
    assert main(["join", str(run), *options, "--site=site_c", "--name=a-site_c"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    # the models of the folder
    images = SyntheticSites(**THREE, image_size=32).read().splits["site_c"]["test"].source
    pictures = [images.load(row) for row in range(len(images))]
    predictions = Predictions.load(folder / "sites" / "site_c", "test", 1)
    of_folder = load(folder)
    assert of_folder.sites == ["site_c"]
    for site, model in (("site_c", "personal"), (None, "generic")):
        found = of_folder.model(site).predict(pictures, "training")
        expected = predictions.logits(model).double().softmax(1)
        columns = [f"probability {name}" for name in of_folder.classes]
        assert np.allclose(found[columns].to_numpy(float), expected.numpy(), atol=1e-5)


def test_a_hospital_joins_an_exported_model_as_it_joins_its_run(finished, tmp_path, capsys) -> None:
    options = [*QUICK, *AS_OPTIONS, f"--runs_dir={tmp_path}", "--site=site_c", "--epochs=1"]
    assert main(["export", str(finished), str(tmp_path / "model"), "--generic"]) == 0
    assert main(["join", str(tmp_path / "model"), *options, "--name=of_model"]) == 0
    assert main(["join", str(finished), *options, "--name=of_run"]) == 0
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("of_model", "of_run"))
    assert one["personal"] == other["personal"]
    assert one["joined"]["rows"] == other["joined"]["rows"]
    assert main(["export", str(finished), str(tmp_path / "personal"), "--site=site_a"]) == 0
    capsys.readouterr()
    assert main(["join", str(tmp_path / "personal"), *options, "--name=x"]) == 2
    assert "this is the model of site site_a; export the generic model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["give --site"]),
        (["--site=site_b"], 2, ["site_b: it took part in the run"]),
        (["--site=site_x"], 3, ['no site "site_x"']),
        (["--site=site_c", "--epochs=0"], 2, ["--epochs 0: must be 1 or more"]),
        (["--site=site_c", "--resume"], 2, ["pfedst join --resume"]),
        (["--site=site_c", "--dry_run"], 2, ["pfedst join --dry_run"]),
        (["--site=site_c", "--init=x"], 2, ["pfedst join --init"]),
        (["--site=site_c", "--method=Local"], 2, ["no site can join a run of method Local"]),
        (["--site=site_c", "--data.classes=5"], 3, ["trained without the class carcinoma"]),
    ],
)
def test_a_join_that_cannot_be_is_refused_and_leaves_nothing(
    finished, tmp_path, capsys, arguments, code, words
) -> None:
    assert main(["join", str(finished), *AS_OPTIONS, f"--runs_dir={tmp_path}", *arguments]) == code
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
    assert list(tmp_path.iterdir()) == []


def test_join_without_a_run(tmp_path, capsys) -> None:
    assert main(["join"]) == 0
    assert "usage: pfedst join RUN" in capsys.readouterr().out
    assert main(["join", "--site=a"]) == 2
    assert "give the folder of a run or of a model first" in capsys.readouterr().err
    assert main(["join", str(tmp_path), "--site=a"]) == 2
    assert "no run and no model" in capsys.readouterr().err


def test_print_config_round_trips_without_what_a_run_refuses(tmp_path, capsys) -> None:
    assert main(["fit", *QUICK, "--coordinator.rounds=1", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "max_epochs: 1" in printed
    assert not [name for name in UNUSED if f"  {name}:" in printed]
    (tmp_path / "a.yaml").write_text(printed)
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), f"--runs_dir={tmp_path}", "--name=a"]) == 0
    # a run of an older version names them; it is continued all the same
    config = tmp_path / "a" / "config.yaml"
    config.write_text(config.read_text().replace("trainer:\n", "trainer:\n  max_steps: -1\n  num_nodes: 1\n"))
    more = ["--coordinator.rounds=2", f"--runs_dir={tmp_path}", "--name=a", "--resume"]
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), *more]) == 0


def test_a_run_without_a_finished_round_gives_its_name_to_another(finished, tmp_path, capsys) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "a"))
    (run / "summary.json").unlink()
    arguments = ["fit", *QUICK, "--coordinator.rounds=1", f"--runs_dir={tmp_path}", "--name=a"]
    assert main(arguments) == 2
    assert "never overwritten" in capsys.readouterr().err
    lines = (run / "rounds.jsonl").read_text().splitlines()
    (run / "rounds.jsonl").write_text("".join(f"{line}\n" for line in lines[:2]))  # round 0 of two sites
    (run / "notes.txt").touch()
    assert main(arguments) == 0
    assert json.loads((run / "summary.json").read_text())["protocol"]["rounds"] == 1
    assert (run / "notes.txt").exists()
    assert [path.name for path in sorted((run / "state").iterdir())] == ["round-000000", "round-000001"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert main([*arguments, "--name=other"]) == 2  # no run at all


def test_a_dry_run_tells_what_the_run_then_sends_and_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", *QUICK, "--method=FedAvg", "--coordinator.rounds=3", "--coordinator.participation=0.5"]
    assert main([*arguments, "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--name=a"]) == 0
    cost = json.loads((tmp_path / "runs/a/summary.json").read_text())["cost"]
    records = [json.loads(line) for line in (tmp_path / "runs/a/rounds.jsonl").read_text().splitlines()]
    rounds = [sum(r["client"] == site and r["participated"] for r in records) for site in ("site_a", "site_b")]
    upload, setup = int(cost["upload_bytes_per_round"]), cost["setup_upload_bytes"] // 2
    assert f"  sends  {bytes_text(upload)} a site and round, {bytes_text(upload * max(rounds) + setup)} a site" in told
    assert f"({bytes_text(setup)} of them before" in told
    assert f"{bytes_text(3 * upload + 2 * setup)} of all sites in 3 rounds" in told
    size = sum(path.stat().st_size for path in (tmp_path / "runs").rglob("*") if path.is_file())
    number, unit = re.search(r"at most ([\d.]+) (KiB|MiB) in runs", told).groups()
    assert size <= float(number) * {"KiB": 2**10, "MiB": 2**20}[unit] <= 20 * size
    for words in ("all checks passed", "  memory ", "  time   about", "of local fits", "of evaluations"):
        assert words in told


@pytest.mark.parametrize("method", ["Prototypes", "Pooled", "SCAFFOLD"])
def test_a_dry_run_of_any_method(tmp_path, monkeypatch, capsys, method) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data.cache=auto", f"--data.cache_folder={tmp_path / 'taps'}"]
    assert main(["fit", *QUICK, *options, f"--method={method}", "--dry_run"]) == 0
    assert "for 38 images in the cache" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.bin"))


def test_methods_lists_every_method(capsys) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in registered_methods())


def test_the_page_of_a_method_tells_what_its_docstring_and_signature_tell(capsys) -> None:
    assert main(["methods", "FedRep"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("ICML 2021", "Why", "Method", "When to use", "Differs from the paper in", "head_epochs", "weighting"):
        assert words in printed
    assert main(["methods", "FedRap"]) == 2
    assert 'Did you mean "FedRep"' in capsys.readouterr().err


def test_costs_on_vit_b_16() -> None:
    methods = registered_methods()
    cost = {name: method_cost(methods[name]()) for name in ("PFedST", "FedAvg", "Local", "ZeroShot", "Prototypes")}
    assert cost["PFedST"].parameters_trained == 1_372_224 + 26_688
    assert cost["PFedST"].parameters_sent == cost["FedAvg"].parameters_sent == 1_372_224
    assert cost["PFedST"].upload_bytes == 4 * 1_372_224
    assert cost["Local"].upload_bytes == cost["ZeroShot"].parameters_trained == 0
    # once before the first round: float64 sums (8, 512) and counts of 8 classes
    assert cost["Prototypes"].setup_upload_bytes == cost["Local"].setup_upload_bytes == 8 * (8 * 512 + 8)
    assert cost["ZeroShot"].setup_upload_bytes == 0
    assert "LoRA" in cost["PFedST"].personal
    assert "LoRA" not in cost["PFedST"].shared
