"""The arguments of a run of a comparison: which of several values of an option applies."""

from __future__ import annotations

from collections.abc import Sequence

from pfedst.comparison.plan import OF_THE_COMPARISON, OF_THE_FOLDS, Options, Plan, as_arguments
from pfedst.configuration.command_line import GivenOption, plain
from pfedst.errors import ConfigurationError


def check_overrides(overrides: Sequence[GivenOption], plan: Plan) -> None:
    """Check that the comparison leaves these options open.

    Raises:
        ConfigurationError: the comparison sets one for every run, or each of its rows does.
    """
    for key in (override.key for override in overrides):
        if key.split(".")[0] in OF_THE_COMPARISON or (plan.folds is not None and key in OF_THE_FOLDS):
            raise ConfigurationError(f"--{key} is set by the comparison, for every run")
        if all(key in row.keys for row in plan.rows.values()):
            raise ConfigurationError(f"--{key} has no effect: every row of {plan.file} sets or tunes it; leave it out")


def arguments_of(common: Options, overrides: Sequence[GivenOption], own: Options) -> list[str]:
    """Return the arguments of a run, one value for each option.

    Args:
        common: options of all runs.
        overrides: options of the command line; they take precedence over those of all runs.
        own: options of the row; they take precedence over both.
    """
    of_the_row = {plain(key) for key in own}
    applied = [override for override in overrides if override.key not in of_the_row]
    replaced = of_the_row | {override.key for override in applied}
    kept = {key: value for key, value in common.items() if plain(key) not in replaced}
    return [*as_arguments(kept), *(word for override in applied for word in override.words), *as_arguments(own)]
