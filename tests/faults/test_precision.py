"""Every method with every precision and with accumulated gradients: it trains, from the loss that float32 gives."""

import copy
import functools
from functools import partial

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import SGD

from pfedst.client.training import LocalTrainer
from pfedst.methods.registry import registered_methods
from pfedst.seeds import seeded
from pfedst.testing.small import data, federation, trainer

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
STEPS = {1: 3, 2: 2, 8: 1}
"""Batches of a step -> steps of an epoch of three batches: the last step of 2 has one batch, and 8 is never reached."""
BATCHES = 3
MODELS = {"PFedMe": {"optimizer": partial(SGD, lr=0.005)}}
METHODS = [name for name in registered_methods() if name not in ("Prototypes", "ZeroShot")]  # these train nothing


@functools.cache
def local(precision, accumulated, epochs) -> LocalTrainer:
    options = {"accumulate_grad_batches": accumulated, "max_epochs": epochs}
    # Lightning takes bfloat16 for float16 on a CPU, unless it is given the plugin
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    how = (
        {"plugins": [MixedPrecision(precision, "cpu", scaler)]} if precision == "16-mixed" else {"precision": precision}
    )
    made = LocalTrainer(trainer(**options, **how))
    assert made.trainer.precision == precision
    return made


@functools.cache
def sites():
    return data()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_with_every_precision_and_every_accumulation(name) -> None:
    """Three fits of a method; over three methods every precision meets every accumulation."""
    method, rotation = registered_methods()[name](), METHODS.index(name)
    made = federation(method, sites=sites(), **MODELS.get(name, {}))
    client = next(iter(made.trainees))
    made.deliver(client)
    start, losses = made.modules[client], {}
    for number, precision in enumerate(PRECISIONS):
        accumulated = list(STEPS)[(number + rotation) % len(STEPS)]
        module, fits = copy.deepcopy(start), local(precision, accumulated, method.fewest_local_epochs)
        with seeded(0), fits.at_most(BATCHES):
            if place := method.unlabelled(module.model):
                module.unlabelled = sites().unlabelled(*place, 0)
            fits.fit(module, sites().train_loader(made.sites_of(client), 0))
        module.check_trained()  # every tensor is finite
        state = module.model.own_state().values()
        assert {tensor.dtype for tensor in state if tensor.is_floating_point()} == {torch.float32}
        assert fits.trainer.global_step == STEPS[accumulated] * method.fewest_local_epochs
        assert module.skipped_steps == 0
        made.modules[client] = module
        made.collect(client)  # the message is what the method declares
        losses[precision] = float(module._losses[0])
    assert list(losses.values()) == pytest.approx([losses["32-true"]] * 3, rel=0.01, abs=0.01)
