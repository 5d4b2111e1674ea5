"""`pfedst fit` as a function. It goes through the parser of the command line."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from pfedst.adapters import Adapter, TorchModule
from pfedst.cli.python_interface import PythonCLI
from pfedst.cli.run import Run
from pfedst.cli.start import run_interface
from pfedst.comparison.plan import as_arguments
from pfedst.data.sets.objects import DatasetSites
from pfedst.errors import ConfigurationError
from pfedst.methods.interface import FederatedMethod


def fit(
    config: str | Path | Mapping[str, Any] = "demo",
    *,
    overrides: Mapping[str, Any] | None = None,
    method: type[FederatedMethod] | str | None = None,
    adapter: type[nn.Module] | str | None = None,
    data: DatasetSites | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    resume: bool = False,
) -> Run:
    """Train a method across sites, as `pfedst fit` does, and return the run.

    Args:
        config: file of a configuration, the name of a shipped one, or its content.
        overrides: options by dotted key, such as `{"coordinator.rounds": 5, "method.mu": 0.1}`.
        method: class or name of the method in place of that of the configuration.
        adapter: class or name of the adapter in place of that of the method; or a class of torch modules from images
            (B, 3, S, S) to logits (B, K) that is called with the number of classes K, see `TorchModule`.
        data: torch Datasets in place of the data of the configuration.
        name: of the run's folder, which must be new; default: made of method, data and seed.
        runs_dir: where run folders are made.
        resume: continue the run of that name, if it exists.

    Raises:
        PfedstError: an error with a remedy: of options, data, encoder weights or saved state.
    """
    _check_given(method, adapter, data)
    arguments = [f"--runs_dir={runs_dir}", f"--resume={json.dumps(resume)}"]
    arguments += [] if name is None else [f"--name={name}"]
    arguments += [] if method is None else [f"--method={_class_path(method)}"]
    arguments += [] if adapter is None else _adapter(adapter)
    if data is not None:
        arguments += [
            f"--data={_class_path(type(data))}",
            *as_arguments({f"data.{k}": v for k, v in data.options.items()}),
        ]
    with _file_of(config) as file:
        given = ["fit", f"--config={file}", *arguments, *as_arguments(overrides or {})]
        done = run_interface(given, lambda arguments: PythonCLI(arguments, data))
    if done.folder is None:
        raise ConfigurationError("dry_run: pfedst.fit returns a run; use the command pfedst fit --dry_run")
    return Run(done.folder)


def _check_given(method: Any, adapter: Any, data: Any) -> None:
    """Check that classes are classes, where an object of them comes to mind as well.

    Raises:
        ConfigurationError: with what to give.
    """
    for name, given, option in (("method", method, "method.mu"), ("adapter", adapter, "model.adapter.width")):
        if given is not None and not isinstance(given, type | str):
            raise ConfigurationError(
                f"{name}: give the class {type(given).__name__}, not an object of it; its options are overrides, such "
                f'as overrides={{"{option}": ...}}'
            )
    if isinstance(method, type) and not issubclass(method, FederatedMethod):
        raise ConfigurationError(f"method: {method.__name__} is no method; derive it from pfedst.FederatedMethod")
    if isinstance(adapter, type) and not issubclass(adapter, nn.Module):
        raise ConfigurationError(f"adapter: {adapter.__name__} is no torch.nn.Module")
    if isinstance(adapter, type) and not issubclass(adapter, Adapter):
        try:
            inspect.signature(adapter).bind(1)
        except TypeError as error:
            raise ConfigurationError(
                f"adapter: {adapter.__name__} is called with the number of classes alone ({error})"
            ) from None
    if data is not None and not isinstance(data, DatasetSites):
        raise ConfigurationError(f"data: give pfedst.DatasetSites({{site: ...}}), not a {type(data).__name__}")


def _adapter(adapter: type[nn.Module] | str) -> list[str]:
    """Return the arguments for an adapter; a plain torch module is wrapped."""
    if isinstance(adapter, str) or issubclass(adapter, Adapter):
        return [f"--model.adapter={_class_path(adapter)}"]
    wrapper = _class_path(TorchModule)
    return [f"--model.adapter={wrapper}", f"--model.adapter.module={_class_path(adapter)}"]


def _class_path(found: type | str) -> str:
    return found if isinstance(found, str) else f"{found.__module__}.{found.__qualname__}"


@contextmanager
def _file_of(config: str | Path | Mapping[str, Any]) -> Iterator[str]:
    """Return the file or name of a configuration; its content is written into a file for this block."""
    if not isinstance(config, Mapping):
        yield str(config)
        return
    with tempfile.TemporaryDirectory(prefix="pfedst-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config))
        yield str(file)
