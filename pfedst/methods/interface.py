"""The plugin interface: a federated method declares what it shares and trains; the framework enforces the rest.

A method overrides only what it changes; the base class is FedAvg. A method holds hyperparameters and nothing else.
State has three homes, all tensors, all saved by the framework: the server's state, a client's `memo`, and the client's
own parameters and buffers. A method has no epoch loop, no device code and no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pfedst.adapters import Adapter, SideNetwork
from pfedst.encoders import AnchorHead, AnchorKind, Encoder, Taps
from pfedst.errors import ConfigurationError
from pfedst.messages.payload import NET, Payload, State
from pfedst.methods.criteria import Criterion
from pfedst.methods.declarations import check_declarations
from pfedst.methods.merging import MergeRule, clipped_mean, trimmed_mean, weighted_mean
from pfedst.methods.partition import Partition, Rule

Weighting = Literal["samples", "uniform"]
NormStatistics = Literal["merged", "private"]
TRIM = 0.2
"""Share of clients that `trimmed_mean` leaves out at each end, if a configuration gives none."""
ServerState = dict[str, State]
"""Tensors that the server keeps between rounds, by name; `net` is the merged shared part of the model."""


class LocalModel(Protocol):
    """The model of one client, as a method sees it.

    Attributes:
        name: the client.
        adapter: the trainable module.
        twin: a second adapter that stays at the client; present after `attach_twin`.
        partition: the kind of every adapter tensor.
        memo: tensors that the method keeps at this client between rounds, by name; saved, never sent by themselves.
        received: the last message from the server; read only.
        round: the current round, from 1; 0 before the first.
        local_epoch: the epoch of the current local fit, from 0.
        finetuning: True in the local epochs after the last round.
        lr_factor: the factor of the schedule in this local fit. The rates of `optimizer` contain it. A method that
            takes steps of its own multiplies their rate by it.
        optimizer: the optimiser of the current local fit; None outside of a fit.
    """

    name: str
    adapter: Adapter
    twin: Adapter
    memo: dict[str, Any]
    received: Payload
    round: int
    local_epoch: int
    finetuning: bool
    lr_factor: float
    optimizer: Optimizer | None

    @property
    def partition(self) -> Partition:
        """The kind of every adapter tensor."""
        ...

    def criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the classification loss that the user chose, for logits (B, K) and class indices (B,)."""
        ...

    def attach_twin(self) -> None:
        """Add a second adapter, equal to the first: trained in the same fit, personal, never sent."""
        ...

    def shared_tensors(self) -> State:
        """Return the shared tensors themselves, detached, by their key in the adapter."""
        ...

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """Return the shared parameters themselves (no buffers), by their key in the adapter."""
        ...

    def load_shared(self, state: State) -> None:
        """Overwrite the shared tensors."""
        ...

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter that is trained here and never sent."""
        ...

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return a parameter by name."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Iterate over all modules of this client."""
        ...


@dataclass(frozen=True)
class Start:
    """The model that every client starts from, as far as the server may know it.

    Attributes:
        state: all shared tensors, by their key in the adapter.
        parameter_keys: the keys of `state` that are parameters; the others are buffers, which have no gradient.
        frozen: the frozen tensors of the adapter, the same at all clients; never the encoder's.
        trains: True if the method trains anything.
        adapter: class name of the adapter.
        anchors: where the class anchors come from; None for an adapter without class anchors.
        anchors_shape: (K, E).
        parameters_trained: number of values that a client trains in some epoch.
        parameters_sent: number of values of the shared part.
        loss: the loss of logits, by which the server knows the class prior of a merged model.
    """

    state: State
    parameter_keys: tuple[str, ...]
    frozen: State
    trains: bool
    adapter: str
    anchors: str | None
    anchors_shape: tuple[int, int]
    parameters_trained: int
    parameters_sent: int
    loss: Criterion


@dataclass(frozen=True)
class Batch:
    """One training batch: the taps of B images and their class indices (B,).

    `unlabelled` holds the taps of as many images without labels, for a method whose `unlabelled` names a split.
    """

    taps: Taps
    targets: Tensor
    unlabelled: Taps | None = None


def pull_towards(parameters: Mapping[str, nn.Parameter], anchor: Mapping[str, Tensor], strength: float) -> None:
    """Add strength * (parameter - anchor) to the gradients: the gradient of strength / 2 * ||parameter - anchor||^2."""
    for key, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor[key], alpha=strength)


class FederatedMethod:
    """Base of every method: federated averaging, and the hooks that another method overrides.

    A client is built once (`build`), the server once (`setup`). In a round the server sends (`broadcast`), a client
    loads the message (`receive`), trains (`trainable`, `loss`, `edit_gradients`) and replies (`upload`), and the server
    merges the replies (`merge`). Evaluation and deployment use `personal_model`.

    Attributes:
        source: paper, venue and year: where the method comes from.
        requires: the class of adapter that the method needs, other adapters are refused; None for any.
        requires_anchors: the class anchors that the method needs, others are refused; None for any.
        sequential: True for ring methods: in a round clients train one after the other, with a merge after each.
        pooled: True for the upper reference: one client trains on the images of all sites together.
        personalises: False declares that all clients predict with the server's model alone, so that it is evaluated
            once; a client whose model is another one is then refused. True, the default, is for clients that predict
            with models of their own, however they came to them: by personal tensors, a twin, messages of their own.
        has_generic: True if the server's `net`, with personal tensors at their start, is a model that a hospital can
            use that joins: the generic model. False where nothing is merged: tables show a dash.
        joins: True if a hospital that was not in a run can join it when it is finished: it trains the personal tensors
            of the method alone, or where there are none a copy of the merged model. False where nothing is trained or
            nothing is merged, or where all images must lie in one place: `pfedst join` is refused.
        extra_messages: names of the messages beside `net`. A name that is not declared here cannot leave a client. All
            clients of a round send the same keys and shapes under a name; a client that differs from most is left out.

    Args:
        weighting: weights of the clients in the average: all equal (`uniform`), or by the number of training images
            (`samples`: n_k / sum n, as in the FedAvg paper), which lets the largest site dominate.
        finetune_epochs: local epochs of each client after the last round, >= 0; nothing is sent after them.
        norm_statistics: running statistics of norm layers are `merged` like the layer they belong to, or kept
            `private`.
        merge_rule: how the messages of clients are merged. `mean` uses the clients' weights. Robust rules tolerate
            malicious clients: `median` and `trimmed_mean` of each number count all clients alike; `clipped_mean` limits
            the length of each client's change to the median over clients.
        trim: share of the clients that `trimmed_mean` leaves out at each end, in [0, 0.5].

    Raises:
        ConfigurationError: an option is out of range; or, where the class is defined, one of its names is no hook or
            declaration (see `check_declarations`).
    """

    source: ClassVar[str] = ""
    requires: ClassVar[type[Adapter] | None] = None
    requires_anchors: ClassVar[AnchorKind | None] = None
    sequential: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    personalises: ClassVar[bool] = True
    has_generic: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    extra_messages: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_declarations(cls, FederatedMethod)

    def __init__(
        self,
        weighting: Weighting = "uniform",
        finetune_epochs: int = 0,
        norm_statistics: NormStatistics = "merged",
        merge_rule: MergeRule = "mean",
        trim: float = TRIM,
    ) -> None:
        self.weighting = weighting
        self.finetune_epochs = finetune_epochs
        self.norm_statistics = norm_statistics
        self.merge_rule: MergeRule = merge_rule
        self.trim = trim
        self.require("finetune_epochs", finetune_epochs >= 0, "must be 0 or more")
        self.require("trim", 0 <= trim <= 0.5, "must be in [0, 0.5]")
        used = trim == TRIM or merge_rule == "trimmed_mean"
        self.require("trim", used, f"has no effect with merge_rule {merge_rule}; leave it out, or use trimmed_mean")
        alone = self.sequential or self.pooled
        self.require("merge_rule", merge_rule == "mean" or not alone, "it merges one message at a time; use mean")

    def require(self, option: str, holds: bool, demand: str) -> None:
        """Raise a ConfigurationError that names an option of this method, unless `holds`."""
        if not holds:
            raise ConfigurationError(f"--method.{option} {getattr(self, option)} of {type(self).__name__}: {demand}")

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return dict(vars(self))

    # -- declarations ------------------------------------------------------------------------------------------

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """Return the adapter for a configuration that names none.

        The default is the side network, so that methods differ in their sharing rule only.
        """
        return SideNetwork(encoder, head)

    def partition(self, client: LocalModel) -> Sequence[Rule]:
        """Return ordered rules that make every adapter tensor shared, personal or frozen (see `Partition`)."""
        return [("*", "shared")]

    def trainable(self, client: LocalModel, key: str, epoch: int) -> bool:
        """Return True if the parameter `key` is trained in local epoch `epoch` (from 0).

        Not called for frozen parameters. `client.finetuning` is True in the epochs after the last round.
        """
        return True

    def learning_rate_scale(self, key: str) -> float:
        """Return the factor on the optimiser's learning rate for the parameter `key`."""
        return 1.0

    @property
    def uses_criterion(self) -> bool:
        """False if `loss` has no term `client.criterion`; another `--model.loss` is then refused."""
        return True

    @property
    def has_own_prior(self) -> bool:
        """True if the personal model learns the class frequencies of its site alone, False if those of all sites.

        The correction for another class prior (`--model.prior`) divides by the frequencies that a model has learned.
        The default: those of the site alone if nothing is merged.
        """
        return not self.has_generic

    @property
    def fewest_local_epochs(self) -> int:
        """The smallest number of local epochs a round, for a method that trains its parts in turns."""
        return 1

    def unlabelled(self, client: LocalModel) -> tuple[str, Literal["train", "validation"]] | None:
        """Return the site and split whose images join each training batch without their labels; None for none."""
        return None

    # -- server ------------------------------------------------------------------------------------------------

    def setup(self, server: ServerState, start: Start, names: Sequence[str]) -> None:
        """Make the server's first state.

        Args:
            server: empty; filled in place.
            start: the model that all clients start from.
            names: of the clients that may take part in rounds.
        """
        server[NET] = {key: tensor.clone() for key, tensor in start.state.items()}

    def broadcast(self, server: ServerState, name: str) -> Payload:
        """Return the message to the client `name`."""
        return {NET: server[NET]}

    def merge(self, server: ServerState, uploads: Mapping[str, Payload], weights: Mapping[str, float]) -> None:
        """Merge the messages of the clients that reported, by client name, into the server's state."""
        server[NET] = self.average((upload[NET] for upload in uploads.values()), weights, server[NET])

    def average(self, states: Iterable[State], weights: Mapping[str, float], around: State | None = None) -> State:
        """Average the states that clients sent under one name, by `merge_rule`.

        Args:
            states: in the order of `weights`.
            weights: by client name.
            around: the state that the clients had received under that name; None if they send changes.
        """
        if self.merge_rule == "mean":
            return weighted_mean(states, list(weights.values()))
        if self.merge_rule == "clipped_mean":
            return clipped_mean(states, list(weights.values()), around)
        return trimmed_mean(states, 0.5 if self.merge_rule == "median" else self.trim)

    # -- client ------------------------------------------------------------------------------------------------

    def build(self, client: LocalModel) -> None:
        """Attach private modules and create entries of `client.memo`; called once, before anything is sent.

        The random generator is at the same seed for every client, so that all start alike.
        """

    def receive(self, client: LocalModel, payload: Payload) -> None:
        """Load the server's message, which stays readable as `client.received` until the next one.

        Only shared tensors may change: personal tensors and the memo change in a fit and in `upload` alone.
        """
        client.load_shared(payload[NET])

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Return the scalar that is minimised; the default is the criterion on the adapter's logits."""
        return client.criterion(client.adapter(batch.taps), batch.targets)

    def edit_gradients(self, client: LocalModel) -> None:
        """Change gradients after backward and unscaling, before clipping: proximal pulls, control variates.

        Called in fine-tuning as well (`client.finetuning`); `client.received` is then still the last message.
        """

    def upload(self, client: LocalModel) -> Payload:
        """Return the message to the server. It may hold the client's own tensors: the server gets copies."""
        return {NET: client.shared_tensors()}

    def personal_model(self, client: LocalModel) -> Adapter:
        """Return the client's personal model as an adapter that maps taps of B images to logits (B, K).

        Nothing that the client keeps may change. Where the personal model is not one of the client's own modules,
        return a new module. Evaluation, prediction and export use this model, without gradients.
        """
        return client.adapter
