"""Whether sites can be told apart: against an independent classifier, and on sites made to be alike or not."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier

from pfedst.data import FedISIC2019, FolderSites
from pfedst.data.audit import audit, scan
from pfedst.data.audit.counts import skew_findings
from pfedst.data.audit.html import page
from pfedst.data.audit.shift import FEWEST, FOLDS, _evenly, _matched, site_accuracy, site_shift
from pfedst.data.sets.synthetic import ArraySource
from pfedst.data.sites import LabelledImages, Sites
from pfedst.encoders import Encoder, Preprocessing, Taps
from pfedst.errors import DataError
from pfedst.seeds import generator
from tests.data.test_wrong_input import SMALL, truncate
from tests.fake_data.folder.data import make

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
LABELS = st.lists(st.integers(0, 4), max_size=60)


class Colours(Encoder):
    """Mean and deviation of each channel."""

    preprocessing = Preprocessing(8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    label = "colours"

    def encode(self, images, needs):
        assert images.shape[1:] == (3, 8, 8)
        return {need: Taps(need, (torch.cat([images.mean((2, 3)), images.std((2, 3))], 1),)) for need in needs}


def site(counts, seed, cast=0.0):
    """Train images whose class shows in their colour, and a test image a class; `cast` makes them redder."""
    rng = np.random.default_rng(seed)
    parts = {}
    for split, of in {"train": counts, "test": [1] * len(counts)}.items():
        labels = [k for k, count in enumerate(of) for _ in range(count)]
        colours = (
            np.array([[120, 120, 120 + 40 * k] for k in labels]) + rng.normal(0, 8, (len(labels), 3)) + [cast, 0, 0]
        )
        pixels = colours[:, None, None] + rng.normal(0, 10, (len(labels), 8, 8, 3))
        parts[split] = LabelledImages(ArraySource(np.clip(pixels, 0, 255).astype(np.uint8)), labels)
    return parts


def shift(images=200, **of):
    findings, figures = site_shift(Sites(["mild", "moderate", "severe"], of), Colours(), images)
    assert (figures["encoder"], figures["images_per_site"]) == ("colours", images)
    return findings, figures["told_apart"]


def drawn(seed, n, width, centre=0.0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + centre


def in_folds(one, other, seed, correct):
    """What a classifier gets right, summed over the folds that `site_accuracy` draws."""
    order = torch.randperm(len(one), generator=generator(seed)).numpy()
    inputs, targets = np.concatenate([one, other]).astype(float), np.repeat([1.0, -1.0], len(one))
    right = 0
    for held_out in range(FOLDS):
        judged = np.isin(np.tile(np.arange(len(one)), 2), order[held_out::FOLDS])
        mean, deviation = inputs[~judged].mean(0), inputs[~judged].std(0, ddof=1)
        scaled = (inputs - mean) / deviation / np.sqrt(inputs.shape[1])
        right += (correct(scaled[~judged], targets[~judged], scaled[judged]) == targets[judged]).sum()
    return right / len(targets)


def primal(known, targets, asked):
    weights = np.linalg.solve(known.T @ known + np.eye(known.shape[1]), known.T @ targets)
    return np.sign(asked @ weights)


def sklearn(known, targets, asked):
    return RidgeClassifier(alpha=1.0).fit(known, targets).predict(asked)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 60), st.integers(2, 40), st.sampled_from([0.0, 0.3, 1.0]))
def test_as_other_ridge_classifiers(seed, n, width, apart) -> None:
    one, other = drawn(seed, n, width), drawn(seed + 1, n, width, apart) * 2
    found = site_accuracy(one, other, seed)
    assert found == pytest.approx(in_folds(one.numpy(), other.numpy(), seed, primal), abs=1e-9)
    assert found == pytest.approx(in_folds(one.numpy(), other.numpy(), seed, sklearn), abs=1e-9)


@pytest.mark.parametrize("width", [4, 512])
def test_one_distribution_is_chance_and_two_are_not(width) -> None:
    one = drawn(0, 600, width)
    assert site_accuracy(one, drawn(1, 600, width), 0) == pytest.approx(0.5, abs=0.05)
    assert site_accuracy(one, drawn(1, 600, width, 5.0), 0) == 1
    # 1 deviation apart in one dimension: Phi(1/2) = 0.691
    moved = drawn(1, 600, 4) + torch.tensor([1.0, 0, 0, 0])
    assert site_accuracy(drawn(0, 600, 4), moved, 0) == pytest.approx(0.691, abs=0.05)


def test_sites_of_the_same_images_are_not_told_apart() -> None:
    same = drawn(0, 40, 8)
    assert site_accuracy(same, same, 3) == pytest.approx(0.5, abs=1e-9)
    assert site_accuracy(torch.ones(8, 4), torch.ones(8, 4), 0) == 0.5  # nor where nothing varies


def test_folds_are_seeded() -> None:
    one, other = drawn(0, 50, 6), drawn(1, 50, 6, 0.3)
    assert site_accuracy(one, other, 5) == site_accuracy(one, other, 5)
    assert len({site_accuracy(one, other, seed) for seed in range(12)}) > 1


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 70), st.integers(0, 5))
def test_evenly(labels, count, seed) -> None:
    chosen = _evenly(labels, count, seed)
    assert chosen == sorted(set(chosen)) == _evenly(labels, count, seed)
    assert len(chosen) == min(count, len(labels))
    have, taken = Counter(labels), Counter(labels[index] for index in chosen)
    most = max(taken.values(), default=0)
    # a class that has fewer than the others has given all it has
    assert all(taken[label] >= most - 1 or taken[label] == have[label] for label in have)


def test_evenly_draws() -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 50
    draws = {tuple(_evenly(labels, 13, seed)) for seed in range(20)}
    assert {tuple(sorted(Counter(labels[i] for i in draw).values())) for draw in draws} == {(3, 5, 5)}
    assert len(set().union(*draws)) > 60  # not the first ones of a class


@settings(max_examples=60, deadline=None)
@given(LABELS, LABELS)
def test_matched(one, other) -> None:
    pairs = _matched(one, other)
    assert all(one[a] == other[b] for a, b in pairs)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    assert len(pairs) == sum((Counter(one) & Counter(other)).values())


def test_sites_that_look_alike_and_not() -> None:
    findings, told = shift(a=site([40, 40, 40], 0), b=site([40, 40, 40], 1), red=site([40, 40, 40], 2, cast=60.0))
    assert set(told) == {"a", "b", "red"}
    assert all(told[one][other] == told[other][one] for one in told for other in told[one])
    assert all(set(told[one]) == set(told) - {one} for one in told)
    assert told["a"]["b"] == pytest.approx(0.5, abs=0.12)
    assert told["a"]["red"] > 0.95
    assert told["b"]["red"] > 0.95
    [finding] = findings
    assert (finding.code, finding.severity) == ("site_shift", "note")
    assert "red in" in finding.message or "and red" in finding.message
    assert "a and b in" in finding.message.split(",")[2]
    assert f"{100 * told['a']['b']:.0f} %" in finding.message


@pytest.mark.parametrize("seed", range(3))
def test_label_skew_alone_is_no_shift(seed) -> None:
    mild, severe = site([120, 20, 20], 10 + seed), site([20, 20, 120], 20 + seed)
    _, told = shift(a=mild, b=severe)
    assert told["a"]["b"] == pytest.approx(0.5, abs=0.15)
    # it is the matching that does it: the colours of all their images tell these two sites
    seen = [torch.from_numpy(of["train"].source.images.mean((1, 2))[::-1].copy()) for of in (mild, severe)]
    assert site_accuracy(*seen, 0) > 0.7


def test_too_few_images_of_a_class() -> None:
    few = FEWEST - 1
    findings, told = shift(a=site([few, 30, 0], 0), b=site([30, 0, 30], 1), c=site([0, 30, 30], 2))
    assert told["a"]["b"] is None
    assert told["b"]["a"] is None
    assert None not in (told["a"]["c"], told["b"]["c"])
    assert len(findings) == 1
    assert "a and b" not in findings[0].message
    _, told = shift(a=site([few + 1, 30, 0], 0), b=site([30, 0, 30], 1))
    assert told["a"]["b"] is not None
    assert shift(a=site([few, 0, 0], 0), b=site([9, 9, 9], 1)) == ([], {"a": {"b": None}, "b": {"a": None}})


def test_at_most_so_many_images_are_encoded() -> None:
    seen = []

    class Counting(Colours):
        def encode(self, images, needs):
            seen.append(len(images))
            return super().encode(images, needs)

    sites = Sites(["mild", "moderate"], {"a": site([90, 7], 0), "b": site([5, 50], 1)})
    _, figures = site_shift(sites, Counting(), 30)
    assert sum(seen) == 60
    assert figures["told_apart"]["a"]["b"] is not None  # 7 and 5 of each class at least


def test_deterministic_and_of_train_alone() -> None:
    sites = {"a": site([30, 30, 30], 0), "b": site([30, 30, 30], 1, cast=4.0)}
    torch.manual_seed(1)
    first, state = shift(**sites, images=40), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # draws nothing from the global generator
    torch.manual_seed(2)
    assert shift(**sites, images=40) == first
    other_tests = {name: parts | {"test": site([9, 9, 9], 7, cast=99.0)["train"]} for name, parts in sites.items()}
    assert shift(**other_tests, images=40) == first


def test_in_an_audit() -> None:
    two = Sites(["mild", "moderate"], {"a": site([20, 20], 0), "b": site([20, 20], 1, cast=60.0)})
    report = audit(two, "x", scan(two, False), Colours(), 64)
    assert report.figures["site_shift"]["told_apart"]["a"]["b"] > 0.9
    assert "site_shift" in {finding.code for finding in report.findings}
    assert "site_shift" not in audit(two, "x", scan(two, False)).figures
    assert "site_shift" not in audit(two, "x", None, Colours()).figures
    one = Sites(["mild", "moderate"], {"a": two.splits["a"]})
    assert "site_shift" not in audit(one, "x", scan(one, False), Colours()).figures


def test_unreadable_files(tmp_path) -> None:
    root = make(tmp_path / "d")
    truncate(root / "clinic_a/train/benign/1.png")
    (root / "clinic_b/test/unclear/0.jpg").write_text("text; not an image")
    found = FolderSites(root).found()
    report = audit(found, "x", scan(found, True))
    [finding] = report.of("error")
    assert (finding.code, report.findings[0]) == ("unreadable", finding)
    assert "2 of 60" in finding.message
    assert "benign/1.png" in finding.message
    assert "0.jpg: not an image" in finding.message
    assert {Path(report.describe(p)["image"]).name for (p,) in finding.images} == {"1.png", "0.jpg"}
    assert "<figure>" in page(report)
    for level in ("off", "warn", "strict"):
        with pytest.raises(DataError, match="2 of 60 images cannot be read"):
            FolderSites(root, audit=level).prepare(SMALL)


def test_an_unreadable_image_does_not_end_an_audit(tmp_path) -> None:
    root = make(tmp_path)
    truncate(root / "clinic_a/train/benign/1.png")
    found = FolderSites(root, validation_fraction=0.0).found()
    report = audit(found, "x", scan(found, True), Colours(), 64)
    assert report.findings[0].code == "unreadable"
    assert report.figures["site_shift"]["told_apart"]["clinic_a"]["clinic_b"] is not None


def test_label_skew() -> None:
    def skew(**counts):
        return skew_findings(Sites(["mild", "moderate", "severe"], {name: site(of, 0) for name, of in counts.items()}))

    # pooled 1/2, 1/2: |3/4 - 1/2| + |1/4 - 1/2| over 2
    findings, figures = skew(a=[3, 1, 0], b=[1, 3, 0])
    assert figures == pytest.approx({"a": 0.25, "b": 0.25})
    assert [(finding.code, finding.severity) for finding in findings] == [("label_skew", "note")]
    # pooled .4 .4 .2: a 1 0 0: (.6 + .4 + .2) / 2, b .25 .5 .25: (.15 + .1 + .05) / 2
    findings, figures = skew(a=[2, 0, 0], b=[2, 4, 2])
    assert figures == pytest.approx({"a": 0.6, "b": 0.15})
    assert "by up to 0.60" in findings[0].message
    assert "most at a" in findings[0].message
    assert skew(a=[3, 1, 0]) == ([], {"a": 0.0})


FLAMBY = {"bcn": 92.7, "vidir_molemax": 0.1, "vidir_modern": 72.5, "rosendahl": 49.3, "msk": 3.0, "vienna_dias": 55.7}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs FedISIC2019's tables in {SHARED}, which users do not have")
def test_fed_isic() -> None:
    root = SHARED / "fedisic_meta"

    def found(**options):
        data = FedISIC2019(root, metadata=root / "lesion_ids.csv", **options)
        return data.found(files=False), data

    def parts(sites):
        return {(n, s): [part.source.name(k) for k in range(len(part.labels))] for n, s, part in sites.parts()}

    report = audit(found()[0], "x", None)
    overlap = report.figures["groups"]["test_overlap"]
    assert {name: round(100 * of["share"], 1) for name, of in overlap["sites"].items()} == FLAMBY
    assert round(100 * overlap["all"]["share"], 1) == 65.9
    assert "65.9 %" in report.findings[0].message
    assert "lesion_grouped" in report.findings[0].remedy
    grouped, data = found(split="lesion_grouped")
    clean = audit(grouped, data.label, None)
    for name, of in clean.counts().items():
        counts = np.array([of["train"], of["validation"], of["test"]])
        total, test = counts.sum(0), counts[2]
        assert test.sum() / counts.sum() == pytest.approx(0.2, abs=0.03), name
        assert np.abs(test / test.sum() - total / total.sum()).max() < 0.04, name
        assert total.sum() == sum(map(sum, report.counts()[name].values()))
        lesions = [set(part.groups) for part in grouped.splits[name].values()]
        assert len(set().union(*lesions)) == sum(map(len, lesions))
    assert parts(found(split="lesion_grouped")[0]) == parts(grouped)
    other = parts(found(split="lesion_grouped", split_seed=1)[0])
    assert all(set(other[key]) != set(names) for key, names in parts(grouped).items())
    # nor does a lesion lie in test of one centre and in train of another
    assert clean.figures["groups"]["test_overlap"]["all"]["sharing_a_group_with_train"] == 0
    assert "group_overlap" not in {finding.code for finding in clean.findings}
