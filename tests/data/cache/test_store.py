"""A store of taps: what is written is read back, and no kind of damage makes it hand out a wrong row."""

import errno
import functools
import itertools
import json
import os
import pickle  # noqa: TID251 - what a DataLoader does to a data set
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedst.data.cache.layout import TapLayout
from pfedst.data.cache.store import CHECKED_ON_OPENING, LINE_LENGTH, TapStore
from pfedst.data.sources import content_digest
from pfedst.encoders import FrozenCLIP
from pfedst.encoders.stored import STORED, decoded, encoded
from pfedst.errors import DataError
from pfedst.seeds import generator

IDENTITY = {"encoder": {"model": "vit-nano"}, "preprocessing": {"mean": [0.5, 0.5, 0.5]}}
COUNT = 24
KEYS = [content_digest(str(index).encode()) for index in range(COUNT)]
KINDS = ("pooled", "tokens", "taps")
VARIANTS = [
    pytest.param("pooled", "float32", None, id="pooled"),
    *(pytest.param(kind, dtype, None, id=f"{kind}-{dtype}") for kind in KINDS[1:] for dtype in STORED),
    pytest.param("taps", "float32", 2, id="taps-float32-grid"),
    pytest.param("taps", "int8", 2, id="taps-int8-grid"),
    pytest.param("tokens", "int8", 2, id="tokens-int8-grid"),
]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@functools.cache
def encoder_of(token_grid=None) -> FrozenCLIP:
    return FrozenCLIP("vit-nano", "random", 32, token_grid=token_grid)


@functools.cache
def answers(token_grid=None):
    images = torch.randn(COUNT, 3, 32, 32, generator=generator(5))
    return encoder_of(token_grid).encode(images, KINDS)


def layout_of(kind="taps", dtype="float32", token_grid=None) -> TapLayout:
    return TapLayout.of(encoder_of(token_grid).spec, kind, dtype, token_grid is not None)


def packed(layout: TapLayout, token_grid=None, indices=range(COUNT)) -> dict[str, torch.Tensor]:
    return {name: rows[list(indices)] for name, rows in layout.pack(answers(token_grid)).items()}


def fill(store: TapStore, token_grid=None, step=10) -> int:
    """Write what is missing of the 24 images, some at a time; how many that was."""
    with store.writing():
        missing = [index for index in range(COUNT) if KEYS[index] not in store.row_of]
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            store.append([KEYS[index] for index in part], packed(store.layout, token_grid, part))
    return len(missing)


def full(folder: Path, kind="taps", dtype="float32", token_grid=None, identity=IDENTITY) -> TapStore:
    store = TapStore(folder, layout_of(kind, dtype, token_grid), identity)
    fill(store, token_grid)
    return store


def check_rows(store: TapStore, token_grid=None) -> int:
    """Every row that the store names is the one that was written for its key; how many there are."""
    known = [index for index in range(COUNT) if KEYS[index] in store.row_of]
    if not known:
        return 0
    rows = torch.tensor([store.row_of[KEYS[index]] for index in known])
    assert len(set(rows.tolist())) == len(known)
    expected = packed(store.layout, token_grid, known)
    assert torch.equal(store.read(rows, "pooled").tensors[0], expected["pooled"])
    if store.layout.kind != "pooled":
        found = store.read(rows, store.layout.kind)
        for layer, values in enumerate(found.tensors):
            assert torch.equal(values, expected["values"][:, layer])
        for layer, scales in enumerate(found.scales):
            assert torch.equal(scales, expected["scales"][:, layer])
        assert (found.correction is None) == ("correction" not in expected)
        assert found.correction is None or torch.equal(found.correction, expected["correction"])
    return len(known)


def check_whole(folder: Path, layout: TapLayout, token_grid=None) -> None:
    """A store opened anew has all rows, right, each once."""
    store = TapStore(folder, layout, IDENTITY)
    assert check_rows(store, token_grid) == COUNT
    assert store.damaged() == []
    lines = (folder / "index.txt").read_text().splitlines()
    assert len(lines) == len({line.split()[0] for line in lines}) == COUNT
    for name, size in row_sizes(layout).items():
        assert (folder / f"{name}.bin").stat().st_size == COUNT * size


def row_sizes(layout: TapLayout) -> dict[str, int]:
    return {name: torch.Size(shape).numel() * dtype.itemsize for name, (shape, dtype) in layout.fields.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# -- what is written is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype", "token_grid"), VARIANTS)
def test_what_is_read_is_what_the_encoder_says_to_the_precision_of_the_dtype(tmp_path, kind, dtype, token_grid) -> None:
    full(tmp_path / "store", kind, dtype, token_grid)
    store = TapStore(tmp_path / "store", layout_of(kind, dtype, token_grid), IDENTITY)
    assert len(store) == COUNT
    assert [store.row_of[key] for key in KEYS] == list(range(COUNT))
    order = [23, 0, 7, 7, 12, 0]
    own = answers(token_grid)
    pooled = store.read(torch.tensor(order), "pooled").decode()
    assert pooled.kind == "pooled"
    assert torch.equal(pooled.tensors[0], own["pooled"].tensors[0][order])
    batch = store.read(torch.tensor(order), kind)
    assert len(batch) == len(order)
    found = batch.decode()
    assert (found.kind, len(found.tensors)) == (kind, len(own[kind].tensors))
    for layer, (tensor, tap) in enumerate(zip(found.tensors, own[kind].tensors, strict=True)):
        stored_as = "float32" if kind == "pooled" else dtype
        assert batch.tensors[layer].dtype == STORED[stored_as]
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, decoded(*encoded(tap[order], stored_as)))
    if dtype == "float32":
        assert all(torch.equal(a, b[order]) for a, b in zip(found.tensors, own[kind].tensors, strict=True))
    if kind == "taps" and token_grid:
        assert torch.equal(found.correction, own["taps"].correction[order])
    else:
        assert found.correction is None


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory) -> TapStore:
    return full(tmp_path_factory.mktemp("shared") / "store", "taps", "bfloat16", 2)


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, COUNT - 1), max_size=40))
def test_rows_are_read_in_any_order_and_with_repetitions(shared_store, rows) -> None:
    store = shared_store
    found = store.read(torch.tensor(rows, dtype=torch.long), "taps")
    expected = packed(store.layout, 2)
    assert len(found) == len(rows)
    for layer, values in enumerate(found.tensors):
        assert torch.equal(values, expected["values"][:, layer][rows])
    assert torch.equal(found.correction, expected["correction"][rows])


def test_sizes_are_those_of_the_files(tmp_path) -> None:
    store = full(tmp_path / "store", "taps", "int8", 2)
    spec = encoder_of(2).spec
    own = spec.embedding * 4 + spec.layers * spec.tokens * (spec.width + 4) + spec.width * 4
    assert store.layout.row_bytes == own
    assert sum(path.stat().st_size for path in store.folder.glob("*.bin")) == COUNT * own


def test_a_store_that_is_read_from_while_it_grows_sees_the_new_rows(tmp_path) -> None:
    layout = layout_of()
    store = TapStore(tmp_path / "store", layout, IDENTITY)
    other = TapStore(tmp_path / "store", layout, IDENTITY)
    assert len(store) == 0
    with store.writing():
        for part in ([3, 1], [2], [0, 4]):
            store.append([KEYS[index] for index in part], packed(layout, indices=part))
            assert check_rows(store) == len(store)
    assert list(store.row_of) == [KEYS[index] for index in (3, 1, 2, 0, 4)]
    assert len(other) == 0
    other.refresh()
    assert check_rows(other) == 5
    assert other.row_of == store.row_of
    fill(store)
    assert check_rows(other) == 5  # what was opened stays right although the files have grown
    assert fill(other) == 0
    check_whole(store.folder, layout)


def test_opening_and_reading_writes_nothing(tmp_path) -> None:
    TapStore(tmp_path / "none", layout_of(), IDENTITY)
    assert not (tmp_path / "none").exists()
    full(tmp_path / "store")
    before = contents(tmp_path / "store")
    store = TapStore(tmp_path / "store", layout_of(), IDENTITY)
    check_rows(store)
    assert store.damaged() == []
    assert contents(tmp_path / "store") == before


def test_a_changed_batch_changes_neither_the_file_nor_what_is_read_next(tmp_path) -> None:
    store = full(tmp_path / "store", "taps", "float32", 2)
    before = contents(store.folder)
    for need in ("taps", "pooled"):
        batch = store.read(torch.arange(COUNT), need)
        decoded_too = store.read(torch.arange(COUNT), need).decode()
        for tensor in (*batch.tensors, *decoded_too.tensors, *([] if need == "pooled" else [batch.correction])):
            tensor.fill_(7.0)
    assert contents(store.folder) == before
    assert check_rows(store, 2) == COUNT
    check_whole(store.folder, store.layout, 2)


def test_a_pickled_store_reads_the_same(tmp_path) -> None:
    store = full(tmp_path / "store", "taps", "int8", 2)
    check_rows(store, 2)  # maps the files
    message = pickle.dumps(store)
    assert len(message) < 10_000  # the rows do not travel
    copy = pickle.loads(message)  # noqa: S301
    assert copy.row_of == store.row_of
    assert check_rows(copy, 2) == COUNT
    assert copy.damaged() == []


# -- another store -----------------------------------------------------------------------------------------------------

OTHERS = {
    "encoder": ({**IDENTITY, "encoder": {"model": "vit-demo"}}, ("taps", "float32")),
    "preprocessing": ({**IDENTITY, "preprocessing": {"mean": [0.5, 0.5, 0.4]}}, ("taps", "float32")),
    "dtype": (IDENTITY, ("taps", "bfloat16")),
    "same_size": (IDENTITY, ("taps", "float16")),
    "kind": (IDENTITY, ("tokens", "float32")),
    "grid": (IDENTITY, ("taps", "float32", 2)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_store_in_the_folder_is_not_read_and_is_rebuilt(tmp_path, what) -> None:
    identity, arguments = OTHERS[what]
    other = full(tmp_path / "store", *arguments, identity=identity)
    assert len(other) == COUNT
    store = TapStore(tmp_path / "store", layout_of(), IDENTITY)
    assert len(store) == 0
    assert store.row_of == {}
    assert contents(tmp_path / "store")["manifest.json"]
    assert len(TapStore(tmp_path / "store", other.layout, identity)) == COUNT  # looking has destroyed nothing
    assert fill(store) == COUNT
    check_whole(store.folder, store.layout)
    assert len(TapStore(tmp_path / "store", other.layout, identity)) == 0
    names = {path.name for path in store.folder.iterdir()} - {".lock"}
    assert names == {"manifest.json", "index.txt", "pooled.bin", "values.bin"}


# -- damage ------------------------------------------------------------------------------------------------------------


def cut(name, keep):
    def damage(folder: Path) -> None:
        path = folder / name
        os.truncate(path, keep(path.stat().st_size))

    return damage


def missing(name):
    return lambda folder: (folder / name).unlink()


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def longer(name, extra):
    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(extra)

    return damage


def line(index, new):
    """Put `new` in place of a line of the index."""

    def damage(folder: Path) -> None:
        lines = (folder / "index.txt").read_bytes().splitlines(keepends=True)
        lines[index] = new(lines) if callable(new) else new
        (folder / "index.txt").write_bytes(b"".join(lines))

    return damage


def flipped(name, row):
    """Flip all bits of the last byte of a row."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        size = len(content) // COUNT
        content[(row % COUNT + 1) * size - 1] ^= 0xFF
        (folder / name).write_bytes(content)

    return damage


def zeroed(rows):
    """Of the last rows nothing reached the disk but their length, as after a crash of the machine."""

    def damage(folder: Path) -> None:
        for path in folder.glob("*.bin"):
            content = path.read_bytes()
            size = len(content) // COUNT
            path.write_bytes(content[: (COUNT - rows) * size] + bytes(rows * size))

    return damage


def both(*damages):
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def changed_manifest(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["identity"]["preprocessing"]["mean"][0] = 0.25
    (folder / "manifest.json").write_text(json.dumps(content))


def older_manifest(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["format"] = 0
    (folder / "manifest.json").write_text(json.dumps(content))


FIELDS = ("pooled.bin", "values.bin", "scales.bin", "correction.bin")
DAMAGE = {
    **{f"{name} one byte short": cut(name, lambda size: size - 1) for name in FIELDS},
    **{f"{name} half": cut(name, lambda size: size // 2) for name in FIELDS},
    **{f"{name} empty": cut(name, lambda size: 0) for name in FIELDS},
    **{f"{name} missing": missing(name) for name in FIELDS},
    **{f"{name} last row flipped": flipped(name, -1) for name in FIELDS},
    **{f"{name} extra bytes": longer(name, b"\x17" * 101) for name in FIELDS},
    "all .bin missing": both(*(missing(name) for name in FIELDS)),
    "row before the last flipped": flipped("values.bin", -5),
    "an append without its lines": both(*(longer(name, b"\x17" * 10_000) for name in FIELDS)),
    "an append with half a line": both(
        *(longer(name, b"\x17" * 10_000) for name in FIELDS), longer("index.txt", b"abc")
    ),
    "index in a line": cut("index.txt", lambda size: size - LINE_LENGTH - 7),
    "index one byte short": cut("index.txt", lambda size: size - 1),
    "index empty": cut("index.txt", lambda size: 0),
    "index missing": missing("index.txt"),
    "index garbage": written("index.txt", b"no index at all\n" * 50),
    "index binary": written("index.txt", bytes(range(256)) * 4),
    "index with a line of zeros": line(4, bytes(LINE_LENGTH)),
    "index with a line of blanks": line(4, b" " * (LINE_LENGTH - 1) + b"\n"),
    "index with a line of words": line(4, b"x" * (LINE_LENGTH - 1) + b"\n"),
    "index with a line beyond ascii": line(4, b"\xff" * (LINE_LENGTH - 1) + b"\n"),
    "index with a long line inserted": line(4, lambda lines: b"garbage\n" + lines[4]),
    "index with a short line inserted": line(4, lambda lines: b"abc\n" + lines[4]),
    "index with a short line inserted near its end": line(-3, lambda lines: b"ab\n" + lines[-3]),
    "index without a line": line(4, b""),
    "index with lines of what was never written": longer(
        "index.txt", b"".join(f"{i:032x} 00000000\n".encode() for i in range(9))
    ),
    "manifest missing": missing("manifest.json"),
    "manifest garbage": written("manifest.json", b"{"),
    "manifest binary": written("manifest.json", b"\xff\xfe\x00"),
    "manifest of another kind": written("manifest.json", b"[]"),
    "manifest changed": changed_manifest,
    "manifest of another format": older_manifest,
    f"last {CHECKED_ON_OPENING - 1} rows zeroed": zeroed(CHECKED_ON_OPENING - 1),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_never_read_and_is_mended_by_filling_again(tmp_path, what) -> None:
    folder, layout = tmp_path / "store", layout_of("taps", "int8", 2)
    full(folder, "taps", "int8", 2)
    before = contents(folder)
    DAMAGE[what](folder)
    assert contents(folder) != before
    store = TapStore(folder, layout, IDENTITY)
    known = check_rows(store, 2)
    assert known <= COUNT
    assert fill(store, 2) == COUNT - known
    assert check_rows(store, 2) == COUNT
    check_whole(folder, layout, 2)


@pytest.mark.parametrize(
    ("what", "lost"),
    [
        ("values.bin one byte short", 1),
        ("values.bin half", 12),
        ("values.bin missing", 24),
        ("scales.bin last row flipped", 1),
        ("row before the last flipped", 5),
        ("values.bin extra bytes", 0),
        ("an append without its lines", 0),
        ("index in a line", 2),
        ("index one byte short", 1),
        ("index missing", 24),
        ("manifest missing", 24),
        ("manifest changed", 24),
        ("index with a line of zeros", 20),
    ],
)
def test_damage_loses_the_rows_behind_it_and_no_others(tmp_path, what, lost) -> None:
    folder, layout = tmp_path / "store", layout_of("taps", "int8", 2)
    full(folder, "taps", "int8", 2)
    DAMAGE[what](folder)
    assert len(TapStore(folder, layout, IDENTITY)) == COUNT - lost


@pytest.mark.parametrize("rows", [CHECKED_ON_OPENING, CHECKED_ON_OPENING + 4, COUNT])
def test_rows_that_a_crash_left_unwritten_are_not_read_however_many(tmp_path, rows) -> None:
    """An append writes 32 rows, so that a crash may leave more than the 8 unwritten that are looked at."""
    folder, layout = tmp_path / "store", layout_of("taps", "int8", 2)
    full(folder, "taps", "int8", 2)
    zeroed(rows)(folder)
    store = TapStore(folder, layout, IDENTITY)
    assert check_rows(store, 2) <= COUNT - rows
    fill(store, 2)
    check_whole(folder, layout, 2)


def test_a_line_that_stands_twice_in_the_index_does_not_hand_out_another_images_row(tmp_path) -> None:
    folder, layout = tmp_path / "store", layout_of("taps", "int8", 2)
    full(folder, "taps", "int8", 2)
    line(5, lambda lines: lines[2])(folder)  # a row that claims to be of an image that has one
    store = TapStore(folder, layout, IDENTITY)
    check_rows(store, 2)
    fill(store, 2)
    assert check_rows(store, 2) == COUNT
    check_whole(folder, layout, 2)


def test_a_row_whose_key_was_changed_is_computed_again(tmp_path) -> None:
    folder, layout = tmp_path / "store", layout_of("taps", "int8", 2)
    full(folder, "taps", "int8", 2)
    line(4, lambda lines: b"0" * 32 + lines[4][32:])(folder)
    store = TapStore(folder, layout, IDENTITY)
    assert KEYS[4] not in store.row_of
    assert check_rows(store, 2) < COUNT
    fill(store, 2)
    assert check_rows(store, 2) == check_rows(TapStore(folder, layout, IDENTITY), 2) == COUNT


@pytest.mark.parametrize("name", FIELDS)
def test_a_flipped_row_in_the_middle_is_found_by_reading_all(tmp_path, name) -> None:
    folder, layout = tmp_path / "store", layout_of("taps", "int8", 2)
    assert full(folder, "taps", "int8", 2).damaged() == []
    flipped(name, 9)(folder)
    flipped(name, 11)(folder)
    store = TapStore(folder, layout, IDENTITY)
    assert len(store) == COUNT
    assert store.damaged() == [9, 11]


def test_damage_upon_damage_is_mended_too(tmp_path) -> None:
    folder, layout = tmp_path / "store", layout_of("taps", "int8", 2)
    full(folder, "taps", "int8", 2)
    names = [name for name in DAMAGE if "missing" not in name and not name.startswith(("manifest", "index with"))]
    for one, other in itertools.pairwise(names):
        both(DAMAGE[one], DAMAGE[other])(folder)
        store = TapStore(folder, layout, IDENTITY)
        check_rows(store, 2)
        fill(store, 2)
        check_whole(folder, layout, 2)


# -- writing -----------------------------------------------------------------------------------------------------------


def spoilt(layout, field, value, indices, token_grid=None):
    rows = {name: part.clone() for name, part in packed(layout, token_grid, indices).items()}
    rows[field].view(len(indices), -1)[-1, 3] = value
    return rows


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["pooled", "values", "correction"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_that_are_not_finite_are_refused_and_the_store_stays_usable(tmp_path, dtype, field, value) -> None:
    layout = layout_of("taps", dtype, 2)
    store = TapStore(tmp_path / "store", layout, IDENTITY)
    with store.writing():
        store.append(KEYS[:4], packed(layout, 2, range(4)))
        before = contents(store.folder)
        with pytest.raises(DataError, match=rf"{field}.*{dtype}.*--data\.cache_dtype"):
            store.append(KEYS[4:6], spoilt(layout, field, value, [4, 5], 2))
        assert contents(store.folder) == before
        assert list(store.row_of) == KEYS[:4]
    with pytest.raises(DataError), store.writing():
        store.append(KEYS[4:6], spoilt(layout, field, value, [4, 5], 2))
    assert fill(store, 2) == COUNT - 4
    check_whole(store.folder, layout, 2)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("kind", "token_grid"), [("tokens", None), ("taps", 2)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e5])
def test_tokens_that_the_dtype_cannot_hold_are_refused(tmp_path, kind, dtype, token_grid, value) -> None:
    """From what an encoder says on, so that a NaN does not become a number on its way into int8."""
    layout = layout_of(kind, dtype, token_grid)
    own = answers(token_grid)
    taps = own[kind]
    tensors = tuple(tensor[:2].clone() for tensor in taps.tensors)
    tensors[-1][1, 2, 3] = value
    correction = None if taps.correction is None else taps.correction[:2]
    said = {
        "pooled": type(taps)("pooled", (own["pooled"].tensors[0][:2],)),
        kind: type(taps)(kind, tensors, correction),
    }
    store = TapStore(tmp_path / "store", layout, IDENTITY)
    with store.writing():
        if value == 1e5 and dtype != "float16":
            store.append(KEYS[:2], layout.pack(said))
            assert len(store) == 2
            return
        with pytest.raises(DataError, match=r"--data\.cache_dtype"):
            store.append(KEYS[:2], layout.pack(said))
        assert len(store) == 0
    assert fill(store, token_grid) == COUNT
    check_whole(store.folder, layout, token_grid)


@pytest.mark.parametrize("fails_at", range(1, 8))
def test_a_full_disk_is_told_with_the_remedy_and_keeps_what_was_written(tmp_path, monkeypatch, fails_at) -> None:
    layout = layout_of("taps", "int8", 2)
    store = TapStore(tmp_path / "store", layout, IDENTITY)
    with store.writing():
        store.append(KEYS[:3], packed(layout, 2, range(3)))
    calls, own = itertools.count(1), os.fsync

    def fsync(descriptor):
        own(descriptor)
        if next(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(DataError, match=r"No space left.*--data\.cache_folder.*--data\.cache none") as caught:
            fill(store, 2, step=2)
    assert str(store.folder) in str(caught.value)
    again = TapStore(tmp_path / "store", layout, IDENTITY)
    assert 3 <= check_rows(again, 2) < 8
    fill(store, 2)
    assert check_rows(store, 2) == COUNT
    check_whole(store.folder, layout, 2)


def test_a_folder_that_cannot_be_made_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = TapStore(tmp_path / "file" / "store", layout_of(), IDENTITY)
    with pytest.raises(DataError, match=r"--data\.cache_folder"), store.writing():
        pass


def test_only_one_writes_at_a_time(tmp_path) -> None:
    one, other = (TapStore(tmp_path / "store", layout_of(), IDENTITY) for _ in range(2))
    with one.writing():
        with pytest.raises(TimeoutError, match="another process"), other.writing(wait_seconds=0):
            pass
        one.append(KEYS[:2], packed(one.layout, indices=range(2)))
    with other.writing(wait_seconds=0):
        assert list(other.row_of) == KEYS[:2]  # what the other wrote is seen
    assert fill(other) == COUNT - 2
    check_whole(other.folder, other.layout)


def test_a_key_is_not_written_twice(tmp_path) -> None:
    layout = layout_of("pooled")
    store = TapStore(tmp_path / "store", layout, IDENTITY)
    with store.writing():
        store.append(KEYS[:2], packed(layout, indices=[0, 1]))
        for keys in (KEYS[:1], [KEYS[2], KEYS[2]], ["not a key"]):
            with pytest.raises(ValueError, match="key"):
                store.append(keys, packed(layout, indices=list(range(len(keys)))))
        store.append(KEYS[2:4], packed(layout, indices=[2, 3]))
    assert check_rows(store) == 4
    assert check_rows(TapStore(tmp_path / "store", layout, IDENTITY)) == 4
