"""One client: the frozen encoder, its own adapter, the method's hooks around them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pfedst.adapters import Adapter, AdapterFactory
from pfedst.client.optimizers import grouped_optimizer
from pfedst.encoders import AnchorHead, AnchorKind, Encoder, Inputs, Taps, text_anchors
from pfedst.errors import ConfigurationError, NotFiniteError
from pfedst.messages.payload import Payload, State, check_finite, check_tensors
from pfedst.methods.interface import Batch, FederatedMethod
from pfedst.methods.partition import Partition, norm_keys, norm_statistics
from pfedst.seeds import derive_seed, seeded

ADAPTER = "adapter."
STATELESS = ("method", "make_adapter", "make_optimizer", "_trainer", "_fabric")
T = TypeVar("T")


def default_optimizer(params: Any) -> Optimizer:
    """AdamW at 1e-3: what the side network trains with unless a configuration says otherwise."""
    return AdamW(params, lr=1e-3, weight_decay=0.01)


def to_device(value: T, device: torch.device) -> T:
    """Nested dicts and lists of tensors, moved; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: to_device(part, device) for key, part in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [to_device(part, device) for part in value]  # type: ignore[return-value]
    return value


class FederatedClient(LightningModule):
    """A client's model as Lightning trains it. What `model:` in a configuration describes is its template.

    Every client has modules of its own; only the frozen encoder is shared, by reference and outside the module
    tree, hence in no state dict and no message.

    Attributes:
        name: the site.
        adapter: the trainable module.
        method: the plugin.
        partition: the kind of every adapter tensor.
        learnable: keys of all parameters that are trained in some epoch.
        memo: tensors by name that a method keeps on this client between rounds; saved, never sent by itself.
        received: the server's last message, as it came; never written in place.
        derived: what is computed from weights (text features, merged LoRA); cleared whenever they change.
        round: the current round, from 1; 0 before the first.
        finetuning: True in the local epochs after the last round.
        optimizer_state: of each learnable tensor, by its number, what the optimiser kept of the last fit, where the
            coordinator keeps it; its learning rates and the like are those of the configuration.
        twin: a second adapter that stays at home, for a method that attaches one.
        unlabelled: endless batches of images without labels during a fit, for a method that asks for them.
        skipped_steps: of the last fit, those that were left out because a loss or a gradient was not finite.
        images_seen: of the last fit, over all its epochs.

    Args:
        encoder: the frozen encoder.
        adapter: the adapter's class and options; with null, the method's own choice.
        anchors: where the class anchors come from: `text` prompts, `prototypes` (class means of frozen embeddings,
            merged over clients by class counts), or `learned`. Not used where the adapter is a `WholeModel`.
        prompts: templates with a {} for the class name, averaged; used by `text` only.
        optimizer: class and options of the optimiser of a local fit. Norms and biases get no weight decay.
        non_finite: what a fit does at a loss or a gradient that is NaN or infinite: `stop` (the client is left out of
            the round), or `skip` that step and count it. With 16-mixed precision such gradients are the scaler's: it
            skips the step and goes on with a smaller scale.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapter: AdapterFactory | None = None,
        anchors: AnchorKind = "text",
        prompts: Sequence[str] = ("a photo of a {}",),
        optimizer: OptimizerCallable = default_optimizer,
        non_finite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.make_adapter = adapter
        self.anchors: AnchorKind | None = anchors
        self.prompts = tuple(prompts)
        self.make_optimizer = optimizer
        self.adapter: Adapter
        self.method: FederatedMethod
        self.partition: Partition
        self.learnable: list[str]
        self.name = ""
        self.memo: dict[str, Any] = {}
        self.received: Payload = {}
        self.derived: dict[str, Any] = {}
        self.round = 0
        self.finetuning = False
        self.optimizer_state: dict[int, dict[str, Any]] | None = None
        self.twin: Adapter
        self.unlabelled: Iterator[Inputs] | None = None
        self.non_finite = non_finite
        self.skipped_steps = 0
        self.images_seen = 0
        self._losses: list[Tensor] = []

    # -- building ----------------------------------------------------------------------------------------------

    def with_classes(self, class_names: Sequence[str], method: FederatedMethod, run_seed: int) -> FederatedClient:
        """A client for these classes and this method, at the run's initial weights; copy it once a site."""
        client = copy.deepcopy(self)
        with seeded(derive_seed(run_seed, "initial weights")):
            head = AnchorHead(
                class_names, self.encoder.spec.embedding, self.encoder.logit_scale, self.anchors or "text"
            )
            client.adapter = (self.make_adapter or method.default_adapter)(self.encoder, head)
        if method.requires is not None and not isinstance(client.adapter, method.requires):
            raise ConfigurationError(
                f"method {type(method).__name__} runs on {method.requires.__name__}, not on "
                f"{type(client.adapter).__name__}: leave --model.adapter out, or choose {method.requires.__name__}"
            )
        if not any(module is head for module in client.adapter.modules()):
            client.anchors = None
        elif self.anchors == "text":
            head.set_anchors(text_anchors(self.encoder, class_names, self.prompts))
        client.method = method
        with seeded(derive_seed(run_seed, "method weights")):
            method.build(client)
        client.partition = Partition(
            method.partition(client),
            client.adapter.state_dict(),
            f"method {type(method).__name__}",
            norm_statistics(client.adapter) if method.norm_statistics == "private" else (),
        )
        for key, parameter in client.named_parameters():
            parameter.requires_grad_(client.kind(key) != "frozen" and parameter.requires_grad)
        client.learnable = [key for key, parameter in client.named_parameters() if parameter.requires_grad]
        return client

    def copy_as(self, name: str) -> FederatedClient:
        """A client of its own with the same tensors."""
        client = copy.deepcopy(self)
        client.name = name
        return client

    def attach_twin(self) -> None:
        """Give this client a second adapter, equal to the first: trained in the same fit, personal, never sent."""
        self.twin = copy.deepcopy(self.adapter)

    def set_anchors(self, anchors: Tensor) -> None:
        """Give every class head of this client, a twin's included, the same class anchors (K, E)."""
        for module in self.modules():
            if isinstance(module, AnchorHead):
                module.set_anchors(anchors)

    def __deepcopy__(self, memo: dict[int, Any]) -> FederatedClient:
        """Copy modules and state; what holds none stays one object, as does the encoder.

        A factory from a configuration holds on to all that was made with it, the images included.
        """
        new: FederatedClient = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        for key, value in self.__dict__.items():
            new.__dict__[key] = value if key in STATELESS else copy.deepcopy(value, memo)
        return new

    # -- state -------------------------------------------------------------------------------------------------

    def kind(self, key: str) -> str:
        """Kind of a key of the client's own state dict: what lies outside the adapter is personal."""
        return self.partition.kinds[key.removeprefix(ADAPTER)] if key.startswith(ADAPTER) else "personal"

    def shared_tensors(self) -> State:
        """The shared tensors themselves, detached, by their key in the adapter."""
        state = self.adapter.state_dict()
        return {key: state[key].detach() for key in self.partition.keys("shared")}

    def shared_state(self) -> State:
        """Copies of the shared tensors, by their key in the adapter."""
        return {key: tensor.clone() for key, tensor in self.shared_tensors().items()}

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """The shared parameters themselves (no buffers), by their key in the adapter."""
        shared = set(self.partition.keys("shared"))
        return {key: parameter for key, parameter in self.adapter.named_parameters() if key in shared}

    def load_shared(self, state: State) -> None:
        """Overwrite the shared tensors.

        Raises:
            StateError: keys, shapes or dtypes differ from what is declared shared, or a number is not finite.
        """
        own = self.shared_tensors()
        check_tensors(state, own, f"the shared state for client {self.name}")
        for key, tensor in own.items():
            tensor.copy_(state[key])

    def own_keys(self) -> list[str]:
        """Keys of all that is not frozen, private modules of the method included."""
        return [key for key in self.state_dict() if self.kind(key) != "frozen"]

    def own_tensors(self) -> State:
        """The tensors under `own_keys` themselves, detached."""
        state = self.state_dict()
        return {key: state[key].detach() for key in self.own_keys()}

    def own_state(self) -> State:
        """Copies of the tensors under `own_keys`: what a checkpoint needs."""
        return {key: tensor.cpu().clone() for key, tensor in self.own_tensors().items()}

    def load_own_state(self, state: State) -> None:
        """Put back what `own_state` gave.

        Raises:
            StateError: it does not fit this client's model.
        """
        check_tensors(state, self.own_tensors(), f"the saved state of client {self.name}")
        self.load_state_dict(state, strict=False)

    # -- local fit (Lightning) ---------------------------------------------------------------------------------

    @property
    def local_epoch(self) -> int:
        """Epoch of the current local fit, from 0."""
        return int(self.current_epoch)

    def taps_of(self, inputs: Inputs) -> Taps:
        """What this client's adapter needs of the encoder for a batch of images, or of what a cache kept of them."""
        return self.encoder.taps_of(inputs, self.adapter.needs)

    def training_step(self, batch: tuple[Inputs, Tensor], batch_idx: int) -> Tensor:
        """One batch of (images or cached taps, targets) -> the method's loss."""
        inputs, targets = batch
        other = None if self.unlabelled is None else self.taps_of(next(self.unlabelled).to(targets.device))
        loss = self.method.loss(self, Batch(self.taps_of(inputs), targets, other))
        self._losses.append(loss.detach())
        self.images_seen += len(targets)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """One optimiser over groups of (learning-rate scale, weight decay or none)."""
        parameters = dict(self.named_parameters())
        return grouped_optimizer(
            self.make_optimizer,
            {key: parameters[key] for key in self.learnable},
            norm_keys(self),
            lambda key: self.method.learning_rate_scale(key.removeprefix(ADAPTER)),
            self.optimizer_state,
            scaled=self.scaler is not None,
        )

    @property
    def scaler(self) -> Any:
        """What scales the loss, with 16-mixed precision; None otherwise."""
        return None if self._trainer is None else getattr(self.trainer.precision_plugin, "scaler", None)

    def to(self, *target: Any, **options: Any) -> FederatedClient:
        """Move or cast. Where it is there already, the five walks over all modules of a fit are spared."""
        first = next(self.parameters(), None)
        there = first is not None and not options and target == (self.device,) == (first.device,)
        moved: FederatedClient = self if there else super().to(*target, **options)
        return moved

    def cpu(self) -> FederatedClient:
        """Move to the CPU."""
        return self.to(torch.device("cpu"))

    def move_to(self, device: torch.device | str) -> FederatedClient:
        """Bring modules, memo and what was received to a device; the encoder stays where it is."""
        device = torch.device(device)
        self.received, self.memo = to_device(self.received, device), to_device(self.memo, device)
        return self.to(device)

    def on_fit_start(self) -> None:
        """Bring what is not a module to the module's device."""
        self.encoder.to(self.device)
        self.move_to(self.device)
        self._losses = []
        self.skipped_steps = self.images_seen = 0

    def on_train_epoch_start(self) -> None:
        """Set the mask of this epoch's trainable parameters."""
        parameters = dict(self.named_parameters())
        for key in self.learnable:
            trains = self.method.trainable(self, key.removeprefix(ADAPTER), self.local_epoch)
            parameters[key].requires_grad_(trains)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the method edit gradients: unscaled, not yet clipped.

        Raises:
            NotFiniteError: the loss is not finite, and `non_finite` is `stop`.
        """
        # to look at all gradients costs a twentieth of a short step: where none is skipped, NaN in them is found in the
        # next loss or in the weights, and the client is put back in any case
        skips = self.non_finite == "skip" or self.scaler is not None
        if skips and not self._gradients_are_finite():
            self.skipped_steps += 1
            # an optimiser leaves alone what has no gradient, and a method may not sum up what is none
            self.zero_grad(set_to_none=True)
            return
        if not skips and not self._losses[-1].isfinite():
            raise self._not_finite("the loss is NaN or infinite")
        self.method.edit_gradients(self)

    def _gradients_are_finite(self) -> bool:
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        return bool((torch.nn.utils.get_total_norm(gradients) + self._losses[-1]).isfinite())

    def _not_finite(self, what: str) -> NotFiniteError:
        return NotFiniteError(
            f"client {self.name}, round {self.round}: {what}; lower the learning rate (--model.optimizer.lr), clip "
            f"gradients (--trainer.gradient_clip_val 1), check the images of this site, or leave such steps out "
            f"(--model.non_finite skip)"
        )

    def on_train_end(self) -> None:
        """Lift the epoch's mask, and forget the gradients and what was derived from the old weights."""
        parameters = dict(self.named_parameters())
        for key in self.learnable:
            parameters[key].requires_grad_(True)
        self.zero_grad()
        self.derived.clear()

    def check_trained(self) -> None:
        """Raise a NotFiniteError, unless all that the last fit may have changed is finite."""
        try:
            check_finite(self.own_tensors(), "what was trained")
        except NotFiniteError as error:
            raise self._not_finite(str(error)) from None

    def trained_loss(self) -> float:
        """Mean loss over the steps of the last fit, but for those that were skipped for theirs.

        Raises:
            NotFiniteError: no step had a finite loss.
        """
        if not self._losses:
            return 0.0
        losses = torch.stack(self._losses).float()
        finite = losses[losses.isfinite()]
        if not len(finite):
            raise self._not_finite("no step had a finite loss")
        return float(finite.mean())


def require_trainable_anchors(client: FederatedClient) -> None:
    """Refuse `learned` anchors that nobody trains: their random start predicts nothing."""
    if client.anchors == "learned" and not client.learnable:
        raise ConfigurationError(
            f"method {type(client.method).__name__} trains nothing, so anchors: learned would stay random; use "
            f"--model.anchors text or prototypes"
        )
