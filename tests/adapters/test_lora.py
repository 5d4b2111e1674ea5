"""LoRA beside a linear layer."""

import pytest
import torch
import torch.nn.functional as F

from pfedst.adapters import LoRALinear, lora_layers, switches_open
from pfedst.errors import ConfigurationError
from pfedst.seeds import generator, seeded


def layer_with_lora(inputs=7, outputs=5, rank=2, alpha=6.0) -> LoRALinear:
    with seeded(0):
        layer = LoRALinear(inputs, outputs)
        layer.attach_lora(rank, alpha)
    return layer


def test_merged_form_equals_the_two_branch_form_with_its_gradients() -> None:
    layer, x = layer_with_lora(), torch.randn(3, 7, generator=generator(1))
    torch.nn.init.normal_(layer.lora_B, generator=generator(2))
    merged = layer(x)
    merged.square().sum().backward()
    w, b, A, B = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias, layer.lora_A, layer.lora_B))
    branches = F.linear(x, w, b) + 3.0 * (x @ A.T) @ B.T  # alpha / rank = 3
    branches.square().sum().backward()
    assert torch.allclose(merged, branches, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip((layer.weight, layer.bias, layer.lora_A, layer.lora_B), (w, b, A, B), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_an_attached_lora_starts_at_zero_and_an_open_switch_hides_it() -> None:
    layer, x = layer_with_lora(), torch.randn(3, 7, generator=generator(1))
    plain = F.linear(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x), plain, atol=1e-6)  # of weights to which zeros were added
    torch.nn.init.ones_(layer.lora_B)
    assert not torch.allclose(layer(x), plain, atol=1e-2)
    with switches_open(layer):
        assert torch.allclose(layer(x), plain, atol=1e-6)
    assert not torch.allclose(layer(x), plain, atol=1e-2)


def test_switches_close_again_after_an_error() -> None:
    layer = layer_with_lora()
    with pytest.raises(RuntimeError), switches_open(layer):
        raise RuntimeError
    assert layer.switch_closed


def test_names_in_the_state_dict() -> None:
    assert set(LoRALinear(3, 2).state_dict()) == {"weight", "bias"}
    assert set(layer_with_lora().state_dict()) == {"weight", "bias", "lora_A", "lora_B"}
    assert [name for name, _ in lora_layers(torch.nn.Sequential(torch.nn.Linear(2, 2), LoRALinear(2, 2)))] == ["1"]


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_that_does_not_fit_is_refused(rank) -> None:
    with pytest.raises(ConfigurationError, match="rank from 1 to 5"):
        LoRALinear(7, 5).attach_lora(rank, 1.0)
