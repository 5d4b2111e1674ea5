"""What a client says of itself before the first round, as far as all sites of a process have it in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pfedst.client.lightning_options import protocol_options
from pfedst.client.module import FederatedClient
from pfedst.client.optimizers import optimizer_options
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule


def describe_process(
    module: FederatedClient,
    data: FederatedDataModule,
    local: LocalTrainer,
    study: Mapping[str, Any],
    transductive_sites: Sequence[str],
) -> dict[str, Any]:
    """Return classes, options, hashes and the client's part of the protocol; hashing the encoder takes a while.

    Args:
        module: around the model.
        data: the images of the sites.
        local: runs the fits.
        study: the options of the study, as this client is configured.
        transductive_sites: held-out sites whose images the method trains on, without their labels.
    """
    encoder, most = module.encoder, local.batches
    return {
        "classes": list(data.class_names),
        "ordinal": data.ordinal,
        "study": dict(study),
        "fingerprint": data.fingerprint,
        "encoder_weights": encoder.compute_hash(),
        "protocol": {
            "encoder": encoder.label,
            "random_weights": encoder.random_weights,
            "data": data.label,
            **({"folds": data.fold_options} if data.fold_options else {}),
            "data_audit": data.report.summary() if data.report else None,
            "cache": "none" if data.store is None else f"{data.store.layout.kind}, {data.store.layout.dtype}",
            "local_epochs": local.epochs,
            "local_batches": "all" if most == 1.0 and isinstance(most, float) else most,
            "batch_size": data.batch_size,
            "evaluation_batch_size": data.evaluation_batch_size,
            "augmentation": data.augmentation_text,
            **({} if data.sampler == "shuffle" else {"sampler": data.sampler}),
            "transductive_sites": list(transductive_sites),
            "optimizer": optimizer_options(module.make_optimizer),
            "loss": str(module.loss) if module.method.uses_criterion else "of the method",
            "trainer": protocol_options(local.trainer),
            **({"prior": module.prior.label} if module.prior else {}),
        },
    }
