"""The LightningModule of encoder and side network, which trains the model of one client at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW, Optimizer

from pfedst.adapters import AdapterFactory
from pfedst.client.model import ADAPTER, ClientModel, build_model
from pfedst.client.optimizers import grouped_optimizer
from pfedst.client.priors import check_corrigible
from pfedst.encoders import AnchorKind, Encoder, Inputs
from pfedst.errors import ConfigurationError, NotFiniteError
from pfedst.messages.payload import check_finite
from pfedst.methods.criteria import DEFAULT_LOSS, Criterion, CrossEntropy
from pfedst.methods.interface import Batch, FederatedMethod
from pfedst.methods.partition import norm_keys
from pfedst.methods.priors import TRAINING, TargetPrior


def default_optimizer(params: Any) -> Optimizer:
    """Return AdamW with learning rate 3e-4, the default for training a side network."""
    return AdamW(params, lr=3e-4, weight_decay=0.01)


class FederatedClient(LightningModule):
    """The model of a client as Lightning trains it. The section `model:` of a configuration describes it.

    A configuration says nothing of classes; `build` makes the model once they are known. The module then serves all
    clients of a process in turn.

    Attributes:
        model: the tensors of the client that is being trained or evaluated.
        method: the plugin.
        unlabelled: endless batches of images without labels during a fit, for a method that asks for them.
        skipped_steps: number of steps of the last fit that were skipped because a loss or gradient was not finite.
        images_seen: number of images of the last fit, over all its epochs.

    Args:
        encoder: the frozen encoder.
        adapter: class and options of the adapter; with null, the choice of the method.
        anchors: where the class anchors come from: `text` prompts, `prototypes` (class means of frozen embeddings,
            merged over clients by class counts), or `learned`. Not used if the adapter is a `WholeModel`.
        prompts: templates with {} for the class name; their embeddings are averaged. Used only by `text` anchors.
        optimizer: class and options of the optimiser of a local fit. Norms and biases get no weight decay.
        loss: class and options of the loss over classes, which every classification term of a method uses:
            `BalancedSoftmax`, `CrossEntropy`, `ClassWeighted` or `Focal`; with null, `CrossEntropy`.
        prior: the class frequencies that predictions are for: `training` (unchanged logits), `balanced` (all classes
            equally frequent), `site` (those of the training split of each site), or a JSON or CSV file of class name
            and frequency. Metrics and model selection are at this prior; training is not changed.
        non_finite: what a fit does if a loss or a gradient is NaN or infinite: `stop` (the client is excluded from
            the round), or `skip` the step and count it. With 16-mixed precision the gradient scaler handles such
            gradients: it skips the step and continues with a smaller scale.
    """

    model: ClientModel
    method: FederatedMethod

    def __init__(
        self,
        encoder: Encoder,
        adapter: AdapterFactory | None = None,
        anchors: AnchorKind = "text",
        prompts: Sequence[str] = ("a photo of a {}",),
        optimizer: OptimizerCallable = default_optimizer,
        loss: Criterion | None = DEFAULT_LOSS,
        prior: str = TRAINING,
        non_finite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.make_adapter = adapter
        self.anchors: AnchorKind = anchors
        self.prompts = tuple(prompts)
        self.make_optimizer = optimizer
        self.loss: Criterion = loss or CrossEntropy()
        self.prior = TargetPrior(prior)
        self.non_finite = non_finite
        self.unlabelled: Iterator[Inputs] | None = None
        self.skipped_steps = 0
        self.images_seen = 0
        self._losses: list[Tensor] = []

    def build(self, class_names: Sequence[str], method: FederatedMethod, run_seed: int) -> FederatedClient:
        """Return a module for these classes and this method, at the initial weights of the run.

        The module that a configuration describes stays as it is, so that it can serve several runs.

        Raises:
            ConfigurationError: the method does not run on this adapter, or its predictions cannot be for `prior`.
        """
        prior = self.prior.of_classes(class_names)
        model = build_model(
            self.encoder, self.make_adapter, self.anchors, self.prompts, class_names, method, self.loss, run_seed
        )
        if prior and model.learnable:
            check_corrigible(self.loss, method, len(class_names))
        built = self.around(model, method)
        built.prior = prior
        return built

    def around(self, model: ClientModel, method: FederatedMethod) -> FederatedClient:
        """Return a module with the options of this one around another model."""
        built = copy.copy(self)
        for table in ("_parameters", "_buffers", "_modules"):
            built.__dict__[table] = dict(self.__dict__[table])
        built.make_adapter = None  # a factory of a configuration refers to everything that was made with it
        built.model, built.method = model, method
        return built

    # -- local fit (Lightning) ---------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Inputs, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the method for one batch of (images or cached taps, targets).

        Raises:
            ConfigurationError: the method returns no scalar, or one that depends on nothing that is trained.
        """
        inputs, targets = batch
        model = self.model
        other = None if self.unlabelled is None else model.taps_of(next(self.unlabelled).to(targets.device))
        loss = self.method.loss(model, Batch(model.taps_of(inputs), targets, other))
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            raise self._no_loss(loss)
        self._losses.append(loss.detach())
        self.images_seen += len(targets)
        return loss if (scale := self._accumulation_scale(batch_idx)) == 1 else loss * scale

    def _no_loss(self, found: Any) -> ConfigurationError:
        is_scalar = isinstance(found, Tensor) and not found.ndim
        kind = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        problem = "no parameter that is trained changes what it returns" if is_scalar else f"it returns {kind}"
        return ConfigurationError(
            f"method {type(self.method).__name__}: loss must return a scalar with a gradient, and {problem}"
        )

    def _accumulation_scale(self, batch_idx: int) -> float:
        """Return the factor that makes a step the mean over its batches, also the last one, which may have fewer.

        Lightning divides every loss by the batches of a whole step, so that a site with few batches would take shorter
        steps than others.
        """
        if self._trainer is None or (batches := self.trainer.accumulate_grad_batches) == 1:
            return 1.0
        first = batch_idx - batch_idx % batches
        return float(batches / min(batches, self.trainer.num_training_batches - first))

    def configure_optimizers(self) -> Optimizer:
        """Make one optimiser over groups of (learning-rate scale, weight decay or none)."""
        model = self.model
        parameters = dict(model.named_parameters())
        model.optimizer = grouped_optimizer(
            self.make_optimizer,
            {key: parameters[key] for key in model.trained_keys},
            norm_keys(model),
            lambda key: self.method.learning_rate_scale(key.removeprefix(ADAPTER)),
            model.lr_factor,
            model.optimizer_state,
            scaled=self.scaler is not None,
        )
        return model.optimizer

    def check_optimizer(self) -> None:
        """Make an optimiser and drop it.

        Raises:
            ConfigurationError: its options are out of range, or it cannot work here.
        """
        if self.model.learnable:
            self.configure_optimizers()
            self.reset()

    @property
    def scaler(self) -> Any:
        """The gradient scaler of 16-mixed precision; None otherwise."""
        return None if self._trainer is None else getattr(self.trainer.precision_plugin, "scaler", None)

    def to(self, *target: Any, **options: Any) -> FederatedClient:
        """Move or cast; does nothing if everything is there, which spares five walks over all modules a fit."""
        first = next(self.parameters(), None)
        there = first is not None and not options and target == (self.device,) == (first.device,)
        moved: FederatedClient = self if there else super().to(*target, **options)
        return moved

    def cpu(self) -> FederatedClient:
        """Move to the CPU."""
        return self.to(torch.device("cpu"))

    def on_fit_start(self) -> None:
        """Move the encoder, the memo and the received message to the device of this module."""
        self.encoder.to(self.device)
        self.model.move_to(self.device)
        self._losses = []
        self.skipped_steps = self.images_seen = 0

    def on_train_epoch_start(self) -> None:
        """Set which parameters are trained in this epoch."""
        model = self.model
        model.local_epoch = int(self.current_epoch) if model.joining is None else model.joining
        parameters, trained = dict(model.named_parameters()), set(model.trained_keys)
        for key in model.learnable:
            trains = self.method.trainable(model, key.removeprefix(ADAPTER), model.local_epoch)
            parameters[key].requires_grad_(trains and key in trained)
        if model.joining is not None:
            model.keep_shared_statistics()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the method edit gradients: unscaled, not yet clipped."""
        # only a step that may be skipped is checked at once, since a check waits for the device: otherwise NaN is found
        # in the losses or in the weights when the fit ends, and fails it in any case
        if self._skips and not self._gradients_are_finite():
            self.skipped_steps += 1
            # an optimiser does not move a parameter without a gradient, and a method may not sum up such gradients
            self.zero_grad(set_to_none=True)
            return
        self.method.edit_gradients(self.model)

    @property
    def _skips(self) -> bool:
        """True if a step that is not finite is left out, and the fit goes on."""
        return self.non_finite == "skip" or self.scaler is not None

    def _gradients_are_finite(self) -> bool:
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        return bool((torch.nn.utils.get_total_norm(gradients) + self._losses[-1]).isfinite())

    def _not_finite(self, what: str) -> NotFiniteError:
        return NotFiniteError(
            f"client {self.model.name}, round {self.model.round}: {what}; lower the learning rate "
            f"(--model.optimizer.lr), clip gradients (--trainer.gradient_clip_val 1), check the images of this site "
            f"and, of a method of your own, its loss, or skip such steps (--model.non_finite skip)"
        )

    def on_train_end(self) -> None:
        """Make all learnable parameters trainable again and drop gradients and optimiser.

        Raises:
            NotFiniteError: a loss is not finite, and `non_finite` is `stop`.
        """
        self.reset()
        if self._skips or not self._losses:
            return
        if not bool(torch.stack(self._losses).isfinite().all()):
            raise self._not_finite("the loss is NaN or infinite")

    def reset(self) -> None:
        """Forget what a fit, also a failed one, left in the module beside tensors."""
        parameters = dict(self.model.named_parameters())
        for key in self.model.learnable:
            parameters[key].requires_grad_(True)
        self.zero_grad()
        self.model.optimizer = None

    def check_trained(self) -> None:
        """Raise a NotFiniteError, unless every tensor that the last fit may have changed is finite."""
        try:
            check_finite(self.model.own_tensors(), "what was trained")
        except NotFiniteError as error:
            raise self._not_finite(str(error)) from None

    def trained_loss(self) -> float:
        """Return the mean loss over the steps of the last fit, without steps that were skipped for their loss.

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
