"""The plan between patches and prompts: its marginals, and the same plan from solvers of another kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize

from pfedst.adapters.optimal_transport import transport_plan
from pfedst.seeds import generator

ENOUGH = 20_000
CLIP_LIKE = (0.2, 0.03)  # mean and deviation of the cosines of patches and texts, about as in a trained CLIP


def cosines(*shape, mean=0.0, deviation=0.3, seed=0) -> torch.Tensor:
    return (mean + deviation * torch.randn(*shape, generator=generator(seed))).clamp(-1, 1)


def check_marginals(plan, mass, slack=0.02) -> None:
    M, N = plan.shape[-2:]
    assert (plan >= 0).all()
    assert torch.allclose(plan.sum(-2), torch.full_like(plan.sum(-2), mass / N), rtol=1e-5)
    assert torch.allclose(plan.sum((-2, -1)), torch.full_like(plan.sum((-2, -1)), mass), rtol=1e-5)
    assert plan.sum(-1).max() <= (1 + slack) / M


@pytest.mark.parametrize("mass", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.1), CLIP_LIKE, (0.9, 0.05)])
def test_marginals(mean, deviation, epsilon, mass) -> None:
    """Columns hold mass / N exactly, rows at most 1 / M: a patch cannot be matched more than it weighs."""
    check_marginals(transport_plan(cosines(2, 3, 16, 2, mean=mean, deviation=deviation), epsilon, mass, ENOUGH), mass)


def test_marginals_of_a_vit_b_16_with_the_defaults() -> None:
    similarity = cosines(4, 8, 196, 2, mean=CLIP_LIKE[0], deviation=CLIP_LIKE[1])
    plan = transport_plan(similarity, 0.1, 0.8, 100)
    check_marginals(plan, 0.8, slack=0.01)
    # and the bound is at work: without it the plan would be a softmax over patches
    softmax = 0.4 * (similarity / 0.1).softmax(-2)
    assert softmax.sum(-1).max() > 1.2 / 196
    assert not torch.allclose(plan, softmax, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_plan_is_of_float32_in_mixed_precision(dtype) -> None:
    similarity = cosines(2, 3, 49, 2, mean=CLIP_LIKE[0], deviation=CLIP_LIKE[1])
    with torch.autocast("cpu", dtype):
        mixed, of_rounded = (transport_plan(cosine, 0.1, 0.8, 100) for cosine in (similarity, similarity.to(dtype)))
    # autocast is another way to the same plan; bfloat16 within it would be off by 1e-2
    assert torch.allclose(mixed, transport_plan(similarity, 0.1, 0.8, 100), rtol=1e-4)
    assert of_rounded.dtype == torch.float32


@pytest.mark.parametrize("epsilon", [0.02, 0.005, 0.001])
def test_a_small_epsilon_is_sharp_and_no_nan(epsilon) -> None:
    """exp(-cost / epsilon) alone is below the smallest float32 here: of a cosine of 0.2, exp(-160) at 0.005."""
    similarity = cosines(2, 16, 2, mean=CLIP_LIKE[0], deviation=CLIP_LIKE[1])
    plan = transport_plan(similarity, epsilon, 0.5, ENOUGH)
    assert torch.isfinite(plan).all()
    check_marginals(plan, 0.5)
    smooth = transport_plan(similarity, 0.1, 0.5, ENOUGH)
    assert ((plan * similarity).sum((-2, -1)) > (smooth * similarity).sum((-2, -1))).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 3), st.floats(0.2, 1), st.floats(0.1, 2), st.floats(-0.5, 0.5), st.integers(0)
)
def test_marginals_hold_for_any_similarities(M, N, mass, epsilon, mean, seed) -> None:
    plan = transport_plan(cosines(2, M, N, mean=mean, seed=seed % 2**31), epsilon, mass, ENOUGH)
    check_marginals(plan, mass, slack=0.05)


@pytest.mark.parametrize("M", [1, 5, 49])
def test_one_prompt_and_all_mass_is_the_mean_over_patches(M) -> None:
    similarity = cosines(3, M, 1)
    plan = transport_plan(similarity, 0.1, 1.0, ENOUGH)
    assert torch.allclose(plan, torch.full_like(plan, 1 / M), rtol=0.1)
    assert torch.allclose((plan * similarity).sum((-2, -1)), similarity.mean((-2, -1)), atol=2e-3)


def test_no_gradient_passes_through_the_plan() -> None:
    similarity = cosines(4, 2).requires_grad_()
    plan = transport_plan(similarity, 0.1, 0.8, 100)
    assert not plan.requires_grad
    (plan * similarity).sum().backward()
    assert torch.equal(similarity.grad, plan)


def test_the_order_of_patches_and_prompts_means_nothing() -> None:
    similarity, patches, prompts = cosines(7, 3), [3, 0, 6, 1, 5, 2, 4], [2, 0, 1]
    plan = transport_plan(similarity, 0.2, 0.8, ENOUGH)
    permuted = transport_plan(similarity[patches][:, prompts], 0.2, 0.8, ENOUGH)
    assert torch.allclose(permuted, plan[patches][:, prompts], atol=1e-5)


def test_other_images_of_a_batch_change_nothing() -> None:
    """A prediction is that of the image: the plans of a batch are those of its images, one by one."""
    easy, hard = cosines(1, 16, 2, mean=0.9, deviation=0.01), cosines(7, 16, 2, deviation=0.2)
    together = transport_plan(torch.cat([easy, hard]), 0.1, 0.8, 100)
    alone = torch.cat([transport_plan(one[None], 0.1, 0.8, 100) for one in (*easy, *hard)])
    assert (together - alone).abs().max() < 0.01 / 16


def test_a_plan_of_half_precision_is_of_float32() -> None:
    plan = transport_plan(cosines(4, 2).bfloat16(), 0.1, 0.8, 100)
    assert plan.dtype is torch.float32
    assert plan.float().sum().item() == pytest.approx(0.8, rel=0.01)


def by_linear_program(cost, mass) -> np.ndarray:
    """The unregularised problem: least cost, columns = mass / N, rows <= 1 / M."""
    M, N = cost.shape
    rows, columns = np.kron(np.eye(M), np.ones(N)), np.kron(np.ones(M), np.eye(N))
    found = linprog(cost.ravel(), rows, np.full(M, 1 / M), columns, np.full(N, mass / N))
    assert found.success
    return found.x.reshape(M, N)


def by_convex_program(cost, epsilon, mass) -> np.ndarray:
    """The regularised problem, sum P C + epsilon sum P (log P - 1), by a general solver."""
    M, N = cost.shape
    rows, columns = np.kron(np.eye(M), np.ones(N)), np.kron(np.ones(M), np.eye(N))
    found = minimize(
        lambda p: p @ cost.ravel() + epsilon * (p * (np.log(p) - 1)).sum(),
        np.full(M * N, mass / (M * N)),
        jac=lambda p: cost.ravel() + epsilon * np.log(p),
        method="SLSQP",
        bounds=[(1e-9, 1)] * (M * N),
        constraints=[
            LinearConstraint(rows, -np.inf, np.full(M, 1 / M)),
            LinearConstraint(columns, np.full(N, mass / N), np.full(N, mass / N)),
        ],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success, found.message
    return found.x.reshape(M, N)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mass", [0.6, 0.8])
def test_at_small_epsilon_it_is_the_linear_program(mass, seed) -> None:
    similarity = cosines(5, 2, mean=0.3, deviation=0.3, seed=seed)
    cost = 1 - similarity.double().numpy()
    least = (by_linear_program(cost, mass) * cost).sum()
    plans = {epsilon: transport_plan(similarity, epsilon, mass, ENOUGH).double().numpy() for epsilon in (0.02, 0.5)}
    assert (plans[0.02] * cost).sum() == pytest.approx(least, abs=0.01)
    assert (plans[0.5] * cost).sum() > least + 0.03


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("epsilon", "mass"), [(0.1, 0.8), (0.1, 0.5), (0.5, 0.95)])
def test_it_is_the_regularised_problem(epsilon, mass, seed) -> None:
    similarity = cosines(4, 2, seed=seed)
    exact = by_convex_program(1 - similarity.double().numpy(), epsilon, mass)
    assert np.abs(transport_plan(similarity, epsilon, mass, ENOUGH).numpy() - exact).max() < 2e-3
