"""Damaged and malicious files: each is read, or refused with a typed error; nothing hangs, crashes or fills the memory.

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py run [--cases 10000] [--seed 0]
    python benchmarks/fuzz.py table

Small whole files of every kind that the package reads (SYNTHETIC images, an encoder of RANDOM WEIGHTS) are changed at
random: bits flipped, spans cut, doubled, moved or overwritten by numbers and words that parsers stumble over. Named
attacks are in tests/faults/. Writes benchmarks/results/fuzz.json, or the file that `--result` names. Each case has ten
seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from environment import environment
from PIL import Image
from safetensors.torch import save_file

from pfedst.cli import main as command
from pfedst.cli.resume import check_same_configuration
from pfedst.client.state import CLIENT, SiteState, load_client_part
from pfedst.configuration.renamed_options import CONFIG_FORMAT
from pfedst.data import ManifestSites
from pfedst.data.sources import FileSource
from pfedst.encoders import FrozenCLIP
from pfedst.errors import PfedstError
from pfedst.methods.pfedst import PFedST
from pfedst.reporting import RunFolder
from pfedst.simulation import SITES
from pfedst.state import snapshot
from pfedst.state.run_state import RunState
from pfedst.testing.federation import Federation
from pfedst.testing.small import data, encoder, federation, fit

RESULT = Path(__file__).resolve().parent / "results" / "fuzz.json"
SECONDS_A_CASE = 10.0
SITE = "site_a"
SHARES = {
    "image": 0.40,
    "dicom": 0.08,
    "csv": 0.14,
    "parquet": 0.06,
    "weights": 0.07,
    "state": 0.08,
    "resealed state": 0.05,
    "site": 0.03,
    "resealed site": 0.02,
    "run folder": 0.05,
    "configuration": 0.02,
}
"""Shares of the cases; a configuration takes the command line's parser, a second each."""
WORDS = [b"NaN", b"-inf", b"1e400", b"9" * 400, b"\0", b"\xff\xfe", b'"', b"\n", b",", b"{", b"[" * 60, b"null", b"*a"]
WORDS += [b"&a [*a]", b"!!python/object/apply:os.system [true]", b"../../", b"/dev/zero", b": ", b"\xed\xa0\x80"]
NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]

Read = Callable[[Path], object]
Change = Callable[[bytes, random.Random], bytes]


class TookTooLongError(BaseException):
    """Not an Exception: readers that catch whatever a library raises must not catch the alarm."""


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Change the content of a file one to four times, so that it differs."""
    content = whole
    while content == whole:
        content = changed(whole, draw)
    return content


def changed(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 2, 4))):
        start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        span = content[start:end][:64]
        kind = draw.randrange(6)
        if kind == 0 and content:
            at = draw.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
        elif kind == 1:
            content = content[:start]
        elif kind == 2:
            content = content[:start] + content[start + len(span) :]
        elif kind == 3:
            content = content[:start] + span * draw.randrange(2, 5) + content[end:]
        elif kind == 4:
            number = struct.pack(draw.choice("<>") + "I", draw.choice(NUMBERS))
            content = content[:start] + number + content[start + 4 :]
        else:
            word = draw.choice(WORDS)
            content = content[:start] + word + content[start + draw.choice((0, len(word))) :]
    return content


class Kind:
    """Files of one kind: whole ones, and how they are read.

    Args:
        files: whole files that a case starts from; for a folder, those in it that may be changed.
        read: the file, or a copy of the folder, as the package would.
        folder: what is copied with the file.
    """

    def __init__(self, files: list[Path], read: Read, folder: Path | None = None) -> None:
        self.files, self.read, self.folder = files, read, folder

    def prepare(self, place: Path, draw: random.Random, change: Change) -> Path:
        """Write the file of a case below a folder; return what is to be read."""
        file = draw.choice(self.files)
        if self.folder is None:
            target = place / file.name
            shown = target
        else:
            shutil.copytree(self.folder, shown := place / self.folder.name)
            target = shown / file.relative_to(self.folder)
        target.write_bytes(change(file.read_bytes(), draw))
        return shown

    def require_whole(self, folder: Path) -> None:
        """Read a whole file: a kind whose whole files are refused would test nothing."""
        place = Path(tempfile.mkdtemp(dir=folder))
        with contextlib.redirect_stdout(io.StringIO()):
            self.read(self.prepare(place, random.Random(0), lambda content, draw: content))
        shutil.rmtree(place)


def images(folder: Path) -> list[Path]:
    """Small ones, in every format that is common."""
    draw, found = np.random.default_rng(0), []
    for name in ("a.png", "a.jpg", "progressive.jpg", "a.tif", "lzw.tif", "a.bmp", "a.gif", "a.webp", "grey.png"):
        pixels = draw.integers(0, 255, (24, 32) if name.startswith("grey") else (24, 32, 3), dtype=np.uint8)
        options = (
            {"progressive": True} if "progressive" in name else {"compression": "tiff_lzw"} if "lzw" in name else {}
        )
        Image.fromarray(pixels).save(folder / name, **options)
        found.append(folder / name)
    return found


def dicom(folder: Path) -> list[Path]:
    """One of 16-bit grey levels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
    dataset.Modality, dataset.PatientID, dataset.PhotometricInterpretation = "CT", "x", "MONOCHROME2"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 16, 16, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2000, 4000
    dataset.add_new("PixelData", "OW", np.arange(256, dtype=np.uint16).tobytes())
    dataset.save_as(folder / "a.dcm", enforce_file_format=True)
    return [folder / "a.dcm"]


def tables(folder: Path) -> tuple[Path, Path]:
    """A manifest as CSV and as parquet, with its images beside it."""
    rows = []
    for index in range(12):
        name = f"images/{index}.png"
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name)
        split = "test" if index % 3 == 2 else "train"
        rows.append(
            {"path": name, "label": "xy"[index % 2], "site": "ab"[index // 6], "split": split, "group": f"p{index}"}
        )
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    pd.DataFrame(rows).to_parquet(folder / "manifest.parquet")
    return folder / "manifest.csv", folder / "manifest.parquet"


def read_image(path: Path) -> None:
    """As an epoch would, and the header as the audit would."""
    source = FileSource([path])
    source.header(0)
    source.load(0)


def read_state(made: Federation) -> Read:
    """Read the last round into the server of a federation."""

    def read(folder: Path) -> None:
        made.server.load_state_parts(RunState(folder).last_round().parts)

    return read


def read_site(made: Federation) -> Read:
    """Read the last fit of a site as its client does to continue, and as a server gets its message."""

    def read(folder: Path) -> None:
        site = SiteState(folder, SITE)
        number = site.numbers()[-1]
        found = site.start(number)
        load_client_part(made.members[SITE], found.parts[CLIENT])
        reply = site.answered(number, str(found.about.get("request")))
        if reply is not None:
            made.server.check_upload(SITE, reply.parts)

    return read


def resealed(read: Read) -> Read:
    """Read the same after someone has made all checksums right again."""

    def reseal(folder: Path) -> None:
        for manifest_file in folder.rglob(snapshot.MANIFEST):
            place = manifest_file.parent
            manifest = json.loads(manifest_file.read_text())
            manifest.pop("sha256")
            for entry in manifest["parts"].values():
                content = (place / entry["file"]).read_bytes()
                entry |= {"bytes": len(content), "sha256": snapshot._sha256(content)}
            manifest_file.write_bytes(snapshot._sealed(manifest))
        read(folder)

    return reseal


def read_run_folder(path: Path) -> None:
    """What a resumed run reads beside the state."""
    run = RunFolder(path)
    mark = json.loads((path / "mark.json").read_text())
    check_same_configuration(path, (path / "whole.yaml").read_text(), {})
    run.identify(json.loads((path / "whole.json").read_text()), resume=True)
    run.records(mark)
    run.summary()


def read_configuration(path: Path) -> None:
    """As the command line would; it says what is wrong by its exit code."""
    if code := command(["fit", "--config", str(path), "--print_config"]):
        raise PfedstError(f"{path}: exit code {code}")


def kinds(folder: Path) -> dict[str, Kind]:
    """All of them, with whole files in a folder."""
    manifest, parquet = tables(folder)
    run = folder / "runs" / "run"
    small = {"sites": 2, "samples_per_site": [8, 8], "test_samples_per_site": [3, 3]}
    fit(folder / "runs", PFedST(), rounds=1, sites=data(**small), optimizer_state="keep")
    saved = run / "state"
    mark = RunState(saved).last_round().about["records"]
    (run / "mark.json").write_text(json.dumps(mark))
    (run / "whole.json").write_text((run / "identity.json").read_text())
    configuration = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
    for name in ("config.yaml", "whole.yaml"):
        (run / name).write_text(f"{configuration.read_text()}\nconfig_format: {CONFIG_FORMAT}\n")
    shutil.move(saved, folder / "state")
    shutil.move(run / SITES, folder / SITES)
    saved, sites = folder / "state", folder / SITES
    shutil.rmtree(saved / "round-000000")
    made = federation(PFedST(), sites=data(**small))
    tower = encoder().tower
    save_file({key: tensor.contiguous() for key, tensor in tower.state_dict().items()}, folder / "tower.safetensors")
    whole = sorted(path for path in saved.rglob("*") if path.is_file())
    of_site = sorted(path for path in sites.glob(f"{SITE}/after-*/*") if path.is_file())
    logs = [run / name for name in ("config.yaml", "identity.json", "rounds.jsonl", "summary.json")]
    return {
        "image": Kind(images(folder), read_image),
        "dicom": Kind(dicom(folder), read_image),
        "csv": Kind([manifest], lambda path: ManifestSites(manifest=path, root=folder).found()),
        "parquet": Kind([parquet], lambda path: ManifestSites(manifest=path, root=folder).found()),
        "weights": Kind([folder / "tower.safetensors"], lambda path: FrozenCLIP("vit-nano", str(path))),
        "state": Kind(whole, read_state(made), saved),
        "resealed state": Kind(tensors_of(whole), resealed(read_state(made)), saved),
        "site": Kind(of_site, read_site(made), sites),
        "resealed site": Kind(tensors_of(of_site), resealed(read_site(made)), sites),
        "run folder": Kind(logs, read_run_folder, run),
        "configuration": Kind([configuration], read_configuration),
    }


def tensors_of(files: list[Path]) -> list[Path]:
    return [path for path in files if path.suffix == ".safetensors"]


@contextlib.contextmanager
def silent(*names: str) -> Iterator[None]:
    """Loggers that say nothing within a block."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """A TookTooLongError after SECONDS_A_CASE."""

    def ring(*_: object) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_A_CASE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(kind: Kind, draw: random.Random, folder: Path) -> str:
    """What becomes of one case: `read`, `refused`, `hung`, or the class of an error that is none of ours."""
    place = Path(tempfile.mkdtemp(dir=folder))
    shown = kind.prepare(place, draw, damaged)
    try:
        with alarm(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                kind.read(shown)
        return "read"
    except PfedstError:
        return "refused"
    except TookTooLongError:
        return "hung"
    except Exception as error:
        logging.getLogger("fuzz").exception("untyped")
        return type(error).__name__
    finally:
        shutil.rmtree(place, ignore_errors=True)


def measure(cases: int, seed: int, only: str | None = None) -> dict[str, dict[str, Any]]:
    """Outcomes by kind."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, silent("pfedst", "pydicom"):
        folder = Path(name)
        for kind_name, kind in kinds(folder).items():
            if only not in (None, kind_name):
                continue
            kind.require_whole(folder)
            count = max(1, round(cases * SHARES[kind_name]))
            began, slowest, found = time.perf_counter(), 0.0, Counter[str]()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for case in range(count):
                started = time.perf_counter()
                found[attempt(kind, random.Random(f"{seed} {kind_name} {case}"), folder)] += 1
                slowest = max(slowest, time.perf_counter() - started)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            rows[kind_name] = {
                "cases": count,
                "read": found.pop("read", 0),
                "refused": found.pop("refused", 0),
                "wrong": dict(found),
                "slowest_seconds": slowest,
                "grown_mib": grown,
                "seconds": time.perf_counter() - began,
            }
            print(kind_name, rows[kind_name], flush=True)
    return rows


def table(file: Path = RESULT) -> None:
    """Print the results as Markdown."""
    result = json.loads(file.read_text())
    print("| files | cases | read | refused | untyped, hung | slowest, s | memory grew by, MiB |")
    print("|" + "---|" * 7)
    for name, row in result["rows"].items():
        cells = [name, row["cases"], row["read"], row["refused"], sum(row["wrong"].values())]
        cells += [f"{row['slowest_seconds']:.2f}", f"{row['grown_mib']:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    print(
        f"\n{sum(row['cases'] for row in result['rows'].values()):,} files, changed at random (seed {result['seed']}); "
        f"small SYNTHETIC images, an encoder of RANDOM WEIGHTS. A case that takes {SECONDS_A_CASE:.0f} s is hung."
    )


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the results")
    parser.add_argument("--only", choices=tuple(SHARES), help="one kind; nothing is written")
    given = parser.parse_args()
    if given.what == "run":
        rows = measure(given.cases, given.seed, given.only)
        if given.only is None:
            content = {"environment": environment(), "seed": given.seed, "rows": rows}
            given.result.write_text(json.dumps(content, indent=2) + "\n")
    if given.only is None:
        table(given.result)


if __name__ == "__main__":
    main()
