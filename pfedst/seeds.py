"""Seeds: every random choice is a function of (run seed, purpose, client, round), never of what ran before.

Hence clients may run in any order, in parallel or after a resume, and no generator state has to be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(run_seed: int, purpose: str, *parts: str | int) -> int:
    """An independent 63-bit seed for one purpose, for instance `derive_seed(0, "fit", "site_a", 3)`.

    Args:
        run_seed: the seed of the whole run (`seed_everything`).
        purpose: what the numbers are for; two purposes never share a stream.
        parts: client name, round, epoch, sample index ...: whatever tells two draws apart.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\x1f".join(str(part) for part in (run_seed, purpose, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own, started at `seed`."""
    import torch  # here, since commands that only derive seeds run without torch

    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's global generators (CPU and the visible accelerators) at `seed`, then put them back.

    For code of others that draws from the global generator (dropout, initialisers, torchvision transforms).
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:  # torch would note the call stack for each kind of accelerator that there might be: half a millisecond
            torch.default_generator.manual_seed(seed)
        yield
