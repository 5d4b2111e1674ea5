"""Manifests as other programs write them: encodings, headings, one column for each class, no split, several classes."""

import csv
import unicodedata

import pandas as pd
import pytest

from pfedst.data import ManifestSites
from pfedst.errors import ConfigurationError, DataError
from tests.fake_data.manifest.data import make, rows

GERMAN = {"path": "Datei", "label": "Läsion", "site": "Klinik", "split": "Aufteilung", "group": "Patient"}


def text_of(table, separator=",") -> str:
    from io import StringIO

    out = StringIO()
    writer = csv.DictWriter(out, list(table[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make(tmp_path_factory.mktemp("manifest")).parent


@pytest.fixture
def written(images, tmp_path):
    """Write a table; its reader."""

    def write(table, encoding="utf-8", separator=",", **options):
        (tmp_path / "m.csv").write_bytes(text_of(table, separator).encode(encoding))
        return ManifestSites(tmp_path / "m.csv", root=images, **options)

    return write


def content(found):
    return {
        (site, split): (list(part.labels), list(part.groups), [part.source.name(i) for i in range(len(part.labels))])
        for site, split, part in found.parts()
    }


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-be-mark"])
def test_a_german_table(written, encoding, separator, caplog) -> None:
    table = [row | {"label": {"benign": "gutartig, groß"}.get(row["label"], row["label"])} for row in rows()]
    german = [{GERMAN[key]: value for key, value in row.items()} for row in table]
    expected = written(table).found()
    text = "\ufeff" if encoding.endswith("mark") else ""
    german = [{text + key if number == 0 else key: v for number, (key, v) in enumerate(row.items())} for row in german]
    found = written(german, encoding.removesuffix("-mark"), separator, columns=GERMAN).found()
    assert found.class_names == expected.class_names == ["gutartig, groß", "malignant", "unclear"]
    assert content(found) == content(expected)
    assert ("Windows-1252" in caplog.text) == (encoding == "cp1252")


def test_names_in_several_ways_are_one(written) -> None:
    clean = [row | {"label": row["label"].replace("benign", "Nävus")} for row in rows()]
    odd = [dict(row) for row in clean]
    odd[0]["label"] = unicodedata.normalize("NFD", "Nävus")
    odd[1] |= {"label": "Nävus ", "site": " north", "split": "Train", "group": f"{odd[1]['group']}\u00a0"}
    odd[3]["split"] = "TRAINING "
    found, expected = written(odd).found(), written(clean).found()
    assert found.class_names == ["Nävus", "malignant", "unclear"]
    assert content(found) == content(expected)
    assert set(found.respelled) == {'class "Nävus" (3 spellings)', 'site "north" (2 spellings)', "1 groups"}
    assert expected.respelled == []


def test_class_names_of_an_option_are_read_in_the_same_way(written) -> None:
    names = ["unclear ", "malignant", unicodedata.normalize("NFD", "Nävus")]
    table = [row | {"label": row["label"].replace("benign", "Nävus")} for row in rows()]
    assert written(table, class_names=names).found().class_names == ["unclear", "malignant", "Nävus"]


def one_hot(table, extra=()):
    names = sorted({row["label"] for row in table})
    return [
        {key: value for key, value in row.items() if key != "label"}
        | {name: "1.0" if row["label"] == name else "0.0" for name in names}
        | dict(extra)
        for row in table
    ]


def test_one_column_for_each_class(written, caplog) -> None:
    expected = content(written(rows()).found())
    assert content(written(one_hot(rows())).found()) == expected
    assert "its columns of 0 and 1 are read as the classes benign, malignant, unclear" in caplog.text
    columns = {"label": ["benign", "malignant", "unclear"]}
    assert content(written(one_hot(rows(), {"male": "1"}), columns=columns).found()) == expected


def test_a_heading_in_another_case(written) -> None:
    table = [{key.upper(): value for key, value in row.items()} for row in rows()]
    table = [{f" {key} ": value for key, value in row.items()} for row in table]
    assert content(written(table).found()) == content(written(rows()).found())


def without(table, *columns):
    return [{key: value for key, value in row.items() if key not in columns} for row in table]


def test_a_test_split_is_drawn_by_groups(written, caplog) -> None:
    table = [
        row | {"group": row["group"].replace("train", "").replace("test", "t")} for row in without(rows(), "split")
    ]
    data = written(table, validation_fraction=0.0)
    found = data.found()
    assert "no column split: 0.2 of the groups drawn to test, split seed 0" in data.label
    assert "no column split" in caplog.text
    for site in ("north", "south"):
        train, test = (found.splits[site][split] for split in ("train", "test"))
        assert (len(train.labels), len(test.labels)) == (24, 6)  # one of five groups of two images in each class
        assert test.counts(3) == [2, 2, 2]
        assert not set(train.groups) & set(test.groups)
    assert content(written(table, validation_fraction=0.0).found()) == content(found)
    assert content(written(table, validation_fraction=0.0, split_seed=1).found()) != content(found)
    half = written(table, validation_fraction=0.0, test_fraction=0.4).found()
    assert len(half.splits["north"]["test"].labels) == 12
    assert written(table, validation_fraction=0.25).found().splits["north"].keys() == {"train", "validation", "test"}


def test_a_site_of_three_images_keeps_one_for_test(written) -> None:
    few = [row for row in rows() if row["site"] == "north"] + [row for row in rows() if row["site"] == "south"][:18:6]
    found = written(without(few, "split", "group"), validation_fraction=0.0).found()
    assert [len(found.splits["south"][split].labels) for split in ("train", "test")] == [2, 1]


def several(label):
    table = rows()
    table[1]["label"] = label
    return table


def doubled():
    return [*rows(), rows()[0] | {"label": "unclear"}]


def two_ones():
    table = one_hot(rows())
    table[0]["unclear"] = "1.0"
    return table


def no_ones():
    table = one_hot(rows())
    table[0]["benign"] = "0.0"
    return table


WRONG = [
    (several("benign|malignant"), {}, ["line 3", "multi-label", '"benign|malignant" lists several classes']),
    (several("benign|other"), {}, ["line 3", "multi-label"]),
    (several("benign; unclear"), {}, ["line 3", "multi-label"]),
    (several("['benign', 'unclear']"), {}, ["line 3", "multi-label"]),
    (doubled(), {}, ["line 62", "already on line 2", "multi-label"]),
    (two_ones(), {}, ["line 2", "multi-label", "benign, unclear", "--data.columns.label"]),
    (no_ones(), {}, ["line 2", "no class is 1"]),
    (one_hot(rows()), {"columns": {"label": ["benign", "split"]}}, ["line 2", '"split" holds "train"', "0 or 1"]),
    (rows(), {"columns": {"label": "Diagnose"}}, ['no column "Diagnose"', "--data.columns.label"]),
    (without(rows(), "path"), {}, ['no column "path"', "--data.columns.path"]),
    ([{("splits" if k == "split" else k): v for k, v in row.items()} for row in rows()], {}, ['no column "split"', 'Did you mean "splits"', "--data.columns.split"]),
    ([row | {"label ": "x"} for row in rows()], {}, ["m.csv", 'two columns are called "label"']),
    (several(" "), {}, ["line 3", '"label" is empty']),
]  # fmt: skip


@pytest.mark.parametrize(("table", "options", "words"), WRONG)
def test_one_clear_error(written, table, options, words) -> None:
    with pytest.raises(DataError) as caught:
        written(table, **options).found()
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize("label", ["nevus, atypical", "a;b", "benign, other", "(benign)", "4|5"])
def test_a_class_with_a_comma_is_no_list(written, label) -> None:
    assert label in written(several(label), class_names=None).read().class_names


OPTIONS = [
    ({"columns": {"lable": "x"}}, ["--data.columns", 'Did you mean "label"']),
    ({"columns": {"path": ["a", "b"]}}, ["--data.columns.path", "one heading"]),
    ({"test_fraction": 1.0}, ["--data.test_fraction 1.0"]),
    ({"test_fraction": 0.3}, ["--data.test_fraction 0.3", "has a column of splits"]),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_that_cannot_be(written, options, words) -> None:
    with pytest.raises(ConfigurationError) as caught:
        written(rows(), **options).found()
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_parquet(images, tmp_path) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(one_hot(rows())).astype({"benign": float, "malignant": float, "unclear": float})
    table.to_parquet(tmp_path / "m.parquet")
    found = ManifestSites(tmp_path / "m.parquet", root=images).found()
    assert found.class_names == ["benign", "malignant", "unclear"]


def test_lists_in_parquet_are_not_read_and_this_is_said(images, tmp_path, caplog) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(rows())
    table.assign(label=[[label, "other"] for label in table["label"]]).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(DataError, match='no column "label"'):
        ManifestSites(tmp_path / "m.parquet", root=images).found()
    assert "columns of lists are not read: label" in caplog.text
