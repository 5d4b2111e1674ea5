"""The matrix products of a training step, and the time that they take alone.

`Recorder` records every product that torch computes inside its context. `floor_seconds` is the time of these products
alone, each multiplied with random numbers in its own shape, layout and dtype. A step cannot be faster with this library
on this machine; the remaining time of a step is spent on other work.

torch's FlopCounterMode is not sufficient on a CPU: it knows neither scaled_dot_product_attention on a CPU nor the fused
attention of torch.nn.MultiheadAttention without gradients, and it does not report shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Clock = Callable[[], float]
"""Function that returns seconds since a fixed moment, such as time.perf_counter."""


@dataclass(frozen=True)
class Product:
    """`batch` products (rows, inner) x (inner, columns); a transposed factor is a view of its transpose."""

    batch: int
    rows: int
    inner: int
    columns: int
    dtype: torch.dtype = torch.float32
    left_transposed: bool = False
    right_transposed: bool = False

    @property
    def flops(self) -> int:
        """FLOPs; a multiplication and an addition count as two."""
        return 2 * self.batch * self.rows * self.inner * self.columns

    def seconds(self, device: torch.device, clock: Clock) -> float:
        """Measure the time of this product alone, on random numbers."""
        left = _random(self.batch, self.rows, self.inner, self.left_transposed, self.dtype, device)
        right = _random(self.batch, self.inner, self.columns, self.right_transposed, self.dtype, device)
        synchronise(device)
        started = clock()
        torch.matmul(left, right)
        synchronise(device)
        return clock() - started

    def __str__(self) -> str:
        times = "" if self.batch == 1 else f"{self.batch} of "
        return f"{times}({self.rows}, {self.inner}) x ({self.inner}, {self.columns}) {str(self.dtype)[6:]}"


Products = Counter[Product]
"""Number of occurrences of each product."""


def flops(products: Products) -> int:
    """Return the FLOPs of all products."""
    return sum(product.flops * count for product, count in products.items())


def floor_seconds(products: Products, seconds: Mapping[Product, float]) -> float:
    """Return the time of all products alone, from the time of each."""
    return sum(seconds[product] * count for product, count in products.items())


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Recorder(TorchDispatchMode):
    """Count in `products` all products inside this context, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Products = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in _FOUND_IN:
            self.products.update(_FOUND_IN[name](*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _random(batch: int, rows: int, columns: int, transposed: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return random numbers (rows, columns), or (batch, rows, columns) for a batch above one."""
    shape = (columns, rows) if transposed else (rows, columns)
    factor = torch.randn(*((batch,) if batch > 1 else ()), *shape, dtype=dtype, device=device)
    return factor.mT if transposed else factor


def _is_transposed(factor: Tensor) -> bool:
    return factor.stride(-2) == 1 and factor.stride(-1) != 1


def _product(left: Tensor, right: Tensor, **_: Any) -> list[Product]:
    """Products of mm and bmm."""
    batch = left.shape[0] if left.ndim == 3 else 1
    rows, inner = left.shape[-2:]
    layouts = _is_transposed(left), _is_transposed(right)
    return [Product(batch, rows, inner, right.shape[-1], left.dtype, *layouts)]


def _product_with_sum(_: Tensor, left: Tensor, right: Tensor, **options: Any) -> list[Product]:
    """Products of addmm and baddbmm; the sum is not counted."""
    return _product(left, right)


def _convolution(images: Tensor, weight: Tensor, *_: Any) -> list[Product]:
    """Products of a patch embedding: the patches, each as one row, times the filters. Patches must not overlap."""
    filters, inner = weight.shape[0], weight[0].numel()
    return [Product(1, images.numel() // inner, inner, filters, images.dtype, False, True)]


def _convolution_backward(gradient: Tensor, images: Tensor, weight: Tensor, *options: Any) -> list[Product]:
    """Products of the gradients of the filters and, if requested, of the images."""
    of_images, of_weight, _ = options[-1]
    (forward,) = _convolution(images, weight)
    rows, inner, filters = forward.rows, forward.inner, forward.columns
    found = [Product(1, rows, filters, inner, images.dtype)] if of_images else []
    return found + ([Product(1, filters, rows, inner, images.dtype, True, False)] if of_weight else [])


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> list[Product]:
    """Products of (B, heads, N, d) queries over (B, heads, M, d) keys: the scores, then the weighted values."""
    B, heads, N, d = q.shape
    M = k.shape[2]
    return [Product(B * heads, N, d, M, q.dtype, False, True), Product(B * heads, N, M, d, q.dtype)]


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> list[Product]:
    """Products of the scores again, then of the gradients of weights, values, keys and queries."""
    B, heads, N, d = q.shape
    M = k.shape[2]
    over_keys, to_queries = Product(B * heads, N, d, M, q.dtype, False, True), Product(B * heads, N, M, d, q.dtype)
    to_keys = Product(B * heads, M, N, d, q.dtype, True, False)
    return [over_keys, over_keys, to_keys, to_keys, to_queries]


def _fused_self_attention(tokens: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *_: Any) -> list[Product]:
    """Products of torch.nn.MultiheadAttention without gradients: projections and attention in one kernel."""
    B, N, D = tokens.shape
    per_head = tokens.new_empty(B, heads, N, D // heads, device="meta")
    linear = [Product(1, B * N, D, columns, tokens.dtype, False, True) for columns in (3 * D, D)]
    return linear + _attention(per_head, per_head, per_head)


_FOUND_IN: dict[str, Callable[..., list[Product]]] = {
    "mm": _product,
    "bmm": _product,
    "addmm": _product_with_sum,
    "baddbmm": _product_with_sum,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "_native_multi_head_attention": _fused_self_attention,
    **{
        f"_scaled_dot_product_{kind}": _attention
        for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    },
    **{
        f"_scaled_dot_product_{kind}_backward": _attention_backward
        for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    },
}
