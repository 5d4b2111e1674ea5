"""Tables and configurations that are huge, or that a few bytes make huge, are refused before they fill the memory."""

import signal
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pfedst.cli import main
from pfedst.cli.resume import check_same_configuration
from pfedst.configuration import yaml_text
from pfedst.configuration.yaml_text import DEEPEST, MOST_BYTES, MOST_VALUES, load_yaml
from pfedst.data import FedDRG, FedISIC2019, ManifestSites
from pfedst.data import tables as limits
from pfedst.data.sites import class_index, class_order
from pfedst.data.tables import read_json, read_table
from pfedst.errors import ConfigurationError, DataError, StateError
from tests.fake_data.fed_drg.data import make as make_fed_drg
from tests.fake_data.fed_isic2019.data import make as make_fed_isic

HEADER = "path,label,site,split\n"
_hollow: set[str] = set()
_opened: list[str] = []


@sys.addaudithook
def _note(event, arguments) -> None:
    if event == "open" and _hollow and str(arguments[0]) in _hollow:
        _opened.append(str(arguments[0]))


def hollow(file: Path, size: int) -> Path:
    """A file of that size, which takes no room on disk; nobody may open it."""
    with file.open("wb") as opened:
        opened.truncate(size)
    _hollow.add(str(file))
    return file


@pytest.fixture(autouse=True)
def unopened():
    """What is too large is refused by its size."""
    _hollow.clear()
    _opened.clear()
    yield
    assert _opened == []


@pytest.fixture(autouse=True)
def hangs_fail():
    """A table or a text that takes minutes is one that never ends."""

    def told(*_) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, told)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def events(monkeypatch):
    """How many events of each text the check looks at."""
    seen, parse = [], yaml.parse

    def counted(*arguments, **options):
        seen.append(0)
        for event in parse(*arguments, **options):
            seen[-1] += 1
            yield event

    monkeypatch.setattr(yaml_text.yaml, "parse", counted)
    return seen


MOST_EVENTS = 2 * MOST_VALUES + 10
"""A value has two at most, its start and its end; then the text's own."""


# -- tables ----------------------------------------------------------------------------------------------------


def dictionary(file: Path) -> None:
    """One text that many rows repeat: a kilobyte of parquet."""
    schema = pa.schema({"path": pa.string()})
    with pq.ParquetWriter(file, schema, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 24) as o:
        o.write_table(pa.table({"path": pa.array(["x" * 900_000] * 20)}))


def shared(file: Path) -> None:
    """Many short texts, that are long together."""
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int8()), pa.array(["x" * 50_000]))
    pq.write_table(pa.table({"path": rows}), file)


def compressed(file: Path) -> None:
    pq.write_table(pa.table({"path": ["x" * 90_000] * 100}), file, compression="zstd", use_dictionary=False)


def repeated(file: Path) -> None:
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int8()), pa.array(["x"]))
    pq.write_table(pa.table({"path": rows, "label": rows}), file)


TABLES = {
    "large": ("a.csv", lambda f: hollow(f, limits.MOST_BYTES + 1), {}, ["1,073,741,825 bytes", "at most 1,073,741,824"]),
    "large parquet": ("a.parquet", lambda f: hollow(f, limits.MOST_BYTES + 1), {}, ["1,073,741,825 bytes"]),
    "zero bytes": ("a.csv", lambda f: f.write_text(f"{HEADER}a\0b.png,x,y,train\n"), {}, ["zero bytes", "UTF-8"]),
    "UTF-16 that is cut off": ("a.csv", lambda f: f.write_bytes(f"{HEADER}x".encode("utf-16")[:-1]), {}, ["not a readable table"]),
    "no end of line": ("a.csv", lambda f: f.write_text("x" * 100_000), {}, ["first line is longer"]),
    "a long cell": ("a.csv", lambda f: f.write_text(f"{HEADER}a,x,y,train\n{'a' * 100_001},x,y,train\n"), {}, ["line 3", '"path" holds 100,001 characters']),
    "short rows of many columns": ("a.csv", lambda f: f.write_text("," * 9999 + "\n" + "1\n" * 20_000), {}, ["200,010,000 cells", "at most 100,000,000"]),
    "an open quote": ("a.csv", lambda f: f.write_text(HEADER + '"' + "a\n" * 100_000), {}, ["not a readable table"]),
    "one text in many rows": ("a.parquet", dictionary, {}, ['"path" holds 900,000 characters']),
    "many texts in many rows": ("a.parquet", shared, {}, ["2,500,000,000 bytes of text"]),
    "compressed": ("a.parquet", compressed, {"MOST_BYTES": 1 << 20}, ["bytes once it is unpacked", "at most 1,048,576"]),
    "repeated": ("a.parquet", repeated, {"MOST_CELLS": 150_000}, ["200,000 cells"]),
    "no parquet": ("a.parquet", lambda f: f.write_bytes(b"PAR1" * 10), {}, ["not a readable table"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table(tmp_path, name, monkeypatch) -> None:
    file, make, lower, words = TABLES[name]
    make(tmp_path / file)
    for limit, value in lower.items():
        monkeypatch.setattr(limits, limit, value)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        ManifestSites(tmp_path / file).read()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [word for word in [str(tmp_path / file), *words] if word not in str(caught.value)] == [], str(caught.value)
    assert len(str(caught.value)) < 500
    assert most + pa.total_allocated_bytes() - before < 30_000_000


def test_parquet_is_read_as_it_was(tmp_path) -> None:
    columns = {
        "path": pa.array(["a", "b", None]),
        "label": pa.array(["x", "x", "y"]).dictionary_encode(),
        "number": pa.array([1, None, 3]),
        "nested": pa.array([{"bytes": b"1"}] * 3),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    table = read_table(tmp_path / "a.parquet")
    assert list(table.columns) == ["path", "label", "number"]
    assert table["path"].to_list()[:2] == ["a", "b"]
    assert table["path"].isna().to_list() == [False, False, True]
    assert table["label"].to_list() == ["x", "x", "y"]
    assert table["number"].to_list()[::2] == [1, 3]


@pytest.mark.parametrize("name", ["splits/APTOS_train.txt", "train_test_split", "ISIC_2019_Training_Metadata.csv"])
def test_other_tables(tmp_path, name) -> None:
    data = FedDRG(make_fed_drg(tmp_path), ["APTOS"]) if name.endswith(".txt") else FedISIC2019(make_fed_isic(tmp_path))
    hollow(tmp_path / name, limits.MOST_BYTES + 1)
    with pytest.raises(DataError, match=f"{name}: 1,073,741,825 bytes"):
        data.read()


@pytest.mark.parametrize("value", ["inf", "nan", "1e999", ""])
def test_numbers_that_are_none(tmp_path, value) -> None:
    file = make_fed_isic(tmp_path) / "train_test_split"
    file.write_text(file.read_text().replace(",0,0,train", f",{value},0,train", 1))
    with pytest.raises(DataError, match="line 2: center and target must be numbers"):
        FedISIC2019(tmp_path).read()


def test_labels_that_look_like_numbers() -> None:
    """Python refuses to read a number of thousands of digits, and one of two signs."""
    assert class_order(["9" * 5000, "10", "9"]) == ["9", "10", "9" * 5000]
    for label in ("9" * 5000, "--1", "-"):
        with pytest.raises(DataError, match="unknown class"):
            class_index("a.csv, line 2", label, ["x", "y"], True)


def test_json(tmp_path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    hollow(tmp_path / "large.json", limits.MOST_BYTES + 1)
    for name in ("deep.json", "large.json"):
        with pytest.raises(ValueError, match=r"recursion|bytes"):
            read_json(tmp_path / name)


# -- configurations --------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: *a{i - 1}, b: *a{i - 1}}}\n" for i in range(1, 40))
YAML = {
    "bomb": (BOMB, "stands for more than 50,000 values"),
    "merged": (MERGED, "stands for more than 50,000 values"),
    "many": ("a: [" + "1, " * MOST_VALUES + "1]\n", "stands for more than 50,000 values"),
    "itself": ("a: &a [*a]\n", "*a contains itself"),
    "deep": ("a: " + "[" * 10_000 + "]" * 10_000, "nesting"),
    "fairly deep": ("a: " + "[" * DEEPEST + "]" * DEEPEST, "nested more than 100 deep"),
    "deep by lines": ("".join(f"{' ' * i}a:\n" for i in range(1000)), "nested more than 100 deep"),
    "long": ("a: " + "x" * MOST_BYTES, "a configuration has at most 1,048,576"),
    "zero byte": ("method: \0PFedST\n", "unacceptable character"),
}


@pytest.mark.parametrize("way", ["option", "equals", "environment", "within"])
@pytest.mark.parametrize("name", YAML)
def test_a_configuration(tmp_path, capsys, monkeypatch, events, name, way) -> None:
    text, words = YAML[name]
    file = tmp_path / "a.yaml"
    file.write_text(text)
    arguments = {"option": ["--config", str(file)], "equals": [f"--config={file}"], "environment": []}
    if way == "environment":
        monkeypatch.setenv("PFEDST_FIT__CONFIG", str(file))
    if way == "within":
        (tmp_path / "b.yaml").write_text("method: PFedST\nmodel: a.yaml\n")
        arguments["within"] = ["--config", str(tmp_path / "b.yaml")]
    assert main(["fit", *arguments[way]]) == 2
    message = capsys.readouterr().err
    assert way == "within" or words in message, message
    assert "Traceback" not in message
    assert max(events, default=0) <= MOST_EVENTS


def test_a_configuration_of_a_gigabyte_and_one_that_is_no_text(tmp_path, capsys) -> None:
    hollow(tmp_path / "a.yaml", 1 << 30)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name, words in (("a.yaml", "a.yaml: 1,073,741,824 bytes"), ("b.yaml", "b.yaml: not UTF-8 text")):
        assert main(["fit", "--config", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert main(["fit", "--config", "/dev/zero"]) == 2


@pytest.mark.parametrize("name", [name for name in YAML if name != "zero byte"])
def test_the_configuration_of_a_run_that_goes_on(tmp_path, events, name) -> None:
    (tmp_path / "config.yaml").write_text(YAML[name][0])
    with pytest.raises(StateError, match=r"config.yaml is missing or damaged"):
        check_same_configuration(tmp_path, "a: 1\n", {})
    assert max(events, default=0) <= MOST_EVENTS


def test_what_a_person_writes_is_read() -> None:
    text = "a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &d {x: 1}, y: *d}\nd: " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert load_yaml(text, "a.yaml") == yaml.safe_load(text)
    assert len(load_yaml("[" + "1, " * (MOST_VALUES - 2) + "1]", "a.yaml")) == MOST_VALUES - 1
    with pytest.raises(ConfigurationError):
        load_yaml("[" + "1, " * MOST_VALUES + "1]", "a.yaml")
