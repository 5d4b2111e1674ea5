"""Two photographs of one thing are found, whatever was done to one of them, and two of different things are not."""

import json
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from pfedst.data.audit import Seen, alike, scan
from pfedst.data.audit.alike import SIDE, find_alike, thumbnail
from pfedst.data.audit.duplicates import duplicate_findings
from pfedst.data.audit.facts import ImageFacts
from pfedst.data.audit.html import page
from pfedst.data.sets.synthetic import ArraySource
from pfedst.data.sites import LabelledImages, Place, Sites
from tests.data.audit.test_audit import folder_report, plain, tabled, told

SIZE, CANVAS = 224, 288
MARGIN = (CANVAS - SIZE) // 2
REAL = Path(__file__).parents[3].parent / "shared/data/fedisic_ham4/ISIC_2019_Training_Input_preprocessed"
# two photographs of one lesion, as a person who looked at them says
KNOWN = {
    ("0032634", "0033556"),
    ("0029152", "0033173"),
    ("0027689", "0032647"),
    ("0033421", "0033481"),
    ("0027636", "0027994"),
    ("0034228", "0034248"),
    ("0028416", "0031209"),
}
Turned = Image.Transpose


def scene(seed):
    """Texture at four scales, larger than the photograph that `cut` takes of it."""
    rng = np.random.default_rng(seed)
    total = np.zeros((CANVAS, CANVAS))
    for sigma, strength in ((1.5, 1), (4, 1.5), (10, 2), (30, 3)):
        noise = gaussian_filter(rng.normal(size=total.shape), sigma, mode="wrap")
        total += strength * noise / noise.std()
    pixels = 128 + 40 * (total / total.std())[..., None] * rng.uniform(0.8, 1.2, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


SCENES = [scene(seed) for seed in range(6)]


def cut(image, right=0, down=0):
    return image.crop((MARGIN + right, MARGIN + down, MARGIN + right + SIZE, MARGIN + down + SIZE))


def jpeg(image, quality):
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def turned(image, degrees):
    return cut(image.rotate(degrees, Image.Resampling.BICUBIC))


def closer(image, share=0.92):
    edge = round(SIZE * (1 - share) / 2)
    return image.crop((edge, edge, SIZE - edge, SIZE - edge)).resize((SIZE, SIZE))


PLAIN = [thumbnail(cut(one)) for one in SCENES]
# what is done, and how alike it must still be
COPIES = {
    "the same": (cut, 0.9999),
    "JPEG 60": (lambda s: jpeg(cut(s), 60), 0.9),
    "half and back": (lambda s: cut(s).resize((SIZE // 2, SIZE // 2)).resize((SIZE, SIZE)), 0.9),
    "half": (lambda s: cut(s).resize((SIZE // 2, SIZE // 2)), 0.9),
    "darker": (lambda s: ImageEnhance.Brightness(cut(s)).enhance(0.6), 0.9),
    "brighter": (lambda s: ImageEnhance.Brightness(cut(s)).enhance(1.3), 0.9),
    "contrast": (lambda s: ImageEnhance.Contrast(cut(s)).enhance(1.4), 0.9),
    "low contrast": (lambda s: ImageEnhance.Contrast(cut(s)).enhance(0.5), 0.9),
    "grey": (lambda s: cut(s).convert("L").convert("RGB"), 0.99),
    **{way.name: (lambda s, way=way: cut(s).transpose(way), 0.99) for way in Turned},
    "10 % to the right": (lambda s: cut(s, 22), 0.8),
    "10 % to the left and down": (lambda s: cut(s, -22, 22), 0.8),
    "by 4 degrees": (lambda s: turned(s, 4), 0.9),
    "by -4 degrees": (lambda s: turned(s, -4), 0.9),
    "crop to 92 %": (lambda s: closer(cut(s)), 0.9),
    "mirrored and by 4 degrees": (lambda s: turned(s.transpose(Turned.FLIP_LEFT_RIGHT), 4), 0.9),
    "a quarter and by -4 degrees": (lambda s: turned(s.transpose(Turned.ROTATE_90), -4), 0.9),
    "transposed and a crop": (lambda s: closer(cut(s.transpose(Turned.TRANSPOSE))), 0.9),
    "all at once": (lambda s: jpeg(closer(turned(s.transpose(Turned.ROTATE_270), 3), 0.95), 60), 0.7),
}  # fmt: skip


@pytest.mark.parametrize("what", COPIES)
def test_a_copy_is_found_and_nothing_else(what) -> None:
    change, least = COPIES[what]
    found = find_alike(PLAIN + [thumbnail(change(one)) for one in SCENES])
    assert {(pair.first, pair.second) for pair in found} == {(k, k + len(SCENES)) for k in range(len(SCENES))}
    assert least <= min(pair.likeness for pair in found) <= max(pair.likeness for pair in found) <= 1 + 1e-4
    assert [pair.likeness for pair in found] == sorted((pair.likeness for pair in found), reverse=True)


def test_unrelated_pictures_are_not_alike() -> None:
    assert find_alike([thumbnail(cut(scene(seed))) for seed in range(100, 160)]) == []


def test_a_shared_frame_makes_nothing_alike() -> None:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    fundus = (np.hypot(x, y) < 0.95).astype(np.uint8)[..., None]
    for name, mask in {"fundus": fundus, "bars": (np.abs(y) < 0.7).astype(np.uint8)[..., None]}.items():
        for sharp in (1.0, 0.3):
            seen = [ImageEnhance.Contrast(cut(scene(seed))).enhance(sharp) for seed in range(200, 216)]
            framed = [thumbnail(Image.fromarray(np.asarray(one) * mask)) for one in seen]
            assert find_alike(framed) == [], (name, sharp)
            copy = thumbnail(Image.fromarray(np.asarray(jpeg(seen[3], 60)) * mask))
            assert [pair[:2] for pair in find_alike([*framed, copy])] == [(3, 16)], (name, sharp)


def test_few_pictures() -> None:
    assert find_alike([]) == find_alike(PLAIN[:1]) == find_alike(PLAIN[:2]) == []
    [(first, second, likeness)] = find_alike([PLAIN[0], PLAIN[0]])
    assert (first, second) == (0, 1)
    assert likeness == pytest.approx(1, abs=1e-4)
    assert {pair[:2] for pair in find_alike([PLAIN[0]] * 3)} == {(0, 1), (0, 2), (1, 2)}


BLACK = np.zeros((SIDE, SIDE), np.uint8)


def test_black_pictures_have_nothing_to_compare() -> None:
    assert find_alike([BLACK] * 4) == []
    assert find_alike([BLACK, *PLAIN]) == []


def test_flat_pictures_have_nothing_to_compare() -> None:
    assert find_alike([BLACK + 128, *PLAIN]) == []
    assert find_alike([BLACK + level for level in (50, 128, 200, 255)]) == []  # as black ones


def test_more_pictures_than_one_batch(monkeypatch) -> None:
    monkeypatch.setattr(alike, "ROWS", 50)
    many = [thumbnail(cut(scene(seed))) for seed in range(300, 370)]
    copies = [np.ascontiguousarray(many[k][:, ::-1]) for k in range(70)]
    assert {pair[:2] for pair in find_alike(many + copies)} == {(k, k + 70) for k in range(70)}


MIXED = PLAIN[:4] + [thumbnail(COPIES[what][0](SCENES[k])) for k, what in enumerate(list(COPIES)[-4:])]


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(len(MIXED))))
def test_the_order_of_pictures_changes_nothing(order) -> None:
    found = {frozenset((order[a], order[b])): likeness for a, b, likeness in find_alike([MIXED[k] for k in order])}
    assert set(found) == {frozenset((k, k + 4)) for k in range(4)}
    for a, b, likeness in find_alike(MIXED):
        assert found[frozenset((a, b))] == pytest.approx(likeness, abs=0.05)


def matrix(turn, scale, flip):
    """What a change does to a point: turned and scaled, then flipped."""
    angle = np.radians(turn)
    turning = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mirror, transposition = np.diag([-1, 1]), np.array([[0, 1], [1, 0]])
    return (mirror if flip % 2 else np.eye(2)) @ (transposition if flip >= 2 else np.eye(2)) @ turning


def test_changes_and_their_inverses_are_all_changes() -> None:
    every = {one: matrix(*one) for one in product(alike.TURNS, alike.SCALES, range(4))}
    covered = set()
    for change in alike._changes():
        inverse = np.linalg.inv(matrix(*change))
        # a half turn is no change to a spectrum, and 0.93 x 1.075 is 1 but for 0.0003
        undoes = [k for k, m in every.items() if min(abs(m - inverse).max(), abs(m + inverse).max()) < 1e-3]
        assert len(undoes) == 1
        covered |= {tuple(change), *undoes}
    assert covered == set(every)
    assert len(every) == 36
    assert len(alike._changes()) < 24  # not both ways where one will do


@pytest.mark.parametrize("sigma", [1.0, 3.0, 6.0])
def test_blur(sigma) -> None:
    picture = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE))
    blurred = alike._blurred(torch.from_numpy(picture).float()[None], sigma)[0]
    expected = gaussian_filter(picture, sigma, mode="mirror", truncate=4)
    np.testing.assert_allclose(blurred, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("turn", "scale", "flip"), [(4.0, 1.0, 0), (-4.0, 1.0, 1), (0.0, 1.075, 2), (4.0, 0.93, 3)])
def test_spectra_change_as_pictures_do(turn, scale, flip) -> None:
    """The spectrum of a changed picture is the changed spectrum, more than that of any other change."""
    pictures = alike._light_out(torch.from_numpy(np.stack(PLAIN)), 1.0, 3.0)
    change = alike._Change(turn, scale, flip)
    done = alike._flipped(alike._warped(pictures, [change] * len(pictures)), flip)
    truth = alike._described(alike._sampled(alike._log_power(done), 0.0, 1.0))
    cosines = {}
    for other in product(alike.TURNS, alike.SCALES, range(4)):
        sampled = alike._sampled(alike._log_power(pictures), *other[:2])
        cosines[other] = float((alike._described(alike._flipped(sampled, other[2])) * truth).sum(1).mean())
    assert max(cosines, key=lambda key: cosines[key]) == (turn, scale, flip)
    assert cosines[turn, scale, flip] > 0.8


def test_a_file_that_is_there_often_is_compared_once_and_hides_no_other_pair() -> None:
    often, other, twin = (np.asarray(picture) for picture in (cut(SCENES[0]), cut(SCENES[1]), cut(SCENES[1], 9, 5)))
    part = LabelledImages(ArraySource(np.stack([often] * 60 + [other, twin])), [0] * 62)
    seen = scan(Sites(["x"], {"a": {"train": part}}), compare=True)
    assert [(a.row, b.row) for a, b, _ in seen.alike] == [(60, 61)]


def test_no_flood_of_likely_pairs_fills_the_memory_or_hides_the_likest(monkeypatch) -> None:
    monkeypatch.setattr(alike, "LIKE_SPECTRUM", -1.0)
    monkeypatch.setattr(alike, "CANDIDATES", 2)
    pictures = [thumbnail(cut(of)) for of in SCENES] + [thumbnail(cut(SCENES[0], 9, 5))]
    assert len(alike._like_spectra(torch.from_numpy(np.stack(pictures)))) <= 2 * len(pictures)
    assert [(pair.first, pair.second) for pair in find_alike(pictures)] == [(0, 6)]


def test_small_images_are_not_compared() -> None:
    assert alike.thumbnail(Image.new("RGB", (alike.SMALLEST - 1, 100))) is None
    noise = [np.random.default_rng(k).integers(0, 255, (8, 8, 3), dtype=np.uint8) for k in range(80)]
    assert [alike.thumbnail(Image.fromarray(picture)) for picture in noise] == [None] * 80


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (112, 112), (24, 500), (30, 25)])
def test_thumbnail_is_the_central_square_in_grey(size) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    found = thumbnail(image)
    assert (found.shape, found.dtype) == ((SIDE, SIDE), np.uint8)
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = (
        image.crop((left, top, left + side, top + side)).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    )
    if side >= SIDE:  # at its edge PIL looks beyond a box
        assert np.abs(found.astype(int) - np.asarray(square))[2:-2, 2:-2].max() <= 1


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real images of {REAL}, which users do not have")
def test_real_lesions() -> None:
    known = {name for pair in KNOWN for name in pair}
    names = sorted(known | {path.stem.removeprefix("ISIC_") for path in sorted(REAL.iterdir())[::44]})
    assert len(names) > 140
    found = find_alike([thumbnail(Image.open(REAL / f"ISIC_{name}.jpg").convert("RGB")) for name in names])
    assert {(names[pair.first], names[pair.second]) for pair in found} == KNOWN


# where an image lies twice, and what is told of it
TWICE = [
    ([("a", "train", 0), ("a", "test", 0)], {("splits", 0)}),
    ([("a", "validation", 0), ("b", "test", 0)], {("splits", 0)}),
    ([("a", "train", 0), ("b", "train", 0), ("a", "train", 0), ("b", "test", 1)], {("splits", 0), ("labels", 0)}),
    ([("a", "train", 0), ("b", "train", 0)], {("sites", 1)}),
    ([("a", "test", 0), ("b", "test", 1)], {("sites", 1), ("labels", 0)}),
    ([("a", "train", 0), ("a", "train", 0)], {("within", 1)}),
    ([("a", "test", 0), ("a", "test", 1)], {("within", 1), ("labels", 0)}),
]


@pytest.mark.parametrize(("where", "expected"), TWICE)
def test_an_image_that_is_there_twice(where, expected) -> None:
    rest = [(name, split, 2) for name in "ab" for split in ("train", "validation", "test")]
    sites = tabled([(*of, None) for of in where + rest])
    for name, split, _ in where:
        sites.splits[name][split].source.images[: sum(w[:2] == (name, split) for w in where)] = 7
    places = {Place(name, split, 0) for name, split, _ in where}
    findings, figures = duplicate_findings(sites, scan(sites, False))
    names = {"labels": "contradicting_labels"}
    assert told(findings) == {(names.get(w, f"identical_images_{w}"), ("error", "warning")[k]) for w, k in expected}
    assert all(places <= set(finding.images[0]) and len(finding.images) == 1 for finding in findings)
    assert all(len(finding.images[0]) == len(where) for finding in findings)
    assert figures == {"identical": 1, "similar": []}
    # the same places, alike but not the same: milder, and no word on labels
    facts = {Place(n, s, r): ImageFacts(digest=f"{n}{s}{r}") for n, s, p in sites.parts() for r in range(len(p.labels))}
    pair = [p for p in facts if p.row < where.count((p.site, p.split, 0)) + where.count((p.site, p.split, 1))][:2]
    findings, figures = duplicate_findings(sites, Seen(facts, [(*pair, 0.75)]))
    assert [f.code.split("_")[0] for f in findings] == ["similar"]
    assert findings[0].severity == ("warning" if findings[0].code.endswith("splits") else "note")
    assert figures["similar"] == [{"images": [list(p) for p in pair], "likeness": 0.75}]


def test_dicom(tmp_path) -> None:
    pytest.importorskip("pydicom", minversion="3")
    from tests.fake_data.dicom.data import make as dicom

    rng = np.random.default_rng(0)
    for split, patient, said in [("train", "DOE7", "NO"), ("test", "DOE7", "YES"), ("test", "ROE8", None)]:
        said = {"BurnedInAnnotation": said} if said else {}
        pixels = rng.integers(0, 255, (80, 80), dtype=np.uint8)
        dicom(tmp_path / "a" / split / "k" / f"{patient}-{split}.dcm", pixels, PatientID=patient, **said)
    report = folder_report(tmp_path)
    shown = {finding.code: finding for finding in report.findings}
    assert [[p.split for p in of] for of in shown["burned_in_text"].images] == [["test"]]
    assert shown["group_overlap"].severity == "error"
    assert report.figures["groups"]["test_overlap"]["sites"]["a"]["share"] == 0.5
    groups = {g for _, _, part in report.sites.parts() for g in part.groups}
    assert len(groups) == 2
    assert not any(g in json.dumps(report.to_json()) + page(report) + plain(report) for g in groups)
