"""One hostile site of six, by attack and merge rule, for `faults.py`."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from faults_runs import recorded_warnings, start_or_go_on

from pfedst.data import FederatedDataModule
from pfedst.errors import PfedstError
from pfedst.messages.payload import NET, Payload, State
from pfedst.methods.interface import Batch, LocalModel
from pfedst.methods.pfedst import PFedST
from pfedst.seeds import derive_seed
from pfedst.server.screening import change_norm
from pfedst.testing.small import data, encoder

SITES, CLASSES, IMAGES, TEST_IMAGES, SEEDS = 6, 3, 24, 120, 3
ATTACKER = "site_a"
EVALUATE_EVERY, EVALUATIONS = 5, 3
SITE_OPTIONS = {"heterogeneity": 0.3, "noise": 0.02, "label_skew": 20.0, "validation_fraction": 0.0}
RULES = ("mean", "median", "trimmed_mean", "clipped_mean")
NO_ATTACK = "no attack"
ATTACKS = {
    NO_ATTACK: "six honest sites",
    "opposite": "ten times the opposite of what it learned",
    "noise": "what it received and Gaussian noise, ten times as long as what it learned",
    "NaN": "NaN in every number; the check leaves it out",
    "huge": "a million times what it learned, `most_norm_ratio` null",
    "labels": "what it learned from labels that are shifted by one class",
}
TARGET_POINTS = 3.0
Accuracies = dict[str, float]
"""Mean balanced accuracy of the honest sites for the `generic` and the `personal` model."""


class Attacked(PFedST):
    """pFedST with one hostile site.

    Args:
        attack: a key of ATTACKS.
        options: options of PFedST.
    """

    def __init__(self, attack: str = NO_ATTACK, **options: Any) -> None:
        super().__init__(**options)
        self.attack = attack

    def loss(self, client: LocalModel, batch: Batch) -> torch.Tensor:
        if self.attack == "labels" and client.name == ATTACKER:
            batch = replace(batch, targets=(batch.targets + 1) % CLASSES)
        return super().loss(client, batch)

    def upload(self, client: LocalModel) -> Payload:
        message = super().upload(client)
        if client.name != ATTACKER or self.attack in (NO_ATTACK, "labels"):
            return message
        return {NET: self.hostile(client, message[NET], client.received[NET])}

    def hostile(self, client: LocalModel, sent: State, received: State) -> State:
        if self.attack == "NaN":
            return {key: torch.full_like(tensor, float("nan")) for key, tensor in sent.items()}
        if self.attack == "noise":
            random = torch.Generator().manual_seed(derive_seed(0, "attack", client.name, client.round))
            noise = {key: torch.randn(tensor.shape, generator=random) for key, tensor in sent.items()}
            length = 10 * change_norm({NET: sent}, {NET: received})
            scale = length / math.sqrt(sum(float(tensor.square().sum()) for tensor in noise.values()))
            return {key: received[key] + scale * tensor for key, tensor in noise.items()}
        factor = {"opposite": -10, "huge": 1e6}[self.attack]
        return {key: received[key] + factor * (tensor - received[key]) for key, tensor in sent.items()}


def sites_of(seed: int, folder: Path) -> FederatedDataModule:
    options: dict[str, Any] = {"cache": "taps", "cache_folder": folder, "seed": seed, "classes": CLASSES}
    options |= {"samples_per_site": [IMAGES] * SITES, "test_samples_per_site": [TEST_IMAGES] * SITES}
    return data(sites=SITES, **options | SITE_OPTIONS)


def one_run(rule: str, attack: str, seed: int, rounds: int, cache: Path) -> tuple[Accuracies, int]:
    """Return accuracies, and the number of rounds from which the attacker was excluded."""
    with tempfile.TemporaryDirectory() as folder:
        method = Attacked(attack, merge_rule=rule, trim=0.2)  # type: ignore[arg-type]
        options: dict[str, Any] = {"rounds": rounds, "evaluate_every": EVALUATE_EVERY, "min_clients": 0}
        if attack == "huge":
            options["most_norm_ratio"] = None
        summary = start_or_go_on(Path(folder), method, sites_of(seed, cache), seed, **options)
        lines = (Path(folder) / "run/rounds.jsonl").read_text().splitlines()
    left_out = sum(summary["left_out"].get(ATTACKER, {}).values())
    return dict(accuracies([json.loads(line) for line in lines], evaluated(rounds))), left_out


def before_training(seed: int, cache: Path) -> Accuracies:
    """Return the accuracies of the untrained model with the prototypes."""
    with tempfile.TemporaryDirectory() as folder:
        start_or_go_on(Path(folder), Attacked(), sites_of(seed, cache), seed, rounds=1)
        lines = (Path(folder) / "run/rounds.jsonl").read_text().splitlines()
    return dict(accuracies([json.loads(line) for line in lines], [0]))


def evaluated(rounds: int) -> list[int]:
    """Return the last rounds that are evaluated."""
    return [rounds - EVALUATE_EVERY * index for index in reversed(range(EVALUATIONS))]


def accuracies(records: list[dict[str, Any]], last: list[int]) -> Iterator[tuple[str, float]]:
    """Yield test accuracies over the honest sites and some rounds."""
    tests = [
        record["received"]["test"]
        for record in records
        if record["round"] in last and record["client"] != ATTACKER and "received" in record
    ]
    for model in ("generic", "personal"):
        yield model, fmean(test[model]["balanced_accuracy"] for test in tests)


def attackers(rounds: int = 30) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return protocol and result."""
    rows: dict[str, dict[str, list[Any]]] = {rule: {attack: [] for attack in ATTACKS} for rule in RULES}
    with tempfile.TemporaryDirectory() as cache, recorded_warnings():
        for seed in range(SEEDS):
            for rule in RULES:
                for attack in ATTACKS:
                    try:
                        found, left_out = one_run(rule, attack, seed, rounds, Path(cache))
                        row: dict[str, Any] = found | {"left_out": left_out}
                    except PfedstError as error:
                        row = {"error": f"{type(error).__name__}: {error}"}
                    rows[rule][attack].append(row)
                    print(seed, rule, attack, row, flush=True)
        before = [before_training(seed, Path(cache)) for seed in range(SEEDS)]
        label = sites_of(0, Path(cache)).label
    protocol = {
        "encoder": encoder().label,
        "data": f"{label}, the seed of the images being that of the run",
        "sites": SITES,
        "attacker": ATTACKER,
        "attacks": ATTACKS,
        "train_images_a_site": IMAGES,
        "test_images_a_site": TEST_IMAGES,
        "site_options": SITE_OPTIONS,
        "classes": CLASSES,
        "rounds": rounds,
        "evaluated": evaluated(rounds),
        "trim": 0.2,
        "seeds": list(range(SEEDS)),
        "threads": 1,
    }
    return protocol, {"before_training": before, "rules": rows}


def points(rows: list[dict[str, Any]], model: str) -> list[float]:
    """Return percentages, one per seed.

    A run that ended with an error has no value and counts as if nothing was learned.
    """
    return [100 * row.get(model, 1 / CLASSES) for row in rows]


def table(protocol: dict[str, Any], result: dict[str, Any]) -> None:
    rules, reference = result["rules"], result["rules"]["mean"][NO_ATTACK]
    failed = [row for attacks in rules.values() for rows in attacks.values() for row in rows if "error" in row]
    print(
        "| rule | attack | generic | to the rule without attack | to the mean without attack | personal "
        "| to the rule without attack | to the mean without attack |\n|" + "---|" * 8
    )
    untrained = [fmean(points(result["before_training"], model)) for model in ("generic", "personal")]
    print(f"| before training | - | {untrained[0]:.1f} | - | - | {untrained[1]:.1f} | - | - |")
    for rule, attacks in rules.items():
        for attack, rows in attacks.items():
            cells = [rule, attack]
            for model in ("generic", "personal"):
                own = points(rows, model)
                cells.append(f"{fmean(own):.1f} ± {pstdev(own):.1f}")
                for other in (attacks[NO_ATTACK], reference):
                    cells.append("-" if rows is other else f"{fmean(own) - fmean(points(other, model)):+.1f}")
            print(f"| {' | '.join(cells)} |")
    print(f"\n| target: trimmed mean within {TARGET_POINTS:g} points of no attack | |\n|---|---|")
    trimmed = rules["trimmed_mean"]
    for model in ("generic", "personal"):
        for name, other in (("the same rule", trimmed[NO_ATTACK]), ("the mean", reference)):
            worst, attack = min(
                (fmean(points(rows, model)) - fmean(points(other, model)), attack)
                for attack, rows in trimmed.items()
                if attack != NO_ATTACK
            )
            met = "met" if worst >= -TARGET_POINTS else "MISSED"
            print(f"| {model}, against {name} without attack: worst {worst:+.1f} ({attack}) | {met} |")
    attacks = "; ".join(f"{name}: {what}" for name, what in protocol["attacks"].items())
    print(
        f"\n{protocol['encoder']}; {protocol['data']}: {protocol['sites']} sites of {protocol['train_images_a_site']} "
        f"training and {protocol['test_images_a_site']} test images in {protocol['classes']} classes "
        f"({', '.join(f'{name} {value:g}' for name, value in protocol['site_options'].items())}); pFedST, "
        f"{protocol['rounds']} rounds, trim {protocol['trim']}, {len(protocol['seeds'])} seeds, std over them. "
        f"Balanced accuracy on test, mean over the five honest sites and over rounds "
        f"{', '.join(map(str, protocol['evaluated']))}; chance is {100 / protocol['classes']:.1f}. Hostile is "
        f"{protocol['attacker']}. {attacks}. Runs that ended with an error: {len(failed)}. Of six "
        "messages a trimmed mean of 0.2 leaves out two at each end, and is the median."
    )
