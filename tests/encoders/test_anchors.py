"""Class anchors by hand."""

import pytest
import torch

from pfedst.encoders import AnchorHead, FrozenCLIP, class_sums, prototypes_from_sums, text_anchors
from pfedst.encoders.text import token_ids
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


LONG = "a picture of skin " * 24


@pytest.mark.parametrize("template", [LONG + "with {}", "{} " + LONG])
def test_a_prompt_longer_than_the_context_is_refused(template) -> None:
    """CLIP's tokenizer cuts it, so that here two classes would have one text."""
    with pytest.raises(ConfigurationError, match=r'"[^"]*mole[^"]*" is longer than the 77 tokens of.*--model.prompts'):
        text_anchors(FrozenCLIP("vit-nano", "random"), ["mole", "scar"], [template])


def test_a_prompt_of_the_whole_context_is_none_too_long() -> None:
    """75 words between the start and the end token; one more is cut."""
    encoder = FrozenCLIP("vit-nano", "random")
    assert encoder.encode_text(["skin " * 75]).shape == (1, 32)
    with pytest.raises(ConfigurationError, match="77 tokens"):
        encoder.encode_text(["mole", "skin " * 76])


def padded(words, context, end=False, last=()):
    """A tokenizer of single characters that pads with 1 as SigLIP's, with what a model appends."""
    ids = [[ord(letter) for letter in word] + [1] * end for word in words]
    room = context - len(last)
    return torch.tensor([[*row[:room], *[1] * (room - len(row)), *last] for row in ids])


@pytest.mark.parametrize("special", [{}, {"end": True}, {"last": (101,)}], ids=str)
def test_any_tokenizer_that_cuts_is_seen(special) -> None:
    def tokenizer(words, context_length=8):
        return padded(words, context_length, **special)

    assert token_ids(tokenizer, ["abc", "abcdef"], "x").shape == (2, 8)
    with pytest.raises(ConfigurationError, match='"abcdefghi" is longer than the 8 tokens'):
        token_ids(tokenizer, ["abc", "abcdefghi"], "x")


@pytest.mark.parametrize("names", [["NV", "MEL", "nv"], ["scar", "mole", "mole "]])
def test_classes_with_one_text_are_refused_by_name(names) -> None:
    head = AnchorHead(names, 32, 10.0, "text")
    anchors = text_anchors(FrozenCLIP("vit-nano", "random"), names)
    with pytest.raises(ConfigurationError, match=f'"{names[0 if names[0] == "NV" else 1]}" and "{names[2]}"'):
        head.set_anchors(anchors)
    head = AnchorHead(names[:2], 32, 10.0, "text")
    head.set_anchors(anchors[:2])


def test_classes_without_images_and_near_prototypes_are_not_equal() -> None:
    head = AnchorHead("abcd", 3, 10.0, "prototypes")
    near = torch.tensor([[1.0, 0, 0], [1.0, 1e-4, 0], [0, 0, 0], [0, 0, 0]])
    head.set_anchors(near)
    with pytest.raises(ConfigurationError, match='"a" and "b" have the same class anchor .prototypes'):
        head.set_anchors(near * torch.tensor([1.0, 1e-8, 1]) + torch.tensor([0.0, 0, 1e-9]))
