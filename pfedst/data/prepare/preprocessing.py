"""Convert a tree of large images to a tree of small images, once, before training.

A clinical photograph takes many times longer to decode than the 224 pixels that an encoder sees. Names do not change,
so labels, folders and manifests still fit. `TARGET/preprocessing.json` records how a tree was made. A run that was
killed continues where it stopped.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedst.data.files import refuse_outside
from pfedst.data.folders import IMAGE_SUFFIXES, existing_folder, is_hidden, is_image
from pfedst.data.grey_scale import GreyScale, PixelRange, check_range
from pfedst.data.left_out import left_out, left_out_line
from pfedst.data.limits import REMEDY_FOR_MANY, without_remedy
from pfedst.data.sources import FileSource
from pfedst.data.tables import read_json
from pfedst.data.threads import for_each
from pfedst.errors import ConfigurationError, DataError, listed
from pfedst.state import write_json

RULE = 2
"""Version number, increased whenever the same options give other pixels: trees of two versions are never mixed."""
MINKOWSKI_NORM = 6
Crop = Literal["none", "square"]
Format = Literal["same", "png", "jpeg"]
# the words of `pfedst.encoders.spec`, whose import would take seconds
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]
SUFFIXES: Mapping[Format, tuple[str, ...]] = {
    "same": (".png", ".jpg", ".jpeg"),
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
}
"""Suffixes that are kept. All other images get the first suffix."""


@dataclass(frozen=True)
class PreprocessingOptions:
    """Steps applied to each image, in this order.

    Args:
        shorter_side: pixels, 8 or more; the aspect ratio is kept. A smaller image is not enlarged: the encoder's
            transform enlarges it, and resampling twice is worse. (FLamby enlarges.) With another `resize_mode`: pixels
            of the longer side, or of both.
        crop: `square` keeps the centre. With `none` the random crops of training can use the whole image.
        interpolation: filter of resampling. Give that of the encoder, which the label of a run names if it is not
            CLIP's, bicubic.
        resize_mode: give that of the encoder: `shortest`; `longest` (the encoder fills up with black); or `squash`,
            which makes a square whatever the aspect ratio.
        colour_constancy: apply `colour_constancy`, as in FLamby's Fed-ISIC2019.
        window: centre and width (above 0), in the units of the modality, such as Hounsfield units: another way to
            give `pixel_range`.
        pixel_range: values of grey images of more than 8 bits, and of grey DICOM files, that become black and white.
            Default: what each file declares, otherwise its smallest and its largest value, with a warning.
        format: file format. `same`: JPEG stays JPEG, everything else becomes PNG. JPEG is written with quality 95 and
            full colour resolution.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    shorter_side: int = 224
    crop: Crop = "none"
    colour_constancy: bool = False
    window: tuple[float, float] | None = None
    pixel_range: PixelRange | None = None
    format: Format = "same"
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"

    def __post_init__(self) -> None:
        if self.shorter_side < 8:
            raise ConfigurationError(f"--shorter_side {self.shorter_side}: must be 8 or more")
        choices = {"crop": Crop, "format": Format, "interpolation": Interpolation, "resize_mode": ResizeMode}
        for option, known in choices.items():
            if (value := getattr(self, option)) not in get_args(known):
                raise ConfigurationError(f"--{option} {value}: must be one of {', '.join(get_args(known))}")
        if self.crop == "square" and self.resize_mode != "shortest":
            raise ConfigurationError(
                f"--crop square: --resize_mode {self.resize_mode} shows the encoder the whole image"
            )
        if self.window is not None:
            fits = len(self.window) == 2 and all(math.isfinite(value) for value in self.window)
            if not fits or self.window[1] <= 0:
                raise ConfigurationError(f"--window {self.window}: must be a centre and a width above 0")
            if self.pixel_range is not None:
                raise ConfigurationError("--window and --pixel_range both give a range of grey values: leave one out")
        check_range("--pixel_range", self.pixel_range)

    @property
    def grey_scale(self) -> GreyScale:
        """The range of grey values, for one tree."""
        if self.window is None:
            return GreyScale(self.pixel_range)
        centre, width = self.window
        return GreyScale((centre - width / 2, centre + width / 2))


@dataclass(frozen=True)
class PreprocessingReport:
    """Result of a run.

    Attributes:
        written: number of images written.
        skipped: number of images that an earlier run had written.
        seconds: duration of this run.
        bytes_before: size of all source images, including skipped ones.
        bytes_after: size of the converted images.
    """

    written: int
    skipped: int
    seconds: float
    bytes_before: int
    bytes_after: int


class _Job(NamedTuple):
    source: Path
    target: Path

    @property
    def done(self) -> bool:
        # a crash of the machine may leave an empty file if it was renamed but not synced
        return self.target.is_file() and self.target.stat().st_size > 0


def colour_constancy(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Remove the colour of the light: Shades of Gray (Finlayson & Trezzi, Color Imaging Conference 2004).

    The light is estimated as the Minkowski norm (p = 6) of each channel. As in FLamby, the three estimates are scaled
    to a root mean square of 1, which leaves a grey picture unchanged. Unlike in FLamby, values above 255 are clipped to
    255; a plain cast to uint8 would wrap around and turn highlights dark.

    Args:
        pixels: (H, W, 3), RGB.

    Returns:
        (H, W, 3). A channel without any light stays 0.
    """
    # a channel's result depends on the level alone: counting levels is exact, and faster than the power of each pixel
    levels = np.arange(256, dtype=np.float64)
    counts = np.stack([np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)])
    light = (counts @ levels**MINKOWSKI_NORM / counts.sum(1)) ** (1 / MINKOWSKI_NORM)
    gain = np.divide(np.sqrt(np.mean(light**2)), light, out=np.ones(3), where=light > 0)
    table = np.rint(np.clip(gain[:, None] * levels, 0, 255)).astype(np.uint8)
    return np.stack([table[channel][pixels[..., channel]] for channel in range(3)], axis=-1)


def preprocess_image(image: Image.Image, options: PreprocessingOptions) -> Image.Image:
    """Resize, crop, and then apply colour constancy, in the order of FLamby.

    Resampling is Pillow's with antialiasing, the filter of the encoder's transform. Sizes and offsets follow
    torchvision's Resize and CenterCrop, so a PNG of the encoder's size gives exactly the tensor of the original.
    Decoding at reduced size (`Image.draft`) would change the tensor and is not used.

    Args:
        image: RGB.
        options: steps to apply.

    Returns:
        RGB pixels without comments and EXIF, which may name a patient.
    """
    size = _resized(image.size, options)
    if size != image.size:
        image = image.resize(size, Image.Resampling[options.interpolation.upper()])
    if options.crop == "square":
        side = min(image.size)
        left, top = (round((length - side) / 2) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(image, dtype=np.uint8)
    return Image.fromarray(colour_constancy(pixels) if options.colour_constancy else pixels)


def _resized(size: tuple[int, int], options: PreprocessingOptions) -> tuple[int, int]:
    """Return width and height after resizing, as the encoder's transform has them; none is enlarged."""
    width, height = size
    wanted = options.shorter_side
    if options.resize_mode == "squash":
        return (wanted, wanted) if min(size) > wanted else size
    if options.resize_mode == "longest":
        factor = max(size) / wanted
        return (max(1, round(width / factor)), max(1, round(height / factor))) if factor > 1 else size
    return (wanted * width // min(size), wanted * height // min(size)) if min(size) > wanted else size


def preprocess_tree(
    source: Path, target: Path, options: PreprocessingOptions, workers: int = 0, outside_files: bool = False
) -> PreprocessingReport:
    """Preprocess every image in a folder and its subfolders. Images that are already written are skipped.

    Args:
        source: source folder. Hidden files and folders are skipped; links are followed unless they lead out of it.
        target: target folder, created if needed, with the same relative names.
        options: steps applied to each image.
        workers: number of threads (decoding and resizing hold no lock); 0: the number of cores. The results do not
            depend on it.
        outside_files: True if links may lead out of the source.

    Raises:
        ConfigurationError: If `workers` is negative, or a range of grey values is given and every image has 8 bits.
        DataError: If the source holds no image or two images would get one name, a link leads out of the source, the
            target is not outside the source, or the target was made differently; then nothing is written. If images
            cannot be read, they are named after all others are done.
    """
    started = time.perf_counter()
    if workers < 0:
        raise ConfigurationError(f"--workers {workers}: must be 0 (as many as cores) or more")
    try:
        jobs = _jobs(existing_folder(source, "SOURCE"), target, options.format)
        if not outside_files:
            refuse_outside((job.source for job in jobs), source)
        _check_range_is_used(jobs, options)
        identity = {"rule": RULE, "source": source.resolve().name, **asdict(options)}
        _open_target(target, identity)
        waiting = [job for job in jobs if not job.done]
        convert = partial(_convert, options=options, grey_scale=options.grey_scale)
        faults = [fault for fault in for_each(convert, waiting, "preprocessing images", workers) if fault]
        sizes = [(job.source.stat().st_size, job.target.stat().st_size) for job in jobs if job.done]
    except OSError as error:
        raise DataError(f"{error}; check rights and free space, and run again: finished images are kept") from error
    if faults:
        raise DataError(_listed(faults, len(jobs), target))
    before, after = (sum(column) for column in zip(*sizes, strict=True))
    skipped = len(jobs) - len(waiting)
    return PreprocessingReport(len(waiting), skipped, time.perf_counter() - started, before, after)


def _jobs(source: Path, target: Path, form: Format) -> list[_Job]:
    """Return sorted pairs of source and target file. Nothing is written."""
    if target.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"{target} lies in {source}, so its copies would be read as source images; give a folder outside"
        )
    files = [path.relative_to(source) for path in _files(source)]
    images = [name for name in files if is_image(source / name)]
    if not images:
        raise DataError(f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}); give the folder with the images")
    if counts := left_out([source], {source / name for name in images}):
        logging.getLogger("pfedst").warning("%s: %s", source, left_out_line("", counts))
    origin: dict[Path, Path] = {}
    for name in images:
        kept = SUFFIXES[form]
        made = name
        if name.suffix.lower() not in kept:  # a DICOM file without suffix may have dots in its name
            made = name.with_suffix(kept[0]) if name.suffix.lower() in IMAGE_SUFFIXES else Path(f"{name}{kept[0]}")
        if made in origin:
            raise DataError(
                f"{source / origin[made]} and {source / name} would both become {made}; rename one of them, or give "
                "another --format. Nothing was written"
            )
        origin[made] = name
    return [_Job(source / name, target / made) for made, name in origin.items()]


def _check_range_is_used(jobs: Sequence[_Job], options: PreprocessingOptions) -> None:
    if options.grey_scale.given is not None and not any(_may_be_deep(job.source) for job in jobs):
        option = "--window" if options.pixel_range is None else "--pixel_range"
        raise ConfigurationError(f"{option} has no effect: every image has 8 bits, which are not changed; leave it out")


def _may_be_deep(path: Path) -> bool:
    try:
        return FileSource([path]).header(0).deep
    except DataError:
        return True  # it is named with its error when it is read


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            continue
        # a broken link is reported as missing; a pipe is not an image
        if path.is_file() or not path.exists():
            yield path
        # a link to a folder above would never end
        elif path.is_dir() and not folder.resolve().is_relative_to(path.resolve()):
            yield from _files(path)


def _open_target(target: Path, identity: Mapping[str, Any]) -> None:
    """Create the target folder, or check that an existing one was made in the same way."""
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is no folder; give another TARGET")
    target.mkdir(parents=True, exist_ok=True)
    file = target / "preprocessing.json"
    if file.exists():
        _compare(file, json.loads(json.dumps(identity)))
    elif others := sorted(path.name for path in target.iterdir() if not path.name.startswith(".")):
        raise DataError(f"{target} holds {others[0]} but no preprocessing.json; give a new or an empty folder")
    else:
        write_json(file, identity)


def _compare(file: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = read_json(file)
        found = {"interpolation": "bicubic", "resize_mode": "shortest"} | found  # a tree of before these options
        differing = next((key for key, value in wanted.items() if found.get(key) != value), None)
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file} is damaged: remove {file.parent}, or give another TARGET") from error
    if differing is not None:
        raise DataError(
            f"{file.parent} was made with {differing} {found.get(differing)}, and this run has {wanted[differing]}: "
            "give the same, or another TARGET"
        )


def _convert(job: _Job, options: PreprocessingOptions, grey_scale: GreyScale) -> str | None:
    """Convert one image. Return the reason if it cannot be read, otherwise None."""
    try:
        image = preprocess_image(FileSource([job.source], grey_scale).load(0), options)
    except DataError as error:
        return without_remedy(error)
    content = io.BytesIO()
    if job.target.suffix.lower() == ".png":
        image.save(content, "PNG")
    else:
        image.save(content, "JPEG", quality=95, subsampling=0)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    # the same name in every process, so a new run overwrites the rest of a killed one; hidden, so it is not an image
    temporary = job.target.with_name(f".{job.target.name}.part")
    temporary.write_bytes(content.getbuffer())
    temporary.replace(job.target)
    return None


def _listed(faults: Sequence[str], total: int, target: Path) -> str:
    return (
        f"{len(faults)} of {total} images cannot be read:\n  "
        + listed(faults, "\n  ")
        + f"\n{REMEDY_FOR_MANY.capitalize()}, and run again; all others are in {target}."
    )
