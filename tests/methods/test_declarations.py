"""A name of a method class that nothing reads is an error where the class is written."""

from collections.abc import Callable

import pytest

from pfedst.errors import ConfigurationError
from pfedst.methods.interface import FederatedMethod


def method(**names: object) -> type[FederatedMethod]:
    return type("Mine", (FederatedMethod,), names)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"aggregate": lambda self, server: None}, "aggregate is no hook or declaration, and no function of the class"),
        ({"merges": lambda self, server: None}, 'Did you mean "merge"?'),
        ({"personalise": False}, 'Did you mean "personalises"?'),
        ({"compute_loss": lambda self, batch: self._own()}, "compute_loss is no hook"),
        ({"loss": lambda self, batch: None}, "loss takes (self, batch); a run calls it with (self, client, batch)"),
        ({"merge": lambda self, server, uploads, weights, extra: None}, "a run calls it with"),
        ({"loss": None}, "loss is a hook, and the class gives it the value None"),
        ({"uses_criterion": lambda self: False}, "uses_criterion is a property: write @property above it"),
        ({"extra_messages": ("head")}, "extra_messages must be a tuple, and is a str"),
        ({"personalises": "no"}, "personalises must be a bool, and is a str"),
        ({"has_generic": lambda self: False}, "has_generic must be a bool, and is a function"),
    ],
)
def test_what_would_have_no_effect_is_refused(names, told) -> None:
    with pytest.raises(ConfigurationError) as caught:
        method(**names)
    assert "method Mine" in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        {"_own": lambda self, anything: None, "MU": 0.1, "__module__": "mine"},
        {"own": lambda self: None, "loss": lambda self, client, batch: self.own()},
        {"weight": 0.1, "loss": lambda self, client, batch: (lambda: self.weight)()},
        {"weight": 0.1, "uses_criterion": property(lambda self: self.weight > 0)},
        {"loss": lambda self, client, batch, scale=1.0: None},
        {"loss": lambda self, *arguments, **options: None},
        {"extra_messages": ("head",), "personalises": False, "source": "a paper"},
        {"has_generic": property(lambda self: False), "uses_criterion": False},
        {"average": staticmethod(lambda states, weights, around=None: None)},
    ],
)
def test_what_a_method_may_define(names) -> None:
    assert issubclass(method(**names), FederatedMethod)


def test_a_class_between_counts_too() -> None:
    base = method(helper=lambda self: None, setup=lambda self, server, start, names: self.helper())
    assert type("Other", (base,), {"helper": lambda self: None}).helper
    with pytest.raises(ConfigurationError, match="method Later .*agregate is no hook"):
        type("Later", (base,), {"agregate": lambda self: None})


def test_the_own_options_of_a_method_are_attributes_of_its_objects() -> None:
    def start(self, mu: float = 0.1, **options: object) -> None:
        FederatedMethod.__init__(self, **options)
        self.mu = mu

    made: Callable[..., FederatedMethod] = method(__init__=start)
    assert made(mu=0.5).options["mu"] == 0.5
