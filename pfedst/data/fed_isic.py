"""FedISIC2019 as FLamby lays it out: six true centres of dermoscopy images, eight classes.

Source: du Terrail et al., FLamby, NeurIPS Datasets and Benchmarks 2022; ISIC 2019 challenge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedst.data.datamodule import FederatedDataModule, LabelledImages, Sites, Split
from pfedst.data.folder import existing_folder
from pfedst.data.manifest import read_table
from pfedst.data.sources import LISTED, Record
from pfedst.errors import DataError

CLASS_NAMES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
SITE_NAMES = ("bcn", "vidir_molemax", "vidir_modern", "rosendahl", "msk", "vienna_dias")
IMAGE_FOLDERS = ("ISIC_2019_Training_Input_preprocessed", "ISIC_2019_Training_Input")
METADATA = "ISIC_2019_Training_Metadata.csv"


class FedISIC2019(FederatedDataModule):
    """FedISIC2019 from a folder with `ISIC_2019_Training_Input_preprocessed/` (or `ISIC_2019_Training_Input/`).

    Validation never splits a lesion where lesion ids are known. FLamby's own split does: 65.9 % of its test images
    share a lesion with a training image, which no option here changes.

    Args:
        root: the folder that holds the image folder; default: PFEDST_DATA_ROOT of the environment.
        split_file: FLamby's `train_test_split` (comma or tab); default: searched in `root`, two folders deep.
        centers: which centres, 0 to 5: bcn, vidir_molemax, vidir_modern, rosendahl, msk, vienna_dias.
        metadata: a CSV with `image` and `lesion_id`; default: ISIC's own metadata in `root`, if it is there.
        options: those of FederatedDataModule.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        split_file: Path | str | None = None,
        centers: Sequence[int] = (0, 1, 2, 3, 4, 5),
        metadata: Path | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not centers or not set(centers) <= set(range(6)) or len(set(centers)) < len(centers):
            raise DataError(f"--data.centers {list(centers)}: give different numbers from 0 to 5")
        self.root = root
        self.split_file = split_file
        self.centers = tuple(centers)
        self.metadata = metadata

    def read(self) -> Sites:
        """Read split file and lesion ids; check that every image is there."""
        root = existing_folder(self.root, "--data.root")
        images = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
        if images is None:
            raise DataError(f"{root} holds neither {IMAGE_FOLDERS[0]}/ nor {IMAGE_FOLDERS[1]}/; give their parent")
        split_file = self._split_file(root)
        table = read_table(split_file)
        for column in ("image", "target", "center", "fold"):
            if column not in table.columns:
                raise DataError(f'{split_file}: no column "{column}"; this is not FLamby\'s train_test_split')
        lesions = self._lesions(root)
        named = ", ".join(map(str, self.centers))
        self.label = f"FedISIC2019 in {root.name} ({split_file.name}), centres {named}, " + (
            "lesion ids known" if lesions else "no lesion ids"
        )
        # one listing: asking for every file by itself is slow on network disks
        there = {path.stem: path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
        records: dict[str, dict[Split, list[Record]]] = {SITE_NAMES[c]: {} for c in self.centers}
        missing = []
        for line, row in enumerate(table.to_dict("records"), start=2):
            center, target, fold = self._numbers(f"{split_file}, line {line}", row)
            if center not in self.centers:
                continue
            image = str(row["image"])
            if image not in there:
                missing.append(image)
                continue
            part = records[SITE_NAMES[center]].setdefault(fold, [])
            part.append(Record(there[image], target, lesions.get(image)))
        if missing:
            raise DataError(
                f"{len(missing)} images of {split_file} are not in {images}, the first: "
                f"{', '.join(missing[:LISTED])}; complete the download, or choose --data.centers that are there"
            )
        return Sites(
            CLASS_NAMES,
            {s: {f: LabelledImages.from_records(r) for f, r in parts.items()} for s, parts in records.items()},
        )

    def _split_file(self, root: Path) -> Path:
        if self.split_file is not None:
            if not Path(self.split_file).is_file():
                raise DataError(f"--data.split_file {self.split_file}: no such file")
            return Path(self.split_file)
        for pattern in ("train_test_split", "*/train_test_split", "*/*/train_test_split"):
            if found := sorted(root.glob(pattern)):
                return found[0]
        raise DataError(
            f"{root}: no file train_test_split; it is inside the FLamby package (datasets/fed_isic2019): copy it "
            f"there, or name it with --data.split_file"
        )

    def _lesions(self, root: Path) -> dict[str, str]:
        file = Path(self.metadata) if self.metadata is not None else root / METADATA
        if not file.is_file():
            if self.metadata is not None:
                raise DataError(f"--data.metadata {file}: no such file")
            return {}
        table = read_table(file)
        if not {"image", "lesion_id"} <= set(table.columns):
            raise DataError(f"{file}: needs the columns image and lesion_id")
        return {str(i): str(g) for i, g in zip(table["image"], table["lesion_id"], strict=True) if str(g)}

    @staticmethod
    def _numbers(where: str, row: dict[Any, Any]) -> tuple[int, int, Split]:
        try:
            center, target = int(float(row["center"])), int(float(row["target"]))
        except ValueError as error:
            raise DataError(f"{where}: center and target must be numbers ({error})") from error
        if center not in range(6) or target not in range(len(CLASS_NAMES)):
            raise DataError(f"{where}: center {center} must be 0 to 5, target {target} 0 to 7")
        if row["fold"] == "train":
            return center, target, "train"
        if row["fold"] == "test":
            return center, target, "test"
        raise DataError(f'{where}: fold "{row["fold"]}" must be train or test')
