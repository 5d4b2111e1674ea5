"""The evaluation of an exported model: as a run is evaluated whose sites are all elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfedst.client.exchange import start_maker
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule, Split
from pfedst.joining.source import Source
from pfedst.methods.interface import FederatedMethod
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.merged import Merged
from pfedst.simulation import make_client
from pfedst.state.round_choices import LAST
from pfedst.state.run_state import RunState
from pfedst.state.snapshot import Snapshot
from pfedst.transport.in_process import InProcess

ELSEWHERE = ""
"""In place of the names of the sites that trained the model: no site has this name, so that all sites are new."""

OF_THE_TRAINING = (
    *("seed", "seeds", "rounds", "participation", "optimizer", "optimizer_state", "lr_schedule"),
    *("local_epochs", "local_batches", "batch_size", "augmentation", "sampler"),
)
"""Entries of a protocol that an exported model does not tell; the options of its evaluation say nothing of them."""


def evaluate_model(
    coordinator: FederatedCoordinator,
    template: FederatedClient,
    data: FederatedDataModule,
    method: FederatedMethod,
    local: LocalTrainer,
    folder: Path,
    split: Split,
    run_seed: int,
    site: str | None = None,
) -> dict[str, Any]:
    """Evaluate the generic model in a folder of `pfedst export` on one split of a data set on this machine.

    Args:
        coordinator, template, data, method, run_seed: as in `Simulation`.
        local: gives the device and the precision.
        folder: of the model.
        split: `validation` or `test`.
        site: evaluate this site alone; None for all.

    Raises:
        ConfigurationError: it is the personal model of a site.
        StateError: the folder is damaged, does not fit the configuration, or the encoder is another one.
        DataError: images of a class that the model does not have.
    """
    source = Source.of_model(folder)
    data.use_classes(source.start.classes)
    data.need_only(*(("test",) if split == "test" else ()))
    if site is not None:
        data.use_sites([site])
    client = make_client(template, data, method, run_seed, local, None)
    server = source.server_for(client, [ELSEWHERE])
    after = {ELSEWHERE: 1}
    about = Merged(after, None, {}, [after]).about() | server.priors.about()
    number = int(source.start.about["round"])
    found = coordinator.evaluate(
        InProcess(client, coordinator.threads),
        method,
        start_maker(client.model),
        str(source.start.about["name"]),
        Snapshot(RunState.round_name(number), about, server.state_parts()),
        number,
        LAST,
        source.start.identity,
        split,
        run_seed,
        client.load_frozen,
    )
    found["protocol"] = {key: value for key, value in found["protocol"].items() if key not in OF_THE_TRAINING}
    return found
