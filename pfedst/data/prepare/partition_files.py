"""Write the files of a partition: changed images, the manifest, its record and its figure."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from pfedst.data.camera import Camera
from pfedst.data.files import refuse_outside
from pfedst.data.grey_scale import GreyScale
from pfedst.data.prepare.partition import PartitionOptions
from pfedst.data.sites import SPLITS
from pfedst.data.sources import FileSource, content_digest
from pfedst.data.threads import for_each
from pfedst.errors import ConfigurationError
from pfedst.seeds import derive_seed
from pfedst.state import write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_camera(strength: float, seed: int, site: str) -> Camera:
    """Draw the camera of a site.

    At strength 0 it changes nothing, at 1 as much as the cameras of the synthetic sites.
    """
    rng = np.random.default_rng(derive_seed(seed, "partition camera", site))
    # gains and gamma are exponentials, so that no strength makes them negative
    return Camera(
        np.exp(strength * rng.uniform(-0.22, 0.22, 3)),
        strength * rng.uniform(-0.08, 0.08, 3),
        float(np.exp(strength * rng.uniform(-0.4, 0.4))),
        strength * rng.uniform(-0.2, 0.2, 2),
    )


def see(image: Image.Image, camera: Camera) -> Image.Image:
    """Return the image as the camera records it: 8-bit RGB of the same size, clipped to the range."""
    pixels = np.asarray(image.convert("RGB"))
    curve = (np.arange(256)[:, None] / 255) ** camera.gamma * camera.gains + camera.offsets
    y, x = (np.linspace(-1, 1, size) for size in pixels.shape[:2])
    light = camera.light[0] * x + camera.light[1] * y[:, None]
    seen = curve[pixels, np.arange(3)] + light[..., None]
    return Image.fromarray(np.rint(np.clip(seen, 0, 1) * 255).astype(np.uint8))


def shift_images(
    table: pd.DataFrame, root: Path, target: Path, options: PartitionOptions, outside_files: bool = False
) -> pd.DataFrame:
    """Write every image as the camera of its site records it, and return the table with the new paths.

    The new paths are relative to `target`.

    The digest in a file name depends on path, strength and seed: an existing image is not written again, and an image
    of another strength is never reused.

    Args:
        table: result of `partition` by `features`; paths are relative to `root`.
        root: folder of the images. No path or link may lead out of it.
        target: folder that receives `images/<site>/<stem>-<digest>.png`.
        options: options of the partition.
        outside_files: True if paths and links may lead out of the root.

    Raises:
        ConfigurationError: If the partition is not by `features`.
        DataError: If an image cannot be read, or lies outside the root.
    """
    if options.by != "features":
        raise ConfigurationError(f"--by {options.by}: only --by features changes images")
    if not outside_files:
        refuse_outside((root / path for path in table["path"]), root)

    grey_scale = GreyScale()

    def shift(row: tuple[str, str]) -> str:
        path, site = row
        digest = content_digest(f"{path}\x1f{options.strength}\x1f{options.seed}".encode())[:12]
        new = Path("images", site, f"{Path(path).stem}-{digest}.png")
        if not (target / new).is_file():
            (target / new).parent.mkdir(parents=True, exist_ok=True)
            content = BytesIO()
            seen = see(FileSource([root / path], grey_scale).load(0), draw_camera(options.strength, options.seed, site))
            seen.save(content, "PNG", compress_level=1)  # higher levels take long and save little on photographs
            write_atomically(target / new, content.getvalue())
        return new.as_posix()

    rows = list(zip(table["path"], table["site"], strict=True))
    shifted: pd.DataFrame = table.assign(path=list(for_each(shift, rows, "changing images")))
    return shifted


def save_partition(table: pd.DataFrame, options: PartitionOptions, target: Path) -> None:
    """Write `manifest.csv`, `partition.json` and `partition.png` into `target`.

    The JSON holds the options, the images per site, split and class, the distance (total variation, 0 to 1) of the
    class shares of every site from the pooled shares over all splits, and the SHA-256 of the manifest.

    Args:
        table: result of `partition` or `shift_images`.
        options: options of the partition.
        target: a folder, created if needed.
    """
    target.mkdir(parents=True, exist_ok=True)
    manifest = table.to_csv(index=False, lineterminator="\n").encode()
    sites = sorted(set(table["site"])) if options.by == "column" else options.site_names
    images = {s: _count(table[table["split"] == s], table, sites) for s in SPLITS}
    total = _count(table, table, sites)
    shares = total.div(total.sum(axis=1), axis=0)
    distance = (shares - total.sum() / len(table)).abs().sum(axis=1) / 2
    content = {
        "options": asdict(options),
        "images": {
            site: {s: counts.loc[site].to_dict() for s, counts in images.items() if counts.to_numpy().any()}
            for site in sites
        },
        "total_variation": distance.round(6).to_dict(),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    write_atomically(target / "manifest.csv", manifest)
    write_json(target / "partition.json", content)
    write_atomically(target / "partition.png", _picture(images["train"], shares, distance, str(options)))


def _count(part: pd.DataFrame, table: pd.DataFrame, sites: list[str]) -> pd.DataFrame:
    """Count the images of a part of the table: one row per site, one column per class, with zeros."""
    classes = sorted(set(table["label"]))
    counts: pd.DataFrame = pd.crosstab(part["site"], part["label"]).reindex(index=sites, columns=classes, fill_value=0)
    return counts


def _picture(train: pd.DataFrame, shares: pd.DataFrame, distance: pd.Series[float], title: str) -> bytes:
    """Return a PNG with one row per site: training images as stacked bars, class shares as a heat map.

    The class shares are those over all splits.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sites, classes = shares.shape
    names = [str(name).replace("$", r"\$") for name in shares.columns]  # no formulas
    below = max(0.06 * max(map(len, names)), 0.4 + 0.12 * classes)  # inches: names of classes, or the legend beside
    height = min(1 + below + 0.42 * max(sites, 3), 300)  # Agg draws no more than 65536 pixels
    figure = Figure((8 + 0.5 * classes, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(5, 1 + 0.5 * classes))
    _draw_bars(left, train, names)
    heat = right.imshow(shares, "cividis", vmin=0, aspect="auto")
    for (site, index), share in np.ndenumerate(shares.to_numpy()):
        colour = "white" if heat.norm(share) < 0.5 else "black"
        right.text(index, site, f"{share:.2f}" if share else "0", ha="center", va="center", color=colour, fontsize=8)
    right.set(yticks=range(sites), yticklabels=[f"TV {value:.2f}" for value in distance], xticks=range(classes))
    right.set_xticklabels(names, rotation=45, ha="right", rotation_mode="anchor")
    right.yaxis.tick_right()
    figure.colorbar(heat, label="share of the site's images")
    figure.suptitle(title)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_bars(axes: Axes, train: pd.DataFrame, names: list[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.transforms import ScaledTranslation

    sites, classes = train.shape
    colours = colormaps["viridis"](np.linspace(0, 1, classes))  # its lightness rises: classes differ in grey, too
    ends = train.cumsum(axis=1).to_numpy()
    for index, name in enumerate(names):
        counts = train.iloc[:, index]
        look = {"color": colours[index], "edgecolor": "white", "linewidth": 0.5}
        axes.barh(range(sites), counts, 0.75, ends[:, index] - counts, label=name, **look)
    axes.set(yticks=range(sites), yticklabels=train.index, ylim=(sites - 0.5, -0.5), xlabel="training images")
    axes.set_xlim(0, 1.05 * max(ends.max(), 1))
    half_an_inch_below = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=half_an_inch_below, ncols=2, frameon=False)
