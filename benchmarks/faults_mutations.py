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

from pfedst.errors import StateError
from pfedst.methods.pfedst import PFedST
from pfedst.state import RunState
from pfedst.state.snapshot import read_snapshot
from pfedst.testing.small import encoder

ROUNDS, INTERRUPTED_IN, RESUMED_EVERY = 4, 3, 8
OLDER, NEWER = (RunState.round_name(number) for number in (INTERRUPTED_IN - 2, INTERRUPTED_IN - 1))
Content = dict[str, bytes | None]
"""Content of the files below a folder, by relative path; None for a folder."""


class StopError(BaseException):
    """Ends a run as a kill would."""


class Interrupted(PFedST):
    """pFedST that ends the run in the fit of the last client of a given round while `stops` is true."""

    stops = True

    def loss(self, client: Any, batch: Any) -> Any:
        if type(self).stops and (client.round, client.name) == (INTERRUPTED_IN, "site_c"):
            raise StopError
        return super().loss(client, batch)


# -- changes -----------------------------------------------------------------------------------------------------------


def of_bytes(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    """Return a change of one file."""

    def changed(state: Path, draw: random.Random) -> None:
        file = a_file(state, draw)
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


def a_file(state: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(path for path in state.rglob("*") if path.is_file()))


def swap(one: Path, other: Path) -> None:
    if one != other:
        aside = one.with_name("aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


def swap_files(state: Path, draw: random.Random) -> None:
    swap(a_file(state, draw), a_file(state, draw))


def swap_folders(state: Path, draw: random.Random) -> None:
    swap(*draw.sample(sorted(state.iterdir()), 2))


def folder_for_file(state: Path, draw: random.Random) -> None:
    file = a_file(state, draw)
    file.unlink()
    file.mkdir()


def file_for_folder(state: Path, draw: random.Random) -> None:
    folder = draw.choice(sorted(state.iterdir()))
    if folder.is_dir():
        shutil.rmtree(folder)
        folder.write_bytes(b"x")


CHANGES: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped": of_bytes(flip),
    "truncated": of_bytes(lambda content, draw: content[: draw.randrange(max(1, len(content)))]),
    "grown": of_bytes(lambda content, draw: content + draw.randbytes(draw.randint(1, 64))),
    "halves swapped": of_bytes(swap_halves),
    "emptied": of_bytes(lambda content, draw: b""),
    "removed": lambda state, draw: a_file(state, draw).unlink(),
    "two files swapped": swap_files,
    "two folders swapped": swap_folders,
    "a folder for a file": folder_for_file,
    "a file for a folder": file_for_folder,
}


# -- expected outcomes -------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> Content | None:
    if not folder.is_dir():
        return None
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def changed_state(run: Path, pristine: dict[str, Content | None], draw: random.Random) -> tuple[list[str], set[str]]:
    """Change a state once or twice. Return the changes, and the snapshots that differ from the original."""
    done: list[str] = []
    for _ in range(draw.randint(1, 2)):
        done.append(draw.choice(sorted(CHANGES)))
        CHANGES[done[-1]](run / "state", draw)
    return done, {name for name, content in pristine.items() if content_of(run / "state" / name) != content}


def read(snapshot: Path) -> str:
    """Return `whole`, `found` if damage is reported as expected, or the class of any other error."""
    try:
        read_snapshot(snapshot)
    except StateError:
        return "found"
    except Exception as error:
        return type(error).__name__
    return "whole"


def resumed(folder: Path, damaged: set[str], pristine: dict[str, Content | None], expected: Left) -> list[str]:
    """Return what is wrong in a resumed run; empty if nothing is."""
    with recorded_warnings() as warned:
        try:
            start_or_go_on(folder, Interrupted(), rounds=ROUNDS)
        except StateError as error:
            return [] if {OLDER, NEWER} <= damaged else [f"StateError: {error}"]
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]
    if {OLDER, NEWER} <= damaged:
        return ["it went on, and no round was whole"]
    # rounds are read newest first until one is whole; the fits that follow the newest are read if it is that one
    looked_at = {NEWER} if NEWER in damaged else {name for name in pristine if name.startswith("fit")}
    wrong = [f"differs: {what}" for what in differences(left_by(folder), expected)]
    for name in sorted(looked_at & damaged):
        if sum(name in line for line in warned) != 1:
            wrong.append(f"{name}: warnings {warned}")
    if len(warned) != len(looked_at & damaged):
        wrong.append(f"{len(warned)} warnings: {warned}")
    return wrong


def mutations(number: int = 1000) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return protocol and result."""
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
        pristine = {path.name: content_of(path) for path in sorted((base / "cut/run/state").iterdir())}
        seed = index = 0
        while index < number:
            seed += 1
            folder = base / "changed"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(base / "cut", folder)
            done, damaged = changed_state(folder / "run", pristine, random.Random(seed))
            if not damaged:  # two files had the same content, or the second change undid the first
                continue
            index += 1
            kinds.update(done)
            found = {name: read(folder / "run/state" / name) for name in pristine}
            reads.update("missed" if found[name] == "whole" else found[name] for name in damaged)
            odd = [f"{name}: {found[name]}" for name in pristine if found[name] != ("whole", "found")[name in damaged]]
            if index % RESUMED_EVERY == 0:
                odd += resumed(folder, damaged, pristine, expected)
                rounds = sum(name in damaged for name in (OLDER, NEWER))
                outcomes[("no round damaged", "one round damaged", "both rounds damaged: StateError")[rounds]] += 1
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
        print(f"| runs that went on: {what} | {count} |")
    print(f"| states or runs that were not as they should be | {len(result['wrong'])} |")
    files = ", ".join(f"{name} ({count} files)" for name, count in protocol["state"].items())
    print(
        f"\n{protocol['encoder']}; {protocol['data']}; {protocol['method']} interrupted in its round {INTERRUPTED_IN} "
        f"of {protocol['rounds']}, which leaves {files}. One or two changes of it, drawn with seeds "
        f"{protocol['seeds'][0]} to {protocol['seeds'][1]} (those that change nothing are drawn again). Each snapshot "
        f"that is not what it was must be refused, each other one read. Every {RESUMED_EVERY}th of the runs goes on: "
        "from the newest whole round, with one warning for each damaged snapshot that it looks at, to the bits of a "
        "run that was never interrupted; where both rounds are damaged, it must end with a StateError."
    )
