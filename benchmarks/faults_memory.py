"""Memory and open files of a long run, for `faults.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults_runs import start_or_go_on
from lightning.pytorch import Callback

from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import data, encoder

SITES, IMAGES, TEST_IMAGES = 10, 16, 6
FIRST, EVERY = 100, 10
"""The round of the first sample, and rounds between samples."""
TARGET_MB = 1.0
MEGA = 10**6


class Samples(Callback):
    """Record resident memory and open files after rounds, as the system reports them, without garbage collection."""

    def __init__(self) -> None:
        self.found: list[tuple[int, float, int]] = []

    def on_validation_end(self, trainer: Any, model: Any) -> None:
        number = int(trainer.global_step)
        if number >= FIRST and number % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path would add a file of its own
            self.found.append((number, pages * os.sysconf("SC_PAGE_SIZE") / MEGA, files))


def measure(rounds: int) -> dict[str, Any]:
    """Run once in this process."""
    torch.set_num_threads(1)
    samples = Samples()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        sites = data(
            sites=SITES,
            samples_per_site=[IMAGES] * SITES,
            test_samples_per_site=[TEST_IMAGES] * SITES,
            cache="taps",
            cache_folder=Path(place) / "taps",
        )
        start_or_go_on(Path(place), PFedST(), sites, callbacks=[samples], rounds=rounds, evaluate_every=1)
    numbers, resident, files = (list(column) for column in zip(*samples.found, strict=True))
    slope, _ = np.polyfit(numbers, resident, 1)
    half = len(numbers) // 2
    later, _ = np.polyfit(numbers[half:], resident[half:], 1)
    return {
        "encoder": encoder().label,
        "data": sites.label,
        "samples": samples.found,
        "mb_per_100_rounds": 100 * float(slope),
        "mb_per_100_rounds_second_half": 100 * float(later),
        "open_files": sorted(set(files)),
        "seconds": time.perf_counter() - started,
    }


def memory(rounds: int = 1000) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return protocol and result of a run in a separate process."""
    command = [sys.executable, "-W", "ignore", __file__, str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    protocol = {
        "encoder": found.pop("encoder"),
        "data": found.pop("data"),
        "method": "PFedST",
        "sites": SITES,
        "train_images_a_site": IMAGES,
        "test_images_a_site": TEST_IMAGES,
        "rounds": rounds,
        "evaluate_every": 1,
        "keep_states": 2,
        "cache": "taps",
        "threads": 1,
        "seed": 0,
    }
    return protocol, found


def table(protocol: dict[str, Any], found: dict[str, Any]) -> None:
    first, last = found["samples"][0], found["samples"][-1]
    met = "met" if found["mb_per_100_rounds"] < TARGET_MB else "MISSED"
    files = found["open_files"]
    print("| what | figure |\n|---|---|")
    print(f"| resident memory at round {first[0]} | {first[1]:.1f} MB |")
    print(f"| resident memory at round {last[0]} | {last[1]:.1f} MB |")
    print(f"| slope by least squares, MB in 100 rounds (target below {TARGET_MB:g}: {met}) ", end="")
    print(f"| {found['mb_per_100_rounds']:+.3f} |")
    print(f"| slope of the second half alone | {found['mb_per_100_rounds_second_half']:+.3f} |")
    print(f"| open files, least and most | {files[0]}, {files[-1]} |")
    print(
        f"\n{protocol['encoder']}; {protocol['data']}: {protocol['sites']} sites of {protocol['train_images_a_site']} "
        f"training and {protocol['test_images_a_site']} test images, cached taps; {protocol['method']}, "
        f"{protocol['rounds']:,} rounds, evaluated each round, {protocol['keep_states']} states kept, 1 thread, seed "
        f"0, a process of its own; sampled every {EVERY} rounds from round {FIRST} on; {found['seconds']:.0f} s. Of "
        "open files one is the list of them, and one more may be what is being saved at that moment."
    )


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
