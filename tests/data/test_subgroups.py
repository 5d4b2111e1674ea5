"""Subgroups of a table's columns: their names, bands, and what is refused."""

import pandas as pd
import pytest

from pfedst.data import FedISIC2019, FolderSites, ManifestSites
from pfedst.data.sets.fed_isic import METADATA
from pfedst.data.subgroups import Subgroups
from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.manifest.data import make, rows

TABLE = pd.DataFrame({"sex": ["m", " f", "", None], "age": ["39.9", "40", "", "0"], "n": list("abcd")})


def read(tmp_path, columns, bands=None, table=TABLE):
    return Subgroups(columns, bands or {}, 10).read(tmp_path / "m.csv", table)


def test_texts_and_bands(tmp_path) -> None:
    subgroups = Subgroups(["sex", "age"], {"age": [1, 40, 60.5]}, 10)
    found = subgroups.read(tmp_path / "m.csv", TABLE)
    assert found["sex"] == ["m", "f", "not stated", "not stated"]
    assert found["age"] == ["1 to below 40", "40 to below 60.5", "not stated", "below 1"]
    assert subgroups.names("sex", found["sex"]) == ("f", "m", "not stated")
    assert subgroups.names("age", found["age"]) == ("below 1", "1 to below 40", "40 to below 60.5", "not stated")


@pytest.mark.parametrize(
    ("columns", "bands", "minimum", "words"),
    [
        (["sex", "sex "], {}, 10, '"sex" is named twice'),
        (["sex"], {}, 0, "--data.subgroup_minimum 0: must be 1 or more"),
        ([], {}, 5, "--data.subgroup_minimum 5 has no effect without --data.subgroups"),
        (["sex"], {"age": [40]}, 10, '"age" is no column of --data.subgroups (sex)'),
        (["age"], {"age": [60, 40]}, 10, "in rising order"),
        (["age"], {"age": []}, 10, "in rising order"),
    ],
)
def test_options_out_of_range_are_refused(columns, bands, minimum, words) -> None:
    with pytest.raises(ConfigurationError) as error:
        Subgroups(columns, bands, minimum)
    assert words in str(error.value)


def test_a_table_that_does_not_fit_is_refused_with_the_remedy(tmp_path) -> None:
    with pytest.raises(DataError, match=r'm\.csv: no column "gender" .* There are: sex, age, n'):
        read(tmp_path, ["gender"])
    with pytest.raises(DataError, match=r'm\.csv, line 2: the column "n" has bands, and holds "a"'):
        read(tmp_path, ["n"], {"n": [3]})
    names = pd.DataFrame({"patient": [f"p{number}" for number in range(21)]})
    with pytest.raises(
        DataError, match=r'"patient" has 21 different values, of which at most 20 .*such as --data.subgroup_bands'
    ):
        read(tmp_path, ["patient"], table=names)
    with pytest.raises(DataError, match="at most 100 letters"):
        read(tmp_path, ["n"], table=pd.DataFrame({"n": ["x" * 101]}))


def test_images_keep_their_subgroup_whatever_the_split(tmp_path) -> None:
    """Validation is cut from train, and images are ordered by path: each keeps the cell of its row."""
    odd = ("1.png", "3.png", "5.png")
    table = [row | {"device": "new" if row["path"].endswith(odd) else ""} for row in reversed(rows())]
    data = ManifestSites(make(tmp_path, table), subgroups=["device"], validation_fraction=0.4, cache_folder=tmp_path)
    data.prepare(Preprocessing(32, (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest"))
    for split in ("train", "validation", "test"):
        names, codes = data.subgroups_of("north", split)["device"]
        source = data._datasets["north", split].source
        expected = ["new" if source.name(index).endswith(odd) else "not stated" for index in range(len(source))]
        assert [names[code] for code in codes] == expected
        assert "new" in expected


def test_fed_isic_reads_its_metadata(tmp_path) -> None:
    """Of the first image sex is missing, and the second one is not in the metadata."""
    metadata = make_fed_isic(tmp_path) / METADATA
    head, first, _, *others = metadata.read_text().splitlines()
    metadata.write_text("\n".join([head, first.replace("female", ""), *others]))
    options = {"subgroups": ["sex", "age_approx"], "subgroup_bands": {"age_approx": [45]}}
    found = FedISIC2019(tmp_path, centers=[0], **options).read()
    assert list(found.subgroups["sex"].values()).count("not stated") == 2
    assert set(found.subgroups["age_approx"].values()) == {"45 or above", "not stated"}
    metadata.unlink()
    with pytest.raises(DataError, match=f"--data.subgroups needs {METADATA}"):
        FedISIC2019(tmp_path, **options).read()


def test_data_without_such_a_table_are_refused(tmp_path) -> None:
    data = FolderSites(make_folder(tmp_path), subgroups=["sex"])
    with pytest.raises(ConfigurationError, match=r"--data.subgroups sex: FolderSites reads no table .* ManifestSites"):
        data.found()
