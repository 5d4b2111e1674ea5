"""A fake FedISIC2019 as FLamby's users have it: six centres, eight classes, real file names."""

from __future__ import annotations

from pathlib import Path

from pfedst.data.sets.fed_isic import CLASS_NAMES, METADATA
from tests.fake_data.folder.data import image


def make(root: Path, train: int = 3, test: int = 1, separator: str = ",", split_folder: str = ".") -> Path:
    """Images, split file and metadata; two images a lesion in train."""
    lines = [separator.join(["image", *CLASS_NAMES, "UNK", "target", "center", "fold", "fold2"])]
    lesions = ["image,age_approx,anatom_site_general,lesion_id,sex"]
    number = 24306
    for center in range(6):
        for target in range(8):
            for index in range(train + test):
                number += 1
                name = f"ISIC_{number:07d}"
                image(root / "ISIC_2019_Training_Input_preprocessed" / f"{name}.jpg", number)
                fold = "train" if index < train else "test"
                onehot = [str(float(target == other)) for other in range(9)]
                lines.append(separator.join([name, *onehot, str(target), str(center), fold, f"{fold}_{center}"]))
                lesions.append(f"{name},45,torso,HAM_{center}{target}{index // 2},female")
    (root / split_folder).mkdir(parents=True, exist_ok=True)
    (root / split_folder / "train_test_split").write_text("\n".join(lines) + "\n")
    (root / METADATA).write_text("\n".join(lesions) + "\n")
    return root
