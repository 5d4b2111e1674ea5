"""An exported folder predicts what the run predicts, holds what its card says, and refuses every change."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pfedst import load, load_model
from pfedst.cli import main
from pfedst.errors import ConfigurationError, PfedstError, StateError, WeightsError
from pfedst.inference.artefact import export
from pfedst.inference.artefact_files import (
    CONFIG_FILE,
    FILES,
    MODEL_FILE,
    OWN_HASH,
    checked_config,
    checked_tensors,
    config_hash,
)
from pfedst.inference.predict import PROBABILITY
from tests.inference.runs import OPTIONS, fitted


@pytest.fixture(scope="module")
def folders(run_folder, tmp_path_factory):
    """The personal model of a site and the generic model of the run, exported and moved."""
    run, folder = load(run_folder), tmp_path_factory.mktemp("exported")
    for name, site in (("personal", "site_a"), ("generic", None)):
        export(run, run.model(site), folder / "first" / name, "cc-by-nc-4.0")
    return shutil.move(folder / "first", folder / "moved")


def config_of(folder):
    return json.loads((folder / CONFIG_FILE).read_text())


@pytest.mark.parametrize(("name", "site"), [("personal", "site_a"), ("generic", None)])
def test_an_exported_model_predicts_the_same(folders, run_folder, pictures, name, site) -> None:
    ours, theirs = load(run_folder).model(site), load_model(folders / name)
    columns = [PROBABILITY + name for name in ours.class_names]
    tables = [model.predict(pictures)[columns].to_numpy() for model in (ours, theirs)]
    assert abs(tables[0] - tables[1]).max() <= 1e-5
    assert ours.id == theirs.id
    assert theirs.site == site
    assert sorted(path.name for path in (folders / name).iterdir()) == sorted(FILES)


def test_a_generic_model_holds_nothing_personal(folders, run_folder) -> None:
    """Its tensors are those of the server, and where the server has none those that every client starts from."""
    run = load(run_folder)
    saved = load_file(next((run_folder / "state").glob("round-*2")) / "server.safetensors")
    shared = {key.removeprefix("method|net|"): value for key, value in saved.items() if key.startswith("method|net|")}
    tensors = load_file(folders / "generic" / MODEL_FILE)
    personal = load_file(folders / "personal" / MODEL_FILE)
    for key, tensor in tensors.items():
        if key in shared:
            assert torch.equal(tensor, shared[key])
        elif key.endswith("lora_B"):
            assert not tensor.any()
            assert personal[key].any()
    config = config_of(folders / "generic")
    assert config["site"] is None
    assert config["site_prior"] is None
    assert config["temperature"] == 1
    assert config["abstention"] is None
    text = "".join((folders / "generic" / name).read_text() for name in FILES if name != MODEL_FILE)
    assert str(run_folder.parent) not in text
    counts = run.summary["protocol"]["samples"]
    assert "count" not in text.replace("pseudo_count", "")
    assert str(counts) not in text


@pytest.mark.parametrize(("sites", "known"), [(2, False), (3, True)])
def test_the_mean_of_class_frequencies_needs_three_sites(tmp_path, sites, known) -> None:
    more = ("--coordinator.share_class_counts=true", "--model.loss=CrossEntropy", "--coordinator.rounds=1")
    run = load(fitted(tmp_path / "runs", "FedAvg", sites, "--data.label_skew=0.5", *more))
    folder = export(run, run.model(), tmp_path / "model")
    assert (config_of(folder)["effective_prior"] is not None) == known
    assert run.model().effective is not None


def test_the_card_is_valid_and_has_one_result_a_site(folders) -> None:
    generic, personal = (ModelCard.load(folders / name / "README.md") for name in ("generic", "personal"))
    by_site = {result.dataset_config: result for result in generic.data.eval_results}
    assert sorted(by_site) == ["site_a", "site_b", "site_c"]
    assert {result.dataset_config for result in personal.data.eval_results} == {"site_a"}
    assert generic.data.license == "cc-by-nc-4.0"
    metrics = json.loads((folders / "generic" / "metrics.json").read_text())
    found = {(result.dataset_config, result.metric_type): result.metric_value for result in generic.data.eval_results}
    for site, values in metrics["sites"].items():
        assert found[site, "balanced_accuracy"] == round(values["balanced_accuracy"], 4)
    for card in (generic, personal):
        assert "not a medical device" in card.text
        assert "RANDOM WEIGHTS" in card.text
    assert "did not share" in personal.text
    assert "no tensor that a site kept" in generic.text


def test_another_encoder_is_refused(folders, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders / "generic", copy)
    config = config_of(copy)
    config["encoder"]["sha256"] = "0" * 64
    rewrite(copy, config)
    with pytest.raises(StateError, match="was trained with another encoder"):
        load_model(copy)
    with pytest.raises(WeightsError, match="none.safetensors"):
        load_model(folders / "generic", encoder_weights="none.safetensors")


def rewrite(folder, config) -> None:
    """Write a configuration as somebody would who makes the hash right again."""
    config[OWN_HASH] = config_hash(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def changed(config, path, value):
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place[key]
    place[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "format 2, and this version"),
        ("classes", ["a", "a", "b"], "no different names"),
        ("classes", [], "no different names"),
        ("which", "other", "whose model"),
        ("site", "x", "whose model"),
        ("temperature", 0.0, "temperature is not above 0"),
        ("temperature", "1", "temperature is not above 0"),
        ("effective_prior", [0.5, 0.6, 0.1], "effective_prior are no class frequencies"),
        ("prior", None, "missing or of another kind"),
        ("abstention", {"coverage": 0.8, "thresholds": {"site": "x"}}, "thresholds are no numbers"),
        ("options.model.encoder.init_args.weights", "../secret.safetensors", "leads out of the folder"),
        ("options.model.encoder.init_args.weights", "/etc/passwd", "leads out of the folder"),
        ("options.model.encoder.init_args.model", "local-dir:/etc", "leads out of the folder"),
        ("options.model.encoder.class_path", "os.system", "cannot be rebuilt"),
        ("options.method.class_path", "pfedst_baselines.none.None_", "cannot be rebuilt"),
        ("options.method.init_args.rank", -1, "LoRA rank -1"),
        ("options.method.init_args.rank", 4, "model.safetensors"),
        ("options", {}, "not those of a model"),
        ("classes", ["a", "b"], "no class frequencies"),
        ("encoder.logit_scale", 3.0, "another preprocessing or logit scale"),
    ],
)
def test_a_forged_configuration_is_refused(folders, tmp_path, path, value, message) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders / "generic", copy)
    rewrite(copy, changed(config_of(copy), path, value))
    with pytest.raises(PfedstError, match=message):
        load_model(copy)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    file=st.sampled_from([MODEL_FILE, CONFIG_FILE]),
    kind=st.sampled_from(["flip", "cut", "insert", "swap"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_damaged_file_is_refused(folders, file, kind, place, bit) -> None:
    """200 mutations: each is refused with a typed error before a class is built."""
    content = (folders / "personal" / file).read_bytes()
    at = int(place * len(content))
    if kind == "flip":
        mutated = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    elif kind == "cut":
        mutated = content[:at]
    elif kind == "insert":
        mutated = content[:at] + bytes([bit]) + content[at:]
    else:
        mutated = (folders / "generic" / file).read_bytes()
    read = dict.fromkeys((MODEL_FILE, CONFIG_FILE))
    for name in read:
        read[name] = (folders / "personal" / name).read_bytes()
    read[file] = mutated
    try:
        config = checked_config(read[CONFIG_FILE], folders)
        checked_tensors(read[MODEL_FILE], config, folders)
    except StateError:
        return
    # JSON may be written in many ways: what was read is the same
    assert file == CONFIG_FILE
    assert config == config_of(folders / "personal")


def test_files_that_are_missing_or_foreign(tmp_path, folders) -> None:
    with pytest.raises(StateError, match="has no config.json"):
        load_model(tmp_path)
    (tmp_path / CONFIG_FILE).write_text('{"architectures": ["Bert"]}')
    with pytest.raises(StateError, match="not of a model that pfedst export has written"):
        load_model(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folders / "generic", copy)
    (copy / MODEL_FILE).unlink()
    with pytest.raises(StateError, match="model.safetensors is missing"):
        load_model(copy)


def test_the_commands_export_and_predict(run_folder, pictures, tmp_path, capsys) -> None:
    model = tmp_path / "model"
    assert main(["export", str(run_folder), str(model), "--site=site_b", "--licence=mit"]) == 0
    assert "did not share" in capsys.readouterr().out
    assert main(["predict", str(model), str(pictures[0]), f"--out={tmp_path / 'p.csv'}"]) == 0
    for arguments, message in (
        (["export", str(run_folder), str(model), "--generic"], "exists and is not empty"),
        (["export", str(run_folder), str(tmp_path / "n"), "--generic", "--site=site_a"], "one model at a time"),
        (["export", str(model), str(tmp_path / "n")], "exported already"),
        (["predict", str(model), "x", "--out=p.csv", "--generic"], "holds one model; leave the option out"),
        (["predict", str(model), "x", "--out=p.csv", "--round=best"], "is no run; leave the option out"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


def test_export_without_a_licence_and_of_another_round(run_folder, tmp_path) -> None:
    run = load(run_folder)
    folder = export(run, run.model(round="1"), tmp_path / "one")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license is None
    assert "No licence was named" in card.text
    assert "None: the run reports another round" in card.text
    with pytest.raises(ConfigurationError, match="not empty"):
        export(run, run.model(), tmp_path)


def test_prior_files_travel_as_numbers(tmp_path, pictures) -> None:
    """The prior of a run that is a file is written as frequencies: the file does not travel."""
    names = ["nevus", "melanoma", "keratosis"]
    (tmp_path / "prior.json").write_text(json.dumps(dict(zip(names, [0.5, 0.3, 0.2], strict=True))))
    run = load(fitted(tmp_path / "runs", "FedAvg", 2, f"--model.prior={tmp_path / 'prior.json'}"))
    before = run.model().predict(pictures)
    folder = export(run, run.model(), tmp_path / "model")
    (tmp_path / "prior.json").unlink()
    after = load_model(folder).predict(pictures)
    columns = [PROBABILITY + name for name in names]
    assert np.allclose(before[columns], after[columns], atol=1e-6)
    assert config_of(folder)["prior"]["frequencies"] == [0.5, 0.3, 0.2]
    with pytest.raises(ConfigurationError, match="no such file"):
        run.model().predict(pictures)


def test_an_exported_model_is_tested_on_sites_that_were_not_in_its_run(
    folders, run_folder, tmp_path, monkeypatch, capsys
) -> None:
    """The numbers are those of the generic model in the folder of the run."""
    monkeypatch.chdir(tmp_path)
    four = ["--data.sites=4", "--data.samples_per_site=[24,18,15,9]", "--data.test_samples_per_site=[12,12,12,12]"]
    assert main(["test", str(run_folder), *four, "--site=site_d"]) == 0
    of_data = [option for option in OPTIONS if option.startswith(("--data", "--trainer"))]
    assert main(["test", str(folders / "generic"), *of_data, *four, "--site=site_d"]) == 0
    found = [
        json.loads(file.read_text()) for file in (run_folder / "test-site_d.json", Path("generic-test-site_d.json"))
    ]
    assert found[0]["personal"]["clients"] == found[1]["personal"]["clients"]
    assert found[0]["at_priors"]["last"]["test"] == found[1]["at_priors"]["last"]["test"]
    assert [one["protocol"]["new_sites"] for one in found] == [["site_d"], ["site_d"]]
    # how the run was trained is not known of a model, and the options here are those of this evaluation
    assert "round 2 of the run that the model was exported from" in " ".join(capsys.readouterr().out.split())
    assert {"rounds", "seed", "participation"} <= found[0]["protocol"].keys()
    assert not {"rounds", "seed", "participation", "local_epochs"} & found[1]["protocol"].keys()
    for arguments, message in (
        ([str(folders / "personal")], "the model of site site_a"),
        ([str(folders / "generic"), "--round=best"], "is an exported model; leave the option out"),
        ([str(tmp_path)], "no run and no model"),
    ):
        assert main(["test", *arguments, *(of_data if len(arguments) > 1 or "personal" in arguments[0] else [])]) == 2
        assert message in capsys.readouterr().err
