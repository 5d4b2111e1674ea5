"""True classes of predicted images, and what predictions reach on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pfedst.data.tables import read_table
from pfedst.errors import ConfigurationError, DataError, listed, nearest
from pfedst.evaluation.class_metrics import class_metrics
from pfedst.evaluation.counts import prediction_counts
from pfedst.evaluation.metrics import classification_metrics
from pfedst.evaluation.site_metrics import site_metrics
from pfedst.inference.predict import PROBABILITY
from pfedst.names import plain_name

FOLDERS = "folders"
"""The value of `--labels` for which the name of an image's folder is its class."""
PATH_HEADINGS, LABEL_HEADINGS = ("path", "image", "file"), ("label", "class", "target")


def labels_of(names: list[str], labels: str, class_names: tuple[str, ...]) -> list[str]:
    """Return the true class of each image.

    Args:
        names: paths of the images.
        labels: `folders`, or a CSV or parquet table with a column `path` and a column `label`. A path is as it was
            given, relative to the table, or the file's name where that is unique.
        class_names: of the model; a label that is not a class of the model is refused.

    Raises:
        DataError: an image has no label, or a label is not a class of the model.
        ConfigurationError: the table has no such columns.
    """
    found = [Path(name).parent.name for name in names] if labels == FOLDERS else _from_table(names, Path(labels))
    known = {plain_name(name): name for name in class_names}
    for name, label in zip(names, found, strict=True):
        if plain_name(label) not in known:
            raise DataError(
                f'{name}: the label "{label}" is not a class of the model.{nearest(label, class_names)} Its classes '
                f"are: {listed(class_names)}"
            )
    return [known[plain_name(label)] for label in found]


def _from_table(names: list[str], file: Path) -> list[str]:
    if not file.is_file():
        raise ConfigurationError(f"--labels {file}: no such table; give a CSV or parquet file, or the word {FOLDERS}")
    table = read_table(file)
    path = next((heading for heading in PATH_HEADINGS if heading in table), None)
    label = next((heading for heading in LABEL_HEADINGS if heading in table), None)
    if path is None or label is None:
        raise ConfigurationError(
            f"--labels {file}: needs a column path and a column label; it has {listed(list(table.columns))}"
        )
    by_path: dict[str, str] = {}
    by_name: dict[str, set[str]] = {}
    for given, of_image in zip(table[path].astype(str), table[label].astype(str), strict=True):
        by_path[str((file.parent / given).resolve())] = of_image
        by_path.setdefault(str(Path(given).resolve()), of_image)
        by_name.setdefault(Path(given).name, set()).add(of_image)
    found: list[str] = []
    missing: list[str] = []
    for name in names:
        same_name = by_name.get(Path(name).name, set())
        own = by_path.get(str(Path(name).resolve())) or (next(iter(same_name)) if len(same_name) == 1 else None)
        missing += [name] if own is None else []
        found.append(own or "")
    if missing:
        raise DataError(f"--labels {file} has no label of {listed(missing, ', ', 3)}; add rows, or leave --labels out")
    return found


def metrics_of(
    predictions: pd.DataFrame, labels: list[str], class_names: tuple[str, ...], seed: int = 0
) -> dict[str, Any]:
    """Return what predictions reach: metrics, the confusion matrix, and 95 % intervals of the metrics and each class.

    Images that could not be read are left out and counted. The unit of the bootstrap is an image: of patients nothing
    is known here.

    Args:
        predictions: as `predict` returns them.
        labels: the true class of each row.
        class_names: of the model, in its order.
        seed: of the bootstrap.
    """
    read = predictions["error"] == ""
    probabilities = predictions.loc[read, [PROBABILITY + name for name in class_names]].to_numpy(np.float64, copy=True)
    indices = np.array([class_names.index(label) for label, kept in zip(labels, read, strict=True) if kept], np.int64)
    tensors = torch.from_numpy(probabilities), torch.from_numpy(indices)
    of_model = {"model": probabilities}, indices, np.arange(len(indices)), seed
    return {
        "images": len(indices),
        "unread": int((~read).sum()),
        "classes": list(class_names),
        "metrics": classification_metrics(*tensors),
        "confusion": prediction_counts(*tensors)["confusion"],
        "intervals": site_metrics(*of_model)["model"],
        "by_class": class_metrics(*of_model)["model"],
    }
