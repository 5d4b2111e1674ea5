"""The same numbers as stock PFLlib: trajectories that an implementation which is not ours has left beside this tree."""

import json
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.optim import SGD

from pfedst.baselines.ditto import Ditto
from pfedst.baselines.fedavg import FedAvg
from pfedst.baselines.fedbn import FedBN
from pfedst.baselines.fedper import FedPer
from pfedst.baselines.fedprox import FedProx
from pfedst.baselines.fedrep import FedRep
from pfedst.merging import weighted_mean
from pfedst.payload import State
from tests.baselines.models import CNN, Small, copied

REFERENCE = Path(__file__).parents[2] / ".." / "shared" / "reference"
METHODS = (FedAvg, FedProx, FedPer, FedRep, FedBN, Ditto)
OURS = {"FedProx": {"mu": "mu"}, "Ditto": {"lam": "mu"}, "FedRep": {"head_epochs": "plocal_epochs"}}
"""Our names of PFLlib's options, by method."""

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no outside trajectories in ../shared/reference")


@cache
def reference(method: str) -> tuple[dict, State]:
    """What PFLlib was told, and what it computed."""
    with safe_open(REFERENCE / f"{method}.safetensors", "pt") as file:
        return json.loads(file.metadata()["hyperparameters"]), {key: file.get_tensor(key) for key in file.keys()}


@cache
def ours(method: type) -> State:
    """The same run on the real classes, under the same keys.

    What is not merged stands here as the clients' mean, as PFLlib's server computes it and FedBN's clients ignore it.
    """
    told, _ = reference(method.__name__)
    options = {mine: told["hp"][theirs] for mine, theirs in OURS.get(method.__name__, {}).items()}
    arrays = np.load(REFERENCE / f"{told['data']}.npz")
    sites = {
        str(k): (torch.from_numpy(arrays[f"x_train_{k}"]), torch.from_numpy(arrays[f"y_train_{k}"])) for k in range(6)
    }
    adapter = partial(CNN, channels=(16, 32), hidden=64, start=load_file(REFERENCE / "init.safetensors"))
    optimizer = partial(SGD, lr=told["lr"])
    made = Small(
        method(norm_statistics="private", **options), adapter, sites, optimizer, told["bs"], classes=10
    )
    epochs = told["ls"] + options.get("head_epochs", 0)
    found: State = {}
    for aggregation in range(1, told["rounds"] + 2):
        made.round(epochs)
        trained = [copied(client.adapter.state_dict()) for client in made.clients.values()]
        merged = weighted_mean(trained, [1.0] * len(trained)) | made.net
        found |= {f"round{aggregation}.global.{key}": value for key, value in merged.items()}
    for name, client in made.clients.items() if method is Ditto else ():
        found |= {f"final.personal{name}.{key}": value for key, value in copied(client.twin.state_dict()).items()}
    return found


@pytest.mark.parametrize(("part", "tolerance"), [("round1", 1e-6), ("round4", 1e-4), ("final", 1e-4)])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_our_trajectory_is_that_of_pfllib(method, part, tolerance) -> None:
    """After the first and the fourth aggregation, and Ditto's personal models at the end, statistics included."""
    theirs = {key: value for key, value in reference(method.__name__)[1].items() if key.startswith(part)}
    if not theirs:
        pytest.skip("only Ditto has personal models of its own")
    found = {key: (ours(method)[key] - value).abs().max().item() for key, value in theirs.items()}
    assert max(found.values()) <= tolerance, found
