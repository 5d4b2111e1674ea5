"""Processes that load images."""

import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from pfedst.data.loaders import image_loader
from pfedst.testing.small import prepared

IMAGES = TensorDataset(torch.arange(6.0))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_processes_of_loaders_are_forked_in_a_spawned_process_too(monkeypatch) -> None:
    """Where the default is to spawn, each of them would import torch again: 145 s instead of 54 s in one run."""
    monkeypatch.setattr("multiprocessing.get_start_method", lambda *arguments: "spawn")
    loader = image_loader(IMAGES, 1, batch_size=4)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    of_data = prepared(cache="none", num_workers=1).train_loader("site_a", 0)
    assert of_data.multiprocessing_context.get_start_method() == "fork"
    assert [batch.tolist() for (batch,) in loader] == [[0, 1, 2, 3], [4, 5]]


def test_without_processes_there_is_nothing_to_fork() -> None:
    loader = image_loader(IMAGES, 0, batch_size=4)
    assert loader.multiprocessing_context is None
    assert [batch.tolist() for (batch,) in loader] == [[0, 1, 2, 3], [4, 5]]
