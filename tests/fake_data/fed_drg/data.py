"""A fake GDRBench: up to eight sets, five grades, real file names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfedst.data.sets.fed_drg import DEFAULT_DOMAINS, GRADES
from tests.fake_data.folder.data import image

MIXED = {"DEEPDR": "DeepDR", "IDRID": "IDRiD", "MESSIDOR": "Messidor"}
"""Folders as some copies have them; the split files say them in upper case."""
SHARED = {0: 1, 1: 5, 12: 4}
"""Which images of RLDR are of patients of EYEPACS: 1 in train of both, 5 and 4 on different sides."""


def file_name(domain: str, number: int, train: int = 10) -> str:
    """Of the image of that number; those of train come first, grade by grade."""
    # IDRID counts anew in crossval: its 3 is of grade 1 in train and of grade 0 here
    again = number if number < train else 2 + (number - train) * 2 % train
    kaggle = SHARED.get(number, 7384 + number)
    return {
        "APTOS": f"{0x000C1434D8D7 + number:012x}.png",
        "DEEPDR": f"{1 + number // 2}_{'lr'[number % 2]}1.jpg",
        "FGADR": f"{number:04}_1.png",
        "IDRID": f"IDRiD_{again + 1:03}.jpg" if number != 1 else "IDRiD_005_train.jpg",
        "MESSIDOR": f"20051020_{43832 + number}_0100_PP.png" if number % 2 else f"IM{4832 + number:06}.JPG",
        "RLDR": f"{kaggle}_right.jpg",
        "DDR": f"007-{number:04}-000.jpg",
        "EYEPACS": f"{number // 2}_{('left', 'right')[number % 2]}.jpeg",
    }[domain]


def rows(domain: str, split: str, train: int = 2, test: int = 1) -> list[tuple[str, int]]:
    """Path below `images/` and grade."""
    count, first = (train, 0) if split == "train" else (test, train * len(GRADES))
    found = []
    for grade, folder in enumerate(GRADES):
        for index in range(count):
            name = file_name(domain, first + grade * count + index, train * len(GRADES))
            found.append((f"{domain}/{'Images' if domain == 'EYEPACS' else folder}/{name}", grade))
    return found


def make(root: Path, domains: Sequence[str] = DEFAULT_DOMAINS, mixed: bool = False, train: int = 2) -> Path:
    """Images and split files, `train` images of each grade; with `mixed` three folders are in mixed case."""
    (root / "splits").mkdir(parents=True, exist_ok=True)
    seed = 0
    for domain in domains:
        folder = MIXED.get(domain, domain) if mixed else domain
        for split in ("train", "crossval"):
            table = rows(domain, split, train)
            for path, _ in table:
                seed += 1
                image(root / "images" / folder / path.partition("/")[2], seed, 16)
            text = "".join(f"{path} {grade}\n" for path, grade in table)
            (root / "splits" / f"{domain}_{split}.txt").write_text(text)
    return root
