"""One W&B run for each federated run. A network failure costs a bounded time and no record."""

from __future__ import annotations

import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger

from pfedst.state import write_atomically
from pfedst.tracking.recorder import Recorder, WriteReport, is_working_directory, main_numbers

ANSWER_SECONDS = 5.0
"""Maximum time to wait for an answer of the server, at the start and at the end of a run."""
PATIENCE = {"init_timeout": 15.0, "finish_timeout": 15.0, "finish_timeout_raises": True}
"""Settings of W&B with shorter timeouts. By default a run waits for the network 90 s at its start, and without limit at
its end."""
ID_FILE = "wandb_id"
"""File in the folder of the run with the W&B id, so that a resumed run continues the same W&B run."""
GROUPS = ("client", "federation", "generic")
ARTIFACT = ("summary.json", "config.yaml", "rounds.jsonl")

_log = logging.getLogger("pfedst")


class WandbRecorder(Recorder):
    """Start the W&B run with the options of its logger, before Lightning would start it.

    Lightning would use `trainer/global_step` as the step of all metrics.
    """

    logger: WandbLogger
    run: Any = None
    """None if W&B could not be started."""
    _owned = False

    def start(self, folder: Path, configuration: dict[str, Any]) -> None:
        """Start the W&B run with its configuration, and use rounds as the steps of logged metrics."""
        given = self.logger._experiment or wandb.run
        run = self.run = self.logger._experiment = given or self._begin(folder, configuration)
        self._owned = given is None
        if given is not None:  # started by the caller of pfedst, who also ends it
            run.config.update(configuration, allow_val_change=True)
        elif not run.disabled:
            write_atomically(folder / ID_FILE, run.id.encode())
        run.define_metric(self._name("round"))
        for group in GROUPS:
            run.define_metric(self._name(f"{group}/*"), step_metric=self._name("round"))

    def log(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Log one row per round. No step is passed to the logger: it would be logged as `trainer/global_step`."""
        if self.run is not None:
            self.logger.log_metrics({**metrics, "round": round_number})

    def end(self, folder: Path, summary: Mapping[str, Any] | None, write_report: WriteReport) -> None:
        """Log the main numbers and the files of the run, then end the W&B run."""
        if self.run is None:
            return
        try:
            if summary is not None and not self.run.disabled:
                self.run.summary.update(main_numbers(summary))
                self._keep_files(folder, write_report)
        finally:
            if self._owned:
                self._finish(1 if summary is None else 0)

    def _keep_files(self, folder: Path, write_report: WriteReport) -> None:
        if not self.run.offline and _out_of_reach(wandb.setup().settings):
            return  # for artifacts W&B queries its server at once and would wait; the files are in the run's folder
        artifact = wandb.Artifact(f"pfedst-{self.run.id}", type="pfedst-run")
        for file in (folder / name for name in ARTIFACT):
            if file.is_file():
                artifact.add_file(str(file))
        write_report(folder)
        artifact.add_dir(str(folder / "report"), name="report")
        self.run.log_artifact(artifact)

    def _finish(self, exit_code: int) -> None:
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            _log.warning("W&B did not upload all data in time: send the rest with wandb sync %s", self.run.sync_dir)

    def _name(self, key: str) -> str:
        return f"{self.logger._prefix}{self.logger.LOGGER_JOIN_CHAR}{key}" if self.logger._prefix else key

    def _begin(self, folder: Path, configuration: dict[str, Any]) -> Any:
        """Start a new W&B run or continue that of an earlier process; offline if W&B cannot be reached."""
        options = self._options(folder)
        options["config"] = configuration | dict(options.get("config") or {})
        # W&B would send usage data at the end of the process, which waits 10 s for a server that does not answer
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        settings = wandb.setup().settings
        mode = options.get("mode") or options["settings"].get("mode") or settings.mode
        if mode in ("offline", "dryrun", "disabled"):
            return wandb.init(**options)
        try:
            trouble = _trouble(settings)
            if trouble is None:
                return wandb.init(**options)
        except Exception as error:  # W&B's client, its service and the network raise many kinds
            trouble = f"{type(error).__name__}: {error}"
        run = wandb.init(**options | {"mode": "offline"})
        _log.warning(
            "W&B cannot be used (%s): this run is recorded offline; send it later with wandb sync %s",
            trouble.splitlines()[0],
            run.sync_dir,
        )
        return run

    def _options(self, folder: Path) -> dict[str, Any]:
        """Return the arguments of `wandb.init`: those of the logger, completed by defaults and the environment."""
        options = {key: value for key, value in self.logger._wandb_init.items() if value is not None}
        if self.logger._offline:
            options.setdefault("mode", "offline")
        if is_working_directory(options.get("dir")):
            options.pop("dir", None)
            if "WANDB_DIR" not in os.environ:
                options["dir"] = str(folder)
        if "WANDB_NAME" not in os.environ:
            options.setdefault("name", folder.name)
        if "WANDB_SWEEP_ID" in os.environ:  # the sweep sets these; W&B would warn for each
            options = {key: value for key, value in options.items() if key not in ("project", "entity", "id")}
        elif "WANDB_RUN_ID" not in os.environ and (folder / ID_FILE).is_file():
            options.setdefault("id", (folder / ID_FILE).read_text())
        patience = {name: value for name, value in PATIENCE.items() if f"WANDB_{name.upper()}" not in os.environ}
        options["settings"] = patience | dict(options.get("settings") or {})
        return options


def _trouble(settings: Any) -> str | None:
    """Return the reason why W&B cannot be used if it is known before its client starts, otherwise None."""
    if (trouble := _out_of_reach(settings)) is not None:
        return trouble
    # without a key W&B would prompt for one, and an unattended run would wait
    return None if wandb.login(prompt=False, verify=False) else "no API key; wandb login keeps one"


def _out_of_reach(settings: Any) -> str | None:
    """Return the reason why the W&B server does not answer, or None if it answers."""
    found: list[str | None] = []
    # in a thread, since a name lookup has no time limit
    thread = threading.Thread(target=lambda: found.append(_request(settings)), daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    trouble = found[0] if found else f"no answer within {ANSWER_SECONDS:.0f} s"
    return None if trouble is None else f"{settings.base_url}: {trouble}"


def _request(settings: Any) -> str | None:
    """Return the reason why the server does not answer. Any answer counts, also an HTTP error."""
    given = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = {scheme: proxy for scheme, proxy in given.items() if proxy}
    request = urllib.request.Request(
        f"{settings.base_url}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler(proxies or None)).open(
            request, timeout=2 * ANSWER_SECONDS
        ):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
