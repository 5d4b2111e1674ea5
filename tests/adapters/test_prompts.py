"""Learned prompts: they start where CLIP's own prompts are, and only their words are trained."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pfedst_baselines.fedotp import FedOTP
from pfedst_baselines.fedpgp import FedPGP
from pfedst_baselines.promptfl import PromptFL
from safetensors.torch import save_file

from pfedst.adapters import PromptLearner, TransportPrompts
from pfedst.encoders import AnchorHead, FrozenCLIP, Taps, text_anchors
from pfedst.errors import ConfigurationError
from pfedst.seeds import generator, seeded
from pfedst.testing import encoder, federation, prepared, train

NAMES = ("nevus", "seborrheic keratosis", "melanoma")
ADAPTERS = (PromptLearner, TransportPrompts)


def make(adapter=PromptLearner, names=NAMES, seed=0, kind="prototypes", source=None, **options):
    source = source or encoder()
    with seeded(seed):
        head = AnchorHead(names, source.spec.embedding, source.logit_scale, kind)
        if kind == "prototypes":
            head.set_anchors(torch.eye(len(names), source.spec.embedding))
        return adapter(source, head, **options)


def images(count=4):
    return torch.randn(count, 3, 32, 32, generator=generator(1))


def taps(adapter, count=4) -> Taps:
    return encoder().extract(images(count), adapter.needs)


def text_weights() -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in encoder().text.state_dict().items()}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_classes_with_the_same_words_are_refused_by_name(adapter) -> None:
    with pytest.raises(ConfigurationError, match='"nevus" and "Nevus" have the same prompt'):
        make(adapter, ("nevus", "melanoma", "Nevus"))


# -- where they start --------------------------------------------------------------------------------------------


def test_the_words_of_a_prompt_reproduce_zero_shot() -> None:
    adapter = make(initial="a photo of a")
    anchors = text_anchors(encoder(), NAMES, ("a photo of a {}.",))
    with torch.no_grad():
        zero_shot = adapter.head.cosine_logits(taps(adapter).tensors[0], anchors)
        assert (adapter(taps(adapter)) - zero_shot).abs().max() < 1e-5
        assert torch.allclose(adapter.features(), anchors, atol=1e-6)
        other = text_anchors(encoder(), NAMES, ("a photo of the {}.",))
        assert not torch.allclose(adapter.features(), other, atol=1e-3)  # the oracle sees one word
    assert adapter.context.shape == (4, 32)


def test_transport_prompts_with_the_words_of_a_prompt_hold_its_text() -> None:
    adapter, words = make(TransportPrompts, words=4), make(initial="a photo of a").context
    anchors = text_anchors(encoder(), NAMES, ("a photo of a {}.",))
    assert torch.allclose(adapter.sequences(words), anchors, atol=1e-6)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_changing_one_class_name_changes_only_its_column(adapter) -> None:
    one, other = make(adapter), make(adapter, names=(NAMES[0], "a much longer name of a lesion", NAMES[2]))
    with torch.no_grad():
        before, after = one(taps(one)), other(taps(other))
    assert torch.allclose(before[:, [0, 2]], after[:, [0, 2]], atol=1e-5)
    assert ((before - after)[:, 1].abs() > 1e-3).all()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_follows_the_end_of_a_name_does_not_count(adapter) -> None:
    """Shorter names stand beside padding: a longer class in the list changes nothing for them."""
    short, padded = make(adapter, names=("mole",)), make(adapter, names=("mole", "a very long name of a lesion"))
    with torch.no_grad():
        assert torch.allclose(short(taps(short))[:, 0], padded(taps(padded))[:, 0], atol=1e-5)


# -- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_gradients_reach_the_words_and_no_weight_of_the_text_tower(adapter) -> None:
    before, made = text_weights(), make(adapter)
    if adapter is PromptLearner:
        made.attach_low_rank(2)
    F.cross_entropy(made(taps(made)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad.norm() > 0 for parameter in made.parameters())
    assert all(p.grad is None and not p.requires_grad for p in encoder().text.parameters())
    assert all(torch.equal(value, before[key]) for key, value in encoder().text.state_dict().items())


@pytest.mark.parametrize("method", [PromptFL, FedPGP, FedOTP])
def test_a_fit_moves_words_and_neither_tower(method) -> None:
    before, image_tower = text_weights(), encoder().compute_hash()
    made = federation(method(), anchors="text")
    made.deliver("site_a")
    words = made.clients["site_a"].own_state()
    train(made, "site_a")
    assert not any(torch.equal(value, words[key]) for key, value in made.clients["site_a"].own_state().items())
    assert all(torch.equal(value, before[key]) for key, value in encoder().text.state_dict().items())
    assert encoder().compute_hash() == image_tower


@pytest.mark.parametrize("method", [PromptFL, FedPGP, FedOTP])
def test_no_text_embedding_is_remembered(method) -> None:
    """Predictions follow the words: after a fit, after a message, and for every client its own."""
    made = federation(method(), anchors="text")
    batch = next(iter(prepared().evaluation_loader("site_a", "test")))[0]

    def predict(client):
        with torch.no_grad():
            return made.method.personal_model(client).eval()(client.taps_of(batch))

    for name in made.clients:
        made.deliver(name)
    one, other = made.clients["site_a"], made.clients["site_b"]
    start = predict(one)
    assert torch.equal(predict(other), start)
    train(made, "site_a")
    trained = predict(one)
    assert (trained - start).abs().max() > 1e-4
    assert torch.equal(predict(other), start)
    made.merge({"site_a": made.collect("site_a")})
    made.deliver("site_b")
    assert (predict(other) - start).abs().max() > 1e-4
    with torch.no_grad():
        next(one.adapter.parameters()).mul_(-3)
    assert (predict(one) - trained).abs().max() > 1e-4


def test_the_low_rank_part_is_added_to_the_words() -> None:
    adapter = make()
    adapter.attach_low_rank(2)
    assert torch.allclose(adapter.features(low_rank=False), make().features(), atol=1e-6)
    plain = make()
    with torch.no_grad():
        plain.context += adapter.left @ adapter.right
    assert torch.allclose(adapter.features(), plain.features(), atol=1e-6)
    assert not torch.allclose(adapter.features(), adapter.features(low_rank=False), atol=1e-5)


# -- transport ---------------------------------------------------------------------------------------------------


def test_swapping_the_two_contexts_leaves_logits() -> None:
    adapter = make(TransportPrompts)
    before = adapter(taps(adapter))
    swapped = copy.deepcopy(adapter)
    swapped.load_state_dict({"contexts.0": adapter.contexts[1], "contexts.1": adapter.contexts[0]})
    assert torch.allclose(swapped(taps(adapter)), before, atol=1e-4)
    with torch.no_grad():
        swapped.contexts[0].zero_()
    assert not torch.allclose(swapped(taps(adapter)), before, atol=1e-2)


def test_logits_are_those_of_the_patches_of_open_clip() -> None:
    """Patches after the final norm and the projection, without the class token, each compared with both texts."""
    adapter = make(TransportPrompts, epsilon=1e6, mass=1.0)  # so smooth that every patch meets every prompt alike
    visual, tokens = encoder().tower.visual, taps(adapter).tensors[0]
    with torch.no_grad():
        patches = F.normalize(visual.ln_post(tokens[:, 1:]) @ visual.proj, dim=-1)
        texts = torch.stack([adapter.sequences(context) for context in adapter.contexts]).mean(0)
        expected = encoder().logit_scale * patches.mean(1) @ texts.T
        assert torch.allclose(adapter(taps(adapter)), expected, atol=1e-3)
        tokens[:, 0] = 0
        assert torch.allclose(adapter(Taps("tokens", (tokens,))), expected, atol=1e-3)


# -- names, copies, errors ---------------------------------------------------------------------------------------


def test_names_in_the_state_dict() -> None:
    adapter = make(words=5)
    assert {key: tuple(value.shape) for key, value in adapter.state_dict().items()} == {"context": (5, 32)}
    adapter.attach_low_rank(2)
    assert set(adapter.state_dict()) == {"context", "left", "right"}
    assert set(make(TransportPrompts).state_dict()) == {"contexts.0", "contexts.1"}
    assert set(dict(make(TransportPrompts).named_parameters())) == {"contexts.0", "contexts.1"}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_copies_share_what_is_frozen(adapter) -> None:
    made = make(adapter)
    copied = copy.deepcopy(made)
    assert copied.sequences is made.sequences
    assert copied.encoder is made.encoder
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in made.parameters()}
    clients = federation(PromptFL() if adapter is PromptLearner else FedOTP()).clients.values()
    assert len({id(client.adapter.sequences) for client in clients}) == 1


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"words": 0}, "words 0: must be 1 or more"),
        ({"words": 75}, r'words 75: with a class name as long as "seborrheic keratosis".*takes 77'),
        ({"kind": "learned"}, "learns prompts, not anchors: use --model.anchors text"),
        ({"names": ("mole " * 80, "scar")}, "longer than the 77 tokens"),
    ],
)
def test_what_cannot_be_is_refused(adapter, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(adapter, **options)


@pytest.mark.parametrize("initial", ["", "word " * 74])
def test_initial_words_that_do_not_fit_are_refused(initial) -> None:
    with pytest.raises(ConfigurationError, match="words"):
        make(initial=initial)


def test_initial_words_decide_the_length_and_not_the_default() -> None:
    """A class name of 60 words leaves room for four learned words, though not for sixteen."""
    assert make(names=("mole " * 60, "scar"), initial="a photo of a").context.shape == (4, 32)


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"mass": 0.0}, {"mass": 1.1}, {"iterations": 0}])
def test_transport_options_out_of_range(options) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        make(TransportPrompts, **options)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_does_not_fit_is_refused(rank) -> None:
    with pytest.raises(ConfigurationError, match=f"rank {rank}: must be from 1 to 16"):
        make().attach_low_rank(rank)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_there_is_no_head_to_learn(adapter) -> None:
    with pytest.raises(ConfigurationError, match="no head besides its prompts"):
        make(adapter).learn_head()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_weights_without_a_text_tower_are_refused(adapter, tmp_path) -> None:
    save_file(encoder().tower.visual.state_dict(), tmp_path / "tower.safetensors")
    alone = FrozenCLIP("vit-nano", str(tmp_path / "tower.safetensors"))
    with pytest.raises(ConfigurationError, match="no text tower, through which this method learns prompts"):
        make(adapter, source=alone)
