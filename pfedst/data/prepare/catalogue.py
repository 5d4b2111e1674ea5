"""Public data sets that pfedst reads but may not distribute: where they come from, and a check that a copy is complete.

Nothing is downloaded: most of them need a login or a signature. All listed facts have been checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pfedst.data.files import look
from pfedst.data.sets.layouts import IMAGE_FOLDERS
from pfedst.data.sources import FileSource
from pfedst.errors import DataError, listed

if TYPE_CHECKING:
    from pfedst.data.datamodule import FederatedDataModule

FLAMBY_SPLIT = "d0f9d0d0102f60d78b4c5f9f0ef32100881a8e92fe6c38644f980b3eb4e1a86c"
"""SHA-256 of FLamby's train_test_split in its repository (commit edacf54), 23,247 rows."""
FLAMBY_SIZES = {0: (9930, 2483), 1: (3163, 791), 2: (2691, 672), 3: (1807, 452), 4: (655, 164), 5: (351, 88)}
GDRBENCH_SIZES = {
    "APTOS": (2921, 741),
    "DEEPDR": (1600, 400),
    "FGADR": (1454, 388),
    "IDRID": (413, 103),
    "MESSIDOR": (1384, 360),
    "RLDR": (1281, 312),
    "DDR": (8762, 3759),
    "EYEPACS": (35124, 53573),
}


@dataclass(frozen=True)
class Download:
    """A file or data set to download.

    Attributes:
        what: file or set, and where it belongs.
        address: address of its publisher.
        licence: its terms, as far as the publisher states them.
        size: size in words.
    """

    what: str
    address: str
    licence: str
    size: str


@dataclass(frozen=True)
class Check:
    """Result of one check: True if complete, and what was found.

    If `needed` is False, an incomplete result is reported but is not an error.
    """

    what: str
    complete: bool
    seen: str
    needed: bool = True


@dataclass(frozen=True)
class PublicData:
    """A public data set.

    Attributes:
        title: name of the data set.
        downloads: what to download.
        steps: what to do with the downloads.
        check: function that checks a folder.
    """

    title: str
    downloads: Sequence[Download]
    steps: Sequence[str]
    check: Callable[[Path], list[Check]]


def check_fed_isic(root: Path) -> list[Check]:
    """Check the image folder, the split file, the metadata, and that every image of the split file exists."""
    from pfedst.data.sets.fed_isic import METADATA, SITE_NAMES, FedISIC2019  # imports torch

    folders = [name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    checks = [
        Check("image folder", bool(folders), ", ".join(folders) or f"none of {', '.join(IMAGE_FOLDERS)}"),
        Check(METADATA, (root / METADATA).is_file(), "lesion ids for grouped splits", needed=False),
    ]
    try:
        split_file = FedISIC2019(root).split_path(root)
    except DataError as error:
        return [*checks, Check("train_test_split", False, str(error))]
    exact = hashlib.sha256(split_file.read_bytes()).hexdigest() == FLAMBY_SPLIT
    words = "byte for byte FLamby's" if exact else "not FLamby's bytes (a subset, or a copy with tabs)"
    checks.append(Check("train_test_split", True, f"{split_file}: {words}"))
    for center, name in enumerate(SITE_NAMES):
        checks += _parts(FedISIC2019(root, centers=[center]), name, FLAMBY_SIZES[center], True)
    return checks


def check_fed_drg(root: Path) -> list[Check]:
    """Check the split files and images of every domain."""
    from pfedst.data.sets.fed_drg import DEFAULT_DOMAINS, DOMAINS, FedDRG  # imports torch

    checks = []
    for domain in DOMAINS:
        checks += _parts(FedDRG(root, [domain]), domain, GDRBENCH_SIZES[domain], domain in DEFAULT_DOMAINS)
    return checks


def _parts(data: FederatedDataModule, site: str, published: tuple[int, int], needed: bool) -> list[Check]:
    """Check one site: the number of rows is as published, and every file exists and is not empty."""
    try:
        splits = data.found(files=False).splits[site]
    except DataError as error:
        return [Check(site, False, str(error), needed)]
    paths = [path for part in splits.values() for path in FileSource.paths_of(part.source)]
    rows = (len(splits["train"].labels) + len(splits["validation"].labels), len(splits["test"].labels))
    missing = list(look(paths).missing)
    gone = set(missing)
    empty = [path for path in paths if path not in gone and not path.stat().st_size]
    notes = [f"{rows[0]:,} train and {rows[1]:,} test rows"]
    if rows != published:
        notes.append(f"published are {published[0]:,} and {published[1]:,}")
    for files, fault in ((missing, "missing"), (empty, "empty")):
        if files:
            notes.append(f"{len(files):,} images are {fault}: {listed([path.name for path in files])}")
    if not missing and not empty:
        notes.append("every image is there")
    return [Check(site, not missing and not empty and rows == published, "; ".join(notes), needed)]


PUBLIC_DATA = {
    "fed_isic2019": PublicData(
        "FedISIC2019: dermoscopy images of six centres, eight classes (FLamby's part of ISIC 2019)",
        [
            Download(
                "ISIC_2019_Training_Input.zip",
                "https://challenge.isic-archive.com/data/#2019",
                "CC BY-NC 4.0",
                "about 9 GB, 25,331 JPEG images",
            ),
            Download(
                "ISIC_2019_Training_Metadata.csv",
                "https://challenge.isic-archive.com/data/#2019",
                "CC BY-NC 4.0",
                "1 MB",
            ),
            Download(
                "train_test_split",
                "https://github.com/owkin/FLamby, flamby/datasets/fed_isic2019/dataset_creation_scripts/",
                "MIT",
                "1.6 MB, 23,247 rows",
            ),
        ],
        [
            "unpack the archive into ROOT, which gives ROOT/ISIC_2019_Training_Input/",
            "put the metadata and train_test_split into ROOT",
            "optional, once: pfedst data preprocess ROOT/ISIC_2019_Training_Input "
            "ROOT/ISIC_2019_Training_Input_preprocessed --shorter_side 224",
            "pfedst fit --config fed_isic2019 --data.root ROOT",
        ],
        check_fed_isic,
    ),
    "fed_drg": PublicData(
        "FedDRG: diabetic retinopathy grades of eight sets of fundus photographs, in GDRBench's layout",
        [
            Download(
                "splits/ (and images of six of the sets)",
                "https://github.com/chehx/DGDR, GDRBench/",
                "see each set; FGADR and MESSIDOR may not be redistributed",
                "16 text files",
            ),
            Download(
                "APTOS", "https://www.kaggle.com/c/aptos2019-blindness-detection", "Kaggle's rules", "3,662 images"
            ),
            Download("DEEPDR", "https://github.com/deepdrdoc/DeepDRiD", "not stated", "2,000 images"),
            Download("FGADR", "https://csyizhou.github.io/FGADR", "on request, research, no copies", "1,842 images"),
            Download("IDRID", "https://ieee-dataport.org (DOI 10.21227/H25W98)", "CC BY 4.0", "516 images"),
            Download(
                "MESSIDOR",
                "https://www.adcis.net/en/third-party/messidor2/",
                "on request, research, no copies",
                "1,744 images",
            ),
            Download("RLDR", "https://github.com/WeiQijie/retinal-lesions", "on request", "1,593 images"),
            Download("DDR", "https://github.com/nkicsl/DDR-dataset", "not stated for images", "12,521 images"),
            Download(
                "EYEPACS",
                "https://www.kaggle.com/c/diabetic-retinopathy-detection",
                "Kaggle's rules",
                "about 84 GB, 88,697 images",
            ),
        ],
        [
            "put the images into ROOT/images/<DOMAIN>/<nodr|mild_npdr|moderate_npdr|severe_npdr|pdr>/ "
            "(EYEPACS: ROOT/images/EYEPACS/Images/)",
            "put the text files into ROOT/splits/",
            "pfedst fit --config fed_drg --data.root ROOT",
        ],
        check_fed_drg,
    ),
}
