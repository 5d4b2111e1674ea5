"""Warnings about the models of a run: a model that predicts one class only, or that is worse than it was at the start.

They are computed from the metrics and counts of evaluations, hence a resumed run has the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pfedst.errors import counted
from pfedst.evaluation.averages import METRICS

if TYPE_CHECKING:
    from pfedst.evaluation.evaluate import Evaluated
    from pfedst.methods.interface import FederatedMethod

METRIC = METRICS[0]
"""The metric by which a model is worse than its start: balanced accuracy, as for the selection of a round."""
IN_WORDS = METRIC.replace("_", " ")
ROUNDING = 1e-6
"""Of a balanced accuracy, whose recalls are float32."""
HANDFUL = 5
"""A difference that so many images could cause, or fewer, is reported as one that may be chance."""
Warning = dict[str, Any]
"""One warning, as `summary.json` holds it.

| key | holds |
|---|---|
| `what` | `one_class`, `below_start`, or `start_is_best` |
| `site` | the site; null for the mean over the sites that train |
| `model` | `personal` |
| `round`, `since` | the round of the evaluation, and the first round from which this has held without a break |
| `split`, `images` | validation, or test if the site has no validation image; its number of images |
| `class` | of `one_class`: the class that is predicted |
| `start`, `now` | of the others: balanced accuracy at round 0, and after this round |
| `fewest_images` | of `below_start`: the smallest number of images that could cause the difference |
"""


class RunWarnings:
    """Finds warnings after each evaluation, and what has changed since the one before.

    Args:
        classes: names of the classes, in the order of a confusion matrix.
        held_out: sites that the mean over sites leaves out.
        to_try: options that may help; reported with the first warning after the start.
    """

    def __init__(self, classes: Sequence[str], held_out: Collection[str], to_try: Sequence[str] = ()) -> None:
        self.classes, self.held_out, self.to_try = list(classes), held_out, list(to_try)
        self.current: list[Warning] = []
        self._start: Mapping[str, Any] | None = None
        self._states: dict[tuple[str, str | None], tuple[bool, int]] = {}
        self._has_advised = False

    def add(self, round_number: int, evaluation: Mapping[str, Any], when: str = "") -> list[str]:
        """Take the evaluation after a round; the first one is the start. Return lines on what has changed.

        A warning that holds is not repeated, unless its difference was a handful of images and is more now, or the
        other way round. A warning that holds no longer is reported once.

        Args:
            round_number: the round.
            evaluation: split -> model -> site -> metrics and counts.
            when: words after the number of the round.
        """
        self._start = evaluation if self._start is None else self._start
        found = self.at(round_number, evaluation)
        before, self._states = self._states, {}
        new = []
        for warning in found:
            key, slight = (warning["what"], warning["site"]), is_slight(warning)
            was_slight, warning["since"] = before.get(key, (None, round_number))
            self._states[key] = slight, warning["since"]
            if was_slight is not slight:
                new.append(warning)
        self.current = found
        seen = evaluation["test"]["personal"]
        for (what, site), state in before.items():  # of a site that was not evaluated nothing is known
            if site is not None and site not in seen:
                self._states.setdefault((what, site), state)
        over = [(what, site) for what, site in before if (what, site) not in self._states]
        lines = [
            *map(warning_text, new),
            *(f"{_place(site)}: the model {_OVER[what]}" for what, site in over),
        ]
        if new and round_number and self.to_try and not self._has_advised:
            self._has_advised = True
            lines.append(f"what may help: {'; '.join(self.to_try)}")
        return [f"round {round_number}{when}: {line}" for line in lines]

    def at(self, round_number: int, evaluation: Mapping[str, Any]) -> list[Warning]:
        """Return the warnings for an evaluation, compared with the start."""
        start = self._start or evaluation
        sites = {site: _split_of(evaluation, site) for site in sorted(evaluation["test"]["personal"])}
        about = {"model": "personal", "round": round_number, "since": round_number}
        warnings = []
        for site, split in sites.items():
            now, then = evaluation[split]["personal"][site], start[split]["personal"].get(site)
            confusion = _confusion(now)
            head = {"site": site, **about, "split": split, "images": _images(confusion)}
            only = only_class(confusion)
            if only is not None and only < len(self.classes):
                warnings.append({"what": "one_class", **head, "class": self.classes[only]})
            if then is not None:
                warnings += _below({"what": "below_start", **head}, [then], [now])
        # the same sites on both sides: one that could not be evaluated is in neither mean
        at_start = start["test"]["personal"]
        in_mean = [site for site in sites if site in at_start and site not in self.held_out]
        # on test only where no site has validation images: a mean over both would be of neither
        split = "validation" if "validation" in {sites[site] for site in in_mean} else "test"
        of_split = [site for site in in_mean if sites[site] == split]
        now, then = ([of[split]["personal"][site] for site in of_split] for of in (evaluation, start))
        images = sum(_images(_confusion(found)) for found in now)
        head = {"what": "below_start", "site": None, **about, "split": split, "images": images}
        return warnings + _below(head, then, now)


def _below(head: Warning, start: Sequence[Evaluated], now: Sequence[Evaluated]) -> list[Warning]:
    """Return a warning if the mean of the metric over some sites is below that of the start."""
    pairs = [(then.metrics.get(METRIC), found.metrics.get(METRIC)) for then, found in zip(start, now, strict=True)]
    values = [(then, found) for then, found in pairs if then is not None and found is not None]
    if not values:
        return []
    then, found = fmean(pair[0] for pair in values), fmean(pair[1] for pair in values)
    if not found < then:
        return []
    fewest = fewest_images([_confusion(of_site) for of_site in now], then - found)
    return [{**head, "start": then, "now": found, "fewest_images": fewest}]


def only_class(confusion: Sequence[Sequence[int]]) -> int | None:
    """Return the class that a model predicts for all images; None if it predicts several.

    Also None if the images are of one class: a model may be right to predict one class then.

    Args:
        confusion: (K, K) numbers of images, rows are targets and columns predictions.
    """
    if sum(any(row) for row in confusion) < 2:
        return None
    predicted = [index for index in range(len(confusion)) if any(row[index] for row in confusion)]
    return predicted[0] if len(predicted) == 1 else None


def fewest_images(confusions: Sequence[Sequence[Sequence[int]]], margin: float) -> int:
    """Return the smallest number of images that, if predicted correctly, raise the balanced accuracy by a margin.

    Images of rare classes count most, so these are taken first.

    Args:
        confusions: of each site, (K, K) numbers of images; the balanced accuracy is the mean over sites.
        margin: above 0, and at most what correct predictions of all images would give.
    """
    weights = []
    for confusion in confusions:
        present = [(row[index], sum(row)) for index, row in enumerate(confusion) if any(row)]
        weights += [(1 / (len(confusions) * len(present) * size), size - right) for right, size in present]
    found = 0
    for weight, wrong in sorted(weights, reverse=True):
        if wrong * weight >= margin - ROUNDING:
            return found + max(1, -int(-(margin - ROUNDING) // weight))
        found, margin = found + wrong, margin - wrong * weight
    return max(found, 1)


def is_slight(warning: Mapping[str, Any]) -> bool:
    """Return True if a handful of images could cause a warning."""
    return bool(warning["what"] == "below_start" and warning["fewest_images"] <= HANDFUL)


def start_is_best(round_number: int, start: float, now: float | None, images: int) -> Warning:
    """Return the warning for a run of which no round is better than its start on validation."""
    place = {"site": None, "model": "personal", "round": round_number, "since": 0, "split": "validation"}
    return {"what": "start_is_best", **place, "images": images, "start": start, "now": now}


_OVER = {
    "one_class": "no longer predicts one class only",
    "below_start": "is no longer below its start",
}


def warning_text(warning: Mapping[str, Any]) -> str:
    """Return a warning in words."""
    place, images = _place(warning["site"]), f"{warning['images']:,} {warning['split']} images"
    if warning["what"] == "one_class":
        return f"{place}: the model predicts only {warning['class']} for all {images}"
    if warning["what"] == "start_is_best":
        better = "no better" if warning["now"] == warning["start"] else "worse"
        return (
            f"NO ROUND IS BETTER THAN THE START: of all evaluated rounds, round 0 is the best on validation "
            f"({IN_WORDS} {_percent(warning['start'])}, {_percent(warning['now'])} after round "
            f"{warning['round']}; {images}): what was trained is {better} than what the run began with"
        )
    points, fewest = 100 * (warning["start"] - warning["now"]), warning["fewest_images"]
    text = (
        f"{place}: the model is {points:.1f} points below its start in {IN_WORDS} "
        f"({_percent(warning['start'])} at round 0, {_percent(warning['now'])} now; {images})"
    )
    few = f"{counted(fewest, 'image')} could cause this difference, so it may be chance"
    return f"{text}; {few if is_slight(warning) else f'that is {fewest:,} images or more'}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _place(site: str | None) -> str:
    return "mean over sites" if site is None else f"site {site}"


def what_to_try(method: FederatedMethod, protocol: Mapping[str, Any]) -> list[str]:
    """Return options that may help a model that is worse than its start or predicts one class, if not set already.

    Args:
        method: the plugin.
        protocol: of the run.
    """
    if not protocol["rounds"]:
        return []
    weighs = method.has_generic and not (method.pooled or method.sequential) and len(protocol["samples"]) > 1
    lr = protocol["optimizer"].get("lr")
    options = {
        "--model.loss BalancedSoftmax": method.uses_criterion and str(protocol["loss"]).startswith("CrossEntropy("),
        f"a lower --model.optimizer.lr than {lr}": lr is not None,
        "--coordinator.optimizer_state keep": protocol["optimizer_state"] == "reset",
        "--coordinator.lr_schedule cosine": "lr_schedule" not in protocol,
        f"more --coordinator.rounds than {protocol['rounds']}": True,
        "--method.weighting uniform": weighs
        and method.weighting == "samples"
        and method.merge_rule in ("mean", "clipped_mean"),
    }
    return [option for option, helps in options.items() if helps]


def _split_of(evaluation: Mapping[str, Any], site: str) -> str:
    """Return validation, or test if a site has no validation image."""
    return "validation" if _images(_confusion(evaluation["validation"]["personal"][site])) else "test"


def _confusion(found: Evaluated) -> Sequence[Sequence[int]]:
    confusion: Sequence[Sequence[int]] = found.counts.get("confusion", ())
    return confusion


def _images(confusion: Sequence[Sequence[int]]) -> int:
    return sum(map(sum, confusion))
