"""The partition of an adapter: every tensor is shared, personal or frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn

from pfedst.errors import ConfigurationError

Kind = Literal["shared", "personal", "frozen"]
"""`shared` is sent and merged; `personal` stays at the client; `frozen` is neither trained nor sent."""

Rule = tuple[str, Kind]
"""A glob over state-dict keys, and the kind of the keys that it matches."""


NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def norm_keys(module: nn.Module) -> list[str]:
    """Return the state-dict keys of all normalisation layers, found by type: names such as "bn" are not reliable."""
    return [
        f"{name}.{key}" if name else key
        for name, layer in module.named_modules()
        if isinstance(layer, NORM_LAYERS)
        for key in layer.state_dict()
    ]


def norm_statistics(module: nn.Module) -> list[str]:
    """Return the state-dict keys of the running statistics of normalisation layers (their buffers)."""
    buffers = dict(module.named_buffers())
    return [key for key in norm_keys(module) if key in buffers]


class Partition:
    """Decides the kind of every key by an ordered list of rules: the first rule whose glob matches decides.

    FedAvg is `[("*", "shared")]`, Local `[("*", "personal")]`, pFedST
    `[("*.lora_?", "personal"), ("*", "shared")]`: many methods differ in nothing else.

    Args:
        rules: the ordered rules.
        keys: the keys of the adapter's state dict.
        owner: the name of the method that declares the rules, for messages.
        kept_private: keys that are personal even if a rule says shared.

    Raises:
        ConfigurationError: a rule is no pair of a glob and a kind; no rule matches a key; or a rule decides nothing
            (the glob is misspelled, or the adapter lacks the part that the method needs).
    """

    def __init__(
        self, rules: Sequence[Rule], keys: Iterable[str], owner: str, kept_private: Iterable[str] = ()
    ) -> None:
        self.kinds: dict[str, Kind] = {}
        for rule in rules:
            if not (isinstance(rule, tuple) and len(rule) == 2 and rule[1] in get_args(Kind)):
                raise ConfigurationError(
                    f"{owner}: the rule {rule!r} is no pair of a glob and one of {', '.join(get_args(Kind))}"
                )
        private = set(kept_private)
        unused = dict.fromkeys(pattern for pattern, _ in rules)
        for key in keys:
            for pattern, kind in rules:
                if fnmatchcase(key, pattern):
                    self.kinds[key] = "personal" if key in private and kind == "shared" else kind
                    unused.pop(pattern, None)
                    break
            else:
                raise ConfigurationError(
                    f'{owner}: no rule says whether "{key}" is shared, personal or frozen; end the rules with one for '
                    f'all other tensors, such as ("*", "shared")'
                )
        if unused:
            groups = sorted({key.split(".")[0] for key in self.kinds})
            raise ConfigurationError(
                f'{owner}: the rule "{next(iter(unused))}" matches nothing in this adapter (it has: '
                f"{', '.join(f'{group}.*' for group in groups) or 'no tensors'}); choose an adapter that has such "
                f"a part, or correct the rule"
            )

    def keys(self, kind: Kind) -> tuple[str, ...]:
        """Return the keys of one kind, in state-dict order."""
        return tuple(key for key, of in self.kinds.items() if of == kind)
