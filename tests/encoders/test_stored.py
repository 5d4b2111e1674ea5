"""What a cache keeps of a token, against torch's own rounding and the bound of int8."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.encoders import FrozenCLIP, StoredTaps, Taps
from pfedst.encoders.stored import STORED, decoded, encoded
from pfedst.errors import ConfigurationError
from pfedst.seeds import generator

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
ORDINARY = st.floats(-1000, 1000, width=32, allow_subnormal=False)


def tokens_of(draw, numbers, channels=6):
    rows = draw(st.lists(st.lists(numbers, min_size=channels, max_size=channels), min_size=1, max_size=4))
    return torch.tensor(rows, dtype=torch.float32)


@st.composite
def token_rows(draw, numbers=NUMBERS):
    return tokens_of(draw, numbers)


def within_half_a_step(tokens) -> None:
    values, scales = encoded(tokens, "int8")
    assert values.dtype == torch.int8
    assert scales.dtype == torch.float32
    assert scales.shape == tokens.shape[:-1]
    error = (decoded(values, scales).double() - tokens.double()).abs()
    # the quotient is rounded to float32 before it is rounded to a whole number
    assert bool((error <= scales.double()[..., None] * 0.50001).all())
    smallest = torch.finfo(torch.float32).tiny
    assert torch.allclose(scales.double(), (tokens.double().abs().amax(-1) / 127).clamp_min(smallest), rtol=1e-6)


@given(token_rows(ORDINARY))
def test_int8_is_off_by_half_a_step_at_most(tokens) -> None:
    within_half_a_step(tokens)


@given(token_rows(st.sampled_from([0.0, 1e-30, -1e-30, 5e-31, 1.0, -3.0, 3e38, -3.4e38])))
def test_int8_is_off_by_half_a_step_at_most_at_the_ends_of_the_range(tokens) -> None:
    within_half_a_step(tokens)


def test_int8_keeps_a_token_of_subnormal_numbers_within_half_a_step() -> None:
    within_half_a_step(torch.tensor([[1e-42, -1e-42, 0.0], [1e-44, 0.0, 0.0]]))


@given(token_rows(ORDINARY))
def test_int8_of_what_int8_gave_is_the_same(tokens) -> None:
    once = decoded(*encoded(tokens, "int8"))
    values, scales = encoded(once, "int8")
    assert torch.equal(values, encoded(tokens, "int8")[0])
    assert torch.allclose(decoded(values, scales), once, rtol=1e-6, atol=0)


def test_int8_scales_a_token_on_its_own_and_keeps_its_largest_channel() -> None:
    tokens = torch.tensor([[[127.0, -1.0, 0.4], [0.00127, -0.00254, 0.0]]])
    values, scales = encoded(tokens, "int8")
    assert values.tolist() == [[[127, -1, 0], [64, -127, 0]]]
    assert torch.allclose(scales, torch.tensor([[1.0, 0.00002]]))


@pytest.mark.parametrize("dtype", STORED)
def test_a_token_of_zeros_comes_back_as_zeros(dtype) -> None:
    tokens = torch.zeros(2, 3, 8)
    tokens[0, 1] = torch.arange(8.0)
    values, scales = encoded(tokens, dtype)
    back = decoded(values, scales)
    assert torch.equal(back[1], torch.zeros(3, 8))
    assert torch.equal(back[0, 0], torch.zeros(8))
    assert back[0, 1].abs().max() > 6.9
    assert scales is None or bool((scales > 0).all())


@given(token_rows())
def test_float32_is_exact(tokens) -> None:
    values, scales = encoded(tokens, "float32")
    assert scales is None
    assert decoded(values, scales).dtype == torch.float32
    assert torch.equal(decoded(values, scales).view(torch.int32), tokens.view(torch.int32))  # -0.0 is kept too


@pytest.mark.parametrize(("dtype", "own"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
@given(tokens=token_rows())
def test_half_precision_is_rounded_as_torch_does(dtype, own, tokens) -> None:
    values, scales = encoded(tokens, dtype)
    assert scales is None
    assert values.dtype == own
    assert decoded(values, scales).dtype == torch.float32
    assert torch.equal(decoded(values, scales), tokens.to(own).float())


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 4, 3, 7), (0, 3, 7)])
def test_any_number_of_axes_before_the_channels(dtype, shape) -> None:
    tokens = torch.randn(shape, generator=generator(1))
    values, scales = encoded(tokens, dtype)
    assert values.shape == shape
    assert scales is None or scales.shape == shape[:-1]
    back = decoded(values, scales)
    assert back.shape == shape
    flat = decoded(*encoded(tokens.reshape(-1, 7), dtype)).reshape(shape)
    assert torch.equal(back, flat)


def stored(dtype, count=5, layers=2, corrected=True) -> tuple[StoredTaps, tuple[torch.Tensor, ...]]:
    taps = tuple(torch.randn(count, 3, 8, generator=generator(layer)) for layer in range(layers))
    pairs = [encoded(tap, dtype) for tap in taps]
    correction = torch.randn(count, 8, generator=generator(9)) if corrected else None
    scales = tuple(scale for _, scale in pairs if scale is not None)
    return StoredTaps("taps", tuple(values for values, _ in pairs), scales, correction), taps


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("corrected", [True, False])
def test_a_batch_is_decoded_tensor_by_tensor(dtype, corrected) -> None:
    batch, taps = stored(dtype, corrected=corrected)
    assert len(batch) == 5
    found = batch.decode()
    assert isinstance(found, Taps)
    assert (found.kind, len(found), len(found.tensors)) == ("taps", 5, 2)
    for tensor, tap in zip(found.tensors, taps, strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, decoded(*encoded(tap, dtype)))
    assert (found.correction is None) is not corrected
    assert not corrected or torch.equal(found.correction, batch.correction)


@pytest.mark.parametrize("dtype", STORED)
def test_a_batch_moves_as_a_whole_and_stays_in_its_stored_form(dtype) -> None:
    batch, _ = stored(dtype)
    moved = batch.to("meta")
    parts = (*moved.tensors, *moved.scales, moved.correction)
    assert len(parts) == (5 if dtype == "int8" else 3)
    assert {part.device.type for part in parts} == {"meta"}
    assert {tensor.dtype for tensor in moved.tensors} == {STORED[dtype]}
    assert moved.kind == "taps"
    assert len(moved) == 5
    assert batch.tensors[0].device.type == "cpu"
    assert stored(dtype, corrected=False)[0].to(torch.device("meta")).correction is None


def test_a_batch_cannot_be_changed_in_part() -> None:
    batch, _ = stored("int8")
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.kind = "tokens"


def test_scales_that_do_not_match_the_tensors_are_an_error() -> None:
    batch, _ = stored("int8")
    with pytest.raises(ValueError, match="zip"):
        dataclasses.replace(batch, scales=batch.scales[:1]).decode()


def test_a_batch_of_another_kind_is_refused_by_name() -> None:
    encoder = FrozenCLIP("vit-nano", "random")
    batch, taps = stored("float32")
    assert torch.equal(encoder.taps_of(batch, "taps").tensors[0], taps[0])
    with pytest.raises(ConfigurationError, match="taps.*pooled"):
        encoder.taps_of(batch, "pooled")
