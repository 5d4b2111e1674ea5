"""One pooled table becomes simulated sites: units stay whole, splits follow the same shares, seeds decide."""

import hashlib
import json
import math
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from pfedst.data.prepare.partition import PartitionOptions, draw_shares, partition, round_shares
from pfedst.data.prepare.partition_files import draw_camera, save_partition, see, shift_images
from pfedst.data.sets.manifest import ManifestSites
from pfedst.data.tables import read_table
from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError
from pfedst.seeds import derive_seed

CLASSES = ("carcinoma", "melanoma", "nevus")
DRAWN = ("labels", "quantity", "features")


def pool(train=240, test=120, group_of=None, classes=CLASSES) -> pd.DataFrame:
    """A pooled table, the same number of images a class."""
    rows = [
        {"path": f"images/{split}{i:04}.png", "label": classes[i % len(classes)], "split": split, "group": ""}
        for split, count in (("train", train), ("test", test))
        for i in range(count)
    ]
    if group_of:
        for index, row in enumerate(rows):
            row["group"] = group_of(index, row)
    return pd.DataFrame(rows, dtype=str)


def label_shares(table) -> pd.DataFrame:
    return pd.crosstab(table["site"], table["label"], normalize="index")


tables = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.sampled_from(["train", "test"]), st.sampled_from(["", "p", "q", "r", "s"])),
    min_size=1,
    max_size=60,
).map(
    lambda rows: pd.DataFrame(
        [
            {"path": f"{i:02}.png", "label": label, "split": split, "group": group, "age": str(i)}
            for i, (label, split, group) in enumerate(
                [*rows, *[(c, s, "") for c in CLASSES for s in ("train", "test")] * 3]
            )
        ]
    )
)


@settings(deadline=None, max_examples=60)
@given(
    tables,
    st.sampled_from(DRAWN),
    st.integers(1, 3),
    st.sampled_from([0.5, 1.0, 20.0]),
    st.integers(0, 9),
    st.randoms(),
)
def test_a_cut_is_total_disjoint_whole_and_a_function_of_the_seed(table, by, sites, alpha, seed, random) -> None:
    options = PartitionOptions(by, sites=sites, alpha=alpha, seed=seed)
    try:
        cut = partition(table, options)
    except DataError:
        reject()  # the draws may be too skewed for so few images; the message is tested below
    # every row is there once, as it was, in its place
    pd.testing.assert_frame_equal(cut.drop(columns="site"), table)
    assert set(cut["site"]) == set(options.site_names)
    assert min(Counter(zip(cut["site"], cut["split"], strict=True)).values()) >= 1
    grouped = cut[cut["group"] != ""]
    assert (grouped.groupby("group")["site"].nunique() <= 1).all()
    # the order of rows changes nothing
    order = list(range(len(table)))
    random.shuffle(order)
    again = partition(table.iloc[order].reset_index(drop=True), options)
    assert dict(zip(again["path"], again["site"], strict=True)) == dict(zip(cut["path"], cut["site"], strict=True))


@pytest.mark.parametrize("by", DRAWN)
def test_seeds_decide(by) -> None:
    one, same, other = (partition(pool(), PartitionOptions(by, seed=seed)) for seed in (0, 0, 1))
    assert one["site"].tolist() == same["site"].tolist() != other["site"].tolist()


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()
    partition(pool(), PartitionOptions("labels"))
    draw_camera(1.0, 0, "site_a")
    assert np.random.get_state()[1].tolist() == before


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12), st.integers(0, 500))
def test_largest_remainder_adds_up_and_is_off_by_less_than_one(weights, count) -> None:
    shares = np.array(weights) / sum(weights)
    whole = round_shares(shares, count)
    assert whole.sum() == count
    assert (np.abs(whole - shares * count) < 1 + 1e-9).all()
    # whoever was rounded up had no smaller remainder than whoever was not
    up = whole > np.floor(shares * count)
    remainder = shares * count - np.floor(shares * count)
    assert not up.any() or up.all() or remainder[up].min() >= remainder[~up].max()


def test_largest_remainder_by_hand() -> None:
    """0.5, 0.3, 0.2 of 7 are 3.5, 2.1, 1.4: 3, 2, 1 and one left, for the first."""
    assert round_shares(np.array([0.5, 0.3, 0.2]), 7).tolist() == [4, 2, 1]
    assert round_shares(np.array([0.25] * 4), 6).tolist() == [2, 2, 1, 1]


# -- labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.3, 1.0, 7.0])
def test_class_counts_follow_dirichlet_shares_computed_anew(alpha) -> None:
    """A Dirichlet draw is normalised gamma draws (Devroye 1986, XI.4); counts by largest remainder, in plain Python."""
    options = PartitionOptions("labels", sites=4, alpha=alpha, seed=5)
    cut = partition(pool(), options)
    found = Counter(zip(cut["label"], cut["split"], cut["site"], strict=True))
    # alpha 0.3 may need another draw for its smallest site: the counts say which it was
    fitting = []
    for draw in range(100):
        expected = Counter()
        for label in CLASSES:
            rng = np.random.default_rng(derive_seed(5, "partition shares", label, draw))
            gammas = [rng.standard_gamma(alpha) for _ in range(4)]
            for split, total in (("train", 80), ("test", 40)):
                wanted = [gamma / sum(gammas) * total for gamma in gammas]
                counts = [math.floor(value) for value in wanted]
                by_remainder = sorted(range(4), key=lambda i: counts[i] - wanted[i])
                for site in by_remainder[: total - sum(counts)]:
                    counts[site] += 1
                for name, count in zip(options.site_names, counts, strict=True):
                    expected[label, split, name] = count
        fitting += [draw] if +expected == found else []
    assert len(fitting) == 1
    if alpha >= 1:
        assert fitting == [0]


def test_shares_have_the_moments_of_a_dirichlet_distribution() -> None:
    """Mean 1/n, variance (n - 1) / (n^2 (n alpha + 1)): 0.25 and 3 / (16 * 3) = 0.0625 for n = 4, alpha = 0.5."""
    drawn = np.array([draw_shares(PartitionOptions("labels", seed=seed), "nevus") for seed in range(4000)])
    assert np.allclose(drawn.sum(1), 1)
    assert np.allclose(drawn.mean(0), 0.25, atol=4 * (0.0625 / 4000) ** 0.5)
    assert np.allclose(drawn.var(0), 0.0625, rtol=0.1)


def test_large_alpha_is_nearly_pooled_and_tiny_alpha_leaves_few_classes() -> None:
    many = pool(1200, 600)
    even = partition(many, PartitionOptions("labels", alpha=1e9))
    assert (label_shares(even) - 1 / 3).abs().to_numpy().max() < 0.01
    distances = [
        np.mean(
            [
                (label_shares(partition(many, PartitionOptions("labels", sites=3, alpha=alpha, seed=seed))) - 1 / 3)
                .abs()
                .to_numpy()
                .mean()
                for seed in range(8)
            ]
        )
        for alpha in (100.0, 3.0, 0.3)
    ]
    assert distances == sorted(distances)
    eight = tuple("abcdefgh")
    skewed = partition(pool(1200, 600, classes=eight), PartitionOptions("labels", sites=3, alpha=0.01))
    # eight classes over three sites with nearly nothing shared: each class lies nearly whole in one
    assert pd.crosstab(skewed["label"], skewed["site"], normalize="index").max(axis=1).min() > 0.9
    assert ((label_shares(skewed) > 0.01).sum(axis=1) < 8).all()


def test_train_and_test_of_a_site_follow_the_same_shares() -> None:
    cut = partition(pool(1200, 600), PartitionOptions("labels", alpha=0.5))
    train, test = (
        pd.crosstab(part["site"], part["label"]) for part in (cut[cut["split"] == s] for s in ("train", "test"))
    )
    # 400 and 200 images a class: the same shares, rounded to whole images
    assert ((train / 2 - test).abs() <= 1).all().all()


def test_groups_are_the_units_that_are_counted() -> None:
    """Patients of 1 to 4 images and one class: an infinite alpha gives every site as many patients."""
    table = pool(240, 0, group_of=lambda i, row: f"{row['label']}{int(i**0.5)}")
    cut = partition(table, PartitionOptions("labels", sites=2, alpha=1e12))
    patients = cut.drop_duplicates("group")
    for _, of_class in patients.groupby("label"):
        counts = of_class["site"].value_counts()
        assert counts.max() - counts.min() <= 1
    assert (cut.groupby("group")["site"].nunique() == 1).all()


def test_an_empty_group_is_a_unit_of_its_own_and_no_group_column_is_the_same() -> None:
    with_column, options = pool(), PartitionOptions("labels")
    without = partition(with_column.drop(columns="group"), options)
    assert partition(with_column, options)["site"].tolist() == without["site"].tolist()


def test_names_in_several_ways_are_one() -> None:
    table = pool(group_of=lambda index, row: f"{row['split']}{index // 3}")
    odd = table.copy()
    odd.loc[0, ["label", "split", "group"]] = [f" {table.label[0]}", "Training ", f"{table.group[0]}\u00a0"]
    pd.testing.assert_frame_equal(
        partition(odd, PartitionOptions("labels")), partition(table, PartitionOptions("labels"))
    )
    odd = odd.assign(clinic=["Bonn" if index % 2 else "Bonn " for index in range(len(odd))])
    assert set(partition(odd, PartitionOptions("column", "clinic"))["site"]) == {"Bonn"}


def test_a_group_over_two_splits_lies_in_one_site() -> None:
    table = pool(60, 60, group_of=lambda i, row: f"p{i % 30}")
    cut = partition(table, PartitionOptions("quantity", sites=3, alpha=5.0))
    assert (cut.groupby("group")["site"].nunique() == 1).all()


# -- quantity and features -------------------------------------------------------------------------------------


def test_quantity_sizes_are_the_drawn_shares_and_labels_stay_even() -> None:
    options = PartitionOptions("quantity", sites=4, alpha=2.0, seed=3)
    cut = partition(pool(1200, 600), options)
    shares = np.random.default_rng(derive_seed(3, "partition shares", "", 0)).dirichlet([2.0] * 4)
    for split, total in (("train", 1200), ("test", 600)):
        sizes = cut[cut["split"] == split]["site"].value_counts()[options.site_names].to_numpy()
        assert (np.abs(sizes - shares * total) < 1).all()
    assert sizes.max() > 2 * sizes.min()
    # a random sample of n images has each class 1/3 of the time: four standard errors
    sizes = cut["site"].value_counts()
    for site, row in label_shares(cut).iterrows():
        assert (np.abs(row - 1 / 3) < 4 * (2 / 9 / sizes[site]) ** 0.5).all()


def test_features_sites_are_equal() -> None:
    cut = partition(pool(242, 121), PartitionOptions("features", sites=4))
    for split, expected in (("train", [60, 60, 61, 61]), ("test", [30, 30, 30, 31])):
        assert sorted(cut[cut["split"] == split]["site"].value_counts()) == expected


def test_splits_of_one_size_are_drawn_independently() -> None:
    cut = partition(pool(120, 120), PartitionOptions("features", sites=4))
    train, test = (cut[cut["split"] == split]["site"].to_numpy() for split in ("train", "test"))
    # alike in a quarter of the places by chance: 30 of 120, with a deviation of 4.7
    assert 30 - 20 < (train == test).sum() < 30 + 20


def test_more_sites_than_letters() -> None:
    cut = partition(pool(), PartitionOptions("features", sites=28))
    assert {"site_a", "site_z", "site_27", "site_28"} <= set(cut["site"])
    assert cut["site"].nunique() == 28


# -- cameras ---------------------------------------------------------------------------------------------------


def noise(seed=0, size=(17, 23), low=0, high=256) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(low, high, (*size, 3), dtype=np.uint8))


def test_strength_0_changes_no_bit() -> None:
    every_value = Image.fromarray(np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3))
    for image in (every_value, noise(), noise(size=(1, 1))):
        assert see(image, draw_camera(0.0, 7, "site_a")).tobytes() == image.tobytes()


def test_a_camera_is_a_formula_computed_pixel_by_pixel() -> None:
    camera, image = draw_camera(1.0, 1, "site_b"), noise(size=(5, 4))
    seen = np.asarray(see(image, camera))
    for (row, column, channel), value in np.ndenumerate(np.asarray(image)):
        light = camera.light[0] * (-1 + 2 * column / 3) + camera.light[1] * (-1 + 2 * row / 4)
        wanted = (value / 255) ** camera.gamma * camera.gains[channel] + camera.offsets[channel] + light
        assert abs(seen[row, column, channel] - 255 * min(max(wanted, 0), 1)) <= 0.5 + 1e-9


@settings(deadline=None)
@given(st.floats(0, 100), st.integers(0, 99))
def test_brighter_pixels_stay_brighter_so_that_nothing_wraps_around(strength, seed) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2).repeat(2, 0)
    camera = draw_camera(strength, seed, "site_a")
    level = replace(camera, light=np.zeros(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no overflow, no invalid value
        assert (np.diff(np.asarray(see(Image.fromarray(ramp), level)).astype(int), axis=1) >= 0).all()
        see(Image.fromarray(ramp), camera)


def test_white_stays_white_under_a_brighter_camera_and_black_black_under_a_darker() -> None:
    brighter = replace(draw_camera(0.0, 0, "a"), gains=np.full(3, 1.3), offsets=np.full(3, 0.1))
    darker = replace(brighter, gains=np.full(3, 0.7), offsets=np.full(3, -0.1))
    assert np.asarray(see(Image.new("RGB", (4, 4), "white"), brighter)).min() == 255
    assert np.asarray(see(Image.new("RGB", (4, 4), "black"), darker)).max() == 0


def images_of(table, root) -> pd.DataFrame:
    for seed, path in enumerate(table["path"]):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise(seed, low=60, high=200).save(root / path)
    return table


def test_shifted_sites_differ_in_colour_and_only_with_strength(tmp_path) -> None:
    table = images_of(pool(24, 12), tmp_path)
    for strength in (0.0, 1.0):
        options = PartitionOptions("features", sites=3, strength=strength)
        cut = partition(table, options)
        new = shift_images(cut, tmp_path, tmp_path / "new", options)
        pd.testing.assert_frame_equal(new.drop(columns="path"), cut.drop(columns="path"))
        pixels = [np.asarray(Image.open(tmp_path / "new" / path)) for path in new["path"]]
        same = [
            np.array_equal(p, np.asarray(Image.open(tmp_path / old)))
            for p, old in zip(pixels, cut["path"], strict=True)
        ]
        assert all(same) if strength == 0 else not any(same)
        colour = pd.DataFrame([p.mean((0, 1)) for p in pixels]).groupby(cut["site"]).mean()
        # noise of 140 values over 12 images of 391 pixels: means are within 2 of each other
        spread = (colour.max() - colour.min()).max()
        assert spread < 2 if strength == 0 else spread > 10
    assert len(set(new["path"])) == len(new)


def test_shifted_images_are_named_by_site_written_once_and_never_taken_for_another_strength(tmp_path) -> None:
    table = images_of(pool(4, 4), tmp_path)
    table.loc[1, "path"] = "other/train0000.png"  # the stem of another row
    images_of(table, tmp_path)
    options = PartitionOptions("features", sites=2)
    cut = partition(table, options)
    new = shift_images(cut, tmp_path, tmp_path / "new", options)
    assert all(
        p.startswith(f"images/{s}/t") and p.endswith(".png") for p, s in zip(new["path"], new["site"], strict=True)
    )
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*.png")}
    assert len(written) == 8
    assert not list((tmp_path / "new").rglob("*.part"))
    lost = tmp_path / "new" / new["path"][0]
    content = lost.read_bytes()
    lost.unlink()
    pd.testing.assert_frame_equal(shift_images(cut, tmp_path, tmp_path / "new", options), new)
    assert lost.read_bytes() == content
    assert all(path.stat().st_mtime_ns == time for path, time in written.items() if path != lost)
    stronger = shift_images(cut, tmp_path, tmp_path / "new", replace(options, strength=2.0))
    assert not set(stronger["path"]) & set(new["path"])


def test_a_missing_image_is_named(tmp_path) -> None:
    options = PartitionOptions("features", sites=2)
    with pytest.raises(DataError, match=r"train000\d.png: no such file"):
        shift_images(partition(pool(4, 4), options), tmp_path, tmp_path / "new", options)


# -- column ----------------------------------------------------------------------------------------------------


def test_a_column_gives_the_sites() -> None:
    table = pool().assign(hospital=["north", "south", "south", "north"] * 90)
    cut = partition(table, PartitionOptions("column", column="hospital"))
    assert cut["site"].tolist() == table["hospital"].tolist()


def test_a_site_column_may_be_cut_anew() -> None:
    table = pool().assign(site="old")
    assert set(partition(table, PartitionOptions("features", sites=2))["site"]) == {"site_a", "site_b"}
    assert set(partition(table, PartitionOptions("column", column="site"))["site"]) == {"old"}


# -- messages --------------------------------------------------------------------------------------------------

OPTIONS = [
    ({"by": "label"}, '--by label: unknown. Did you mean "labels"? Use column, labels, quantity, features'),
    ({"by": "labels", "alpha": 0.0}, "--alpha 0.0: must be above 0 and at most 1e12"),
    ({"by": "labels", "alpha": float("nan")}, "--alpha nan: must be above 0 and at most 1e12"),
    ({"by": "labels", "alpha": float("inf")}, "--alpha inf: must be above 0 and at most 1e12"),
    ({"by": "labels", "sites": 0}, "--sites 0: must be 1 or more"),
    ({"by": "features", "strength": -1.0}, "--strength -1.0: must be 0 or more and at most 100"),
    ({"by": "labels", "fewest": 0}, "--fewest 0: must be 1 or more"),
    ({"by": "column"}, "--column None: --by column needs a column, and no other --by takes one"),
    ({"by": "labels", "column": "age"}, "--column age: --by column needs a column, and no other --by takes one"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_out_of_range(options, words) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PartitionOptions(**options)
    assert str(caught.value) == words


BY_COLUMN = {"by": "column", "column": "hospital"}
TABLES = [
    (lambda t: t.iloc[:0], {}, "the table has no rows: there is nothing to divide into sites"),
    (lambda t: t.rename(columns={"label": "labels"}), {}, 'no column "label". Did you mean "labels"? Found: path, labels, split, group'),
    (lambda t: t.assign(hospitals="a"), BY_COLUMN, 'no column "hospital". Did you mean "hospitals"? Found: path, label, split, group, hospitals'),
    (lambda t: t.assign(hospital=["a", "", *["b"] * 358]), BY_COLUMN, 'row "images/train0001.png": the column "hospital" is empty; fill it in, or leave the row out'),
    (lambda t: t.assign(hospital=["a", None, *["b"] * 358]), BY_COLUMN, 'row "images/train0001.png": the column "hospital" is empty; fill it in, or leave the row out'),
    (lambda t: t.assign(label=["", *t["label"][1:]]), {}, 'row "images/train0000.png": the column "label" is empty; fill it in, or leave the row out'),
    (lambda t: t.assign(path="a.png"), {}, "a.png is in two rows; keep one"),
    (lambda t: t.assign(split="tests"), {}, 'split "tests" is unknown. Did you mean "test"? Use train, validation, test'),
    (lambda t: t.assign(hospital=["a", "b"] * 180, group=["p1"] * 2 + [""] * 358), BY_COLUMN, "group p1 lies in two sites, a and b; correct its hospital, or its group"),
    (lambda t: t.assign(hospital=["a"] * 240 + ["b"] * 120), BY_COLUMN, "a has 0 test images, below --fewest 1; leave its rows out, or use a smaller --fewest"),
    (lambda t: t, {"by": "features", "sites": 4, "fewest": 31}, "site_a has 30 test images in the best of 100 draws, below --fewest 31; use fewer --sites or a smaller --fewest"),
    (lambda t: t[:30], {"sites": 31, "alpha": 1e9}, "site_a has 0 train images in the best of 100 draws, below --fewest 1; use a larger --alpha, fewer --sites or a smaller --fewest"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "options", "words"), TABLES)
def test_tables_that_cannot_be_cut(damage, options, words) -> None:
    with pytest.raises(DataError) as caught:
        partition(damage(pool()), PartitionOptions(**{"by": "labels", **options}))
    assert str(caught.value) == words


def test_only_features_change_images(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="--by labels: only --by features changes images"):
        shift_images(pool(), tmp_path, tmp_path, PartitionOptions("labels"))


def test_a_draw_with_a_site_too_small_is_repeated() -> None:
    """Quantity with alpha 0.3: some first draws leave a site with fewer than ten images, no result does."""
    smallest = [draw_shares(PartitionOptions("quantity", alpha=0.3, seed=seed)).min() * 120 for seed in range(10)]
    assert min(smallest) < 9
    for seed in range(10):
        cut = partition(pool(), PartitionOptions("quantity", alpha=0.3, fewest=10, seed=seed))
        assert min(Counter(zip(cut["site"], cut["split"], strict=True)).values()) >= 10


# -- on disk ---------------------------------------------------------------------------------------------------


def test_a_saved_partition_reads_back(tmp_path) -> None:
    options = PartitionOptions("labels", sites=3, alpha=0.5, seed=2)
    cut = partition(pool().assign(note='a, "b" é'), options)
    save_partition(cut, options, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.csv"
    assert read_table(manifest).to_dict("records") == cut.to_dict("records")
    saved = json.loads((tmp_path / "out" / "partition.json").read_text())
    assert PartitionOptions(**saved["options"]) == options
    assert saved["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert list(saved["images"]) == options.site_names
    counted = Counter(zip(cut["site"], cut["split"], cut["label"], strict=True))
    for site, splits in saved["images"].items():
        assert list(splits) == ["train", "test"]
        for split, classes in splits.items():
            assert classes == {label: counted[site, split, label] for label in CLASSES}
        mine = [sum(splits[s][label] for s in splits) for label in CLASSES]
        assert saved["total_variation"][site] == pytest.approx(
            sum(abs(n / sum(mine) - 1 / 3) for n in mine) / 2, abs=1e-6
        )
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("sites", "classes"), [(1, ("a",)), (4, ("a$b$_{", "_hidden", "100% & <sure>")), (12, tuple("abcdefgh"))]
)
def test_the_picture_is_an_image_that_grows_with_the_sites(tmp_path, sites, classes) -> None:
    options = PartitionOptions("quantity", sites=sites, alpha=5.0)
    cut = partition(pool(classes=classes), options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit is only a warning to matplotlib
        save_partition(cut, options, tmp_path)
    with Image.open(tmp_path / "partition.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        width, height = picture.size
    assert 110 * (8 + 0.5 * len(classes)) == pytest.approx(width, abs=1)
    assert height > 110 * (1 + 0.42 * max(sites, 3))
    assert len(np.unique(np.asarray(Image.open(tmp_path / "partition.png")))) > 20


def test_the_title_says_the_options_that_matter() -> None:
    assert str(PartitionOptions("labels", alpha=0.3)) == "by labels, sites 4, alpha 0.3, fewest 1, seed 0"
    assert str(PartitionOptions("features", seed=2)) == "by features, sites 4, strength 1.0, fewest 1, seed 2"
    assert str(PartitionOptions("column", column="age")) == "by column age, fewest 1, seed 0"


def test_a_table_without_train_images_can_be_saved(tmp_path) -> None:
    options = PartitionOptions("features", sites=2)
    save_partition(partition(pool(0, 12), options), options, tmp_path)
    saved = json.loads((tmp_path / "partition.json").read_text())
    assert {tuple(splits) for splits in saved["images"].values()} == {("test",)}


def test_a_partition_of_features_feeds_a_run(tmp_path) -> None:
    table, options = images_of(pool(48, 24), tmp_path / "pool"), PartitionOptions("features", sites=2)
    new = shift_images(partition(table, options), tmp_path / "pool", tmp_path / "out", options)
    save_partition(new, options, tmp_path / "out")
    data = ManifestSites(tmp_path / "out" / "manifest.csv", validation_fraction=0.0)
    data.prepare(Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
    assert data.sites == ("site_a", "site_b")
    assert [data.samples(site, split) for site in data.sites for split in ("train", "test")] == [24, 12, 24, 12]
