"""FACMIC: attention adapter with alignment of feature distributions."""

from typing import Any, Literal

from torch import Tensor

from pfedst.adapters import Adapter, AttentionAdapter
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import Batch, LocalModel
from pfedst.methods.losses import local_maximum_mean_discrepancy
from pfedst.names import plain_name
from pfedst_baselines.fedclip import FedCLIP


class FACMIC(FedCLIP):
    """FedCLIP with a normalised adapter whose features are aligned, class by class, with those of a target.

    Why: the comparison made for medical images: features of sites should not tell the sites apart.
    Method: FedCLIP's loss + weight * LMMD(f'_source, f'_target) with soft labels of the target.
    When to use: where unlabelled images of a target may be seen in training; that is said in the protocol.
    Differs from the paper in: target features pass the adapter too (its code leaves them raw). There, the target is a
        site that trains nowhere, whose images every client has: that is `held_out_site`, which moves images.

    Args:
        target: images aligned to: `none`, the site's own validation images without their labels (`own_unlabelled`),
            or the training images of `target_site`, a site that is held out (`held_out_site`).
        target_site: a site named in --coordinator.held_out_sites.
        alignment: weight of the LMMD, >= 0.
        options: see FedCLIP and FederatedMethod; the paper's weighting is by training batches, hence `samples`.
    """

    source = "Wu et al., FACMIC: Federated Adaptative CLIP Model for Medical Image Classification, MICCAI 2024"
    requires = AttentionAdapter

    def __init__(
        self,
        target: Literal["none", "own_unlabelled", "held_out_site"] = "none",
        target_site: str | None = None,
        alignment: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.target, self.alignment = target, alignment
        self.target_site = None if target_site is None else plain_name(target_site)
        self.require("alignment", alignment >= 0, "must be 0 or more")
        self.require("target_site", (target_site is not None) == (target == "held_out_site"), f"target is {target}")

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """Attention with BatchNorm and LeakyReLU."""
        return AttentionAdapter(encoder, head, batch_norm=True)

    def unlabelled(self, client: LocalModel) -> tuple[str, Literal["train", "validation"]] | None:
        """Images to align to; never of the test split."""
        if self.target_site is not None:
            return self.target_site, "train"
        return (client.name, "validation") if self.target == "own_unlabelled" else None

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Classification, and alignment where there is a target."""
        adapter = client.adapter
        source = adapter.embed(batch.taps)
        loss = self.objective_of(client, source, batch.targets)
        if batch.unlabelled is None:
            return loss
        target = adapter.embed(batch.unlabelled)
        soft_labels = adapter.head(target).detach().softmax(-1)
        return loss + self.alignment * local_maximum_mean_discrepancy(source, batch.targets, target, soft_labels)
