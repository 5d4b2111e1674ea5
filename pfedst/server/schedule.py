"""The schedule of the learning rate over rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pfedst.errors import ConfigurationError, counted

ScheduleKind = Literal["constant", "cosine", "step"]
COSINE_FLOOR = 0.01
"""The factor of the last round of `cosine`."""
STEP_FACTORS = (1.0, 0.1, 0.01)
"""The factors of `step`: at first, from half of the rounds on, and from three quarters on."""


@dataclass(frozen=True)
class Schedule:
    """The factor on the learning rate of every local fit, by round.

    Args:
        kind: `constant`, `cosine` or `step`.
        warmup_rounds: rounds in which the factor rises linearly, >= 0 and below `rounds`.
        rounds: number of rounds of the run.

    Raises:
        ConfigurationError: an option is out of range, or the schedule has no effect in so few rounds.
    """

    kind: ScheduleKind = "constant"
    warmup_rounds: int = 0
    rounds: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_rounds < self.rounds:
            raise ConfigurationError(
                f"--coordinator.warmup_rounds {self.warmup_rounds}: must be 0 or more and below --coordinator.rounds "
                f"({self.rounds})"
            )
        if self.kind != "constant" and self.rounds - self.warmup_rounds == 1:
            raise ConfigurationError(
                f"--coordinator.lr_schedule {self.kind} has no effect in 1 round after {self.warmup_rounds} of "
                f"warm-up: set more --coordinator.rounds, or leave it out"
            )

    @property
    def is_constant(self) -> bool:
        """True if the factor is 1 in every round."""
        return self.kind == "constant" and not self.warmup_rounds

    @property
    def depends_on_rounds(self) -> bool:
        """True if the factor of a round depends on the number of rounds."""
        return self.kind != "constant"

    def __str__(self) -> str:
        """Return the schedule in words, such as `cosine after 2 rounds of warm-up`."""
        warmup = f" after {counted(self.warmup_rounds, 'round')} of warm-up"
        return self.kind + (warmup if self.warmup_rounds else "")

    def factor(self, round_number: int) -> float:
        """Return the factor of a round, from 1, in (0, 1].

        In warm-up it is r / (warmup_rounds + 1). Of the n rounds after it, `cosine` falls from 1 in the first to
        `COSINE_FLOOR` in the last, and `step` takes the next of `STEP_FACTORS` after n / 2 and after 3 n / 4 rounds.
        """
        if round_number <= self.warmup_rounds:
            return round_number / (self.warmup_rounds + 1)
        done, all_rounds = round_number - self.warmup_rounds - 1, self.rounds - self.warmup_rounds
        if self.kind == "cosine":
            cosine = math.cos(math.pi * done / (all_rounds - 1))
            return COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + cosine) / 2
        if self.kind == "step":
            return STEP_FACTORS[(2 * done >= all_rounds) + (4 * done >= 3 * all_rounds)]
        return 1.0
