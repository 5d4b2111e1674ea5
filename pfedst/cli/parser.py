"""The parser of `fit`, `validate` and `test`: strict about names and null, with errors that name the remedy."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer
from torchvision.transforms.v2 import Transform

from pfedst.adapters import Adapter
from pfedst.cli.parser_errors import explain
from pfedst.client.lightning_options import UNUSED
from pfedst.client.module import FederatedClient
from pfedst.configuration.command_line import classes_first
from pfedst.configuration.yaml_text import CHECKED_YAML
from pfedst.data import FederatedDataModule
from pfedst.encoders import Encoder
from pfedst.errors import ConfigurationError
from pfedst.methods.criteria import Criterion
from pfedst.methods.interface import FederatedMethod
from pfedst.server.coordinator import FederatedCoordinator


def _number(value: object) -> float:
    """Return a number as a configuration or the command line gives it.

    Raises:
        ValueError: it is none.
    """
    found = yaml.safe_load(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"Expected a number. Got value: {value}")
    return found


# the type of some options of torchvision's transforms; the parser would write a text in place of the number
register_type(numbers.Number, serializer=_number, deserializer=_number)


class Parser(LightningArgumentParser):
    """A parser without abbreviations, whose errors name the remedy."""

    bases: ClassVar[dict[str, type]] = {
        "model": FederatedClient,
        "encoder": Encoder,
        "adapter": Adapter,
        "method": FederatedMethod,
        "data": FederatedDataModule,
        "coordinator": FederatedCoordinator,
        "optimizer": Optimizer,
        "loss": Criterion,
        "augmentation": Transform,
        "trainer": Trainer,
    }
    arguments: Sequence[str] = ()
    around: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # argparse would take --coordinator.round for --coordinator.rounds
        super().__init__(*args, allow_abbrev=False, **{"parser_mode": CHECKED_YAML} | kwargs)

    @classmethod
    def reads(cls, arguments: Sequence[str], around: Sequence[str] = ()) -> None:
        """Set the command line that errors are told about.

        Args:
            arguments: the command line.
            around: names of the options of a command that passes on all others: one of them may be meant.
        """
        cls.arguments, cls.around = arguments, around

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **named: Any) -> Namespace:  # type: ignore[override]
        """Parse a command line on which an option may come before its class."""
        parsed: Namespace = super().parse_args(None if args is None else classes_first(args), *others, **named)
        return parsed

    def validate(self, namespace: Namespace, skip_unset: bool = True, *args: Any, **kwargs: Any) -> None:
        """Check values; null only where the type of an option allows it. The parser would take null for any option."""
        try:
            super().validate(namespace, False, *args, **kwargs)
        except Exception:
            super().validate(namespace, skip_unset, *args, **kwargs)  # a missing option is reported as missing
            raise

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """Return a configuration as text, without options of the Trainer that a run could only refuse."""
        kept = namespace.clone()
        for name in UNUSED:
            key = f"trainer.{name}"
            if key in kept and kept[key] == self.get_default(key):
                del kept[key]
        text: str = super().dump(kept, *args, **kwargs)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise one clear error in place of the usage text of argparse."""
        options = [action.dest for action in self._actions]
        raise ConfigurationError(explain(message, self.arguments, self.bases, [*options, *self.around]))
