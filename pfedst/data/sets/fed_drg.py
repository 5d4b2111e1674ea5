"""FedDRG: diabetic retinopathy grades of up to eight public sets, one per site, in the layout of GDRBench.

Source: Che et al., Towards Generalizable Diabetic Retinopathy Grading in Unseen Domains, MICCAI 2023 (GDRBench).
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.files import shown
from pfedst.data.folders import IMAGE_SUFFIXES, existing_folder, folders, is_hidden
from pfedst.data.left_out import left_out
from pfedst.data.sites import LabelledImages, Sites, Split
from pfedst.data.sources import Record
from pfedst.data.tables import check_size
from pfedst.errors import ConfigurationError, DataError, nearest

GRADES = ("nodr", "mild_npdr", "moderate_npdr", "severe_npdr", "pdr")
CLASS_NAMES = ("no DR", "mild NPDR", "moderate NPDR", "severe NPDR", "PDR")
DEFAULT_DOMAINS = ("APTOS", "DEEPDR", "FGADR", "IDRID", "MESSIDOR", "RLDR")
DOMAINS = (*DEFAULT_DOMAINS, "DDR", "EYEPACS")
FILES: dict[Split, str] = {"train": "train", "test": "crossval"}
PATIENTS = {"DEEPDR": "deepdr", "RLDR": "kaggle", "EYEPACS": "kaggle"}
"""Sets whose file names begin with the number of the patient. RLDR uses the numbers of Kaggle's EyePACS."""


class FedDRG(FederatedDataModule):
    """Read `root/images/<DOMAIN>/<grade>/<file>` and `root/splits/<DOMAIN>_{train,crossval}.txt`; crossval is test.

    Names are matched without regard to case, and to the suffix if that leaves one file. An image is identified by its
    path, not by its name: IDRID uses the same names in both splits. Patients are known in DEEPDR, RLDR and EYEPACS.
    RLDR's photographs are also in EYEPACS: with both domains, EYEPACS excludes RLDR's patients.

    Args:
        root: the folder that holds `images` and `splits`. Default: the environment variable PFEDST_DATA_ROOT.
        domains: sets to use, of APTOS, DEEPDR, FGADR, IDRID, MESSIDOR, RLDR, DDR, EYEPACS. A missing set is an error.
            Default: the sets that exist among the first six (FGADR and MESSIDOR may not be redistributed).
        options: options of FederatedDataModule.

    Raises:
        ConfigurationError: If a domain is unknown or given twice.
    """

    def __init__(self, root: Path | str | None = None, domains: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(ordinal=True, **options)
        self.root = root
        named = [domains] if isinstance(domains, str) else domains
        self.domains = None if named is None else tuple(domain.upper() for domain in named)
        for domain in self.domains or ():
            if domain not in DOMAINS:
                raise ConfigurationError(
                    f"--data.domains: there is no {domain}.{nearest(domain, DOMAINS)} Known: {', '.join(DOMAINS)}"
                )
        if self.domains is not None and not 0 < len(self.domains) == len(set(self.domains)):
            raise ConfigurationError(f"--data.domains {list(self.domains)}: give each domain once, and at least one")

    def read(self) -> Sites:
        """Read the split files of every requested domain that exists."""
        root = existing_folder(self.root, "--data.root")
        if _folder(root, "splits") is None:
            raise DataError(f"{root} holds no folder splits; give the folder that holds images/ and splits/")
        chosen = [domain for domain in self.domains or DEFAULT_DOMAINS if self._there(root, domain)]
        if not chosen:
            raise DataError(f"{root}: none of {', '.join(DEFAULT_DOMAINS)} is there with its images and split files")
        parts = {domain: self._domain(root, domain) for domain in chosen}
        unlisted = {domain: _unlisted(root, domain, parts[domain]) for domain in chosen}
        if {"RLDR", "EYEPACS"} <= set(chosen):
            parts["EYEPACS"] = _without_patients_of(parts["RLDR"], parts["EYEPACS"])
        self.label = f"FedDRG (GDRBench layout) in {root.name}: {', '.join(chosen)}"
        return Sites(
            CLASS_NAMES,
            {d: {s: LabelledImages.from_records(r) for s, r in of.items()} for d, of in parts.items()},
            f"complete {root / 'images'} (pfedst data prepare fed_drg --root {root} lists the expected content), or "
            f"choose --data.domains that are there",
            "remove the images of these patients from the split file of one side",
            [root],
            read_from=_folder(root, "splits"),
            left_out={domain: counts for domain, counts in unlisted.items() if counts},
        )

    def _there(self, root: Path, domain: str) -> bool:
        """Return True if a domain has files.

        Raises:
            DataError: If a requested domain is missing, or a domain is incomplete.
        """
        images, tables = _folder(root, "images"), _folder(root, "splits")
        have_images = images is None or _folder(images, domain) is not None
        lacking = [f"splits/{domain}_{name}.txt" for name in FILES.values() if _file(tables, domain, name) is None]
        if have_images and not lacking:
            return True
        if self.domains is None and (not have_images or len(lacking) == len(FILES)):
            logging.getLogger("pfedst").warning(
                "%s is not in %s and is left out; --data.domains names the sets that must exist", domain, root
            )
            return False
        missing = ([] if have_images else [f"images/{domain}"]) + lacking
        raise DataError(
            f"{root}: {', '.join(missing)} missing; pfedst data prepare fed_drg lists its source, or leave "
            f"{domain} out (name those that are whole with --data.domains)"
        )

    def _domain(self, root: Path, domain: str) -> dict[Split, list[Record]]:
        images, tables = _folder(root, "images"), _folder(root, "splits")
        there = _index(_folder(images, domain) if images else None)
        found: dict[Split, list[Record]] = {}
        seen: dict[Path, str] = {}
        for split, name in FILES.items():
            file = _file(tables, domain, name)
            assert file is not None  # `_there` has looked
            records = found.setdefault(split, [])
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                relative, label = _parsed(where, line, domain)
                path = _located(where, there, relative) or (images or root / "images") / relative
                if path in seen:  # also if it is listed with another case or suffix
                    raise DataError(f"{where}: {relative} is already in {seen[path]}; keep one")
                seen[path] = where
                records.append(Record(path, label, _patient(domain, path)))
            if not records:
                raise DataError(
                    f'{file} lists no image: site "{domain}" has no {split} image; copy it again, or leave {domain} out'
                )
        return found


def _lines(file: Path) -> list[str]:
    try:
        check_size(file)
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable text file ({error})") from error


def _parsed(where: str, line: str, domain: str) -> tuple[str, int]:
    """Parse `DOMAIN/grade/file label` to the path below `images/` and the label."""
    listed, _, label = line.strip().replace("\\", "/").rpartition(" ")
    if label not in ("0", "1", "2", "3", "4") or not listed.strip():
        raise DataError(f'{where}: "{shown(PurePosixPath(line.strip()))}" is not a path and a grade 0 to 4')
    relative = PurePosixPath(listed.strip()).as_posix()
    folders_and_name = relative.split("/")
    if ".." in folders_and_name:
        raise DataError(f"{where}: {relative} leads out of the folder images; correct it")
    if len(folders_and_name) < 2 or folders_and_name[0].upper() != domain:
        raise DataError(f"{where}: {relative} does not begin with {domain}/")
    grade = folders_and_name[1].lower()
    if grade in GRADES and GRADES.index(grade) != int(label):
        raise DataError(f"{where}: {relative} lies in the folder of grade {GRADES.index(grade)}, its label is {label}")
    return relative, int(label)


def _index(folder: Path | None) -> dict[str, list[Path]]:
    """Return files by their lower-case path below `images/`, with and without suffix."""
    found: dict[str, list[Path]] = defaultdict(list)
    if folder is None:
        return found
    for place, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not is_hidden(name)]
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() not in IMAGE_SUFFIXES:  # such as x.png.part of an incomplete download
                continue
            relative = path.relative_to(folder.parent).as_posix().lower()
            found[relative].append(path)
            found[relative.rpartition(".")[0]].append(path)
    return found


def _located(where: str, there: dict[str, list[Path]], relative: str) -> Path | None:
    for key in (relative.lower(), relative.lower().rpartition(".")[0]):
        candidates = there.get(key, [])
        exact = [path for path in candidates if path.as_posix().endswith(f"/{relative}")]
        if len(exact or candidates) > 1:
            raise DataError(f"{where}: {relative} may be {' or '.join(map(str, candidates))}; rename or remove one")
        if candidates:
            return (exact or candidates)[0]
    return None


def _patient(domain: str, path: Path) -> str | None:
    if domain not in PATIENTS:
        return None
    return f"{PATIENTS[domain]} {path.stem.partition('_')[0]}"


def _without_patients_of(
    kept: dict[Split, list[Record]], filtered: dict[Split, list[Record]]
) -> dict[Split, list[Record]]:
    patients = {record.group for records in kept.values() for record in records}
    left = {split: [r for r in records if r.group not in patients] for split, records in filtered.items()}
    removed = sum(map(len, filtered.values())) - sum(map(len, left.values()))
    logging.getLogger("pfedst").warning("%d images of EYEPACS are of RLDR's patients and are left out", removed)
    return left


def _unlisted(root: Path, domain: str, found: dict[Split, list[Record]]) -> Counter[str]:
    """Count the files of a domain that its split files do not list."""
    images = _folder(root, "images")
    place = _folder(images, domain) if images else None
    used = {record.path for records in found.values() for record in records}
    return left_out([place] if place else [], used, images="images that the split files do not list")


def _folder(parent: Path, name: str) -> Path | None:
    """Return the folder with this name, without regard to case."""
    if (parent / name).is_dir():
        return parent / name
    return next((parent / found for found in folders(parent) if found.lower() == name.lower()), None)


def _file(parent: Path | None, domain: str, name: str) -> Path | None:
    """Return the split file, without regard to case."""
    if parent is None:
        return None
    wanted = f"{domain}_{name}.txt".lower()
    return next((path for path in sorted(parent.iterdir()) if path.name.lower() == wanted), None)
