"""`data_card.yaml`: what only people know of the images of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pfedst.configuration.yaml_text import read_yaml
from pfedst.errors import ConfigurationError, nearest

FILE = "data_card.yaml"
KEYS = {
    "licence": "Licence of the images",
    "source": "Where the images come from",
    "dates": "When they were taken",
    "devices": "Cameras, scanners, settings",
    "population": "Patients: age, sex, skin type, referral",
    "eligibility": "Which patients and images were taken and left out",
    "annotators": "Who labelled, with which experience",
    "reference_standard": "What a label rests on: histology, follow-up, expert reading",
    "ethics": "Approval, consent, de-identification",
    "intended_use": "What the model is meant for, by whom, for whom",
    "funding": "Funding and interests",
}
"""Key -> what it says."""


def read_data_card(file: Path) -> dict[str, str]:
    """Return the entries of a data card.

    Raises:
        ConfigurationError: the file cannot be read, or an entry is unknown or empty.
    """
    try:
        content: Any = read_yaml(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file}: give entries, such as licence: CC BY-NC 4.0")
    for key, value in content.items():
        if key not in KEYS:
            raise ConfigurationError(
                f"{file}: unknown entry {key}.{nearest(str(key), KEYS)} There are: {', '.join(KEYS)}"
            )
        if isinstance(value, dict | list) or not str(value if value is not None else "").strip():
            raise ConfigurationError(f"{file}: {key}: give a text, or leave the entry out")
    return {key: str(value).strip() for key, value in content.items()}
