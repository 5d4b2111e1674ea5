"""Rebuilds the models of a run or of an exported folder: the plugin makes their structure, saved tensors fill it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from pfedst.adapters import Adapter
from pfedst.client.model import ClientModel, build_model
from pfedst.client.restore import FirstState
from pfedst.encoders import AnchorHead, Encoder
from pfedst.errors import ConfigurationError, WeightsError
from pfedst.inference.options import Options, instantiate
from pfedst.messages.payload import NET, State, check_tensors
from pfedst.methods.interface import FederatedMethod

PERSONAL: Final = "personal"
GENERIC: Final = "generic"
ANCHORS = "anchors"
"""The key of the class anchors (K, E) among the tensors of a model."""


@dataclass(frozen=True)
class Rebuilt:
    """The models of a run at the state in which every client begins.

    Attributes:
        encoder: the frozen encoder.
        model: of a client; tensors are loaded into it.
        generic: the model whose personal tensors stay at their start.
        method: the plugin.
        first: the state in which every client begins.
    """

    encoder: Encoder
    model: ClientModel
    generic: ClientModel
    method: FederatedMethod
    first: FirstState

    @classmethod
    def of(cls, options: Options, class_names: Sequence[str], run_seed: int = 0, text: Tensor | None = None) -> Rebuilt:
        """Build the models that options describe.

        Args:
            options: see `Options`.
            class_names: names of the K classes, in the order of the logits.
            run_seed: the seed of the run, for tensors that are not saved.
            text: class anchors (K, E) of kind `text`, which need no text tower then.

        Raises:
            PfedstError: encoder, adapter or method cannot be made.
        """
        try:
            section, method = instantiate(options)
        except WeightsError as error:
            raise WeightsError(f"{error} (here: --encoder_weights, or encoder_weights= in Python)") from error
        model = build_model(
            section.encoder,
            section.adapter,
            section.anchors,
            section.prompts,
            class_names,
            method,
            section.loss,
            run_seed,
            text,
        )
        # a method may build its personal model from the last message
        model.received = {NET: model.shared_state()}
        generic = copy.deepcopy(model)
        return cls(section.encoder, model, generic, method, FirstState.of(model))

    def adapter(self, which: str) -> Adapter:
        """Return the personal or the generic model as an adapter in evaluation mode.

        Raises:
            ConfigurationError: the method merges nothing, so that there is no generic model.
        """
        if which == GENERIC and not self.method.has_generic:
            raise ConfigurationError(
                f"method {type(self.method).__name__} merges nothing, so there is no generic model; name a site"
            )
        adapter = self.generic.adapter if which == GENERIC else self.method.personal_model(self.model)
        return adapter.eval().requires_grad_(False)


def tensors_of(adapter: Adapter) -> State:
    """Return all tensors of a model: those of the adapter, and its class anchors, which are in no state dict."""
    found = {key: tensor.detach().cpu() for key, tensor in adapter.state_dict().items()}
    for module in adapter.modules():
        if isinstance(module, AnchorHead) and module.kind != "learned":
            found[ANCHORS] = module.anchors.detach().cpu()
    return found


def load_tensors(adapter: Adapter, tensors: State, what: str) -> None:
    """Load what `tensors_of` returned into an adapter of the same structure.

    Raises:
        StateError: keys, shapes or dtypes differ, or a number is not finite.
    """
    check_tensors(tensors, tensors_of(adapter), what)
    for module in adapter.modules():
        if isinstance(module, AnchorHead) and ANCHORS in tensors:
            # the anchors before the rest: setting them resets a head that learns from them
            module.set_anchors(tensors[ANCHORS])
    adapter.load_state_dict({key: tensor for key, tensor in tensors.items() if key != ANCHORS}, strict=True)
