"""Seeds are functions of what they are for."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.seeds import derive_seed, generator, seeded

PARTS = st.lists(st.one_of(st.integers(0, 99), st.text("ab/", max_size=3)), max_size=3)


@given(st.integers(0, 5), PARTS, st.integers(0, 5), PARTS)
def test_different_draws_have_different_seeds(seed, parts, other_seed, other_parts) -> None:
    one, other = derive_seed(seed, "fit", *parts), derive_seed(other_seed, "fit", *other_parts)
    same = (seed, [str(p) for p in parts]) == (other_seed, [str(p) for p in other_parts])
    assert (one == other) == same
    assert 0 <= one < 2**63


def test_a_seed_never_changes() -> None:
    # written down once: a change would silently change the results of every run
    assert derive_seed(0, "fit", "site_a", 3) == derive_seed(0, "fit", "site_a", "3") == 4430810723298012710


def test_seeded_puts_the_global_generator_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with seeded(5):
        inside = torch.rand(1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(inside, torch.rand(1, generator=generator(5)))


def test_seeded_equals_manual_seed() -> None:
    with seeded(7):
        inside = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), inside)
