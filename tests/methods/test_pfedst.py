"""pFedST's own parts: the strength of the LoRA in predictions."""

import pytest
import torch

from pfedst.adapters import lora_layers
from pfedst.errors import ConfigurationError
from pfedst.methods.pfedst import PFedST
from pfedst.testing import federation, train


def trained(strength: float):
    """A client after one fit, so that its LoRA is no longer zero."""
    made = federation(PFedST(strength=strength))
    made.deliver("site_a")
    train(made, "site_a")
    return made.clients["site_a"]


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_site_predicts_with_a_share_of_its_lora_and_keeps_it_whole(strength) -> None:
    client = trained(strength)
    before = client.own_state()
    found = PFedST(strength=strength).personal_model(client)
    for (_, layer), (_, kept) in zip(lora_layers(found), lora_layers(client.adapter), strict=True):
        update = 2.0 / 2 * kept.lora_B @ kept.lora_A
        assert update.abs().max() > 0
        images = torch.eye(kept.in_features)
        expected = (kept.weight + strength * update).T + (0 if kept.bias is None else kept.bias)
        torch.testing.assert_close(layer(images), expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in client.own_state().items())


def test_at_full_strength_it_is_the_trained_model_itself() -> None:
    client = trained(1.0)
    assert PFedST().personal_model(client) is client.adapter


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_out_of_range(strength) -> None:
    with pytest.raises(ConfigurationError, match=r"--method\.strength"):
        PFedST(strength=strength)
