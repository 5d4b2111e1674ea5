"""Class anchors by hand."""

import pytest
import torch

from pfedst.encoders import AnchorHead, FrozenCLIP, class_sums, prototypes_from_sums, text_anchors
from pfedst.errors import ConfigurationError


def test_logits_are_scaled_cosines() -> None:
    head = AnchorHead("ab", 2, 10.0, "prototypes")
    head.set_anchors(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    expected = torch.tensor([[10.0, 10 * 0.5**0.5], [0.0, 10 * 0.5**0.5]])
    assert torch.allclose(head(torch.tensor([[2.0, 0.0], [0.0, 5.0]])), expected)
    assert head.state_dict() == {}


def test_learned_anchors_are_trained_and_others_must_be_set() -> None:
    head = AnchorHead("abc", 4, 1.0, "learned")
    head(torch.ones(1, 4)).sum().backward()
    assert list(head.state_dict()) == ["weight"]
    assert head.weight.grad is not None
    with pytest.raises(ConfigurationError, match="not set"):
        AnchorHead("abc", 4, 1.0, "text")(torch.ones(1, 4))
    for wrong in (head, AnchorHead("ab", 4, 1.0, "text")):
        with pytest.raises(ConfigurationError, match="do not fit"):
            wrong.set_anchors(torch.zeros(3, 4))


def test_prototypes_merged_over_clients_are_those_of_the_pooled_images() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, targets = torch.randn(20, 5, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    parts = [class_sums(embeddings[a:b], targets[a:b], 4) for a, b in ((0, 3), (3, 12), (12, 20))]
    merged = prototypes_from_sums(*zip(*parts, strict=True))
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    for label in range(3):
        mean = unit[targets == label].mean(0)
        assert torch.allclose(merged[label], mean / mean.norm(), atol=1e-6)
    assert merged[3].tolist() == [0] * 5  # nobody has this class


def test_text_anchors_average_over_templates() -> None:
    encoder = FrozenCLIP("vit-nano", "random")
    one = text_anchors(encoder, ["mole", "scar"], ["a photo of a {}"])
    assert torch.allclose(one, encoder.encode_text(["a photo of a mole", "a photo of a scar"]), atol=1e-6)
    both = text_anchors(encoder, ["mole", "scar"], ["a photo of a {}", "{}"])
    mean = (one + encoder.encode_text(["mole", "scar"])) / 2
    assert torch.allclose(both, mean / mean.norm(dim=-1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("templates", [(), ("a photo",), ("a {}", "b")])
def test_templates_need_a_place_for_the_class(templates) -> None:
    with pytest.raises(ConfigurationError, match="{}"):
        text_anchors(FrozenCLIP("vit-nano", "random"), ["mole"], templates)
