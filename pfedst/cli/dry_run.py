"""`pfedst fit --dry_run`: what a run would send, write, take and last, from a few steps of its largest client."""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pfedst.client.client import Client
from pfedst.client.state import KEPT
from pfedst.data import Split
from pfedst.evaluation.evaluate import evaluate
from pfedst.messages.payload import payload_bytes
from pfedst.messages.requests import Reply, Request
from pfedst.reporting import bytes_text
from pfedst.seeds import generator
from pfedst.server.server import Server
from pfedst.simulation import EVALUATED, Simulation
from pfedst.torch_threads import torch_threads
from pfedst.tracking import peak_memory_bytes
from pfedst.transport.pool import WorkerPool

BATCHES = 3
"""Number of training batches, and of evaluation batches, that are timed."""
IDENTITY_BYTES = 40
"""Hashes of an image and of its group, and its label, in the predictions of a site."""


@dataclass(frozen=True)
class Trial:
    """What a few steps of one client took.

    Attributes:
        client: its name.
        upload_bytes, download_bytes: of its messages in a round.
        state_bytes: of the snapshot of its site after a fit.
        fit_seconds: of an image in a local fit.
        evaluation_seconds: of an image in an evaluation.
        encoder_seconds: of an image in the encoder.
        cache_seconds: of an image that the cache lacks; 0 if it lacks none.
    """

    client: str
    upload_bytes: int = 0
    download_bytes: int = 0
    state_bytes: int = 0
    fit_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    encoder_seconds: float = 0.0
    cache_seconds: float = 0.0


class DryRun:
    """A run that is built and checked, with the sizes that its estimates need.

    Nothing but a temporary folder is written. No class prototypes are computed, and no image is cached: sizes and times
    do not depend on their values.

    Args:
        simulation: the run; it cannot be run afterwards.
        runs_dir: where its folder would be made.
    """

    def __init__(self, simulation: Simulation, runs_dir: Path) -> None:
        self.client, self.runs_dir = simulation.client, runs_dir
        self.options = simulation.coordinator.options
        self.workers = simulation.transport.workers if isinstance(simulation.transport, WorkerPool) else 1
        hellos, self.server = simulation.coordinator.check(
            simulation.transport,
            simulation.method,
            simulation.make_start,
            simulation.run_seed,
            simulation.study,
            init=simulation.init,
        )
        self.gathers_prototypes = self.server.gathers_prototypes
        self.samples = {name: hello.values["samples"] for name, hello in hellos.items()}
        self.rounds = self.options.rounds if self.server.trains else 0
        self.drawn = [self.server.draw(n, self.options.participation) for n in range(1, self.rounds + 1)]
        if self.gathers_prototypes:
            anchors = torch.randn(self.server.start.anchors_shape, generator=generator(0))
            self.server.set_anchors(torch.nn.functional.normalize(anchors, dim=1))
        self.server.begin()
        self.trial = try_client(self.client, self.server, self._largest(), self.options.fits.keep_optimizer)

    def text(self) -> str:
        """Return the estimates, a line each."""
        lines = {
            "sends": self._bytes(),
            "disk": self._disk(),
            "memory": f"{bytes_text(peak_memory_bytes(self.client.local.device))} at its peak so far"
            + (f", and about as much in each of {self.workers} worker processes" if self.workers > 1 else ""),
            "time": self._time(),
        }
        head = f"dry run: all checks passed, and no run was written; measured on {BATCHES} batches of "
        return "\n".join([head + self.trial.client, *(f"  {name:<7}{text}" for name, text in lines.items())])

    def _largest(self) -> str:
        return max(self.server.drawable, key=self._images)

    def _images(self, client: str) -> int:
        """Return the number of images that a client sees in a local epoch."""
        images = sum(int(self.samples[site]["train"]) for site in self.client.sites_of(client))
        size, limit = self.client.data.batch_size, self.client.local.batches
        batches = math.ceil(images / size)
        batches = max(1, int(batches * limit)) if isinstance(limit, float) else min(batches, limit)
        return min(images, batches * size)

    def _bytes(self) -> str:
        """Describe what leaves a site: of the one that is drawn most often, and of all together."""
        if self.client.method.pooled:
            return "the method pools the images of all sites in one place: they leave the sites before the run"
        classes, width = self.server.start.anchors_shape
        setup = classes * (width + 1) * 8 if self.gathers_prototypes else 0
        drawn = list(itertools.chain.from_iterable(self.drawn))
        most = max((drawn.count(name) for name in set(drawn)), default=0)
        up, down, sites = self.trial.upload_bytes, self.trial.download_bytes, len(self.server.training_sites)
        return (
            f"{bytes_text(up)} a site and round, {bytes_text(up * most + setup)} a site in all "
            f"({bytes_text(setup)} of them before the first round); {bytes_text(up * len(drawn) + setup * sites)} of "
            f"all sites in {self.rounds} rounds; a site receives {bytes_text(down)} a round"
        )

    def _disk(self) -> str:
        """Describe what is written: of the states, those that are kept at the same time."""
        kept = KEPT + max(2, self.options.keep_states) + 1
        evaluated = sum(int(counts[split]) for counts in self.samples.values() for split in EVALUATED)
        predictions = evaluated * (IDENTITY_BYTES + 8 * len(self.client.data.class_names))
        shared = payload_bytes({"": self.server.start.state | self.server.start.frozen})
        states = self.trial.state_bytes * kept * len(self.server.drawable) + shared * (self.options.keep_states + 2)
        _, images, cache_bytes = self.client.data.missing
        there = next(path for path in (self.runs_dir.absolute(), *self.runs_dir.absolute().parents) if path.exists())
        cache = f"; {bytes_text(cache_bytes)} for {images:,} images in the cache" if images else ""
        free = bytes_text(shutil.disk_usage(there).free)
        return f"at most {bytes_text(states + predictions)} in {self.runs_dir}, where {free} are free{cache}"

    def _time(self) -> str:
        trial, evaluated = self.trial, [n for n in range(1, self.rounds + 1) if self._is_evaluated(n)]
        sizes = {name: sum(int(counts[split]) for split in EVALUATED) for name, counts in self.samples.items()}
        fitted = sum(self._images(name) for names in self.drawn for name in names) * self.client.local.epochs
        fitted += sum(map(self._images, self.server.drawable)) * self.client.method.finetune_epochs
        seen = sum(sizes.values()) * (len(evaluated) + 1)
        seen += sum(sizes.get(name, 0) for number in evaluated for name in self.drawn[number - 1])
        parts = {
            "local fits": fitted * trial.fit_seconds / self.workers,
            "evaluations": seen * trial.evaluation_seconds / self.workers,
        }
        kind, missing, _ = self.client.data.missing
        if missing:
            parts["the cache"] = missing * trial.cache_seconds
        if self.gathers_prototypes and not (missing and kind != "images"):
            images = sum(int(self.samples[site]["train"]) for site in self.server.training_sites)
            parts["class prototypes"] = images * trial.encoder_seconds
        told = ", ".join(f"{_minutes(seconds)} of {what}" for what, seconds in parts.items())
        return f"about {_minutes(sum(parts.values()))} on this machine, as busy as it is now: {told}"

    def _is_evaluated(self, number: int) -> bool:
        return number % self.options.evaluate_every == 0 or number == self.rounds


def try_client(client: Client, server: Server, name: str, keep_optimizer: bool) -> Trial:
    """Run two short fits and a short evaluation of a client in a temporary folder; what they took.

    The time of the encoder, or of reading an image, is subtracted where its result would be cached in the run.
    """
    site = client.sites_of(name)[0]
    upload, state_bytes, fit_seconds = 0, 0, 0.0
    with tempfile.TemporaryDirectory(prefix="pfedst-dry-run-") as folder:
        client.keep_state_in(Path(folder))
        for number, batches in enumerate((1, BATCHES) if server.trains else (), start=1):  # the first one warms up
            request = Request("fit", "dry-run", number, keep_optimizer=keep_optimizer, parts=server.parts_for(name))
            started = time.perf_counter()
            with client.local.at_most(batches):
                reply: Reply = client.answer(name, request)
            fit_seconds = (time.perf_counter() - started) / max(1, reply.values["record"]["images"])
            upload = payload_bytes(reply.parts)
            state_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) // number
    if server.anchors is not None:
        for model in (client.model, client.generic):
            model.set_anchors(server.anchors)
    reading_seconds, encoder_seconds, evaluation_seconds = _image_seconds(client, site)
    kind, missing, _ = client.data.missing
    cached = 0.0 if not missing else reading_seconds if kind == "images" else encoder_seconds
    return Trial(
        name,
        upload,
        payload_bytes(server.message_to(name)),
        state_bytes,
        max(fit_seconds - cached, 0.0),
        max(evaluation_seconds - cached, 0.0),
        encoder_seconds,
        cached,
    )


def _image_seconds(client: Client, site: str) -> tuple[float, float, float]:
    """Return the seconds that an image takes to be read, in the encoder, and in an evaluation of both models."""
    model, device = client.model.move_to(client.local.device), client.local.device
    client.module.encoder.to(device)
    models = {"personal": client.method.personal_model(model), "generic": client.generic.move_to(device).adapter}
    for predictor in models.values():
        predictor.to(device).eval()
    evaluated: tuple[Split, ...] = (*EVALUATED, "train")
    split = next(split for split in evaluated if client.data.samples(site, split))
    with torch_threads(client.threads), client.local.evaluating():
        started = time.perf_counter()
        batches = itertools.islice(client.data.evaluation_loader(site, split), BATCHES)
        _, _, targets = evaluate(models, model.taps_of, batches, device, client.data.ordinal)
        evaluation = (time.perf_counter() - started) / max(1, len(targets))
        started = time.perf_counter()
        inputs, labels = next(iter(client.data.evaluation_loader(site, split)))
        read = time.perf_counter()
        model.taps_of(inputs.to(device))
        encoded = time.perf_counter()
        return (read - started) / len(labels), (encoded - read) / len(labels), evaluation


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
