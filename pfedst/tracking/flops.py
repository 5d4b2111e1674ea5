"""FLOPs of training: matrix products, convolutions and attention, as counted by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pfedst.torch_threads import torch_threads


def counted_flops(work: Callable[[], object]) -> int:
    """Return the FLOPs of `work`, backward passes included. A multiplication with its addition counts as two.

    Elementwise operations, norms and optimisers (a few percent of a step) are not counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch has no formula for this kernel of a whole attention layer
    try:
        with torch_threads(1), counter:  # the counter sees no other thread
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *others: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *others: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


ATTENTION_ON_CPU: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Kernels for which torch has formulas on GPUs only."""
