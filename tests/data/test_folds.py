"""Folds: a partition of all images of a site by groups, whatever their published split."""

import itertools
import logging
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.data import FedISIC2019, FolderSites, HuggingFaceSites, ManifestSites, SyntheticSites
from pfedst.data.sites import SPLITS, LabelledImages
from pfedst.data.sources import FileSource, JoinedSource
from pfedst.data.splitting import fold_sites, units_of
from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError
from pfedst.messages.requests import Request
from pfedst.methods.pfedst import PFedST
from pfedst.server.replies import PROTOCOL
from pfedst.testing import small
from tests.client.clients import client_of
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.fake_data.folder.data import make as make_folder
from tests.fake_data.image_folder.data import make as make_image_folder
from tests.fake_data.manifest.data import make as make_manifest
from tests.fake_data.manifest.data import rows

SMALL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
images = st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 8)), min_size=1, max_size=60)


def table(rows, site=""):
    return [label for label, _ in rows], [None if group is None else f"{site}{group}" for _, group in rows]


def spread(numbers):
    return max(numbers) - min(numbers)


@given(st.dictionaries(st.sampled_from("abc"), images, min_size=1), st.integers(2, 6), st.integers(0, 3))
def test_folds_are_balanced_at_sites_that_share_no_group(sites, folds, seed) -> None:
    tables = {site: table(found, site) for site, found in sites.items()}
    dealt = fold_sites(tables, folds, seed)
    for site, (labels, groups) in tables.items():
        units, of_image = units_of(groups), dealt[site]
        assert len(of_image) == len(labels)
        assert set(of_image) <= set(range(folds))
        assert all(len({of_image[index] for index in unit}) == 1 for unit in units)
        assert spread([sum(of_image[unit[0]] == fold for unit in units) for fold in range(folds)]) <= 1
        for label in set(labels):
            own = [unit for unit in units if labels[unit[0]] == label]
            assert spread([sum(of_image[unit[0]] == fold for unit in own) for fold in range(folds)]) <= 1
    backwards = dict(reversed(tables.items()))
    assert fold_sites(backwards, folds, seed) == dealt
    assert list(fold_sites(backwards, folds, seed)) == list(backwards)


@given(st.dictionaries(st.sampled_from("abc"), images, min_size=2), st.integers(2, 6), st.integers(0, 3))
def test_a_group_of_several_sites_is_in_one_fold(sites, folds, seed) -> None:
    tables = {site: table(found) for site, found in sites.items()}
    dealt = fold_sites(tables, folds, seed)
    fold_of: dict[str, int] = {}
    for site in sorted(tables):
        labels, groups = tables[site]
        earlier = dict(fold_of)
        for group, fold in zip(groups, dealt[site], strict=True):
            assert group is None or fold_of.setdefault(group, fold) == fold
        for label in set(labels):
            own = [unit for unit in units_of(groups) if labels[unit[0]] == label]
            counts = Counter(dealt[site][unit[0]] for unit in own)
            drawn = {dealt[site][unit[0]] for unit in own if groups[unit[0]] not in earlier or groups[unit[0]] is None}
            # a fold that is too large holds only groups that an earlier site has placed
            assert all(counts[fold] - min(counts[other] for other in range(folds)) <= 1 for fold in drawn)


def test_another_seed_is_another_partition() -> None:
    tables = {"a": table([(0, None)] * 40)}
    found = {tuple(fold_sites(tables, 4, seed)["a"]) for seed in range(5)}
    assert len(found) == 5


def names(found, split):
    return {(site, of.source.name(i)) for site, s, of in found.parts() if s == split for i in range(len(of.labels))}


def digests(found, split):
    return {(site, of.source.digest(i)) for site, s, of in found.parts() if s == split for i in range(len(of.labels))}


def check_partition(make, folds=2):
    """The test images of all folds are all images, each once; the images of one fold's splits are all images too."""
    everything = set.union(*(digests(make().found(), split) for split in SPLITS))
    tests = []
    for fold in range(folds):
        found = make(folds=folds, fold=fold).found()
        by_split = {split: digests(found, split) for split in SPLITS}
        assert set.union(*by_split.values()) == everything
        assert sum(map(len, by_split.values())) == len(everything)
        tests.append(by_split["test"])
    assert set.union(*tests) == everything
    assert sum(map(len, tests)) == len(everything)


@pytest.mark.parametrize("kind", ["folder", "manifest", "no split", "fed_isic", "image_folder", "synthetic"])
def test_the_folds_of_every_data_set_are_a_partition(tmp_path, kind) -> None:
    if kind == "folder":
        root = make_folder(tmp_path)
        check_partition(lambda **options: FolderSites(root, **options))
    elif kind == "manifest":
        file = make_manifest(tmp_path)
        check_partition(lambda **options: ManifestSites(file, **options), folds=3)
    elif kind == "no split":
        file = make_manifest(tmp_path, [{k: v for k, v in row.items() if k != "split"} for row in rows()])
        check_partition(lambda **options: ManifestSites(file, **options))
        assert ManifestSites(file, folds=2, fold=0).found().test_fraction == 0.0
    elif kind == "fed_isic":
        root = make_fed_isic(tmp_path)
        check_partition(lambda **options: FedISIC2019(root, **options))
    elif kind == "image_folder":
        root = make_image_folder(tmp_path)
        check_partition(lambda **options: HuggingFaceSites(root, **options))
    else:
        check_partition(
            lambda **options: SyntheticSites(sites=2, samples_per_site=[9, 8], image_size=16, **options), folds=3
        )


def test_the_published_split_and_the_order_of_rows_change_nothing(tmp_path) -> None:
    """The same folds for a table whose rows are reversed and whose splits are swapped."""

    def test_of(name, table):
        found = ManifestSites(make_manifest(tmp_path / name, table), folds=3, fold=1).found()
        return {(site, path.rpartition("/")[2]) for site, path in names(found, "test")}

    swapped = [row | {"split": "train" if row["split"] == "test" else "test"} for row in reversed(rows())]
    assert test_of("swapped", swapped) == test_of("plain", rows())


def test_validation_is_cut_from_the_other_folds_by_groups(tmp_path) -> None:
    data = ManifestSites(make_manifest(tmp_path), folds=3, fold=2, validation_fraction=0.4, audit="strict")
    data.prepare(SMALL)
    assert data.report is not None
    assert "fold 2 of 3" in data.report.label
    groups = {split: {g for _, s, of in data.found().parts() if s == split for g in of.groups} for split in SPLITS}
    assert all(groups.values())
    assert not any(groups[one] & groups[other] for one, other in itertools.combinations(SPLITS, 2))
    assert sum(data.samples("north", split) for split in SPLITS) == 30


def test_fingerprints_of_folds_differ_and_are_reproduced(tmp_path) -> None:
    def fingerprint(**options):
        data = SyntheticSites(sites=2, samples_per_site=[9, 8], image_size=16, audit="off", **options)
        data.prepare(SMALL)
        return data.fingerprint

    found = [
        fingerprint(),
        *(fingerprint(folds=2, fold=fold) for fold in (0, 1, 0)),
        fingerprint(folds=2, fold=0, split_seed=1),
    ]
    assert found[1] == found[3]
    assert len(set(found)) == 4


def test_a_lesion_of_two_centres_is_in_one_fold(tmp_path) -> None:
    root = make_fed_isic(tmp_path)
    metadata = root / "ISIC_2019_Training_Metadata.csv"
    metadata.write_text(metadata.read_text().replace("HAM_3", "HAM_1"))
    lesions = {line.split(",")[0]: line.split(",")[3] for line in metadata.read_text().splitlines()[1:]}
    found = [names(FedISIC2019(root, folds=2, fold=fold).found(), "test") for fold in range(2)]
    of_fold = [{lesions[name.rpartition("/")[2].removesuffix(".jpg")] for _, name in test} for test in found]
    assert all(of_fold)
    assert not of_fold[0] & of_fold[1]


def test_a_class_of_few_groups_is_reported(tmp_path, caplog) -> None:
    table = [
        row
        for row in rows()
        if row["label"] != "benign" or row["path"].endswith(("train_benign_0.png", "train_benign_1.png"))
    ]
    with caplog.at_level(logging.WARNING, "pfedst"):
        ManifestSites(make_manifest(tmp_path, table), folds=2, fold=0).found()
    assert [r.getMessage() for r in caplog.records if "fewer" in r.getMessage()] == [
        f"{site}: fewer patients, lesions or images than 2 folds, so some folds have none in test: benign"
        for site in ("north", "south")
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": 1, "fold": 0}, "--data.folds 1: must be 2 or more"),
        ({"folds": 0, "fold": 0}, "--data.folds 0: must be 2 or more"),
        ({"fold": 0}, "--data.fold 0: give --data.folds too"),
        ({"folds": 5}, "--data.folds 5: give --data.fold too"),
        ({"folds": 5, "fold": 5}, "--data.fold 5: must be from 0 to 4"),
        ({"folds": 5, "fold": -1}, "--data.fold -1: must be from 0 to 4"),
    ],
)
def test_options_out_of_range(options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SyntheticSites(**options)


def test_options_without_effect(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="lesion_grouped has no effect with --data.folds"):
        FedISIC2019(tmp_path, split="lesion_grouped", folds=2, fold=0)
    with pytest.raises(ConfigurationError, match=r"test_fraction 0.3 has no effect with --data.folds"):
        ManifestSites(tmp_path / "manifest.csv", test_fraction=0.3, folds=2, fold=0)


def test_a_site_of_fewer_groups_than_folds(tmp_path) -> None:
    file = make_manifest(tmp_path)
    with pytest.raises(DataError, match='site "north" has 15 patients, .* fewer than --data.folds 16'):
        ManifestSites(file, folds=16, fold=0).found()


def test_a_site_whose_groups_are_all_at_another_site(tmp_path) -> None:
    """Two groups of `south` that lie in one fold of `north`, as north has them too."""
    groups = [f"p{number}" for number in range(12)]
    dealt = fold_sites({"north": ([0] * 12, groups)}, 2, 0)["north"]
    shared = [group for group, fold in zip(groups, dealt, strict=True) if fold == 0][:2]
    table = [
        row | {"label": "benign", "group": group}
        for site, of_site in (("north", groups), ("south", shared))
        for row, group in zip([row for row in rows() if row["site"] == site], of_site, strict=False)
    ]
    with pytest.raises(DataError, match='site "south" has no image in fold 1 of 2, as its groups'):
        ManifestSites(make_manifest(tmp_path, table), folds=2, fold=0, class_names=["benign"]).found()


def test_joined_images_know_their_files(tmp_path) -> None:
    paths = [tmp_path / name for name in ("b", "a", "c")]
    parts = [LabelledImages(FileSource(paths[:1]), [0], ["g"]), LabelledImages(FileSource(paths[1:]), [1, 2])]
    joined = LabelledImages.joined(parts)
    assert FileSource.paths_of(joined.source) == sorted(paths)
    assert (list(joined.labels), list(joined.groups)) == ([1, 0, 2], [None, "g", None])
    assert FileSource.paths_of(JoinedSource([joined.source, joined.source])) == sorted(paths) * 2


def test_all_folds_share_the_tap_cache(tmp_path) -> None:
    for fold, missing in ((0, 93), (1, 0), (2, 0)):
        data = small.prepared(folds=3, fold=fold, cache_folder=tmp_path)
        data.complete_cache(small.encoder(), "taps", torch.device("cpu"))
        assert data.missing[1] == missing


def test_a_client_reports_its_folds_only_with_folds(tmp_path) -> None:
    def protocol(**options):
        client = client_of(PFedST(), tmp_path, data=small.prepared(**options))
        return client.answer("site_a", Request("hello", "run")).values["protocol"]

    with_folds = protocol(folds=3, fold=2, split_seed=4)
    assert with_folds.pop("folds") == {"folds": 3, "fold": 2, "split_seed": 4}
    assert with_folds.keys() == protocol().keys() == PROTOCOL
