"""What an audit says of data, against tables counted independently and files damaged on purpose."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO, StringIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from pfedst.data import FolderSites
from pfedst.data.audit import AuditReport, audit, scan
from pfedst.data.audit.counts import class_findings, group_findings
from pfedst.data.audit.html import page
from pfedst.data.audit.images import image_findings
from pfedst.data.audit.scan import ImageFacts
from pfedst.data.audit.terminal import rendered
from pfedst.data.decoding import ImageHeader
from pfedst.data.sets.synthetic import ArraySource
from pfedst.data.sites import LabelledImages, Place, Sites
from pfedst.errors import DataError
from tests.data.audit.test_shift import Colours
from tests.data.test_wrong_input import SMALL, truncate
from tests.fake_data.folder.data import image, make

ENOUGH = [("a", split, label, None) for split in ("train", "test") for label in (0, 1) for _ in range(9)]


def tabled(rows, classes=("benign", "malignant", "unclear")):
    """Sites of (site, split, label, group), each image another."""
    splits: dict = {}
    for number, (name, split, *_) in enumerate(rows):
        splits.setdefault(name, {}).setdefault(split, []).append(number)
    pixels = np.random.default_rng(0).integers(0, 255, (len(rows), 8, 8, 3), dtype=np.uint8)
    return Sites(classes, {n: {s: LabelledImages(ArraySource(pixels[i]), [rows[k][2] for k in i], [rows[k][3] for k in i])
                               for s, i in of.items()} for n, of in splits.items()})  # fmt: skip


def told(findings):
    return {(finding.code, finding.severity) for finding in findings}


def plain(report, width=240):
    file = StringIO()
    Console(file=file, width=width).print(rendered(report), highlight=False)
    return file.getvalue()


def folder_report(root, **options):
    data = FolderSites(root, **options)
    found = data.found()
    return audit(found, data.label, scan(found, True))


CLASSES = {
    "nothing": ([], set()),
    "never trained": ([("a", "test", 2, None)] * 5, {("class_never_trained", "error"), ("class_not_trained_at_site", "warning")}),
    "trained at another site": ([("a", "test", 2, None)] * 5 + [("b", s, k, None) for s in ("train", "test") for k in range(3)] * 5, {("class_not_trained_at_site", "warning")}),
    "not tested": ([("a", "train", 2, None)], {("class_not_tested_at_site", "note")}),
    "four in test": ([("a", s, 2, None) for s in ("train", *["test"] * 4)], {("few_test_images", "note")}),
    "five in test": ([("a", s, 2, None) for s in ("train", *["test"] * 5)], set()),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_classes(case) -> None:
    rows, expected = CLASSES[case]
    findings, _ = class_findings(tabled(ENOUGH + rows, ("benign", "malignant", "rare")[: 3 if rows else 2]))
    assert told(findings) == expected
    assert all("rare" in finding.message and "malignant" not in finding.message for finding in findings)


def test_an_absent_class() -> None:
    assert told(class_findings(tabled(ENOUGH))[0]) == {("class_absent", "warning")}
    findings, _ = class_findings(tabled([*ENOUGH, ("a", "validation", 2, None)]))
    assert "no site has an image of unclear" not in str(findings)


def row(names):
    group = st.sampled_from([None, *"pqrstuvw"])
    return st.tuples(st.sampled_from(names), st.sampled_from(["train", "validation", "test"]), st.integers(0, 2), group)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from([["a"], ["a", "b", "c"]]))
def test_group_overlap_as_pandas_counts_it(data, names) -> None:
    needed = [data.draw(row([name])) for name in names for _ in range(2)]
    needed = [(n, ("train", "test")[k % 2], label, group) for k, (n, _, label, group) in enumerate(needed)]
    rows = needed + data.draw(st.lists(row(names), max_size=30))
    findings, figures = group_findings(tabled(rows))
    table = pd.DataFrame(rows, columns=["site", "split", "label", "group"])
    known = table.dropna(subset=["group"])
    if not len(known):
        assert told(findings) == {("groups_unknown", "warning")}
        return
    test = table[table.split == "test"]
    leaks = test.group.isin(known[known.split != "test"].group)
    overlap = figures["test_overlap"]
    told_of = [(overlap["sites"][name], of) for name, of in test.assign(leaks=leaks).groupby("site")]
    for found, of in [*told_of, (overlap["all"], test.assign(leaks=leaks))]:
        expected = {"test_images": len(of), "sharing_a_group_with_train": of.leaks.sum(), "share": of.leaks.mean()}
        assert found == pytest.approx(expected)
    assert set(overlap["sites"]) == set(names)
    assert figures["groups"] == known.group.nunique()
    assert figures["images_without_group"] == table.group.isna().sum()
    also = table[table.split == "validation"].group.isin(known[known.split == "train"].group)
    afar = known.groupby("group").site.nunique().gt(1).sum()
    expected = {("group_overlap", "error"): leaks.sum(), ("group_overlap", "warning"): also.sum(),
                ("some_groups_unknown", "warning"): table.group.isna().sum(), ("group_at_several_sites", "warning"): afar}  # fmt: skip
    assert told(findings) == {code for code, count in expected.items() if count}
    for finding in findings:
        assert str(expected[finding.code, finding.severity]) in re.findall(r"\d+", finding.message)
        for together in finding.images if finding.code == "group_overlap" else ():
            judged = "test" if finding.severity == "error" else "validation"
            splits = {place.split for place in together}
            assert {judged} < splits <= {"train", "validation", judged}


def test_a_site_may_be_called_all() -> None:
    rows = [(n, s, 0, g) for n, g in (("all", "p"), ("b", "q")) for s in ("train", "test")] + [("b", "test", 0, "r")]
    _, figures = group_findings(tabled(rows))
    assert {name: of["share"] for name, of in figures["test_overlap"]["sites"].items()} == {"all": 1.0, "b": 0.5}
    assert figures["test_overlap"]["all"]["share"] == pytest.approx(2 / 3)


IMAGES = [
    ((100, 100), set()), ((64, 64), set()), ((63, 100), {"tiny_images"}), ((100, 63), {"tiny_images"}),
    ((300, 100), set()), ((100, 301), {"elongated_images"}), ((301, 100), {"elongated_images"}),
    ((400, 400), set()), ((401, 401), {"odd_sizes"}), ((24, 24), {"tiny_images", "odd_sizes"}), ((25, 25), {"tiny_images"}),
    ((20, 61), {"tiny_images", "elongated_images", "odd_sizes"}), ((100, 100, "L"), {"mixed_modes"}),
    ((100, 100, "RGB", True), {"burned_in_text"}), ((100, 100, "RGB", False), set()),
]  # fmt: skip


@pytest.mark.parametrize(("header", "expected"), IMAGES)
def test_images(header, expected) -> None:
    usual, large = ImageHeader(100, 100, "RGB"), ImageHeader(1000, 1000, "RGB")
    header = ImageHeader(*(*header, "RGB")[: max(3, len(header))])
    facts = {Place("a", "test", k): ImageFacts(head, str(k)) for k, head in enumerate([*[usual] * 9, header])}
    facts[Place("b", "test", 0)] = ImageFacts(large, "b")  # usual at its own site
    findings, figures = image_findings(tabled([("a", "test", 0, None)] * 10 + [("b", "test", 0, None)]), facts)
    assert told(findings) == {(code, "note" if code == "mixed_modes" else "warning") for code in expected}
    for finding in findings:
        grey = finding.code == "mixed_modes"
        assert finding.images == (() if grey else ((Place("a", "test", 9),),))
        assert "a: 9 RGB, 1 L; b: 1 RGB" in finding.message or not grey
    assert figures["modes"] == {"a": {"RGB": 9, "L": 1} if header.mode == "L" else {"RGB": 10}, "b": {"RGB": 1}}
    common = figures["commonest_sizes"]["a"][0]
    assert common == {"width": 100, "height": 100, "images": 9 + ((header.width, header.height) == (100, 100))}


def test_levels(tmp_path) -> None:
    root = make(tmp_path / "d")
    FolderSites(root, audit="strict").prepare(SMALL)  # warnings do not stop it
    shutil.copy(root / "clinic_a/train/benign/1.png", root / "clinic_b/test/malignant/copy.png")
    for data in (off := FolderSites(root, audit="off"), warn := FolderSites(root), tables := FolderSites(root, verify_images=False)):  # fmt: skip
        data.prepare(SMALL)
        assert data.samples("clinic_b", "test") == 13
    assert off.report is None
    assert told(warn.report.of("error")) == {("identical_images_splits", "error"), ("contradicting_labels", "error")}
    with pytest.raises(DataError, match="strict") as caught:
        FolderSites(root, audit="strict").prepare(SMALL)
    for finding in warn.report.of("error"):
        assert finding.message in str(caught.value)
        assert finding.remedy in str(caught.value)
    assert (warn.report.opened, tables.report.opened) == (True, False)
    assert set(tables.report.figures) == {"label_skew"}
    FolderSites(root, audit="strict", verify_images=False).prepare(SMALL)
    truncate(root / "clinic_a/test/benign/1.png")
    FolderSites(root, audit="strict", verify_images=False).prepare(SMALL)
    assert "<img" not in page(tables.report)


def test_report(tmp_path) -> None:
    root = make(tmp_path / "d")
    shutil.copy(root / "clinic_a/train/benign/1.png", root / "clinic_b/test/malignant/secret.png")
    Image.open(root / "clinic_b/train/benign/1.png").convert("L").save(root / "clinic_a/test/unclear/grey.png")
    truncate(root / "clinic_a/train/unclear/1.png")
    data = FolderSites(root, class_names=["benign", "malignant", "unclear", "never"])
    found = data.found()
    for _, split, part in found.parts():
        part.groups[:2] = ["PATIENT77", f"PATIENT{split}"]
    report = audit(found, data.label, scan(found, True))
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(severities) == {"error", "warning", "note"}
    assert report.tally() == {name: severities.count(name) for name in ("error", "warning", "note")}
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written == report.to_json()  # lists, texts and numbers alone
    assert [f["code"] for f in written["findings"]] == [f.code for f in report.findings]
    assert written["counts"]["clinic_b"]["test"] == [4, 5, 4, 0]
    assert "secret.png" in json.dumps(written)
    for text in (json.dumps(written), plain(report), page(report), report.headline()):
        assert "PATIENT" not in text
    summary = json.dumps(report.summary())
    assert not re.search(r"PATIENT|png|jpg|/|clinic|%", summary)
    assert report.summary()["codes"] == [f.code for f in report.findings if f.severity != "note"]
    assert report.headline().startswith(f"data audit: {report.tally()['error']} error")
    assert report.findings[0].message in report.headline()
    quiet = AuditReport("x", found, True, report.of("note"))
    assert re.fullmatch(r"data audit: 0 errors, 0 warnings, (1 note|\d+ notes)", quiet.headline())
    quiet.refuse_errors()


class Read(HTMLParser):
    """What a browser would see of a page: elements, sources, text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.names, self.text = set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        of_page = {"lang", "charset", "name", "content"}
        assert set(attributes) <= {
            *of_page,
            "class",
            "alt",
            "scope",
            "src",
            "id",
            "tabindex",
            "role",
            "aria-labelledby",
        }
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.names += [attributes["alt"]] if "alt" in attributes else []

    def handle_data(self, data):
        self.text += data


HOSTILE = ["<script>alert(1)<", "a\" onerror='x'", "[red]", "[", "]", "[b]x", "&lt;b&gt;", ":bug:", "[link=x]y", "\\[bold]", "[/]", "[/red]"]  # fmt: skip


def hostile(root, name):
    """A report on two sites: a name of the root, a site, a class, a file that is there twice, and an encoder."""
    stem = name.replace("/", "|")  # which a manifest may have, and a folder not
    for site in ("other", f"site {stem}"):
        for number, split in enumerate(("train", "test")):
            image(root / f"data {stem}" / site / split / f"class {stem}/own{number}.png", len(site) + number, 300)
        image(root / f"data {stem}" / site / "test" / f"class {stem}/file {stem}.png", 7)
    data, encoder = FolderSites(root / f"data {stem}"), Colours()
    found = data.found()
    sites = Sites([f"class {name}"], {f"site {name}": found.splits[f"site {stem}"], "other": found.splits["other"]})
    encoder.label = f"encoder {name}"
    for site, split in ((f"site {name}", "train"), ("other", "test")):
        sites.splits[site][split].groups[0] = "p"
    return audit(sites, data.label.replace("|", "/"), scan(sites, True), encoder)


@pytest.mark.parametrize("name", HOSTILE)
def test_page_of_hostile_names(tmp_path, name) -> None:
    report = hostile(tmp_path, name)
    text = page(report)
    seen = Read(text)
    known = (
        "html head meta title style body h1 h2 p strong div b br span table caption thead tbody tr th td figure img "
        "figcaption main"
    )
    assert seen.tags <= {*known.split()}
    assert not re.search(r"https?://|<script|javascript:", text)
    for what in ("data", "site", "class", "encoder"):
        assert f"{what} {name}" in seen.text, what
    assert f"file {name.replace('/', '|')}.png" in seen.text
    assert any(f"site {name}" in of for of in seen.names)
    assert not any(of.endswith(".png") for of in seen.names)  # the name of a file may be that of a patient
    assert len(seen.sources) == sum(len(together) for finding in report.findings for together in finding.images)
    for source in seen.sources:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(BytesIO(base64.b64decode(data, validate=True))) as thumbnail:
            thumbnail.load()
            assert (thumbnail.format, max(thumbnail.size) <= 128) == ("JPEG", True)


@pytest.mark.parametrize("name", HOSTILE)
def test_terminal_of_hostile_names(tmp_path, name) -> None:
    lines = plain(hostile(tmp_path, name)).splitlines()
    # sites: counts, overlap, shift's row and column, and a file's; classes: counts, and a file's
    for what, least in {"data": 1, "encoder": 1, "class": 2, "site": 4}.items():
        assert sum(f"{what} {name}" in line for line in lines) >= least, what
    file = name.replace("/", "|").replace("\\", "/")  # Windows' paths are shown as others
    assert any(f"file {file}.png" in line for line in lines)


def test_a_report_shows_some_and_says_how_many_more() -> None:
    groups = ["p"] * 41 + [f"q{k}" for k in range(60)]
    sites = tabled([("a", "test" if k else "train", k % 3, group) for k, group in enumerate(groups)])
    report = audit(sites, "x", scan(sites, False))
    tiny = len(next(finding for finding in report.findings if finding.code == "tiny_images").images)
    for shown, text, most in ((Read(page(report)).text, "in the JSON report", 24), (plain(report), "", 3)):
        assert f"and {tiny - most} more" in shown
        assert text in shown
        assert "40.0" in shown  # of 100 test images, 40 are of p


def test_a_file_name_that_is_no_text(tmp_path) -> None:
    root = make(tmp_path)
    (root / "clinic_a/train/benign/1.png").rename(root / "clinic_a/train/benign" / "\udcff.png")
    report = folder_report(root)
    for shown in (json.dumps(report.to_json()), page(report)):
        shown.encode()
    FolderSites(root).prepare(SMALL)
