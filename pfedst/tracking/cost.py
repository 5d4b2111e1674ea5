"""What a run costs: peak memory, counted parameters."""

from __future__ import annotations

import sys

import torch

from pfedst.client.module import FederatedClient


def peak_memory_bytes(device: torch.device) -> int | None:
    """Highest memory so far: allocated on the accelerator, or resident in this process on a CPU.

    None where the platform does not tell (Windows).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def parameters_trained(client: FederatedClient) -> int:
    """Numbers that a client trains in some epoch."""
    parameters = dict(client.named_parameters())
    return sum(parameters[key].numel() for key in client.learnable)


def parameters_sent(client: FederatedClient) -> int:
    """Numbers of the shared part of the model: what a client uploads as `net` in a round."""
    return sum(tensor.numel() for tensor in client.shared_state().values())
