"""Many clients: seconds and memory of a participating client as the number of clients grows; RANDOM weights and images.

    python benchmarks/scale.py run [--clients 10 100 1000] [--rounds 6]
    python benchmarks/scale.py table

A run of pFedST on the nano encoder, 32 training and 8 test images of 32 px a client, participation 10 %, evaluated
before the first round and after the last one. Each run is a process of its own. Images lie in memory and are counted
apart. Rounds are timed from their first request until their state and `rounds.jsonl` are written, without the first
round and the last one, which is evaluated. Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from command_line import one_command, row_of_a_process, run_and_table, save
from sites import MEBI, one_run, round_seconds

RESULT = Path(__file__).resolve().parent / "results" / "scale.json"
PARTICIPATION, TRAIN_IMAGES, TEST_IMAGES = 0.1, 32, 8
LARGEST_RATIO = 1.1
FEW, MANY = 100, 1000


def run(clients: list[int], rounds: int) -> None:
    """Run one process for each row; the file is complete after each of them."""
    rows = []
    for number in clients:
        rows.append(row_of_a_process(__file__, number, rounds))
        save(RESULT, {"rows": rows})
        print(f"measured: {number} clients", flush=True)


def one(clients: int, rounds: int) -> dict[str, Any]:
    """Make one run."""
    participants = max(1, round(PARTICIPATION * clients))
    return one_run(clients, participants, rounds, TRAIN_IMAGES, TEST_IMAGES)


def milliseconds(row: dict[str, Any]) -> float:
    """Return the processor time of a participating client in a round."""
    return 1000 * round_seconds(row, "processor_seconds") / float(row["participants"])


def memory(row: dict[str, Any]) -> float:
    """Return the bytes beyond libraries, encoder and images."""
    return float(row["peak_bytes"] - row["encoder_built_bytes"] - row["image_bytes"])


def table() -> None:
    """Print everything from the result's file."""
    rows = json.loads(RESULT.read_text())["rows"]
    print(
        "| clients | of them a round | a participating client, ms of the processor | peak, MiB | of them images, MiB | "
        f"beyond libraries, encoder and images, MiB | folder, MiB |\n|{'---|' * 7}"
    )
    for row in rows:
        print(
            f"| {row['sites']:,} | {row['participants']} | {milliseconds(row):.1f} | {row['peak_bytes'] / MEBI:,.0f} | "
            f"{row['image_bytes'] / MEBI:.0f} | {memory(row) / MEBI:.0f} | {row['folder_bytes'] / MEBI:,.0f} |"
        )
    first = rows[0]
    print(
        f"\n{first['encoder']}; RANDOM images, {TRAIN_IMAGES} for training, {TEST_IMAGES} for test a client; pFedST, "
        f"{first['rounds']} rounds of one step, 1 thread, transport in_process. The server keeps the message of each "
        "participating client until the merge."
    )
    print(f"\n{targets(rows)}")


def targets(rows: list[dict[str, Any]]) -> str:
    """Return the targets, and whether each is met."""
    by_clients = {row["sites"]: row for row in rows}
    if not {FEW, MANY} <= set(by_clients):
        return f"No row of {FEW} and of {MANY:,} clients."
    few, many = by_clients[FEW], by_clients[MANY]
    ratios = {
        "processor time of a participating client": milliseconds(many) / milliseconds(few),
        "peak memory without images": (many["peak_bytes"] - many["image_bytes"])
        / (few["peak_bytes"] - few["image_bytes"]),
    }
    lines = [f"| target: from {FEW} to {MANY:,} clients at most {LARGEST_RATIO:g} times | |", "|---|---|"]
    for what, ratio in ratios.items():
        lines.append(f"| {what}: {ratio:.3f}x | {'met' if ratio <= LARGEST_RATIO else 'MISSED'} |")
    return "\n".join(lines)


def main() -> None:
    parser, commands, runs = run_and_table(__doc__)
    runs.add_argument("--clients", type=int, nargs="+", default=[10, FEW, MANY])
    runs.add_argument("--rounds", type=int, default=6)
    single = one_command(commands)
    single.add_argument("clients", type=int)
    single.add_argument("rounds", type=int)
    given = parser.parse_args()
    if given.command == "one":
        print(json.dumps(one(given.clients, given.rounds)))
        return
    if given.command == "run":
        run(given.clients, given.rounds)
    table()


if __name__ == "__main__":
    main()
