"""Encoder weights: loaded strictly and from safetensors only. Without a network the error names a remedy at once."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn

from pfedst.errors import WeightsError

SHOWN = 8
BYTES_A_NUMBER = 8
SPARE_BYTES = 2**26
"""Bytes that a file may hold in addition to the model: a head, positions of a larger image, metadata."""


def read_file(
    path: Path, module: nn.Module, spare_bytes: int = SPARE_BYTES
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file.

    Args:
        path: path of the file.
        module: module to load the file into. A file that is far larger than the module is not read.
        spare_bytes: what the file may hold in addition to the module.

    Raises:
        WeightsError: If the file is missing, damaged, far too large, or of another kind.
    """
    if not path.is_file():
        raise WeightsError(f"--model.encoder.weights {path}: no such file")
    size_bytes, numbers = path.stat().st_size, sum(tensor.numel() for tensor in module.state_dict().values())
    if size_bytes > BYTES_A_NUMBER * numbers + spare_bytes:
        raise WeightsError(
            f"--model.encoder.weights {path}: {size_bytes:,} bytes, far more than the model's {numbers:,} numbers; "
            f"choose the --model.encoder.model that these weights were made for"
        )
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"--model.encoder.weights {path}: only .safetensors files are read, since a pickled checkpoint can run "
            f"code. Convert it once on a machine without important data:\n"
            f"  state = torch.load(FILE, weights_only=True); state = state.get('state_dict', state)\n"
            f"  safetensors.torch.save_file({{k: v.contiguous() for k, v in state.items()}}, 'weights.safetensors')"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # safetensors' own errors, and torch's errors for an invalid shape or type
        raise WeightsError(f"--model.encoder.weights {path}: not a complete safetensors file ({error})") from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load all keys, or raise an error and load none.

    Raises:
        WeightsError: If keys are missing, unexpected or of another shape. The message lists them.
    """
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    misshaped = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in sorted(set(own) & set(state))
        if own[key].shape != state[key].shape
    ]
    if missing or unexpected or misshaped:
        lines = [f"{what} does not fit the model; nothing was loaded:"]
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped)):
            if keys:
                more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
                lines.append(f"  {title} ({len(keys)}): {'; '.join(keys[:SHOWN])}{more}")
        lines.append("Choose the --model.encoder.model that these weights were made for.")
        raise WeightsError("\n".join(lines))
    module.load_state_dict(dict(state), strict=True)


def download(configuration: Mapping[str, Any], what: str) -> Path:
    """Return the file of a pretrained tag, from the hub or its cache.

    Raises:
        WeightsError: If the file cannot be downloaded, or is offered as a pickle only.
    """
    repository, _, file = str(configuration.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise WeightsError(
            f"{what}: its publisher offers a pickled file only ({configuration.get('url')}), which pfedst does not "
            f"read; convert it to safetensors and give --model.encoder.weights FILE"
        )
    names = [Path(file).stem + ".safetensors"] if file else ["open_clip_model.safetensors", "model.safetensors"]
    error: Exception | None = None
    for name in names:
        try:
            with hub_or_cache():
                return Path(huggingface_hub.hf_hub_download(repository, name))
        except EntryNotFoundError as missing:
            error = missing
        except Exception as failure:  # the hub client raises many kinds; all mean that the file is not available
            raise unreachable(what, repository, failure) from failure
    raise unreachable(what, repository, error)


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Run a block in which the hub client reads from its cache at once if the hub cannot be reached.

    Without this the client retries each request five times, half a minute per file.
    """
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    if urllib.request.getproxies():  # a proxy may reach what this machine cannot
        return True
    host = urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def unreachable(what: str, repository: str, error: Exception | None) -> WeightsError:
    """Return the error for a hub that cannot be reached, with the remedy."""
    reason = str(error).splitlines()[0] if error and str(error) else type(error).__name__
    return WeightsError(
        f"{what}: cannot be had from the model hub ({repository}): {reason}\n"
        f"Without a network: download its .safetensors file elsewhere and give --model.encoder.weights FILE, or set "
        f"HF_HOME to a cache that holds it. To try the software without weights: --model.encoder.weights random."
    )


def check_activation(model: str, tag: str, configuration: Mapping[str, Any]) -> None:
    """Refuse weights that were trained with another activation. They would load without an error and predict worse.

    Raises:
        WeightsError: If the activations differ. The message names the right model.
    """
    model_is_quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    weights_are_quick = bool(configuration.get("quick_gelu", tag == "openai"))
    if model_is_quick == weights_are_quick:
        return
    right = f"{model}-quickgelu" if weights_are_quick else model.removesuffix("-quickgelu")
    trained = "quick-GELU" if weights_are_quick else "GELU"
    raise WeightsError(
        f"encoder {model}: the weights {tag} were trained with {trained}; use --model.encoder.model {right}"
    )
