"""Cost of a run: peak memory and numbers of parameters."""

from __future__ import annotations

import sys

import torch

from pfedst.client.module import FederatedClient


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory so far: allocated on the accelerator, or resident in this process on a CPU.

    None if the platform does not report it (Windows).
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
    """Return the number of parameter values that a client trains in some epoch."""
    parameters = dict(client.named_parameters())
    return sum(parameters[key].numel() for key in client.learnable)


def parameters_sent(client: FederatedClient) -> int:
    """Return the number of values in the shared part of the model, which a client uploads as `net` in a round."""
    return sum(tensor.numel() for tensor in client.shared_state().values())
