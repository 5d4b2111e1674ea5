"""Models on the Hugging Face hub: push a folder, and load one by `hf://USER/NAME`."""

from __future__ import annotations

from pathlib import Path

from pfedst.errors import ConfigurationError, WeightsError
from pfedst.inference.artefact_files import FILES, read_config
from pfedst.options import HUB_MODEL


def local_folder(place: str | Path) -> Path:
    """Return the folder of a model; one on the hub is downloaded, or taken from the hub's cache.

    Raises:
        ConfigurationError: the name is not of the form `hf://USER/NAME`.
        WeightsError: there is no such model, or the hub cannot be reached.
    """
    if not str(place).startswith(HUB_MODEL):
        return Path(place)
    name = str(place).removeprefix(HUB_MODEL)
    _check_name(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"{place}: the model cannot be downloaded ({_first_line(error)}); check the name and the network, log in "
            f"with `hf auth login` if it is private, or give a folder"
        ) from error


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported model to the hub; return its address.

    Args:
        folder: of the model.
        name: `USER/NAME`; the repository is made if it does not exist.
        private: make it private.

    Raises:
        ConfigurationError: the name is not of the form `USER/NAME`.
        StateError: the folder holds no model.
        WeightsError: the hub refuses, or cannot be reached.
    """
    _check_name(name)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    read_config(folder)
    try:
        api = HfApi()
        made = api.create_repo(name, private=private, exist_ok=True)
        # other files of the folder, which nobody has checked, stay here
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, allow_patterns=[*FILES, "*.onnx"])
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise WeightsError(
            f"{folder} cannot be uploaded to {name} ({_first_line(error)}); check the name and the network, and log in "
            f"with `hf auth login` or set HF_TOKEN"
        ) from error
    return str(made)


def _check_name(name: str) -> None:
    user, _, model = name.partition("/")
    if not user or not model or "/" in model:
        raise ConfigurationError(f'"{name}": name a model of the hub as USER/NAME')


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
