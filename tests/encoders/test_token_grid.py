"""Averaged patches, and that an image's answers depend on nothing but the image."""

import functools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pfedst.adapters import SideNetwork
from pfedst.encoders import AnchorHead, FrozenCLIP, Taps
from pfedst.encoders.towers import pooled_patches
from pfedst.errors import ConfigurationError
from pfedst.seeds import generator, seeded
from pfedst.tracking.flops import counted_flops

FORMS = ("class_token", "whole")
ALL = ("taps", "tokens", "pooled")
NANO, TIMM = "vit-nano", "timm/vit_tiny_patch16_224"
COUNT = 19


@functools.cache
def encoder_of(model=NANO, **options) -> FrozenCLIP:
    return FrozenCLIP(model, "random", **({"image_size": 32} | options))


def images(size=32, count=COUNT):
    return torch.randn(count, 3, size, size, generator=generator(1))


def tensors(taps: Taps) -> list[torch.Tensor]:
    return [*taps.tensors, *([] if taps.correction is None else [taps.correction])]


def same(one: Taps, other: Taps, rows=None) -> bool:
    """Bit for bit; `rows` of the other."""
    pairs = zip(tensors(one), tensors(other), strict=True)
    return one.kind == other.kind and all(torch.equal(a, b if rows is None else b[rows]) for a, b in pairs)


# -- one image, one answer ---------------------------------------------------------------------------------------------

VARIANTS = [
    pytest.param(NANO, {}, id="nano"),
    pytest.param(NANO, {"last_block": "whole"}, id="nano-whole"),
    pytest.param(NANO, {"token_grid": 3}, id="nano-grid"),
    pytest.param(TIMM, {}, id="timm"),
    pytest.param(TIMM, {"token_grid": 1, "last_block": "whole"}, id="timm-grid"),
]


@pytest.fixture
def _threads_put_back():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@functools.cache
def answers(model, **options):
    """Of the 19 images, in one batch and with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = encoder_of(model, **options).encode(images(), ALL)
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize(("model", "options"), VARIANTS)
def test_an_image_has_the_same_bits_alone_in_any_batch_and_at_any_position(model, options) -> None:
    encoder, expected = encoder_of(model, **options), answers(model, **options)
    orders = [
        list(range(COUNT)),
        list(reversed(range(COUNT))),
        torch.randperm(COUNT, generator=generator(0)).tolist(),
        [4] * 9,
        list(range(4, COUNT)),
        [2, 18],
        *([index] for index in (0, 7, 8, 18)),
    ]
    for order in orders:
        found = encoder.encode(images()[order], ALL)
        for need in ALL:
            assert len(found[need]) == len(order)
            assert same(found[need], expected[need], order), (need, order)


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize(("model", "options"), VARIANTS[2:4])
def test_an_image_has_the_same_bits_with_any_number_of_threads(model, options, threads) -> None:
    encoder, expected = encoder_of(model, **options), answers(model, **options)
    torch.set_num_threads(threads)
    for order in (list(reversed(range(8))), [threads]):
        found = encoder.encode(images()[order], ALL)
        assert all(same(found[need], expected[need], order) for need in ALL)
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_tower_computes_one_image_at_a_time_in_one_thread(monkeypatch, threads) -> None:
    """So nothing but the image decides on its bits: where MKL takes its AVX2 kernels on Intel, its place in a batch did."""
    encoder, seen = FrozenCLIP(NANO, "random", image_size=32), []
    embed = encoder.tower.embed
    monkeypatch.setattr(
        encoder.tower, "embed", lambda images: seen.append((len(images), torch.get_num_threads())) or embed(images)
    )
    torch.set_num_threads(threads)
    encoder.encode(images(), ALL)
    assert seen == [(1, 1)] * COUNT


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("threads", [1, 2])
def test_no_gradient_and_every_flop_is_seen_with_any_number_of_threads(threads) -> None:
    encoder = encoder_of()
    torch.set_num_threads(threads)
    assert not any(tensor.requires_grad for need in ALL for tensor in tensors(encoder.encode(images(), ALL)[need]))
    of_one = counted_flops(lambda: encoder.encode(images()[:1], ALL))
    assert of_one > 0
    assert counted_flops(lambda: encoder.encode(images(), ALL)) == COUNT * of_one


def test_a_damaged_image_beside_it_changes_nothing() -> None:
    batch = images(count=3)
    batch[1] = float("nan")
    found = encoder_of().encode(batch, ALL)
    for need in ALL:
        for one, other in zip(found[need].tensors, answers(NANO)[need].tensors, strict=True):
            assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.isfinite(found["pooled"].tensors[0][1]).any()


@pytest.mark.parametrize("model", [NANO, TIMM])
def test_the_order_of_bytes_in_memory_changes_nothing(model) -> None:
    wide = torch.zeros(COUNT, 3, 40, 40)
    wide[:, :, 4:36, 4:36] = images()
    for batch in (images().contiguous(memory_format=torch.channels_last), wide[:, :, 4:36, 4:36]):
        assert not batch.is_contiguous()
        for count in (COUNT, 8, 1):
            found = encoder_of(model).encode(batch[:count], ALL)
            assert all(same(found[need], answers(model)[need], slice(count)) for need in ALL)


@pytest.mark.parametrize(("model", "options"), VARIANTS)
def test_several_answers_at_once_are_those_given_one_by_one(model, options) -> None:
    encoder = encoder_of(model, **options)
    batch = images(count=11)
    together = encoder.encode(batch, ("images", *ALL))
    assert list(together["images"].tensors) == [batch] or torch.equal(together["images"].tensors[0], batch)
    for need in ("images", *ALL):
        assert same(encoder.extract(batch, need), together[need])
    assert set(together) == {"images", *ALL}
    assert set(encoder.encode(batch, ["pooled"])) == {"pooled"}
    assert encoder.encode(batch, []) == {}


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("threads", [1, 2])
def test_answers_are_float32_under_mixed_precision_and_depend_on_the_image_alone(threads) -> None:
    """As Lightning has it in a training step with --trainer.precision bf16-mixed; a cache is filled so too."""
    torch.set_num_threads(threads)
    plain = encoder_of().identity
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder_of().identity == plain | {"autocast": "torch.bfloat16"}
        found = encoder_of().encode(images(), ALL)
        some = encoder_of().encode(images()[[4, 0, 18]], ALL)
        torch.set_num_threads(1)
        again = encoder_of().encode(images(), ALL)
    for need in ALL:
        assert all(tensor.dtype == torch.float32 for tensor in found[need].tensors)
        assert same(some[need], found[need], [4, 0, 18])
        assert same(again[need], found[need])
    assert not same(found["taps"], answers(NANO)["taps"])


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("token_grid", [None, 2])
def test_the_number_of_threads_is_put_back_after_an_error_too(monkeypatch, token_grid) -> None:
    encoder = FrozenCLIP(NANO, "random", token_grid=token_grid)
    torch.set_num_threads(3)
    seen = []

    def fails(tokens):
        seen.append(torch.get_num_threads())
        raise RuntimeError("as a tower may")

    monkeypatch.setattr(encoder.tower, "last_block_class_token", fails)
    for need in ("pooled", "taps") if token_grid else ("pooled",):
        with pytest.raises(RuntimeError, match="as a tower may"):
            encoder.extract(images(count=2), need)
        assert torch.get_num_threads() == 3
    assert set(seen) == {1}


# -- averaged patches --------------------------------------------------------------------------------------------------


def test_patches_are_averaged_over_squares_and_the_class_token_is_left_alone() -> None:
    tokens = torch.randn(2, 17, 5, generator=generator(2))
    found = pooled_patches(tokens, 16, 2)
    assert found.shape == (2, 5, 5)
    assert torch.equal(found[:, 0], tokens[:, 0])
    for image in range(2):
        for row in range(2):
            for column in range(2):
                corners = [(2 * row + i) * 4 + 2 * column + j for i in range(2) for j in range(2)]
                mean = sum(tokens[image, 1 + index] for index in corners) / 4
                assert torch.allclose(found[image, 1 + row * 2 + column], mean, atol=1e-6)


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("prefix", [1, 5])
def test_any_grid_is_torchs_adaptive_average_and_any_prefix_is_kept(grid, prefix) -> None:
    tokens = torch.randn(3, prefix + 16, 6, generator=generator(2))
    found = pooled_patches(tokens, 16, grid)
    expected = F.adaptive_avg_pool2d(tokens[:, prefix:].unflatten(1, (4, 4)).movedim(-1, 1), grid)
    assert torch.equal(found[:, :prefix], tokens[:, :prefix])
    assert torch.allclose(found[:, prefix:].unflatten(1, (grid, grid)).movedim(-1, 1), expected, atol=1e-6)
    assert found.shape[1] == prefix + grid**2


@pytest.mark.parametrize("model", [NANO, "timm/test_vit"])
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_taps_and_tokens_are_averages_of_the_plain_ones(model, grid) -> None:
    size = 32 if model == NANO else 64
    plain, averaged = (encoder_of(model, image_size=size, token_grid=g) for g in (None, grid))
    batch = images(size, 3)
    one, other = plain.encode(batch, ALL), averaged.encode(batch, ALL)
    assert len(other["taps"].tensors) == averaged.spec.layers == len(one["taps"].tensors)
    for need in ("taps", "tokens"):
        for full, small in zip(one[need].tensors, other[need].tensors, strict=True):
            assert small.shape == (3, 1 + grid**2, averaged.spec.width)
            assert torch.allclose(small, pooled_patches(full, 16, grid), atol=1e-5)  # two encoders, two ways
    assert torch.allclose(one["pooled"].tensors[0], other["pooled"].tensors[0], atol=1e-5)
    assert averaged.spec.tokens == 1 + grid**2
    assert plain.spec.tokens == 17
    assert one["taps"].correction is None
    assert other["tokens"].correction is None
    assert other["taps"].correction.shape == (3, averaged.spec.width)


def test_register_tokens_are_kept_in_front() -> None:
    name = "timm/vit_small_patch14_reg4_dinov2"
    plain, averaged = (FrozenCLIP(name, "random", 56, token_grid=grid) for grid in (None, 2))
    batch = images(56, 2)
    full, small = (encoder.extract(batch, "taps") for encoder in (plain, averaged))
    assert (plain.spec.tokens, averaged.spec.tokens) == (1 + 4 + 16, 1 + 4 + 4)
    for tap, average in zip(full.tensors, small.tensors, strict=True):
        assert average.shape == (2, 9, averaged.spec.width)
        assert torch.allclose(average[:, :5], tap[:, :5], atol=1e-5)  # of two encoders
        corner = tap[:, 5:].unflatten(1, (4, 4))[:, :2, :2].mean((1, 2))
        assert torch.allclose(average[:, 5], corner, atol=1e-5)
    pooled = averaged.extract(batch, "pooled").tensors[0]
    assert torch.allclose(pooled, plain.extract(batch, "pooled").tensors[0], atol=1e-5)
    assert torch.allclose(averaged.finish(small.tensors[-1], small.correction), pooled, atol=1e-5)


def side_network(encoder) -> SideNetwork:
    with seeded(0):
        head = AnchorHead(["a", "b", "c"], encoder.spec.embedding, encoder.logit_scale, "prototypes")
        head.set_anchors(torch.randn(3, encoder.spec.embedding, generator=generator(3)))
        return SideNetwork(encoder, head)


@pytest.mark.parametrize("last_block", FORMS)
@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("model", [NANO, "timm/test_vit"])
def test_untrained_predicts_as_the_encoder_by_the_correction_alone(model, grid, last_block) -> None:
    encoder = encoder_of(model, image_size=32 if model == NANO else 64, last_block=last_block, token_grid=grid)
    network, batch = side_network(encoder), images(encoder.spec.image_size, 6)
    taps = encoder.extract(batch, "taps")
    with torch.no_grad():
        own = encoder.extract(batch, "pooled").tensors[0]
        assert torch.allclose(network.embed(taps), own, atol=1e-5, rtol=0)
        without = network.embed(Taps("taps", taps.tensors))
        assert (without - own).abs().max() > 1e-4
        assert torch.allclose(network(taps).softmax(1), network.head(own).softmax(1), atol=1e-5)


@pytest.mark.parametrize("last_block", FORMS)
def test_gradients_reach_the_side_network_through_the_averages(last_block) -> None:
    encoder = encoder_of(last_block=last_block, token_grid=2)
    network = side_network(encoder)
    with torch.no_grad():
        torch.nn.init.normal_(network.side.up.weight, std=0.1, generator=generator(0))
    taps = encoder.extract(images(count=4), "taps")
    before = network(taps)
    F.cross_entropy(before, torch.tensor([0, 1, 2, 0])).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(gradients[f"side.down.{layer}.weight"].abs().max() > 0 for layer in range(encoder.spec.layers))
    assert gradients["side.up.weight"].abs().max() > 0
    with torch.no_grad():
        network.side.up.weight *= 2
        assert not torch.allclose(network(taps), before)


def test_the_label_says_it() -> None:
    assert "patches averaged to 3x3" in encoder_of(token_grid=3).label
    assert "averaged" not in encoder_of().label
    assert encoder_of(token_grid=3).label.startswith(encoder_of().label)


@pytest.mark.parametrize("model", [NANO, "timm/test_vit"])
@pytest.mark.parametrize("grid", [0, -1, 4, 5, 17])
def test_a_grid_out_of_range_is_refused_by_the_name_of_the_option(model, grid) -> None:
    with pytest.raises(ConfigurationError, match=rf"--model\.encoder\.token_grid {grid}\b") as caught:
        FrozenCLIP(model, "random", 32 if model == NANO else 64, token_grid=grid)
    assert "4x4 patches" in str(caught.value)
    assert "1 to 3" in str(caught.value)


def test_the_range_follows_the_image_size() -> None:
    assert FrozenCLIP(NANO, "random", 48, token_grid=5).spec.tokens == 26
    with pytest.raises(ConfigurationError, match="1 to 5"):
        FrozenCLIP(NANO, "random", 48, token_grid=6)


# -- identity ----------------------------------------------------------------------------------------------------------


def test_the_identity_tells_all_that_changes_the_taps(tmp_path) -> None:
    plain = encoder_of()
    with seeded(8):
        state = {key: value + 0.01 for key, value in plain.text.state_dict().items() if value.is_floating_point()}
    save_file(state, tmp_path / "other.safetensors")
    variants = [
        plain,
        encoder_of(token_grid=2),
        encoder_of(token_grid=3),
        encoder_of(last_block="whole"),
        encoder_of(image_size=48),
        encoder_of("vit-demo"),
        encoder_of(TIMM),
        FrozenCLIP(NANO, str(tmp_path / "other.safetensors"), 32),
    ]
    found = [tuple(sorted(encoder.identity.items(), key=str)) for encoder in variants]
    assert len(set(found)) == len(variants)
    differs = {key for key, value in variants[-1].identity.items() if value != plain.identity[key]}
    assert differs == {"weights"}


def test_the_identity_is_that_of_the_weights_and_not_of_their_place(tmp_path) -> None:
    plain = encoder_of()
    save_file(plain.text.state_dict(), tmp_path / "one.safetensors")
    saved = FrozenCLIP(NANO, str(tmp_path / "one.safetensors"), logit_scale=3.0)
    assert saved.identity == plain.identity == FrozenCLIP(NANO, "random").identity
    assert saved.label != plain.label
