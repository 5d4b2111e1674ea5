"""A run's models, rebuilt without images and Lightning, predict what the run evaluated."""

import shutil

import pytest
import torch

from pfedst import load
from pfedst.client.predictions import Predictions
from pfedst.data import SyntheticSites
from pfedst.errors import ConfigurationError, StateError
from pfedst.inference.predict import PROBABILITY
from pfedst.inference.rebuild import GENERIC, Rebuilt
from pfedst.inference.saved_run import SavedRun
from pfedst.methods.registry import registered_methods
from tests.inference.runs import fitted

TEXT = {"PromptFL", "FedOTP", "FedPGP", "ZeroShot"}
"""Methods that need a text tower with weights."""


def images_of(folder, site):
    """The test images of a site of a run."""
    options = SavedRun(folder).config["data"]["init_args"]
    data = SyntheticSites(**{key: value for key, value in options.items() if key != "cache_folder"})
    source = data.read().splits[site]["test"].source
    return [source.load(index) for index in range(len(source))]


def kept(folder, site):
    return Predictions.load(folder / "sites" / site, "test", None)


def assert_predicts_what_was_evaluated(folder, site, *models) -> None:
    for model in models:
        table = model.predict(images_of(folder, site))
        found = table[[PROBABILITY + name for name in model.class_names]].to_numpy()
        expected = kept(folder, site).logits(model.which).double().softmax(1).numpy()
        # another path through the tower: a batch in place of single images
        assert abs(found - expected).max() < 1e-5


def test_models_of_a_run_predict_what_it_evaluated(run_folder) -> None:
    run = load(run_folder)
    assert run.sites == ["site_a", "site_b", "site_c"]
    for site in run.sites:
        assert_predicts_what_was_evaluated(run_folder, site, *run.models([site, None]))
    assert run.models([site, None])[0].id != run.model().id


@pytest.mark.parametrize("name", sorted(set(registered_methods()) - TEXT - {"PFedST"}))
def test_every_method_is_rebuilt(name, tmp_path) -> None:
    more = ["--model.optimizer=SGD", "--model.optimizer.lr=0.005"] if name == "PFedMe" else []
    folder = fitted(tmp_path, name, 2, "--coordinator.rounds=1", "--trainer.max_epochs=2", *more)
    run = load(folder)
    models = [run.model("site_a")]
    if models[0] and registered_methods()[name].has_generic:
        models.append(run.model())
    if not registered_methods()[name].personalises:
        models = models[:1]  # one evaluation stands for both
    assert_predicts_what_was_evaluated(folder, "site_a", *models)


def test_a_model_without_merges_has_no_generic_one(tmp_path) -> None:
    folder = fitted(tmp_path, "Local", 2, "--coordinator.rounds=1")
    with pytest.raises(ConfigurationError, match="Local merges nothing"):
        load(folder).model()


def test_the_personal_part_must_be_here(run_folder, tmp_path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(run_folder, copy)
    shutil.rmtree(copy / "sites" / "site_b")
    run = load(copy)
    assert run.model("site_a").which == "personal"
    assert run.model().which == GENERIC
    with pytest.raises(StateError, match="personal part of site site_b is not in this folder"):
        run.model("site_b")


def test_a_run_refuses_another_encoder_and_an_unknown_site(run_folder, tmp_path) -> None:
    run = load(run_folder)
    with pytest.raises(ConfigurationError, match='no site "site_d".*Did you mean "site_'):
        run.model("site_d")
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    text = (copy / "identity.json").read_text().replace(run.encoder_weights, "0" * 64)
    (copy / "identity.json").write_text(text)
    with pytest.raises(StateError, match="another encoder"):
        load(copy).model()
    with pytest.raises(ConfigurationError, match="not a run"):
        load(tmp_path / "none")
    (copy / "config.yaml").write_text("model: [")
    with pytest.raises(StateError, match="config.yaml is damaged"):
        load(copy)


def test_priors_of_the_models(run_folder) -> None:
    site, generic = load(run_folder).models(["site_a", None])
    # balanced softmax with tau 1 has learned no frequencies
    assert torch.equal(site.effective, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert torch.equal(generic.effective, site.effective)
    assert generic.site_prior is None
    counts = kept(run_folder, "site_a").tensors["train_counts.natural"].double()
    assert torch.allclose(site.site_prior, (counts + 1) / (counts + 1).sum())
    with pytest.raises(ConfigurationError, match="no class frequencies of a site"):
        generic.target("site")


def test_the_structure_of_a_model_needs_no_weights(run_folder) -> None:
    """Two models that are rebuilt with other seeds differ before their tensors are loaded, and not after."""
    run = load(run_folder)
    options = run.model().options
    one, other = (Rebuilt.of(options, run.classes, seed).adapter(GENERIC).state_dict() for seed in (0, 1))
    assert any(not torch.equal(one[key], other[key]) for key in one)
