"""One training step: forward, cross-entropy, backward, AdamW. RANDOM WEIGHTS: only time and memory are measured.

    python benchmarks/step.py run [--image-size 224] [--batch-size 16] [--cycles 3] [--device cpu]
    python benchmarks/step.py table

Rows are ways to fine-tune one image tower (see `step_rows.py`). In the first step of each row its matrix products, the
tensors that autograd saves and the peak memory are counted. Then the rows take turns for some cycles of timed steps, so
that other work on the machine slows all of them. Cached taps are in memory: `cache.py` and `epoch.py` measure reading
them from disk.

The floor of a step is the time of its matrix products alone, each measured in the same cycles in its own shape (see
`matrix_products.py`).
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from command_line import run_and_table, save
from environment import environment
from matrix_products import Clock, Product, Products, Recorder, floor_seconds, flops, synchronise
from peak_memory import PeakMemory
from step_rows import CACHED, CLASSES, COMPILED, LORA, RECOMPUTED, ROWS, Row, Setting, small_head
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

RESULT = Path(__file__).resolve().parent / "results" / "step.json"
MEBI = 2**20
PROFILED_STEPS = 3
PARTS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "convolution"),
    "attention": ("_scaled_dot_product", "softmax", "_softmax"),
    "layer norm": ("native_layer_norm",),
    "activations": ("gelu", "sigmoid"),
    "copies": ("copy_", "cat", "clone", "fill_", "zero_", "select_backward", "slice_backward"),
}
"""Shares of a step: what the names of torch's operators begin with."""


# -- counting ----------------------------------------------------------------------------------------------------------


def counted(row: Row, device: torch.device) -> tuple[dict[str, Any], Products]:
    """Count what the first step of a row saves for backward, its peak memory, and its matrix products."""
    if row.compiled:  # the compiler's own memory is not the step's
        row.gradients()
        row.optimizer.zero_grad()
    gc.collect()
    recorder, counter = Recorder(), FlopCounterMode(display=False)
    saved, memory = SavedBytes(row), PeakMemory(device)
    with memory.watched(), saved:
        if row.compiled:  # nothing is compiled while a recorder watches
            row.step()
        else:
            with counter, recorder:
                row.step()
    found = {
        "parameters_trained": sum(parameter.numel() for parameter in row.parameters),
        "saved_bytes": saved.bytes,
        "peak_bytes": memory.bytes,
        "peak_missing": memory.missing,
        "flops_of_flop_counter": counter.get_total_flops(),
    }
    return found, recorder.products


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the tensors that autograd keeps for the backward pass: every storage once, without parameters."""

    def __init__(self, row: Row) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._held = {parameter.untyped_storage().data_ptr() for parameter in row.held}
        self._found: dict[int, int] = {}

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._held:
            self._found[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """Bytes of all storages."""
        return sum(self._found.values())


# -- timing ------------------------------------------------------------------------------------------------------------


def clock_for(device: torch.device) -> Clock:
    """Return processor time if one thread does all the work, so that other work on the machine is not counted."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def timed_step(row: Row, device: torch.device) -> tuple[float, float]:
    """Return seconds by the clock for the device, and on the wall."""
    clock = clock_for(device)
    synchronise(device)
    on_the_wall, started = time.perf_counter(), clock()
    row.step()
    synchronise(device)
    return clock() - started, time.perf_counter() - on_the_wall


def breakdown(row: Row) -> dict[str, float]:
    """Return the shares of a step on a CPU by kind of work; `rest` is small operators and Python between them."""
    gradient_seconds = optimizer_seconds = 0.0
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        for _ in range(PROFILED_STEPS):
            row.gradients()
        gradient_seconds = time.perf_counter() - started
    for _ in range(PROFILED_STEPS):
        row.gradients()
        started = time.perf_counter()
        row.optimizer.step()
        optimizer_seconds += time.perf_counter() - started
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in profiled.key_averages():
        for part, beginnings in PARTS.items():
            if event.key.startswith(tuple(f"aten::{beginning}" for beginning in beginnings)):
                seconds[part] += event.self_cpu_time_total / 1e6
    total = gradient_seconds + optimizer_seconds
    shares = {part: spent / total for part, spent in seconds.items()} | {"optimiser": optimizer_seconds / total}
    return shares | {"rest": 1 - sum(shares.values())}


def common_products(setting: Setting) -> dict[str, Product]:
    """Return two products of the model whose rates are printed beside the table."""
    spec = setting.encoder().spec
    rows, width = setting.batch_size * spec.tokens, spec.width
    return {
        "down-projection of a tap": Product(1, rows, width, width // 8, right_transposed=True),
        "first layer of a block's MLP": Product(1, rows, width, 4 * width, right_transposed=True),
    }


def count_rows(setting: Setting, names: list[str]) -> tuple[dict[str, Row], dict[str, Any], dict[str, Products]]:
    """Return the rows that can run after their first step, the counts of that step, and their products."""
    rows: dict[str, Row] = {}
    results: dict[str, dict[str, Any]] = {}
    products: dict[str, Products] = {}
    small_head(setting).step()  # memory that libraries set up once belongs to no row
    for name in names:
        row = ROWS[name](setting)
        try:
            results[name], products[name] = counted(row, setting.device)
            rows[name] = row
        except RuntimeError as error:
            if not row.compiled:
                raise
            results[name] = {"missing": f"no compiler: {str(error).splitlines()[0]}"}
        print(f"counted: {name}", flush=True)
    if COMPILED in products:  # the same products, which cannot be counted within compiled code
        products[COMPILED] = products.get(CACHED, Products())
    return rows, results, products


def time_rows(
    rows: Mapping[str, Row], products: Iterable[Product], cycles: int, device: torch.device
) -> tuple[dict[str, list[tuple[float, float]]], dict[Product, float]]:
    """Time the steps of every row and every product alone, cycle by cycle."""
    alone: dict[Product, list[float]] = {product: [] for product in products}
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for cycle in range(cycles):
        for name, row in rows.items():
            steps[name].append(timed_step(row, device))
        for product, seconds in alone.items():
            seconds.append(product.seconds(device, clock_for(device)))
        print(f"timed: cycle {cycle + 1} of {cycles}", flush=True)
    return steps, {product: statistics.median(seconds) for product, seconds in alone.items()}


def run(setting: Setting, cycles: int, only: list[str]) -> None:
    """Count, time and write all rows."""
    rows, results, products = count_rows(setting, only)
    shown = common_products(setting)
    distinct = dict.fromkeys([*shown.values(), *(product for of_row in products.values() for product in of_row)])
    steps, alone = time_rows(rows, distinct, cycles, setting.device)
    for name in rows:
        results[name] |= of_steps(steps[name], products[name], alone)
    rates = {name: {"product": str(p), "flops_per_second": p.flops / alone[p]} for name, p in shown.items()}
    parts = breakdown(rows[CACHED]) if CACHED in rows and setting.device.type == "cpu" else {}
    write(setting, cycles, rates, parts, results)


def of_steps(steps: list[tuple[float, float]], products: Products, medians: Mapping[Product, float]) -> dict[str, Any]:
    """Return the times of a row and those of its products alone."""
    return {
        "seconds": [seconds for seconds, _ in steps],
        "wall_seconds": [seconds for _, seconds in steps],
        "flops": flops(products),
        "floor_seconds": floor_seconds(products, medians),
        "products": [
            {"product": str(product), "count": count, "flops_per_second": product.flops / medians[product]}
            for product, count in products.items()
        ],
    }


def write(
    setting: Setting,
    cycles: int,
    rates: dict[str, Any],
    parts: dict[str, float],
    results: dict[str, dict[str, Any]],
) -> None:
    """Write the file of the result."""
    name = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "cpu"
    protocol = asdict(setting) | {"device": name, "encoder": setting.encoder().label, "classes": CLASSES}
    clock = "processor time" if clock_for(setting.device) is time.process_time else "on the wall"
    content = {
        "environment": environment(),
        "protocol": protocol | {"cycles": cycles, "clock": clock},
        "rates": rates,
        "breakdown_of_cached": parts,
        "rows": results,
    }
    save(RESULT, content)


# -- table -------------------------------------------------------------------------------------------------------------


def table() -> None:
    """Print everything from the result's file."""
    result = json.loads(RESULT.read_text())
    rows: dict[str, dict[str, Any]] = result["rows"]
    print(
        "| training step | seconds | against pFedST cached | on the wall | saved for backward, MiB | against LoRA "
        f"| peak, MiB | GFLOP | floor, seconds | step / floor |\n|{'---|' * 10}"
    )
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(cells(row, rows))} |")
    protocol, threads = result["protocol"], result["environment"]["threads"]
    print(
        f"\n{protocol['encoder']}: only time and memory are measured. Random images, batch {protocol['batch_size']}, "
        f"{protocol['classes']} classes, {protocol['device']}, {threads} thread{'s' if threads > 1 else ''}. Seconds: "
        f"{protocol['clock']}, median of {protocol['cycles']} interleaved cycles after a first step. Peak: of the "
        "first step above model and batch, with gradients and the optimiser's state. Floor: the step's matrix products "
        "alone, timed by the same clock in the same cycles, each in its own shape."
    )
    if CACHED in rows and protocol["device"] == "cpu":
        seen = rows[CACHED]["flops_of_flop_counter"] / rows[CACHED]["flops"]
        print(
            f"torch's FlopCounterMode sees {100 * seen:.1f} % of the FLOPs of pFedST on cached taps: on a CPU "
            "it does not know attention, which is counted here by the same formulas as on a GPU."
        )
    for name, rate in result["rates"].items():
        print(f"Rate of {rate['product']} ({name}): {rate['flops_per_second'] / 1e9:.1f} GFLOP/s.")
    if shares := result["breakdown_of_cached"]:
        listed = ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares.items())
        print(f"\nParts of a step of pFedST on cached taps: {listed}.")
    print(f"\n| target | measured | |\n|---|---|---|\n{targets(rows)}")


def cells(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the cells of one row of the table."""
    if "missing" in row:
        return [row["missing"], *[""] * 8]
    seconds, peak = statistics.median(row["seconds"]), row["peak_bytes"]
    return [
        f"{seconds:.3f}",
        f"{ratio(rows, row, CACHED, seconds_of):.2f}x",
        f"{statistics.median(row['wall_seconds']):.3f}",
        f"{row['saved_bytes'] / MEBI:,.1f}",
        f"{ratio(rows, row, LORA, saved_bytes_of):.3f}x",
        row["peak_missing"] if peak is None else f"{peak / MEBI:,.0f}",
        f"{row['flops'] / 1e9:,.1f}",
        f"{row['floor_seconds']:.3f}",
        f"{seconds / row['floor_seconds']:.2f}" if row["floor_seconds"] else "-",
    ]


def targets(rows: dict[str, dict[str, Any]]) -> str:
    """Return the targets, and whether each is met."""
    if not {CACHED, RECOMPUTED, LORA} <= set(rows):
        return "| not all rows were measured | | |"
    cached = rows[CACHED]
    faster = "pFedST on cached taps is at least {} times faster than"
    recomputing, lora = (1 / ratio(rows, cached, name, seconds_of) for name in (RECOMPUTED, LORA))
    saved, floor = ratio(rows, cached, LORA, saved_bytes_of), seconds_of(cached) / cached["floor_seconds"]
    lines = [
        (f"{faster.format(6)} with the tower recomputed", f"{recomputing:.1f}x", recomputing >= 6),
        (f"{faster.format(15)} LoRA through the tower", f"{lora:.1f}x", lora >= 15),
        ("it saves at most 0.17 of the bytes of LoRA through the tower", f"{saved:.3f}", saved <= 0.17),
        ("its step takes at most 1.5 times its floor", f"{floor:.2f}", floor <= 1.5),
    ]
    return "\n".join(f"| {what} | {value} | {'met' if met else 'MISSED'} |" for what, value, met in lines)


def seconds_of(row: dict[str, Any]) -> float:
    return float(statistics.median(row["seconds"]))


def saved_bytes_of(row: dict[str, Any]) -> float:
    return float(row["saved_bytes"])


def ratio(
    rows: dict[str, dict[str, Any]], row: dict[str, Any], reference: str, measure: Callable[[dict[str, Any]], float]
) -> float:
    """Return the number of a row over that of the reference row; NaN if that was not measured."""
    return measure(row) / measure(rows[reference]) if reference in rows else float("nan")


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--model", default="ViT-B-16-quickgelu")
    runs.add_argument("--image-size", type=int, default=224)
    runs.add_argument("--batch-size", type=int, default=16)
    runs.add_argument("--cycles", type=int, default=3)
    runs.add_argument("--threads", type=int, default=1)
    runs.add_argument("--device", default="cpu")
    runs.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    given = parser.parse_args()
    if given.command == "run":
        torch.set_num_threads(given.threads)
        setting = Setting(given.model, given.image_size, given.batch_size, torch.device(given.device))
        run(setting, given.cycles, given.only)
    table()


if __name__ == "__main__":
    main()
