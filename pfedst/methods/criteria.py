"""Losses of a classifier: what every classification term of a method minimises.

Sites of a federation often hold some classes a hundred times as often as others, and miss some. Then the average over
images is an average over the frequent classes. Three criteria answer this in different ways.

Shapes: B images of a batch, K classes.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedst.encoders import in_float32
from pfedst.errors import ConfigurationError


class Criterion(ABC):
    """Base class of losses over logits.

    Class counts are those of the client's training images as the sampler shows them. They stay at the client: the loss
    sends nothing.

    Args:
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        pseudo_count: number that is added to the count of every class, > 0, so that the loss and its gradients stay
            finite for a class that the client has never seen.
    """

    def __init__(self, label_smoothing: float = 0.0, pseudo_count: float = 1.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(f"--model.loss.label_smoothing {label_smoothing}: must be 0 or more and below 1")
        if not pseudo_count > 0:
            raise ConfigurationError(f"--model.loss.pseudo_count {pseudo_count}: must be above 0")
        self.label_smoothing = label_smoothing
        self.pseudo_count = pseudo_count

    @property
    def is_default(self) -> bool:
        """True for the default without options, and for plain cross-entropy, the default of older configurations."""
        return str(self) in (str(DEFAULT_LOSS), str(CrossEntropy()))

    def __str__(self) -> str:
        """Return class and options that differ from their defaults, such as `BalancedSoftmax(tau=0.7)`."""
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{key}={getattr(self, key)}" for key, of in defaults.items() if getattr(self, key) != of.default]
        return f"{type(self).__name__}({', '.join(changed)})"

    @abstractmethod
    def __call__(self, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar of float32 or more.

        Args:
            logits: (B, K); bfloat16 and float16 are cast to float32, with autocast too.
            targets: class indices (B,).
            counts: number of training images of each class (K,), >= 0.
        """

    @property
    def is_balanced(self) -> bool:
        """True if the effective prior is uniform whatever the class counts are."""
        return False

    @abstractmethod
    def effective_prior(self, counts: Tensor) -> Tensor:
        """Return the class frequencies (K,) at which the trained logits are those of a calibrated classifier.

        Divided by this prior and multiplied by another one, the predicted probabilities hold for that other one.

        Raises:
            ConfigurationError: If this loss has no such prior.
        """

    def prior(self, counts: Tensor) -> Tensor:
        """Return the class frequencies (K,) of the training images, with the pseudo-count: (n_c + a) / sum(n + a)."""
        smoothed = (counts if counts.is_floating_point() else counts.float()) + self.pseudo_count
        return smoothed / smoothed.sum()

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def _refuse_smoothing(self) -> None:
        if self.label_smoothing:
            raise ConfigurationError(
                f"--model.loss.label_smoothing {self.label_smoothing}: with smoothed labels the logits belong to no "
                f"class prior, so predictions cannot be corrected for another one; set it to 0"
            )


class CrossEntropy(Criterion):
    """Cross-entropy: every image counts the same, so frequent classes decide."""

    @in_float32
    def __call__(self, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return self._cross_entropy(logits, targets)

    def effective_prior(self, counts: Tensor) -> Tensor:
        """Return the class frequencies of the training images."""
        self._refuse_smoothing()
        return self.prior(counts)


class BalancedSoftmax(Criterion):
    """Balanced softmax (Ren et al., NeurIPS 2020), also called logit adjustment (Menon et al., ICLR 2021).

    While training, tau * log(n_c / max n) is added to the logit of each class, so the logits themselves need not
    contain how frequent a class is at this client. They predict as if classes were equally frequent (tau = 1).

    Args:
        tau: strength of the offset, >= 0; 0: cross-entropy.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        pseudo_count: number that is added to the count of every class, > 0.
    """

    def __init__(self, tau: float = 1.0, label_smoothing: float = 0.0, pseudo_count: float = 1.0) -> None:
        super().__init__(label_smoothing, pseudo_count)
        if not tau >= 0:
            raise ConfigurationError(f"--model.loss.tau {tau}: must be 0 or more")
        self.tau = tau

    @in_float32
    def __call__(self, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch of shifted logits."""
        smoothed = counts.to(logits) + self.pseudo_count
        # relative to the largest count: with equal counts the offset is 0, and the loss cross-entropy to the bit
        return self._cross_entropy(logits + self.tau * (smoothed / smoothed.max()).log(), targets)

    @property
    def is_balanced(self) -> bool:
        """True for tau = 1."""
        return self.tau == 1 and not self.label_smoothing

    def effective_prior(self, counts: Tensor) -> Tensor:
        """Return frequencies proportional to pi^(1 - tau): uniform for tau = 1."""
        self._refuse_smoothing()
        powered = self.prior(counts) ** (1 - self.tau)
        return powered / powered.sum()


class ClassWeighted(Criterion):
    """Cross-entropy in which an image weighs the less, the more images its class has.

    The weight of class c is proportional to n_c^-power and 1 on average over the training images.

    Args:
        power: power of the class counts, >= 0; 0: cross-entropy, 1: every class weighs the same.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        pseudo_count: number that is added to the count of every class, > 0.
    """

    def __init__(self, power: float = 1.0, label_smoothing: float = 0.0, pseudo_count: float = 1.0) -> None:
        super().__init__(label_smoothing, pseudo_count)
        if not power >= 0:
            raise ConfigurationError(f"--model.loss.power {power}: must be 0 or more")
        self.power = power

    def weights(self, counts: Tensor) -> Tensor:
        """Return the weight of each class (K,)."""
        prior = self.prior(counts)
        weights = prior**-self.power
        return weights / (prior * weights).sum()

    @in_float32
    def __call__(self, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Return the mean of the weighted cross-entropies of a batch."""
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
        # not divided by the weights of this batch: a batch of one rare class would then weigh no more than another
        return (losses * self.weights(counts.to(logits))[targets]).mean()

    @property
    def is_balanced(self) -> bool:
        """True for power 1: every class has the same weight in all."""
        return self.power == 1 and not self.label_smoothing

    def effective_prior(self, counts: Tensor) -> Tensor:
        """Return frequencies proportional to weight times frequency."""
        self._refuse_smoothing()
        return self.prior(counts) * self.weights(counts)


class Focal(Criterion):
    """Focal loss (Lin et al., ICCV 2017): an image weighs (1 - p)^gamma, where p is the probability of its class.

    Images that are predicted well hardly count. It answers hard images, not rare classes.

    Args:
        gamma: strength, >= 0; 0: cross-entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if not gamma >= 0:
            raise ConfigurationError(f"--model.loss.gamma {gamma}: must be 0 or more")
        self.gamma = gamma

    @in_float32
    def __call__(self, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Return the mean focal loss of a batch."""
        losses = F.cross_entropy(logits, targets, reduction="none")
        # -expm1(-loss) is 1 - p without cancellation; at exactly 0 a fractional power would have an infinite slope
        missing = -torch.expm1(-losses)
        return (missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.gamma * losses).mean()

    def effective_prior(self, counts: Tensor) -> Tensor:
        """Refuse: the minimum of the focal loss is no calibrated probability."""
        raise ConfigurationError(
            "--model.loss Focal: its logits belong to no class prior, so predictions cannot be corrected for another "
            "one; choose CrossEntropy, BalancedSoftmax or ClassWeighted"
        )


DEFAULT_LOSS = BalancedSoftmax()
"""Classes of a federation differ in frequency a hundredfold, and from site to site."""
