"""Imports a class by its path, and says why it cannot be imported."""

from __future__ import annotations

import importlib
import traceback

from pfedst.errors import ConfigurationError, PfedstError, nearest


def import_class(path: str) -> type:
    """Return the class of an import path, such as `mymodule.Class`.

    Raises:
        ConfigurationError: there is no such module or class, or importing the module failed; with the place.
        PfedstError: what a class of the module raises when it is defined.
    """
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigurationError(_raised_in(module, error)) from error
        raise ConfigurationError(
            f'there is no module "{error.name}"; put the folder that holds it on PYTHONPATH, or install its package'
        ) from error
    except PfedstError:  # of a class of a method, which is checked where it is defined; it names the class
        raise
    except Exception as error:
        raise ConfigurationError(_raised_in(module, error)) from error
    classes = {key: value for key, value in vars(found).items() if isinstance(value, type)}
    if name not in classes:
        raise ConfigurationError(f'module {module} has no class "{name}".{nearest(name, classes)}')
    return classes[name]


def _raised_in(module: str, error: Exception) -> str:
    """Return what the import of a module raised, and where."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    file, line = frames[-1].filename, frames[-1].lineno
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno
    return f"importing {module} failed: {type(error).__name__}: {getattr(error, 'msg', error)} ({file}, line {line})"
