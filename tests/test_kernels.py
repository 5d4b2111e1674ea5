"""The kernels that `make check-kernels` asks for are those that torch uses."""

import os

import pytest
import torch


def test_torch_uses_the_kernels_that_are_asked_for() -> None:
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    if asked is None:
        pytest.skip("this machine's own kernels, whatever they are")
    assert torch.backends.cpu.get_cpu_capability() == asked.upper()
