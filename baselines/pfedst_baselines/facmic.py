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
    """FedCLIP with batch norm in the adapter, whose features are aligned class by class with those of target images.

    Why: it was made for medical images: the features of an image should not depend on its site.
    Method: FedCLIP's loss + weight * LMMD(f'_source, f'_target) with soft labels of the target.
    When to use: unlabelled images of the target may be used in training. The protocol of the run reports this use.
    Differs from the paper in: target features pass the adapter too (the paper's code does not adapt them). In the paper
        the target is a site that does not train and whose images every client has. That is `held_out_site`, for which
        images leave their site.

    Args:
        target: images aligned to: `none`, the site's own validation images without their labels (`own_unlabelled`),
            or the training images of `target_site`, a site that is held out (`held_out_site`).
        target_site: a site named in --coordinator.held_out_sites.
        alignment: weight of the LMMD, >= 0.
        options: see FedCLIP and FederatedMethod. The paper weighs clients by training batches: `weighting` `samples`.
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
