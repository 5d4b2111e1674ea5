"""The command line: exit codes, readable errors, what a run leaves."""

import json
import shutil
from pathlib import Path

import pytest

from pfedst import __version__
from pfedst.cli import main
from pfedst.cli.explain import explain
from pfedst.cli.method_pages import method_cost
from pfedst.methods.registry import registered_methods

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
        (["fit", *SMALL, "--model.encoder.model=RN50"], 4, ["RN50", "ModifiedResNet"]),
        (["fit", *SMALL, "--method=ZeroShot", "--model.anchors=learned"], 2, ["ZeroShot trains nothing"]),
        (["test", *SMALL], 2, ["--ckpt_path None"]),
        (["validate", *SMALL, "--ckpt_path=none"], 2, ["--ckpt_path none", "runs/NAME"]),
        (["test", *SMALL, "--ckpt_path=."], 5, ["no saved round"]),
    ],
)  # fmt: skip
def test_one_clear_error(tmp_path, capsys, monkeypatch, arguments, code, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    printed = capsys.readouterr()
    message = printed.err[printed.err.index("pfedst: error: ") :]
    assert [word for word in words if word not in message] == [], message
    assert "Traceback" not in message
    assert "NestedArg" not in message
    assert not list(tmp_path.rglob("summary.json"))


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
    assert main(["validate", *QUICK, f"--ckpt_path={run}"]) == 0
    assert json.loads((run / "validation.json").read_text())["protocol"]["split"] == "validation"
    for expected in ("PFedST-SyntheticSites-seed0", "PFedST-SyntheticSites-seed0-2"):
        assert main([*arguments, "--coordinator.rounds=1"]) == 0
        assert (tmp_path / expected / "summary.json").is_file()


def test_a_state_of_another_configuration_is_refused(finished, tmp_path, capsys) -> None:
    shutil.copytree(finished, tmp_path / "a")
    capsys.readouterr()
    assert main(["test", *QUICK, "--method.rank=4", f"--ckpt_path={tmp_path / 'a'}"]) == 5
    assert "lora_A" in capsys.readouterr().err
    assert main(["test", *QUICK, "--data.sites=1", "--data.samples_per_site=[12]", "--data.test_samples_per_site=[8]", f"--ckpt_path={tmp_path / 'a'}"]) == 5  # fmt: skip
    assert "they differ in site_b" in capsys.readouterr().err


def test_print_config_round_trips(tmp_path, capsys) -> None:
    assert main(["fit", *SMALL, "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "a.yaml").write_text(printed)
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


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
    cost = {name: method_cost(methods[name]()) for name in ("PFedST", "FedAvg", "Local", "ZeroShot")}
    assert cost["PFedST"].parameters_trained == 1_372_224 + 106_752
    assert cost["PFedST"].parameters_sent == cost["FedAvg"].parameters_sent == 1_372_224
    assert cost["PFedST"].upload_bytes == 4 * 1_372_224
    assert cost["Local"].upload_bytes == cost["ZeroShot"].parameters_trained == 0
    assert "LoRA" in cost["PFedST"].personal
    assert "LoRA" not in cost["PFedST"].shared
