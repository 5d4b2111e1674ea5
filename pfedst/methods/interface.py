"""The one plugin interface: what a federated method declares; everything else is enforced by the framework.

A method overrides only what it changes; as it stands the base class is FedAvg. It holds hyperparameters and nothing
else. State has three homes, all tensors, all saved by the coordinator: the server's state, a client's `memo`, and the
client's own parameters and buffers. There is no epoch loop, no device code and no I/O in a method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.adapters import Adapter, SideNetwork
from pfedst.encoders import AnchorHead, Encoder, Taps
from pfedst.errors import ConfigurationError
from pfedst.messages.payload import NET, Payload, State
from pfedst.methods.merging import MergeRule, clipped_mean, trimmed_mean, weighted_mean
from pfedst.methods.partition import Rule

if TYPE_CHECKING:
    from pfedst.client.module import FederatedClient

Weighting = Literal["samples", "uniform"]
NormStatistics = Literal["merged", "private"]
ServerState = dict[str, State]
"""What the server keeps between rounds, by name; `net` is the merged shared part of the model."""


@dataclass(frozen=True)
class Batch:
    """What a loss sees: what the encoder handed out for B images, and their class indices (B,).

    `unlabelled` holds as much for images without labels, for a method that asks for them (`unlabelled`).
    """

    taps: Taps
    targets: Tensor
    unlabelled: Taps | None = None


def pull_towards(parameters: Mapping[str, nn.Parameter], anchor: Mapping[str, Tensor], strength: float) -> None:
    """Add strength * (parameter - anchor) to the gradients: that of strength / 2 * squared distance to the anchor."""
    for key, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor[key], alpha=strength)


class FederatedMethod:
    """Federated averaging, and the hooks by which another method differs from it.

    A client is built once (`build`), the server once (`setup`). In a round the server sends (`broadcast`), a client
    takes (`receive`), fits (`trainable`, `loss`, `edit_gradients`) and answers (`upload`), and the server joins the
    answers (`merge`). `predict` is used for evaluation and deployment.

    Attributes:
        source: paper, venue and year: where the method comes from.
        requires: the class of adapter without which the method cannot run, if there is one; another is refused.
        sequential: True for ring methods: a round takes the clients one after the other, merging after each.
        pooled: True for the upper reference: one client trains on the images of all sites together.
        extra_messages: names of what travels beside `net`; a name that is not declared here cannot leave a client.
            All clients of a round send the same keys and shapes under them; who differs from most is left out.

    Args:
        weighting: how clients count when the server averages: by training `samples` (n_k / sum n), or `uniform`.
        finetune_epochs: local epochs of each client after the last round, >= 0; nothing is sent after them.
        norm_statistics: running statistics of norm layers are `merged` as what they are part of, or kept `private`.
        merge_rule: how what clients sent becomes one: `mean` with their weights, or a rule that holds where some
            clients are hostile: `median` or `trimmed_mean` of each number, in which all clients count alike, or
            `clipped_mean`, in which no client's change is longer than the median over clients.
        trim: of `trimmed_mean`: share of the clients that is left out at each end, in [0, 0.5].

    Raises:
        ConfigurationError: an option out of its range.
    """

    source: ClassVar[str] = ""
    requires: ClassVar[type[Adapter] | None] = None
    sequential: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    extra_messages: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        weighting: Weighting = "samples",
        finetune_epochs: int = 0,
        norm_statistics: NormStatistics = "merged",
        merge_rule: MergeRule = "mean",
        trim: float = 0.2,
    ) -> None:
        self.weighting = weighting
        self.finetune_epochs = finetune_epochs
        self.norm_statistics = norm_statistics
        self.merge_rule: MergeRule = merge_rule
        self.trim = trim
        self.require("finetune_epochs", finetune_epochs >= 0, "must be 0 or more")
        self.require("trim", 0 <= trim <= 0.5, "must be in [0, 0.5]")
        alone = self.sequential or self.pooled
        self.require("merge_rule", merge_rule == "mean" or not alone, "it merges one message at a time; use mean")

    def require(self, option: str, holds: bool, demand: str) -> None:
        """Raise a ConfigurationError that names the option of this method, unless its demand holds."""
        if not holds:
            raise ConfigurationError(f"--method.{option} {getattr(self, option)} of {type(self).__name__}: {demand}")

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters, for the protocol."""
        return dict(vars(self))

    # -- declarations ------------------------------------------------------------------------------------------

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """The adapter where a configuration names none: the side network, so that only the sharing rule differs."""
        return SideNetwork(encoder, head)

    def partition(self, client: FederatedClient) -> Sequence[Rule]:
        """Ordered rules that make every adapter tensor shared, personal or frozen (see `Partition`)."""
        return [("*", "shared")]

    def trainable(self, client: FederatedClient, key: str, epoch: int) -> bool:
        """Whether the parameter `key` is trained in local epoch `epoch` (from 0); never asked for frozen ones.

        `client.finetuning` tells the epochs after the last round.
        """
        return True

    def learning_rate_scale(self, key: str) -> float:
        """Factor on the optimiser's learning rate for the parameter `key`."""
        return 1.0

    @property
    def fewest_local_epochs(self) -> int:
        """Local epochs a round that the method needs at least, where it trains parts in turns; fewer are refused."""
        return 1

    def unlabelled(self, client: FederatedClient) -> tuple[str, Literal["train", "validation"]] | None:
        """Site and split whose images, without labels, join each training batch; None for none."""
        return None

    # -- server ------------------------------------------------------------------------------------------------

    def setup(self, server: ServerState, clients: Mapping[str, FederatedClient]) -> None:
        """Give the server its first state; all clients start from the same tensors."""
        server[NET] = next(iter(clients.values())).shared_state()

    def broadcast(self, server: ServerState, client: FederatedClient) -> Payload:
        """The message to one client."""
        return {NET: server[NET]}

    def merge(self, server: ServerState, uploads: Mapping[str, Payload], weights: Mapping[str, float]) -> None:
        """Join the messages of the clients that reported, by client name, into the server's state.

        A message is copied each time it is taken from `uploads`: go through them once, and all clients' messages are
        never in memory together.
        """
        server[NET] = self.average((upload[NET] for upload in uploads.values()), weights, server[NET])

    def average(self, states: Iterable[State], weights: Mapping[str, float], around: State | None = None) -> State:
        """One state of those that clients sent under one name, as `merge_rule` says.

        Args:
            states: in the order of `weights`.
            weights: by client name.
            around: what the clients had been sent under that name; None where they send changes.
        """
        if self.merge_rule == "mean":
            return weighted_mean(states, list(weights.values()))
        if self.merge_rule == "clipped_mean":
            return clipped_mean(states, list(weights.values()), around)
        return trimmed_mean(states, 0.5 if self.merge_rule == "median" else self.trim)

    # -- client ------------------------------------------------------------------------------------------------

    def build(self, client: FederatedClient) -> None:
        """Once, before anything is sent: attach private modules, create entries of `client.memo`.

        Runs with the random generator at the same seed for every client, so that all start alike.
        """

    def receive(self, client: FederatedClient, payload: Payload) -> None:
        """Take the server's message; it stays readable as `client.received` until the next one."""
        client.load_shared(payload[NET])

    def loss(self, client: FederatedClient, batch: Batch) -> Tensor:
        """The scalar that is minimised; by default the cross-entropy of the adapter's logits."""
        return F.cross_entropy(client.adapter(batch.taps), batch.targets)

    def edit_gradients(self, client: FederatedClient) -> None:
        """Change gradients after backward and unscaling, before clipping: proximal pulls, control variates.

        Called in fine-tuning too (`client.finetuning`), when what was received last still stands.
        """

    def upload(self, client: FederatedClient) -> Payload:
        """The message to the server. It may hold the client's own tensors: what the server gets is a copy."""
        return {NET: client.shared_tensors()}

    def predict(self, client: FederatedClient, taps: Taps) -> Tensor:
        """Logits (B, K) of the client's personal model."""
        logits: Tensor = client.adapter(taps)
        return logits
