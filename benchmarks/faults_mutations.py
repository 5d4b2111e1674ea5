"""The saved state of an interrupted run, changed in every way, for `faults.py`."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults_runs import Left, differences, left_by, recorded_warnings, start_or_go_on

from pfedst.client.state import SiteState
from pfedst.errors import StateError
from pfedst.methods.pfedst import PFedST
from pfedst.state.run_state import RunState
from pfedst.state.snapshot import read_snapshot
from pfedst.testing.small import encoder

ROUNDS, INTERRUPTED_IN, RESUMED_EVERY = 4, 3, 8
SAVED = (INTERRUPTED_IN - 1, INTERRUPTED_IN - 2)
"""The rounds that can be resumed, the newest first."""
SITES = ("site_a", "site_b", "site_c")
Content = dict[str, bytes | None]
"""The files of a folder by their path within; None for a folder."""
Pristine = dict[str, Content | None]
"""Snapshots by their path in the run's folder, as the run left them."""


class StopError(BaseException):
    """What a kill is, to the run."""


class Interrupted(PFedST):
    """Ends the run in the fit of the last client of a round, as long as `stops` is set."""

    stops = True

    def loss(self, client: Any, batch: Any) -> Any:
        if type(self).stops and (client.round, client.name) == (INTERRUPTED_IN, SITES[-1]):
            raise StopError
        return super().loss(client, batch)


# -- changes -----------------------------------------------------------------------------------------------------------


Change = Callable[[Path, random.Random], None]
"""Changes something in the snapshots of a run's folder."""


def snapshots(run: Path) -> list[Path]:
    """Return the snapshots of server and sites."""
    return sorted([*(run / "state").iterdir(), *run.glob("sites/*/after-*")])


def of_bytes(change: Callable[[bytes, random.Random], bytes]) -> Change:
    """Return a change of one file."""

    def changed(run: Path, draw: random.Random) -> None:
        file = a_file(run, draw)
        file.write_bytes(change(file.read_bytes(), draw))

    return changed


def flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content)) if content else 0
    return (
        content[:place]
        + bytes(byte ^ (1 << draw.randrange(8)) for byte in content[place : place + 1])
        + (content[place + 1 :])
    )


def swap_halves(content: bytes, draw: random.Random) -> bytes:
    middle = draw.randrange(len(content)) if content else 0
    return content[middle:] + content[:middle]


def a_file(run: Path, draw: random.Random) -> Path:
    files = [path for snapshot in snapshots(run) for path in (snapshot, *snapshot.rglob("*")) if path.is_file()]
    return draw.choice(sorted(files))


def swap(one: Path, other: Path) -> None:
    if one != other:
        aside = one.with_name("aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


def swap_files(run: Path, draw: random.Random) -> None:
    swap(a_file(run, draw), a_file(run, draw))


def swap_folders(run: Path, draw: random.Random) -> None:
    swap(*draw.sample(snapshots(run), 2))


def folder_for_file(run: Path, draw: random.Random) -> None:
    file = a_file(run, draw)
    file.unlink()
    file.mkdir()


def file_for_folder(run: Path, draw: random.Random) -> None:
    folder = draw.choice(snapshots(run))
    if folder.is_dir():
        shutil.rmtree(folder)
        folder.write_bytes(b"x")


CHANGES: dict[str, Change] = {
    "a bit flipped": of_bytes(flip),
    "truncated": of_bytes(lambda content, draw: content[: draw.randrange(max(1, len(content)))]),
    "grown": of_bytes(lambda content, draw: content + draw.randbytes(draw.randint(1, 64))),
    "halves swapped": of_bytes(swap_halves),
    "emptied": of_bytes(lambda content, draw: b""),
    "removed": lambda run, draw: a_file(run, draw).unlink(),
    "two files swapped": swap_files,
    "two folders swapped": swap_folders,
    "a folder for a file": folder_for_file,
    "a file for a folder": file_for_folder,
}


# -- what must come of them --------------------------------------------------------------------------------------------


def content_of(folder: Path) -> Content | None:
    if not folder.is_dir():
        return None
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def changed_state(run: Path, pristine: Pristine, draw: random.Random) -> tuple[list[str], set[str]]:
    """Change snapshots once or twice; return the changes, and which snapshots are not as they were."""
    done: list[str] = []
    for _ in range(draw.randint(1, 2)):
        done.append(draw.choice(sorted(CHANGES)))
        CHANGES[done[-1]](run, draw)
    return done, {name for name, content in pristine.items() if content_of(run / name) != content}


def read(run: Path, name: str) -> str:
    """Return `whole`, `found` for damage that is a StateError, or the class of any other error."""
    try:
        place = Path(name)
        if place.parts[0] == "sites":
            SiteState(run / "sites", place.parts[1]).read(int(place.name.split("-")[1]))
        else:
            read_snapshot(run / name)
    except StateError:
        return "found"
    except Exception as error:
        return type(error).__name__
    return "whole"


def of_site(site: str, number: int) -> str:
    return f"sites/{site}/after-{number:06d}"


def expected_outcome(run: Path, pristine: Pristine, damaged: set[str]) -> tuple[int | None, int]:
    """Return the round that must be resumed, or None for a StateError, and the number of warnings."""
    warnings = 0
    for number in SAVED:
        needed = {f"state/{RunState.round_name(number)}", *(of_site(site, number) for site in SITES)}
        if not needed & damaged:
            later = [of_site(site, fit) for site in SITES for fit in range(number + 1, ROUNDS + 1)]
            # a fit that is on disk and damaged is done again with a warning; one that is absent without any
            return number, warnings + sum(name in damaged and (run / name).exists() for name in later)
        warnings += 1
    return None, warnings


def resumed(folder: Path, damaged: set[str], pristine: Pristine, expected: Left) -> tuple[str, list[str]]:
    """Resume a run; return its outcome, and everything that is not as it should be."""
    number, warnings = expected_outcome(folder / "run", pristine, damaged)
    with recorded_warnings() as told:
        try:
            start_or_go_on(folder, Interrupted(), rounds=ROUNDS)
        except StateError as error:
            return "no whole round: StateError", [] if number is None else [f"StateError: {error}"]
        except Exception as error:
            return "another error", [f"{type(error).__name__}: {error}"]
    if number is None:
        return "no whole round", ["it continued, and no round was whole"]
    wrong = [f"differs: {what}" for what in differences(left_by(folder), expected)]
    of_the_state = [
        line for line in told if not line.startswith("round ")
    ]  # the others are of models: see run_warnings
    if len(of_the_state) != warnings:
        wrong.append(f"{warnings} warnings expected: {of_the_state}")
    return f"from the {('newest', 'older')[SAVED.index(number)]} round", wrong


def mutations(number: int = 1000) -> tuple[dict[str, Any], dict[str, Any]]:
    """Protocol and result."""
    kinds, reads, outcomes = Counter[str](), Counter[str](), Counter[str]()
    wrong: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, recorded_warnings():
        base = Path(place)
        Interrupted.stops = False
        start_or_go_on(base / "whole", Interrupted(), rounds=ROUNDS)
        expected = left_by(base / "whole")
        Interrupted.stops = True
        try:
            start_or_go_on(base / "cut", Interrupted(), rounds=ROUNDS)
        except StopError:
            Interrupted.stops = False
        run = base / "cut/run"
        pristine = {str(path.relative_to(run)): content_of(path) for path in snapshots(run)}
        seed = index = 0
        while index < number:
            seed += 1
            folder = base / "changed"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(base / "cut", folder)
            done, damaged = changed_state(folder / "run", pristine, random.Random(seed))
            if not damaged:  # two files of the same content, or one change undone by the next
                continue
            index += 1
            kinds.update(done)
            found = {name: read(folder / "run", name) for name in pristine}
            reads.update("missed" if found[name] == "whole" else found[name] for name in damaged)
            odd = [f"{name}: {found[name]}" for name in pristine if found[name] != ("whole", "found")[name in damaged]]
            if index % RESUMED_EVERY == 0:
                outcome, wrong_of_run = resumed(folder, damaged, pristine, expected)
                odd += wrong_of_run
                outcomes[outcome] += 1
            if odd:
                wrong.append({"seed": seed, "changes": done, "damaged": sorted(damaged), "wrong": odd})
                print(wrong[-1], flush=True)
    protocol = {
        "encoder": encoder().label,
        "data": "SYNTHETIC lesion-like images (3 sites, seed 0)",
        "method": "PFedST",
        "state": {name: len(content or ()) for name, content in pristine.items()},
        "rounds": ROUNDS,
        "seeds": [1, seed],
        "threads": 1,
    }
    result = {
        "states": number,
        "changes": dict(sorted(kinds.items())),
        "damaged_snapshots": dict(reads),
        "resumed": dict(sorted(outcomes.items())),
        "wrong": wrong,
    }
    return protocol, result


def table(protocol: dict[str, Any], result: dict[str, Any]) -> None:
    print("| what | number |\n|---|---|")
    print(f"| changed states | {result['states']:,} |")
    for kind, count in result["changes"].items():
        print(f"| of the changes: {kind} | {count} |")
    damaged = result["damaged_snapshots"]
    print(f"| damaged snapshots | {sum(damaged.values()):,} |")
    print(f"| of them found, by a StateError | {damaged.get('found', 0):,} |")
    for what, count in result["resumed"].items():
        print(f"| resumed runs: {what} | {count} |")
    print(f"| states or runs that were not as they should be | {len(result['wrong'])} |")
    files = ", ".join(f"{name} ({count} files)" for name, count in protocol["state"].items())
    print(
        f"\n{protocol['encoder']}; {protocol['data']}; {protocol['method']} interrupted in its round {INTERRUPTED_IN} "
        f"of {protocol['rounds']}, which leaves {files}. One or two changes of it, drawn with seeds "
        f"{protocol['seeds'][0]} to {protocol['seeds'][1]} (those that change nothing are drawn again). Each snapshot "
        f"that is not what it was must be refused, each other one read. Every {RESUMED_EVERY}th of the runs is "
        "resumed: from the newest round that is whole at the server and at every site, with one warning for each round "
        "and each fit that is damaged, to the bits of a run that was never interrupted; where no round is whole, it "
        "must end with a StateError."
    )
