"""The model of one client: adapter, twin, memo, partition. An nn.Module, without Lightning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pfedst.adapters import Adapter, AdapterFactory
from pfedst.encoders import AnchorHead, AnchorKind, Encoder, Inputs, Taps, text_anchors
from pfedst.errors import ConfigurationError
from pfedst.messages.payload import Payload, State, check_tensors
from pfedst.methods.criteria import Criterion, CrossEntropy
from pfedst.methods.interface import FederatedMethod, Start
from pfedst.methods.partition import Partition, norm_statistics
from pfedst.seeds import derive_seed, seeded

ADAPTER = "adapter."
T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


def to_device(value: T, device: torch.device) -> T:
    """Move nested dicts and lists of tensors; anything else is returned unchanged."""
    if isinstance(value, Tensor):
        return value.to(device)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: to_device(part, device) for key, part in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [to_device(part, device) for part in value]  # type: ignore[return-value]
    return value


def moved(module: Module, device: torch.device) -> Module:
    """Move a module whose parameters are all in one place; five walks over it are spared if they are there already."""
    first = next(module.parameters(), None)
    return module if first is not None and first.device == device else module.to(device)


class ClientModel(nn.Module):
    """All tensors of one client. One instance serves many clients in turn: the state of a client is loaded into it.

    The frozen encoder is held by reference and outside the module tree, hence in no state dict and no message.

    Attributes:
        name: the client.
        encoder: the frozen encoder, one a process.
        adapter: the trainable module.
        twin: a second adapter that stays at the client, for a method that attaches one.
        class_names: names of the K classes.
        anchors: where the class anchors come from; None if the adapter has no class anchors.
        partition: the kind of every adapter tensor.
        learnable: keys of all parameters that are trained in some epoch.
        memo: tensors that a method keeps at this client between rounds, by name; saved, never sent by themselves.
        received: the last message from the server; never written in place.
        round: the current round, from 1; 0 before the first.
        local_epoch: the epoch of the current local fit, from 0.
        finetuning: True in the local epochs after the last round.
        joining: the local epoch, of the turns of the method, that a site repeats while it joins a finished run; only
            personal tensors are then trained. None otherwise.
        lr_factor: the factor of the schedule on all learning rates of a local fit.
        optimizer: the optimiser of the current local fit; None outside of a fit.
        loss: the loss of logits; `criterion` calls it.
        class_counts: number of training images of each class (K,), as the sampler shows them.
        optimizer_state: what the optimiser kept of the last fit, by the number of each learnable tensor; None if
            nothing is kept. Learning rates and the like come from the configuration.
    """

    adapter: Adapter
    twin: Adapter
    partition: Partition
    learnable: list[str]

    def __init__(
        self, encoder: Encoder, adapter: Adapter, anchors: AnchorKind | None, class_names: Sequence[str]
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.encoder = encoder
        self.adapter = adapter
        self.anchors = anchors
        self.name = ""
        self.memo: dict[str, Any] = {}
        self.received: Payload = {}
        self.round = 0
        self.local_epoch = 0
        self.finetuning = False
        self.joining: int | None = None
        self.lr_factor = 1.0
        self.loss: Criterion = CrossEntropy()
        self.class_counts = torch.zeros(len(self.class_names))
        self.optimizer: Optimizer | None = None
        self.optimizer_state: dict[int, dict[str, Any]] | None = None

    def criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss for logits (B, K) and class indices (B,), at this client's class counts."""
        return self.loss(logits, targets, self.class_counts)

    def attach_twin(self) -> None:
        """Add a second adapter, equal to the first: trained in the same fit, personal, never sent."""
        self.twin = copy.deepcopy(self.adapter)

    def set_anchors(self, anchors: Tensor) -> None:
        """Give every class head, a twin's included, the same class anchors (K, E)."""
        for module in self.modules():
            if isinstance(module, AnchorHead):
                module.set_anchors(anchors)

    def taps_of(self, inputs: Inputs) -> Taps:
        """Return what the adapter needs of the encoder for a batch of images, or of what a cache holds of them."""
        return self.encoder.taps_of(inputs, self.adapter.needs)

    # -- tensors by kind ---------------------------------------------------------------------------------------

    def kind(self, key: str) -> str:
        """Return the kind of a key of the state dict; everything outside the adapter is personal."""
        return self.partition.kinds[key.removeprefix(ADAPTER)] if key.startswith(ADAPTER) else "personal"

    @property
    def trained_keys(self) -> list[str]:
        """The keys of the parameters that a fit may change: while a site joins, the personal ones of `learnable`."""
        return [key for key in self.learnable if self.joining is None or self.kind(key) == "personal"]

    @property
    def has_personal_tensors(self) -> bool:
        """True if any tensor stays at the client."""
        return any(self.kind(key) == "personal" for key in self.own_keys())

    def shared_tensors(self) -> State:
        """Return the shared tensors themselves, detached, by their key in the adapter."""
        state = self.adapter.state_dict()
        return {key: state[key].detach() for key in self.partition.keys("shared")}

    def shared_state(self) -> State:
        """Return copies of the shared tensors, by their key in the adapter."""
        return {key: tensor.clone() for key, tensor in self.shared_tensors().items()}

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """Return the shared parameters themselves (no buffers), by their key in the adapter."""
        shared = set(self.partition.keys("shared"))
        return {key: parameter for key, parameter in self.adapter.named_parameters() if key in shared}

    def keep_shared_statistics(self) -> None:
        """Let norm layers with shared running statistics use these, and leave them as they are, until `train`."""
        shared = set(self.partition.keys("shared"))
        for name, layer in self.adapter.named_modules():
            if any(f"{name}.{key}" in shared for key, _ in layer.named_buffers(recurse=False)):
                layer.eval()

    def load_shared(self, state: State) -> None:
        """Overwrite the shared tensors.

        Raises:
            StateError: keys, shapes or dtypes differ from the declared shared tensors, or a number is not finite.
        """
        _overwrite(self.shared_tensors(), state, f"the shared state for client {self.name}")

    def frozen_state(self) -> State:
        """Return copies of the frozen tensors of the adapter (never the encoder's), by their key in the adapter."""
        state = self.adapter.state_dict()
        return {key: state[key].detach().clone() for key in self.partition.keys("frozen")}

    def own_keys(self) -> list[str]:
        """Return the keys of all tensors that are not frozen, private modules of the method included."""
        return list(self.own_tensors())

    def own_tensors(self) -> State:
        """Return the tensors under `own_keys` themselves, detached."""
        return {key: tensor.detach() for key, tensor in self.state_dict().items() if self.kind(key) != "frozen"}

    def own_state(self) -> State:
        """Return copies of the tensors under `own_keys`, on the CPU."""
        return {key: tensor.cpu().clone() for key, tensor in self.own_tensors().items()}

    def load_own_state(self, state: State) -> None:
        """Load what `own_state` returned.

        Raises:
            StateError: the state does not fit this model.
        """
        _overwrite(self.own_tensors(), state, f"the saved state of client {self.name}")

    # -- device ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU without parameters."""
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def move_to(self, device: torch.device | str) -> ClientModel:
        """Move modules, memo and received message to a device; the encoder stays where it is."""
        device = torch.device(device)
        self.received, self.memo = to_device(self.received, device), to_device(self.memo, device)
        return moved(self, device)

    # -- what the server may know ------------------------------------------------------------------------------

    def start(self) -> Start:
        """Describe this model as the start of a run: shared and frozen tensors, sizes and names."""
        parameters = dict(self.named_parameters())
        shared = self.shared_state()
        return Start(
            state=shared,
            parameter_keys=tuple(self.shared_parameters()),
            frozen=self.frozen_state(),
            trains=bool(self.learnable),
            adapter=type(self.adapter).__name__,
            anchors=self.anchors,
            anchors_shape=(len(self.class_names), self.encoder.spec.embedding),
            parameters_trained=sum(parameters[key].numel() for key in self.learnable),
            parameters_sent=sum(tensor.numel() for tensor in shared.values()),
            loss=self.loss,
        )


def _overwrite(own: State, state: State, what: str) -> None:
    """Write a state over tensors of a model.

    Raises:
        StateError: keys, shapes or dtypes differ, or a number is not finite; nothing is written.
    """
    check_tensors(state, own, what)
    for key, tensor in own.items():
        tensor.copy_(state[key])


def build_model(
    encoder: Encoder,
    make_adapter: AdapterFactory | None,
    anchors: AnchorKind,
    prompts: Sequence[str],
    class_names: Sequence[str],
    method: FederatedMethod,
    loss: Criterion,
    run_seed: int,
    text: Tensor | None = None,
) -> ClientModel:
    """Build the model that every client of a run starts from.

    Args:
        encoder: the frozen encoder.
        make_adapter: encoder and head -> adapter; None for the default adapter of the method.
        anchors: where the class anchors come from; prototypes are set later.
        prompts: templates for `text` anchors.
        class_names: names of the K classes.
        method: the plugin.
        loss: the loss of logits.
        run_seed: the seed of the run.
        text: class anchors (K, E) of kind `text` that are known already, so that no text tower is needed.

    Raises:
        ConfigurationError: the method does not run on this adapter or these anchors, has a loss of its own and another
            one is chosen, keeps tensors at clients though it declares that it does not personalise, shares nothing
            though it declares a generic model, or nothing would train learned anchors.
    """
    with seeded(derive_seed(run_seed, "initial weights")):
        head = AnchorHead(class_names, encoder.spec.embedding, encoder.logit_scale, anchors)
        adapter = (make_adapter or method.default_adapter)(encoder, head)
    has_head = any(module is head for module in adapter.modules())
    model = ClientModel(encoder, adapter, anchors if has_head else None, class_names)
    model.loss = loss
    _check_requirements(method, model)
    adapter.classify_in_float32()
    if model.anchors == "text":
        head.set_anchors(text_anchors(encoder, class_names, prompts) if text is None else text)
    with seeded(derive_seed(run_seed, "method weights")):
        method.build(model)
    model.partition = Partition(
        method.partition(model),
        model.adapter.state_dict(),
        f"method {type(method).__name__}",
        norm_statistics(model.adapter) if method.norm_statistics == "private" else (),
    )
    if model.has_personal_tensors and not method.personalises and method.norm_statistics == "merged":
        raise ConfigurationError(
            f"method {type(method).__name__} declares personalises = False, and keeps tensors at clients: declare "
            f"personalises = True in the class"
        )
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(model.kind(key) != "frozen" and parameter.requires_grad)
    model.learnable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    if model.learnable and method.has_generic and not model.partition.keys("shared"):
        raise ConfigurationError(
            f"method {type(method).__name__} shares no tensor, and declares has_generic = True: its generic model "
            f"would stay at the start; declare has_generic = False in the class, or share a part"
        )
    if model.anchors == "learned" and not model.learnable:
        raise ConfigurationError(
            f"method {type(method).__name__} trains nothing, so anchors: learned would stay random; use "
            f"--model.anchors text or prototypes"
        )
    if model.learnable and not method.uses_criterion and not loss.is_default:
        raise ConfigurationError(
            f"--model.loss {loss}: method {type(method).__name__} with these options has a loss of its own, which "
            f"would not change; leave --model.loss out"
        )
    return model


def _check_requirements(method: FederatedMethod, model: ClientModel) -> None:
    """Check that a method runs on the adapter and the class anchors of a model.

    Raises:
        ConfigurationError: naming what it runs on.
    """
    name, adapter, anchors = type(method).__name__, type(model.adapter).__name__, method.requires_anchors
    if not hasattr(method, "weighting"):
        raise ConfigurationError(f"method {name}: its __init__ must call super().__init__(**options)")
    if method.requires is not None and not isinstance(model.adapter, method.requires):
        raise ConfigurationError(
            f"method {name} runs on {method.requires.__name__}, not on {adapter}: leave --model.adapter out, or choose "
            f"{method.requires.__name__}"
        )
    if anchors is not None and model.anchors is None:
        raise ConfigurationError(f"method {name} runs on class anchors ({anchors}), and {adapter} has none")
    if anchors is not None and model.anchors != anchors:
        raise ConfigurationError(
            f"method {name} runs on the class anchors {anchors}, not on {model.anchors}: set --model.anchors {anchors} "
            f"or choose another --method (ZeroShot is of text, Prototypes of prototypes)"
        )
