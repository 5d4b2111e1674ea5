"""Where float32 is needed whatever the precision of a run: logits, prompts, optimal transport and losses.

Under `--trainer.precision bf16-mixed` autocast computes matrix products in bfloat16, which is meant for towers and side
networks. A scaled cosine of up to 100 then has steps of 0.5: images tie, and AUROC loses points. The products of heads
cost nothing beside those of a tower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
T = TypeVar("T")
REDUCED = (torch.bfloat16, torch.float16)
DEVICES = ("cpu", "cuda", "mps", "xpu")


def in_float32(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function of tensors compute in float32: without autocast, and with bfloat16 and float16 arguments cast."""

    @functools.wraps(function)
    def computed(*values: P.args, **named: P.kwargs) -> T:
        with _without_autocast():
            cast = {key: _in_full(value) for key, value in named.items()}
            return function(*map(_in_full, values), **cast)

    return computed


def computes_in_float32(layer: nn.Module) -> None:
    """Let a layer compute in float32, also in copies of it."""
    layer.register_forward_pre_hook(_before_layer, with_kwargs=True)
    layer.register_forward_hook(_after_layer, always_call=True)


def _before_layer(layer: Any, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    layer.without_autocast = _without_autocast()
    layer.without_autocast.__enter__()
    return tuple(map(_in_full, values)), {key: _in_full(value) for key, value in named.items()}


def _after_layer(layer: Any, values: tuple[Any, ...], output: Any) -> None:
    vars(layer).pop("without_autocast").__exit__(None, None, None)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Switch autocast off on every kind of device where it is on."""
    with ExitStack() as stack:
        for kind in DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _in_full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in REDUCED else value
