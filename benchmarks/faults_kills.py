"""Runs that are killed by SIGKILL at any moment and started again, for `faults.py`.

A run is a process of its own, forked from one that has imported everything and computed nothing. Half of the kills
come from outside, at a moment drawn uniformly from what is left of the run's duration; the others the process gives
itself at a call drawn from all those by which state, records and summary are written (`fsync`, `replace`, `rmtree`,
`mkdir`, `write_bytes`, an append to `rounds.jsonl`): before it, after it, or with half of it done.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from faults_runs import Left, differences, left_by, start_or_go_on
from pfedst_baselines.scaffold import SCAFFOLD

from pfedst.messages.requests import Reply
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.pfedst import PFedST
from pfedst.reporting import RunFolder
from pfedst.server.rounds import RoundLoop
from pfedst.transport.in_process import InProcess
from pfedst.transport.processes import Processes

ROUNDS, MOST_KILLS = 12, 4
CASES: dict[str, tuple[Callable[[], FederatedMethod], dict[str, Any]]] = {
    "PFedST": (PFedST, {}),
    "SCAFFOLD, kept optimiser": (SCAFFOLD, {"optimizer_state": "keep"}),
    "PFedST, fine-tuning": (lambda: PFedST(finetune_epochs=1), {"keep_states": 1, "evaluate_every": 3}),
    "PFedST, 2 processes": (PFedST, {"transport": "processes", "workers": 2}),
}


def is_parallel(case: str) -> bool:
    return "transport" in CASES[case][1]


# -- within the process that is killed ---------------------------------------------------------------------------------


class Steps:
    """Counts the calls by which a run is written, and ends the process at one of them.

    Args:
        last: its number, from 1; None for none.
        log: where the last call is told.
    """

    def __init__(self, last: int | None, log: Path) -> None:
        self.last, self.log, self.count = last, log, 0
        self.lock = threading.Lock()
        self.moment = random.Random(last).choice(("before", "half of", "after"))

    def watch(self) -> None:
        for owner, name, half in (
            (os, "fsync", None),
            (Path, "replace", None),
            (Path, "mkdir", None),
            (Path, "write_bytes", lambda path, content: path.open("wb", 0).write(content[: len(content) // 2])),
            (shutil, "rmtree", remove_half),
            (RunFolder, "add_records", append_half),
        ):
            setattr(owner, name, self._watched(getattr(owner, name), name, half))

    def _watched(self, call: Callable[..., Any], name: str, half: Callable[..., Any] | None) -> Callable[..., Any]:
        def watched(*given: Any, **options: Any) -> Any:
            with self.lock:
                self.count += 1
                last = self.count == self.last
            if last and self.moment == "before":
                self._die("before", name)
            if last and self.moment == "half of" and half is not None:
                half(*given)
                self._die("half of", name)
            result = call(*given, **options)
            if last:
                self._die("after", name)
            return result

        return watched

    def _die(self, moment: str, name: str) -> None:
        with self.log.open("a") as file:
            file.write(f"died {moment} {name}\n")
        os.kill(os.getpid(), signal.SIGKILL)


def remove_half(folder: Path, **_: Any) -> None:
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    for file in files[: len(files) // 2]:
        file.unlink()


def append_half(run: RunFolder, records: Sequence[Any]) -> None:
    text = "".join(f"{record}\n" for record in records)  # no JSON at all: what is half written is not read
    with run.records_file.open("a") as file:
        file.write(text[: len(text) // 2])


def note_fits(log: Path) -> None:
    """Write down each fit that begins, and each whose reply was on disk already."""

    def noted(ask: Callable[..., Any]) -> Callable[..., Any]:
        def noting(self: Any, requests: Any, started: Any) -> Iterator[Any]:
            def write(what: str, name: str) -> None:
                request = requests[name]
                if request.kind == "fit":
                    with log.open("a") as file:
                        file.write(f"{what} {request.round} {name} {request.finetune_epochs}\n")

            def begin(name: str) -> None:
                write("fit", name)
                started(name)

            for name, reply in ask(self, requests, begin):
                if isinstance(reply, Reply) and reply.values.get("repeated"):
                    write("repeated", name)
                yield name, reply

        return noting

    for kind in (InProcess, Processes):
        kind.ask = noted(kind.ask)  # type: ignore[attr-defined]


def live(folder: Path, case: str, last_step: int | None, log: Path, begun: int) -> None:
    """One life of a run; the process ends with it."""
    code = 1
    try:
        torch.set_num_threads(1)
        os.dup2(os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        steps, run_rounds = Steps(last_step, log), RoundLoop._run_rounds

        def tell_and_run(self: RoundLoop, done: Any) -> None:
            os.write(begun, b"!")
            run_rounds(self, done)

        RoundLoop._run_rounds = tell_and_run  # type: ignore[method-assign]
        note_fits(log)
        steps.watch()
        method, options = CASES[case]
        start_or_go_on(folder, method(), rounds=ROUNDS, **options)
        with log.open("a") as file:
            file.write(f"steps {steps.count}\n")
        code = 0
    except BaseException:
        with log.with_suffix(".err").open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


# -- outside -----------------------------------------------------------------------------------------------------------


class Life:
    """A process that has a run or the rest of it: how it ended, and what it did.

    Args:
        folder: of the run.
        case: see CASES.
        number: of the life, from 0.
        delay: seconds after the start of its rounds at which it is killed from outside.
        last_step: at which it kills itself.
    """

    def __init__(
        self, folder: Path, case: str, number: int, delay: float | None = None, last_step: int | None = None
    ) -> None:
        log = folder / f"life-{number}.log"
        log.touch()
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.close(reading)
            live(folder, case, last_step, log, writing)
        os.close(writing)
        os.read(reading, 1)  # the start of its rounds, or its end
        os.close(reading)
        started = time.perf_counter()
        handle = os.pidfd_open(process)
        if delay is not None and not select.select([handle], [], [], delay)[0]:
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        os.close(handle)
        self.seconds = time.perf_counter() - started
        self.code = os.waitstatus_to_exitcode(status)
        lines = log.read_text().splitlines()
        # a fit that began just before a kill counts as begun, though its reply may have been on disk
        repeated = {line.split(" ", 1)[1] for line in lines if line.startswith("repeated")}
        begun = [line.split(" ", 1)[1] for line in lines if line.startswith("fit")]
        self.fits = [fit for fit in begun if fit not in repeated]
        self.steps = next((int(line.split()[1]) for line in lines if line.startswith("steps")), None)
        self.died = next((line for line in lines if line.startswith("died")), "from outside")
        if self.code not in (0, -signal.SIGKILL):
            raise SystemExit(f"{case}: a run that was started again failed:\n{log.with_suffix('.err').read_text()}")


def snapshots(folder: Path) -> set[str]:
    """Return the names of the snapshots that a run keeps."""
    run = folder / "run"
    return {str(path.relative_to(run)) for path in (*run.glob("state/*"), *run.glob("sites/*/after-*"))}


def trial(whole: Life, expected: Left, kept: set[str], case: str, draw: random.Random) -> dict[str, Any]:
    """Kill a run one to four times; return what came of it."""
    with tempfile.TemporaryDirectory() as place:
        folder, lives = Path(place), list[Life]()
        kills = draw.randint(1, MOST_KILLS)
        assert whole.steps is not None
        while True:
            done = {fit for life in lives for fit in life.fits}
            rest, plan = 1 - len(done) / len(whole.fits), dict[str, Any]()
            if len(lives) < kills and draw.random() < 0.5:
                plan["delay"] = draw.uniform(0, whole.seconds * max(rest, 1 / ROUNDS))
            elif len(lives) < kills:
                plan["last_step"] = draw.randint(1, max(20, round(whole.steps * rest)))
            lives.append(Life(folder, case, len(lives), **plan))
            if not lives[-1].code:
                break
        killed = lives[:-1]
        # of each kill: fits that began in that life and had to begin again
        later = [{fit for life in lives[index + 1 :] for fit in life.fits} for index in range(len(killed))]
        return {
            "kills": [life.died for life in killed],
            "lost": [len(again & set(life.fits)) for again, life in zip(later, killed, strict=True)],
            "fits_begun": sum(len(life.fits) for life in lives),
            "differences": differences(left_by(folder), expected),
            "left_behind": sorted(file.name for file in (folder / "run").rglob("*.part")),
            "other_files": sorted(snapshots(folder) ^ kept),
        }


def kills(trials: int = 15) -> tuple[dict[str, Any], dict[str, Any]]:
    """Protocol and result."""
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) - threads.count("jemalloc_bg_thd") > 1:  # pyarrow's allocator, which is made to be forked
        raise SystemExit(
            f"processes are forked, which takes a process of one thread: set OMP_NUM_THREADS=1 ({threads})"
        )
    shared_before = set(Path("/dev/shm").iterdir())
    rows: dict[str, dict[str, Any]] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            whole = Life(Path(place), case, 0)
            expected, kept = left_by(Path(place)), snapshots(Path(place))
        number = max(1, trials // 3) if is_parallel(case) else trials
        found = []
        for index in range(number):
            found.append(trial(whole, expected, kept, case, random.Random(f"{case} {index}")))
            print(f"{case}, trial {index}: {found[-1]}", flush=True)
        rows[case] = {"fits": len(whole.fits), "steps": whole.steps, "seconds": whole.seconds, "trials": found}
    protocol = {
        "encoder": "vit-nano, RANDOM WEIGHTS, 32 px",
        "data": "SYNTHETIC lesion-like images (3 sites, seed 0)",
        "rounds": ROUNDS,
        "most_kills": MOST_KILLS,
        "seeds": "of a trial: its case and number",
        "threads": 1,
    }
    left_over = sorted(file.name for file in set(Path("/dev/shm").iterdir()) - shared_before if "torch" in file.name)
    return protocol, {"cases": rows, "shared_memory_left": left_over}


def count_of(files: list[str] | int) -> int:
    """Return the number of files; old results hold the number alone."""
    return files if isinstance(files, int) else len(files)


def table(protocol: dict[str, Any], result: dict[str, Any]) -> None:
    print(
        "| run | runs | kills | from outside | while writing | fits of a run | fits lost a kill: 0, 1, 2, more "
        "| runs that differ | files left over |\n|" + "---|" * 9
    )
    for case, row in result["cases"].items():
        died = [kind for trial in row["trials"] for kind in trial["kills"]]
        lost = Counter(min(3, number) for trial in row["trials"] for number in trial["lost"])
        cells = [case, len(row["trials"]), len(died), died.count("from outside")]
        cells += [len(died) - died.count("from outside"), row["fits"]]
        cells += [", ".join(str(lost[number]) for number in range(4))]
        cells += [sum(bool(trial["differences"]) for trial in row["trials"])]
        cells += [sum(len(trial["left_behind"]) + count_of(trial["other_files"]) for trial in row["trials"])]
        print(f"| {' | '.join(map(str, cells))} |")
    steps = Counter(
        kind.split(" ", 1)[1]
        for row in result["cases"].values()
        for trial in row["trials"]
        for kind in trial["kills"]
        if kind != "from outside"
    )
    print(
        f"\n{protocol['encoder']}; {protocol['data']}; {protocol['rounds']} rounds, one local epoch, 1 thread. A run "
        f"is killed by SIGKILL up to {protocol['most_kills']} times, started again after each, and compared with one "
        "that was never killed: summary and records without times, and every tensor of the last round, to the bit. A "
        "fit is lost that began before a kill and began again after it. Kills of the process, not of the machine. "
        "Calls at which a process killed itself: "
        f"{', '.join(f'{name} ({number})' for name, number in sorted(steps.items()))}."
    )
