"""Repositories of open_clip models: on the model hub, or downloaded to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import RemoteEntryNotFoundError

from pfedst.encoders.activation import config_beside
from pfedst.encoders.weights import hub_or_cache, unreachable
from pfedst.errors import WeightsError
from pfedst.options import FOLDER

HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "model.safetensors")


def repository_config(model: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a repository and its configuration, with the key `model_cfg`.

    Args:
        model: `hf-hub:ORG/NAME` or `local-dir:FOLDER`.

    Raises:
        WeightsError: If it cannot be reached, or is no repository of open_clip.
    """
    if model.startswith(HUB):
        repository = model.removeprefix(HUB)
        try:
            with hub_or_cache():
                folder = Path(huggingface_hub.hf_hub_download(repository, CONFIG)).parent
        except RemoteEntryNotFoundError as error:
            raise _no_repository(f"{repository} on the model hub") from error
        except Exception as error:  # the hub client raises many kinds; all mean that the file is not available
            raise unreachable(f"encoder {model}", repository, error) from error
    else:
        folder = Path(model.removeprefix(FOLDER)).expanduser()
        if not (folder / CONFIG).is_file():
            raise _no_repository(str(folder))
    configuration = config_beside(folder / CONFIG)
    if not isinstance(configuration.get("model_cfg"), dict):
        raise WeightsError(f"{folder / CONFIG}: has no model_cfg, so that no model can be built; download it again")
    return folder, configuration


def _no_repository(place: str) -> WeightsError:
    return WeightsError(
        f"{place} holds no {CONFIG}, so that it is no repository of open_clip. A CLIP for transformers: download its "
        f"model.safetensors, and give it as --model.encoder.weights with the --model.encoder.model of its size, such "
        f"as ViT-L-14-quickgelu"
    )


def folder_weights(folder: Path) -> Path:
    """Return the file with the weights of a downloaded repository.

    Raises:
        WeightsError: If there is none, or it is not clear which.
    """
    found = [folder / name for name in WEIGHTS_FILES if (folder / name).is_file()] or sorted(
        folder.glob("*.safetensors")
    )
    if len(found) == 1 or (found and found[0].name in WEIGHTS_FILES):
        return found[0]
    raise WeightsError(
        f"{folder}: holds {len(found)} .safetensors files, and none is called {' or '.join(WEIGHTS_FILES)}; give "
        f"--model.encoder.weights FILE"
    )
