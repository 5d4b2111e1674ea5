"""The sampler that shows all classes equally often: counts by hand, its bits, and the counts that the loss sees."""

from collections import Counter
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.pooled import Pooled
from safetensors.torch import load_file

from pfedst.data.sampling import SeededSampler, shown_counts
from pfedst.methods.criteria import CrossEntropy
from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import data, federation, fit, prepared, template
from tests.server.runs import go_on, left, same, without_times
from tests.server.test_resume import interrupted


class Draw(NamedTuple):
    position: int
    seed: int


def draws(labels, seed=1, epoch=0):
    return draws_of(SeededSampler(len(labels), 4, seed, labels), epoch)


def draws_of(sampler, epoch=0):
    """One draw a sample, of all batches."""
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert {len(batch.positions) for batch in batches[:-1]} <= {sampler.batch_size}
    return [Draw(*pair) for batch in batches for pair in zip(batch.positions, batch.seeds, strict=True)]


def test_an_epoch_by_hand() -> None:
    """Ten images, of three classes: four of one class and three of the others; a rare one is repeated, in turn."""
    labels = [0] * 7 + [2] * 2 + [3]
    for epoch in range(20):
        positions = [draw.position for draw in draws(labels, epoch=epoch)]
        by_class = Counter(labels[position] for position in positions)
        assert sorted(by_class.values()) == [3, 3, 4]
        assert set(by_class) == {0, 2, 3}
        times = Counter(positions)
        assert max(times[position] for position in range(7)) == 1, "a frequent class is not repeated"
        assert {times[7], times[8]} <= {1, 2}
        assert times[9] == by_class[3]


def test_classes_are_equally_frequent_in_expectation() -> None:
    labels, epochs = [0] * 7 + [1] * 2 + [4], 300
    shown = [draw.position for epoch in range(epochs) for draw in draws(labels, epoch=epoch)]
    by_class, by_image = Counter(labels[position] for position in shown), Counter(shown)
    for label in (0, 1, 4):
        assert by_class[label] == pytest.approx(epochs * 10 / 3, rel=0.04)
    for position in range(7):  # each image of a class as often as the others
        assert by_image[position] == pytest.approx(epochs * 10 / 3 / 7, rel=0.15)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 3))
def test_an_epoch_keeps_its_size_and_shares_it_equally(labels, epoch) -> None:
    found = Counter(labels[draw.position] for draw in draws(labels, epoch=epoch))
    assert sum(found.values()) == len(labels)
    assert set(found) == set(labels)
    assert max(found.values()) - min(found.values()) <= 1
    shown = shown_counts([labels.count(label) for label in range(6)], "class_balanced")
    assert {bool(number) for label, number in enumerate(shown) if label not in labels} == {False}
    assert all(abs(shown[label] - len(labels) / len(found)) <= 0.5 for label in found)
    assert len({shown[label] for label in found}) == 1


def test_it_is_a_function_of_seed_and_epoch_and_augments_a_repeated_image_anew() -> None:
    labels = [0] * 9 + [1]
    one, again = draws(labels, 5, 2), draws(labels, 5, 2)
    assert one == again
    assert one != draws(labels, 6, 2)
    assert one != draws(labels, 5, 3)
    seeds = [draw.seed for draw in one if draw.position == 9]
    assert len(set(seeds)) == len(seeds) == 5
    first = {draw.position: draw.seed for draw in draws_of(SeededSampler(10, 4, 5))}
    own = draws(labels, 5, 0)
    # an image that is shown once is augmented as without the option
    assert next(draw.seed for draw in own if draw.position == 9) == first[9]


def test_a_site_of_one_class_shows_every_image_once() -> None:
    for labels in ([3] * 8, [0]):
        assert sorted(draw.position for draw in draws(labels)) == list(range(len(labels)))
    assert shown_counts([0, 8, 0], "class_balanced") == [0, 8, 0]
    assert shown_counts([0, 0], "class_balanced") == [0, 0]
    assert shown_counts([5, 0, 2], "shuffle") == [5, 0, 2]


def test_a_pooled_client_balances_the_classes_of_all_sites() -> None:
    sites = prepared(label_skew=0.9, sampler="class_balanced")
    made = federation(Pooled(), sites=sites)
    natural = [sum(counts) for counts in zip(*(sites.class_counts(s, "train") for s in sites.sites), strict=True)]
    assert made.client.class_counts("pooled").tolist() == [round(sum(natural) / 3)] * 3
    for name in (*sites.sites, "pooled"):
        targets = torch.cat([targets for _, targets in sites.train_loader(made.sites_of(name), 3)])
        shown = torch.bincount(targets, minlength=3)
        assert len(targets) == sum(sites.samples(site, "train") for site in made.sites_of(name))
        assert (shown - made.client.class_counts(name)).abs().max() <= 1, name


def test_a_cache_serves_the_same_images(tmp_path) -> None:
    from tests.data.cache.test_cache import cached, encoder, same_batches, uncached

    options = {"sampler": "class_balanced", "label_skew": 0.9, "augmentation": "crops", "views": 2}
    sites, plain = cached(tmp_path, "pooled", **options), uncached(**options)
    for names in ("site_a", ["site_c", "site_a"]):
        one, other = (of.train_loader(names, 3) for of in (sites, plain))
        for epoch in (0, 1):
            for loader in (one, other):
                loader.sampler.set_epoch(epoch)
            same_batches(encoder(), "pooled", one, other)


class Watched(CrossEntropy):
    """Notes the counts that it is given."""

    seen: set[tuple[int, ...]]

    def __call__(self, logits, targets, counts):
        self.seen.add(tuple(counts.tolist()))
        return super().__call__(logits, targets, counts)


def test_the_loss_and_the_predictions_have_the_counts_of_the_sampler(tmp_path) -> None:
    options, loss = {"label_skew": 0.9, "sampler": "class_balanced"}, Watched()
    loss.seen = set()
    sites = data(**options)
    summary = fit(tmp_path, FedAvg(), sites=sites, model=template(loss=loss), rounds=1)
    assert loss.seen == {tuple(sites.sampled_counts([site])) for site in sites.sites}
    for site in sites.sites:
        found = load_file(tmp_path / f"run/sites/{site}/predictions/test.safetensors")
        assert found["train_counts.natural"].tolist() == sites.class_counts(site, "train")
        assert found["train_counts.sampled"].tolist() == sites.sampled_counts([site])
        assert found["train_counts.sampled"].dtype == torch.int64
        assert len({number for number in found["train_counts.sampled"].tolist() if number}) == 1
    assert summary["protocol"]["sampler"] == "class_balanced"


def test_it_goes_on_and_runs_in_workers_with_the_same_bits(tmp_path) -> None:
    def sites():
        return data(label_skew=0.9, sampler="class_balanced")

    whole = fit(tmp_path / "whole", PFedST(), sites=sites(), rounds=3, threads=1)
    interrupted(tmp_path / "cut", PFedST(), 1, sites=sites(), rounds=3, threads=1)
    assert without_times(go_on(tmp_path / "cut", PFedST(), sites(), rounds=3, threads=1)) == without_times(whole)
    same(left(tmp_path / "cut"), left(tmp_path / "whole"))
    fit(tmp_path / "w", PFedST(), sites=sites(), rounds=3, threads=1, transport="processes", workers=2)
    same(left(tmp_path / "w"), left(tmp_path / "whole"))
    other = fit(tmp_path / "shuffle", PFedST(), sites=data(label_skew=0.9), rounds=3, threads=1)
    assert other["personal"] != whole["personal"]
    assert "sampler" not in other["protocol"]
