"""FedISIC2019 in the layout of FLamby: dermoscopy images of six real centres, eight classes.

Source: du Terrail et al., FLamby, NeurIPS Datasets and Benchmarks 2022; ISIC 2019 challenge.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.folders import existing_folder, images_in
from pfedst.data.left_out import left_out
from pfedst.data.sets.layouts import IMAGE_FOLDERS
from pfedst.data.sites import LabelledImages, Sites, Split
from pfedst.data.sources import Record
from pfedst.data.splitting import split_sites
from pfedst.data.tables import read_table
from pfedst.errors import ConfigurationError, DataError
from pfedst.evaluation.subgroups import NOT_STATED
from pfedst.names import plain_name

CLASS_NAMES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
SITE_NAMES = ("bcn", "vidir_molemax", "vidir_modern", "rosendahl", "msk", "vienna_dias")
METADATA = "ISIC_2019_Training_Metadata.csv"


class FedISIC2019(FederatedDataModule):
    """FedISIC2019 from the folder of ISIC's download or of FLamby's preprocessing.

    FLamby's split puts images of one lesion on both sides: 65.9 % of its test images share a lesion with a training
    image. `lesion_grouped` splits every centre again, by lesions and stratified by class. Its numbers are not
    comparable with those of FLamby's split. Validation never splits a lesion if lesion ids are known.

    Args:
        root: the folder that holds the image folder. Default: the environment variable PFEDST_DATA_ROOT.
        images: the image folder, relative to `root`. Default: `ISIC_2019_Training_Input_preprocessed` (FLamby's),
            otherwise `ISIC_2019_Training_Input` (ISIC's).
        split_file: FLamby's `train_test_split` (comma or tab), which gives the centre and class of every image,
            whatever the split. Default: searched in `root`, two folders deep, then in an installed FLamby.
        split: `flamby`, or `lesion_grouped`, which needs the metadata.
        test_fraction: share of each class's lesions that `lesion_grouped` puts into test, in (0, 1); drawn with
            `split_seed`.
        centers: centres to use, 0 to 5: bcn, vidir_molemax, vidir_modern, rosendahl, msk, vienna_dias.
        metadata: a CSV with `image` and `lesion_id`. Default: ISIC's metadata in `root`, if it exists.
        options: options of FederatedDataModule.

    Raises:
        ConfigurationError: If an option is out of range.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        images: Path | str | None = None,
        split_file: Path | str | None = None,
        split: Literal["flamby", "lesion_grouped"] = "flamby",
        test_fraction: float = 0.2,
        centers: Sequence[int] = (0, 1, 2, 3, 4, 5),
        metadata: Path | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not centers or not set(centers) <= set(range(6)) or len(set(centers)) < len(centers):
            raise ConfigurationError(f"--data.centers {list(centers)}: give different numbers from 0 to 5")
        if not 0 < test_fraction < 1:
            raise ConfigurationError(f"--data.test_fraction {test_fraction}: must be above 0 and below 1")
        if self.folds is not None and split != "flamby":
            raise ConfigurationError(
                f"--data.split {split} has no effect with --data.folds, which are dealt by lesions too; leave it out"
            )
        self.root = root
        self.images = images
        self.split_file = split_file
        self.split = split
        self.test_fraction = test_fraction
        self.centers = tuple(centers)
        self.metadata = metadata

    def read(self) -> Sites:
        """Read the split file and the lesion ids."""
        root = existing_folder(self.root, "--data.root")
        images = self._image_folder(root)
        split_file = self.split_path(root)
        table = read_table(split_file)
        for column in ("image", "target", "center", "fold"):
            if column not in table.columns:
                raise DataError(f'{split_file}: no column "{column}"; this is not FLamby\'s train_test_split')
        file, metadata = self._metadata(root)
        lesions = self._lesions(metadata)
        # list the folder once: a query for each file is slow on network disks
        there = {path.stem: path for path in reversed(images_in(images))} if images.is_dir() else {}
        records: dict[str, dict[Split, list[Record]]] = {name: {} for name in SITE_NAMES}
        seen: dict[str, int] = {}
        for line, row in enumerate(table.to_dict("records"), start=2):
            center, target, fold = self._numbers(f"{split_file}, line {line}", row)
            image = str(row["image"])
            if image in seen:
                raise DataError(f"{split_file}, line {line}: {image} is already on line {seen[image]}; keep one")
            seen[image] = line
            record = Record(there.get(image, images / f"{image}.jpg"), target, lesions.get(image))
            records[SITE_NAMES[center]].setdefault(fold, []).append(record)
        self.label = self._describe(images, split_file, bool(lesions))
        parts = {site: {f: LabelledImages.from_records(r) for f, r in of.items()} for site, of in records.items()}
        if self.split == "lesion_grouped":
            parts = self._by_lesion({site: [r for rs in of.values() for r in rs] for site, of in records.items()})
        used = {record.path for of in records.values() for found in of.values() for record in found}
        unlisted = left_out([images], used, below=False, images="images that the split file does not list")
        chosen = {name: parts[name] for name in (SITE_NAMES[center] for center in self.centers)}
        return Sites(
            CLASS_NAMES,
            chosen,
            f"complete {images}, or choose --data.centers that are there"
            if images.is_dir()
            else f"{root} holds neither {IMAGE_FOLDERS[0]}/ nor {IMAGE_FOLDERS[1]}/: give their parent",
            "--data.split lesion_grouped cuts every centre anew, by lesions",
            [root] if self.images is None else [root, images],
            read_from=split_file,
            left_out={"": unlisted} if unlisted else {},
            subgroups=self._subgroups_of_files(file, metadata, used),
        )

    def _describe(self, images: Path, split_file: Path, lesions: bool) -> str:
        split = split_file.name
        if self.split == "lesion_grouped":
            split = f"lesion-grouped split, {self.test_fraction:g} to test, split seed {self.split_seed}"
        if self.folds is not None:
            split = f"centres and classes of {split_file.name}"
        centers = ", ".join(map(str, self.centers))
        known = "lesion ids known" if lesions else "no lesion ids"
        return f"FedISIC2019 in {images.parent.name}/{images.name} ({split}), centres {centers}, {known}"

    def _by_lesion(self, records: dict[str, list[Record]]) -> dict[str, dict[Split, LabelledImages]]:
        """Split every centre again so that no lesion is on both sides, also over centres (nine lesions lie at two)."""
        if not any(record.group for of_site in records.values() for record in of_site):
            raise DataError(
                f"--data.split lesion_grouped: no lesion id is known; put {METADATA} of the ISIC 2019 challenge into "
                f"--data.root, or name it with --data.metadata"
            )
        whole = {site: LabelledImages.from_records(of_site) for site, of_site in records.items()}
        tables = {site: (images.labels, images.groups) for site, images in whole.items()}
        cuts = split_sites(tables, self.test_fraction, self.split_seed, "test")
        return {
            site: {"train": whole[site].subset(kept), "test": whole[site].subset(cut)}
            for site, (kept, cut) in cuts.items()
        }

    def _image_folder(self, root: Path) -> Path:
        names = [str(self.images)] if self.images is not None else list(IMAGE_FOLDERS)
        for name in names:
            folder = root / name
            # the archive may have been unpacked into a folder of its own name
            if (folder / folder.name).is_dir():
                folder = folder / folder.name
            if folder.is_dir():
                return folder
        archive = next(root.glob("ISIC_2019_Training_Input*.zip"), None)
        if archive is not None:
            raise DataError(f"{archive} is not unpacked; unpack it there, which gives {IMAGE_FOLDERS[1]}/")
        if self.images is not None:
            raise DataError(f"--data.images {self.images}: no such folder in {root}")
        return root / IMAGE_FOLDERS[1]

    def split_path(self, root: Path) -> Path:
        """Return FLamby's split file.

        Raises:
            DataError: If there is none.
        """
        if self.split_file is not None:
            if not Path(self.split_file).is_file():
                raise DataError(f"--data.split_file {self.split_file}: no such file")
            return Path(self.split_file)
        places = [root]
        if (flamby := importlib.util.find_spec("flamby")) is not None:
            places += [Path(place) / "datasets" for place in flamby.submodule_search_locations or ()]
        for place in places:
            for pattern in ("train_test_split", "*/train_test_split", "*/*/train_test_split"):
                if found := sorted(place.glob(pattern)):
                    return found[0]
        raise DataError(
            f"{root}: no file train_test_split; it is inside the FLamby package (datasets/fed_isic2019): copy it "
            f"there, or name it with --data.split_file"
        )

    def _metadata(self, root: Path) -> tuple[Path, pd.DataFrame]:
        """Return the file of the metadata and its table, which is empty if there is no file."""
        file = Path(self.metadata) if self.metadata is not None else root / METADATA
        if file.is_file():
            table = read_table(file)
            if not {"image", "lesion_id"} <= set(table.columns):
                raise DataError(f"{file}: needs the columns image and lesion_id")
            return file, table
        if self.metadata is not None:
            raise DataError(f"--data.metadata {file}: no such file")
        if self.subgroups.columns:
            raise DataError(f"--data.subgroups needs {METADATA} in --data.root, or the file of --data.metadata")
        return file, pd.DataFrame({"image": [], "lesion_id": []})

    @staticmethod
    def _lesions(table: pd.DataFrame) -> dict[str, str]:
        lesions = zip(table["image"], table["lesion_id"], strict=True)
        return {str(image): lesion for image, cell in lesions if (lesion := plain_name(cell))}

    def _subgroups_of_files(
        self, file: Path, table: pd.DataFrame, images: Collection[Path]
    ) -> dict[str, dict[Path, str]]:
        rows = {str(image): row for row, image in enumerate(table["image"])}
        return {
            column: {path: found[rows[path.stem]] if path.stem in rows else NOT_STATED for path in images}
            for column, found in self.subgroups.read(file, table).items()
        }

    @staticmethod
    def _numbers(where: str, row: dict[Any, Any]) -> tuple[int, int, Split]:
        try:
            center, target = int(float(row["center"])), int(float(row["target"]))
        except (ValueError, OverflowError, TypeError) as error:  # infinity, and the empty cells of parquet
            raise DataError(f"{where}: center and target must be numbers ({error})") from error
        if center not in range(6) or target not in range(len(CLASS_NAMES)):
            raise DataError(f"{where}: center {center} must be 0 to 5, target {target} 0 to 7")
        if row["fold"] == "train":
            return center, target, "train"
        if row["fold"] == "test":
            return center, target, "test"
        raise DataError(f'{where}: fold "{row["fold"]}" must be train or test')
