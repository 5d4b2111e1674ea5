"""FLOPs against products counted by hand."""

import torch
from torch.nn import functional as F

from pfedst.tracking import counted_flops


def test_a_linear_layer_forward_and_backward() -> None:
    weight, inputs = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7)
    assert counted_flops(lambda: F.linear(inputs, weight)) == 2 * 3 * 5 * 7
    assert counted_flops(lambda: F.linear(inputs, weight).sum().backward()) == 2 * (2 * 3 * 5 * 7)


def test_attention_is_counted_on_a_cpu_too() -> None:
    query, key, value = (torch.randn(2, 4, 9, 8, requires_grad=True) for _ in range(3))
    forward = 2 * (2 * 2 * 4 * 9 * 9 * 8)  # scores and their sums
    assert counted_flops(lambda: F.scaled_dot_product_attention(query, key, value)) == forward
    # backward computes the scores once more, and the four gradients of two products
    assert (
        counted_flops(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
        == forward + 5 * forward // 2
    )


def test_a_fused_attention_layer_is_counted_and_stays_fused() -> None:
    layer, inputs = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval(), torch.randn(2, 9, 32)
    with torch.no_grad():
        flops = counted_flops(lambda: layer(inputs, inputs, inputs, need_weights=False))
    assert flops == 2 * 2 * 9 * 32 * (3 * 32 + 32) + 2 * (2 * 2 * 4 * 9 * 9 * 8)
    assert torch.backends.mha.get_fastpath_enabled()
