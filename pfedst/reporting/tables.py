"""Tables for the terminal, from the JSON of a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfedst.errors import counted, listed
from pfedst.reporting.formats import rich_table
from pfedst.reporting.report_table import percent
from pfedst.reporting.run_warnings import warning_text
from pfedst.reporting.stated_table import stated_table
from pfedst.state.round_choices import BEST, LAST, UNDAMAGED

HEADINGS = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "auroc_ovo": "AUROC 1 v 1",
    "quadratic_kappa": "quadratic kappa",
}
WORDS = HEADINGS | {"ece": "ECE", "classwise_ece": "classwise ECE"}
"""Words for all metrics, also those without a column in the table of a run."""
MODELS = ("personal", "generic")
SUMMARIES = (
    ("mean", "mean over clients"),
    ("weighted_mean", "weighted mean"),
    ("worst", "worst client"),
    ("std", "std over clients"),
)
"""Key of a summary over sites, and its name."""


def metric_words(metric: str) -> str:
    """Return a metric in words."""
    return WORDS.get(metric, metric.replace("_", " "))


def metric_title(metric: str) -> str:
    """Return a metric in words, with a capital letter."""
    words = metric_words(metric)
    return words[:1].upper() + words[1:]


def bytes_text(count: float | None) -> str:
    """Return a number of bytes in a suitable unit."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def console_of(width: int) -> Console:
    """Return a console on standard output, as wide as the terminal, or `width` columns if there is no terminal."""
    return Console(width=None if Console().is_terminal else width)


def metrics_table(summary: Mapping[str, Any]) -> Table:
    """Build the table of sites and their summary by metrics, for the personal and the generic model, in percent."""
    models = [model for model in MODELS if model in summary]
    table = Table(title=f"{summary['name']}: personal / generic model on {summary['protocol']['split']}, %")
    table.add_column("client")
    table.add_column("images", justify="right")
    metrics = [metric for metric in summary["personal"]["mean"] if metric in HEADINGS]
    for metric in metrics:
        table.add_column(HEADINGS[metric], justify="right")
    samples = summary["protocol"]["samples"]
    sizes = {site: samples[site][summary["protocol"]["split"]] for site in summary["personal"]["clients"]}
    held_out = summary["protocol"]["held_out_sites"]
    new = summary["protocol"].get("new_sites", [])
    transductive = summary["protocol"].get("transductive_sites", ())
    missing = summary["personal"].get("not_evaluated", [])
    for site, size in sizes.items():
        kinds = (
            ("held out", held_out),
            ("not in the run: generic model", new),
            ("transductive", transductive),
            ("not evaluated", missing),
        )
        marks = [mark for mark, of in kinds if site in of]
        name = f"{site} ({', '.join(marks)})" if marks else site
        table.add_row(name, str(size), *_cells([summary[m]["clients"][site] for m in models], metrics))
    table.add_section()
    apart = {*held_out, *new} if "held_out_mean" in summary["personal"] else set()
    for column, heading in SUMMARIES if len(sizes) > 1 else ():  # of one site they would be its own row again
        images = sum(size for site, size in sizes.items() if site not in {*apart, *missing})
        size = str(images) if column == "weighted_mean" else ""
        table.add_row(heading, size, *_cells([summary[m][column] for m in models], metrics))
    if "held_out_mean" in summary["personal"]:
        heading = "mean of sites not in the run" if new else "mean of held out"
        heading = "mean of held out or not in the run" if new and held_out else heading
        table.add_row(heading, "", *_cells([summary[m]["held_out_mean"] for m in models], metrics))
    return table


def protocol_text(summary: Mapping[str, Any]) -> Text:
    """Describe the protocol of a summary in a few lines. Random weights and synthetic images are highlighted."""
    protocol = summary["protocol"]
    text = Text()
    text.append(f"method   {protocol['method']}, {protocol['adapter']}, anchors {protocol['anchors']}\n")
    options = ", ".join(f"{name}={value}" for name, value in protocol["method_options"].items())
    text.append(f"         {options}\n")
    text.append(f"encoder  {protocol['encoder']}\n", style="bold yellow" if protocol["random_weights"] else "")
    text.append(f"data     {protocol['data']}\n")
    text.append(f"protocol {protocol['when']}; {_training(protocol)}\n")
    for name, kinds in summary.get("left_out", {}).items():
        trained = counted(protocol["rounds"], "round")
        times = ", ".join(f"{count} of {trained} for {kind}" for kind, count in kinds.items())
        text.append(f"left out {name}: {times}\n", style="bold yellow")
    for name, rounds in summary.get("not_evaluated", {}).items():
        text.append(f"missing  {name}: not evaluated after round {listed(rounds)}\n", style="bold yellow")
    if new := protocol.get("new_sites"):
        text.append(f"sites    not in the run, evaluated with the generic model: {', '.join(new)}\n", style="bold")
    if source := protocol.get("init"):
        text.append(f"init     shared tensors of {source['name']}, round {source['round']}\n", style="bold")
    if prior := protocol.get("prior"):
        text.append(f"prior    {prior}\n", style="bold")
    best = summary.get("best_on_validation")
    if best is not None and best["round"] != protocol["round"]:
        text.append(
            f"         best on validation: round {best['round']}, personal balanced accuracy on test "
            f"{percent(best['personal']['mean']['balanced_accuracy'])} % (mean over clients)\n"
        )
    for warning in summary.get("warnings", ()):
        text.append(f"WARNING  {warning_text(warning)}\n", style="bold yellow")
    if to_try := summary.get("to_try"):
        text.append(f"try      {'; '.join(to_try)}\n", style="bold yellow")
    cost = summary.get("cost")
    if cost is not None:
        if cost["skipped_steps"]:
            text.append(f"skipped  {cost['skipped_steps']} steps, as not finite\n", style="bold yellow")
        text.append(
            f"cost     {cost['parameters_trained']:,} parameters trained a client, "
            f"{cost['parameters_sent']:,} sent a round; up {bytes_text(cost['upload_bytes_per_round'])}, "
            f"down {bytes_text(cost['download_bytes_per_round'])} a round over all clients, "
            f"up {bytes_text(cost['setup_upload_bytes'])} once before; "
            f"{cost['fit_seconds']:.1f} s of local fits, {cost['total_seconds']:.1f} s in all, "
            f"peak memory {bytes_text(cost['peak_memory_bytes'])}"
        )
    return text


def _training(protocol: Mapping[str, Any]) -> str:
    """Return in words how the evaluated model was trained."""
    if "rounds" not in protocol:
        return f"round {protocol['round']} of the run that the model was exported from"
    return (
        f"round {protocol['round']} of {protocol['rounds']} ({round_words(protocol)}), "
        f"{counted(protocol['local_epochs'], 'local epoch')}, participation {protocol['participation']:g}, "
        f"seed {protocol['seed']} (one seed: no claim of significance)"
    )


def round_words(protocol: Mapping[str, Any]) -> str:
    """Return in words how the round of some numbers was chosen."""
    choice = protocol.get("round_choice", LAST)
    words = {LAST: "the last", BEST: "the best on validation", UNDAMAGED: "the last one is damaged"}
    return words.get(choice, "chosen by its number")


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table and its protocol to standard output."""
    stated = stated_table([(summary["protocol"]["method"], [summary])])
    parts: list[RenderableType] = [metrics_table(summary), protocol_text(summary)]
    if stated is not None:
        parts.insert(1, rich_table(stated.without_marks()))
    (console or console_of(120)).print(Group(*parts), highlight=False)


def _cells(models: list[Mapping[str, float | None]], metrics: Sequence[str]) -> list[str]:
    return [" / ".join(percent(model[metric]) for model in models) for metric in metrics]
