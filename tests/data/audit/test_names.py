"""Names that look alike, classes of one site, and files that are not used."""

from dataclasses import replace

from pfedst.data import FolderSites
from pfedst.data.audit import audit
from pfedst.data.audit.counts import lone_class_findings
from pfedst.data.audit.names import left_out_findings, name_findings
from pfedst.encoders.encoder import Pixels
from tests.data.audit.test_audit import tabled, told
from tests.fake_data.folder.data import make

BOTH = [(site, split, label, None) for site in "ab" for split in ("train", "test") for label in (0, 1, 2)]


def test_classes_and_sites_that_look_alike() -> None:
    findings, _ = name_findings(tabled(BOTH, ("Mel", "mel", "nv")))
    assert told(findings) == {("names_alike", "error")}
    assert findings[0].message.endswith('"Mel" and "mel"')
    assert "differ only in case" in findings[0].message
    sites = [(site, *row) for site, *row in BOTH] + [("B", *row) for _, *row in BOTH]
    findings, _ = name_findings(tabled(sites))
    assert [(f.severity, '"B" and "b"' in f.message) for f in findings] == [("error", True)]
    assert name_findings(tabled(BOTH)) == ([], None)


def test_groups_that_look_alike() -> None:
    def found(*groups):
        return name_findings(tabled([("a", split, 0, group) for split, group in groups]))[0]

    assert found(("train", "P1"), ("test", "P2"), ("test", None)) == []
    assert told(found(("train", "P1"), ("train", "p1"), ("test", "q"))) == {("names_alike", "warning")}
    findings = found(("train", "P1"), ("test", "p1"), ("train", "Q"), ("train", "q"))
    assert told(findings) == {("names_alike", "error")}
    assert (
        '2 groups are written in several ways, and 1 of them in two splits, such as "P1" and "p1"'
        in findings[0].message
    )


def test_names_of_several_spellings_are_a_note() -> None:
    findings, _ = name_findings(replace(tabled(BOTH), respelled=['class "a" (2 spellings)']))
    assert told(findings) == {("names_respelled", "note")}


def test_a_class_at_one_site_only() -> None:
    rows = [*BOTH, ("c", "train", 0, None), ("c", "test", 3, None)]
    findings, _ = lone_class_findings(tabled(rows, ("x", "y", "z", "rare")))
    assert told(findings) == {("class_at_one_site", "warning")}
    assert "(rare: c)" in findings[0].message
    assert lone_class_findings(tabled(BOTH)) == ([], None)
    assert lone_class_findings(tabled([("a", split, 0, None) for split in ("train", "test")])) == ([], None)


def test_files_that_are_not_used() -> None:
    sites = replace(tabled(BOTH), left_out={"": {".pdf": 1}, "a": {"images outside the folders of classes": 2}})
    findings, figures = left_out_findings(sites)
    assert [(f.severity, f.message) for f in findings] == [
        ("note", "data set: not used: 1 .pdf"),
        ("warning", 'site "a": not used: 2 images outside the folders of classes'),
    ]
    assert figures == sites.left_out
    assert left_out_findings(tabled(BOTH)) == ([], None)


def test_an_encoder_without_an_embedding_skips_the_site_shift(tmp_path) -> None:
    from pfedst.data.audit import scan

    found = FolderSites(make(tmp_path)).found()
    report = audit(found, "data", scan(found, False), Pixels(16))
    assert "site_shift" not in report.figures
