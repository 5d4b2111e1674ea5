"""The numbers of a run at its best round on validation, in place of those of its last round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pfedst.errors import ConfigurationError
from pfedst.reporting.summary import chosen_round

RoundChoice = Literal["last", "best"]
OF_PREDICTIONS = ("class_metrics", "intervals", "subgroups", "calibration")
"""What sites compute from their predictions of the last evaluation."""
ROUND_CHOICES: tuple[RoundChoice, ...] = get_args(RoundChoice)


def at_best_round(summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a summary whose metrics, counts, warnings and protocol are of the best round on validation.

    Cost stays that of the whole run, which had to be trained to know its best round. What sites compute from their
    predictions is left out where the best evaluation is not the last one: they keep those of the last one alone.

    Args:
        summary: in the present format.
        folder: of the run, for the error.

    Raises:
        ConfigurationError: the run has no best round.
    """
    best, protocol = summary["best_on_validation"], summary["protocol"]
    if best is None:
        raise ConfigurationError(f"{folder} has no best round, as no site has validation images; use --round last")
    epochs = protocol["method_options"].get("finetune_epochs", 0) if protocol["rounds"] else 0
    same = best["round"] == protocol["round"]
    finetuned = best.get("finetuned", same and bool(epochs))  # older versions did not record it
    is_last = same and finetuned == bool(epochs)
    when = chosen_round("best", epochs if finetuned else 0)
    warnings = best.get("warnings", summary["warnings"] if is_last else None)
    if warnings is not None and best["round"] == 0 and protocol["round"]:
        above = [warning for warning in summary["warnings"] if warning["what"] == "start_is_best"]
        warnings = [*above, *warnings]
    return {
        **summary,
        "protocol": {**protocol, **when, "round": best["round"]},
        "personal": best["personal"],
        "generic": best["generic"],
        "validation": best.get("validation"),
        **{key: summary[key] if is_last else {} for key in OF_PREDICTIONS},
        "trained": summary["trained"] if is_last else None,
        "warnings": warnings,
    }
