"""Transforms of torchvision as augmentation: what a training image becomes, errors, cache keys, and the command line."""

import random

import pytest
import torch
import yaml
from pfedst_baselines.fedavg import FedAvg
from torchvision.transforms import v2

from pfedst.cli import main
from pfedst.data.augmentation import as_one, augmentation_key, augmentation_text
from pfedst.data.transforms import ImageTransform, evaluation_transform
from pfedst.encoders.spec import Preprocessing
from pfedst.errors import ConfigurationError
from pfedst.seeds import derive_seed, seeded
from pfedst.testing.small import data, fit, prepared
from tests.cli.test_cache import SMALL
from tests.data.cache.test_cache import cached, counted, encoder, same_batches, uncached
from tests.data.test_datasets import MEAN, STD, picture, trained_on

assert counted  # a fixture
PREPROCESSING = Preprocessing(32, MEAN, STD, "bicubic", "shortest")
V2 = "torchvision.transforms.v2"
FLIPS = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]


class Noisy(v2.Transform):
    """Draws from Python's generator."""

    def transform(self, image, params):
        return v2.functional.adjust_brightness(image, random.random())


class Shifted(v2.Transform):
    """A class of one's own."""

    def __init__(self, by: int = 1) -> None:
        super().__init__()
        self.by = by

    def transform(self, image, params):
        return image.roll(self.by, -1)


def test_it_gets_the_square_image_before_it_is_normalised() -> None:
    """By hand: resized, cut, then the transform on 8 bits, then scaled and normalised."""
    image = picture(40, 60)
    plain = evaluation_transform(PREPROCESSING)(image)
    found = trained_on(image, PREPROCESSING, v2.RandomInvert(p=1.0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert torch.allclose(found * std + mean, 1 - (plain * std + mean), atol=1e-6)


@pytest.mark.parametrize("make", [v2.RandAugment, v2.TrivialAugmentWide, lambda: v2.Compose(FLIPS)])
def test_an_image_is_a_function_of_seed_image_and_epoch(make) -> None:
    """In this process and in loading processes, by the seed that the sampler draws."""
    found = []
    for workers in (0, 2):
        options = {"sites": 1, "samples_per_site": [24], "test_samples_per_site": [6], "cache": "none"}
        sites = prepared(augmentation=make(), num_workers=workers, **options)
        loader = sites.train_loader("site_a", 3)
        epochs = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            torch.manual_seed(epoch * workers)
            epochs.append(torch.cat([images for images, _ in loader]))
        found.append(epochs)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(*found[0])
    position, dataset = next(iter(loader.sampler)).positions[0], loader.dataset
    assert torch.equal(dataset.images([position], [derive_seed(3, "augmentation", 1, position)])[0], found[1][1][0])


def test_presets_are_what_they_were() -> None:
    """Written out once more, as torchvision composes them."""
    resize = v2.Resize(32, v2.InterpolationMode.BICUBIC, antialias=True)
    rest = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD))]
    crop = v2.RandomResizedCrop(32, scale=(0.7, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    expected = {
        "none": v2.Compose([resize, v2.CenterCrop(32), *rest]),
        "flips": v2.Compose([resize, v2.CenterCrop(32), *FLIPS, *rest]),
        "crops": v2.Compose([crop, *FLIPS, *rest]),
    }
    for name, composed in expected.items():
        for seed in range(5):
            one = trained_on(picture(40, 60), PREPROCESSING, name, seed)
            with seeded(seed):
                assert torch.equal(one, composed(picture(40, 60))), name
        assert augmentation_text(name) == name
    assert len({augmentation_key(name) for name in expected}) == 3


def test_a_list_is_a_compose() -> None:
    for seed in range(4):
        found = []
        for augmentation in (FLIPS, v2.Compose(FLIPS)):
            found.append(trained_on(picture(40, 60), PREPROCESSING, as_one(augmentation), seed))
        assert torch.equal(*found)
    with pytest.raises(ConfigurationError, match="the list is empty"):
        data(augmentation=[])


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (v2.MixUp(num_classes=3), "MixUp.*fails on a single image without its label"),
        (v2.RandomIoUCrop(), "RandomIoUCrop.*fails on a single image"),
        (
            v2.RandomResizedCrop(24),
            r"RandomResizedCrop\(size=\[24, 24\]\): it makes \(3, 24, 24\).*its size of 32 pixels",
        ),
        (v2.Grayscale(), r"Grayscale\(\): it makes \(1, 32, 32\) of an image \(3, 32, 32\)"),
        (v2.FiveCrop(32), "FiveCrop.*fails on a single image"),
        (Noisy(), "Noisy.*the same seed gives different images"),
        (v2.Lambda(lambda image: image), "which a configuration cannot hold"),
    ],
)
def test_what_cannot_be_used_is_refused_before_a_run(transform, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        prepared(augmentation=transform)


def test_a_size_that_changes_now_and_then_is_told_in_a_fit() -> None:
    now_and_then = v2.RandomApply([v2.RandomResizedCrop(24)], p=0.0)
    transform = ImageTransform(PREPROCESSING, now_and_then)
    now_and_then.p = 1.0
    with pytest.raises(ConfigurationError, match=r"it makes \(3, 24, 24\)"):
        transform.augmented(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [0])


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (v2.RandAugment(num_ops=3), "RandAugment(num_ops=3)"),
        (v2.RandAugment(), "RandAugment()"),
        (v2.Compose(FLIPS), "Compose(RandomHorizontalFlip(), RandomVerticalFlip())"),
        (
            v2.RandomApply([v2.GaussianBlur(3)], p=0.1),
            "RandomApply(transforms=[GaussianBlur(kernel_size=[3, 3])], p=0.1)",
        ),
        (Shifted(2), "tests.data.test_augmentation.Shifted(by=2)"),
    ],
)
def test_its_name_holds_what_differs_from_the_defaults(transform, text) -> None:
    assert augmentation_text(transform) == text


def test_a_key_holds_the_whole_configuration() -> None:
    transforms = [
        v2.RandAugment(),
        v2.RandAugment(fill=1),
        v2.RandAugment(fill={torch.Tensor: 1}),
        v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR),
        v2.TrivialAugmentWide(),
        v2.Compose(FLIPS),
        v2.Compose(FLIPS[::-1]),
        v2.RandomApply([v2.GaussianBlur(3)]),
        v2.RandomApply([v2.GaussianBlur(5)]),
        v2.LinearTransformation(torch.eye(3), torch.zeros(3)),
        v2.LinearTransformation(torch.eye(3), torch.ones(3)),
        v2.ToDtype(torch.float32),
        v2.ToDtype(torch.float64),
        Shifted(1),
        Shifted(2),
    ]
    keys = [augmentation_key(transform) for transform in transforms]
    assert len(set(keys)) == len(keys)
    assert keys[0] == augmentation_key(v2.RandAugment(num_ops=2))


def test_views_and_a_cache_of_a_transform(tmp_path, counted) -> None:
    options = {"sites": 1, "samples_per_site": [9], "test_samples_per_site": [3], "validation_fraction": 0.0}
    for transform, new in ((Shifted(1), 12 + 18), (Shifted(1), 0), (Shifted(2), 18)):
        counted.clear()
        cached(tmp_path, "pooled", augmentation=transform, views=2, **options)
        assert sum(counted) == new, transform
    options |= {"augmentation": v2.RandAugment(), "views": 3}
    sites, plain = cached(tmp_path, "pooled", **options), uncached(**options)
    one, other = sites.train_loader("site_a", 3), plain.train_loader("site_a", 3)
    for epoch in range(3):
        for loader in (one, other):
            loader.sampler.set_epoch(epoch)
        same_batches(encoder(), "pooled", one, other)
    with pytest.raises(ConfigurationError, match=r"--data.augmentation RandAugment\(\): each epoch draws new"):
        cached(tmp_path, "pooled", "pooled", **options | {"views": 0})


def test_a_run_in_workers_is_the_run_in_one_process(tmp_path) -> None:
    runs = [
        fit(tmp_path / name, FedAvg(), sites=data(cache="none", augmentation=[v2.RandAugment(num_ops=1)]), **options)
        for name, options in (("a", {"threads": 1}), ("b", {"threads": 1, "transport": "processes", "workers": 2}))
    ]
    assert runs[0]["personal"] == runs[1]["personal"]
    assert runs[0]["protocol"]["augmentation"] == "Compose(RandAugment(num_ops=1))"


ROTATED = f"{{class_path: {V2}.RandomRotation, init_args: {{degrees: 10}}}}"
WRITTEN = {
    "class": ([f"--data.augmentation={V2}.RandAugment", "--data.augmentation.num_ops=3"], "num_ops: 3"),
    "short name": (["--data.augmentation=RandAugment"], f"class_path: {V2}.RandAugment"),
    "a number": ([f"--data.augmentation={V2}.RandomRotation", "--data.augmentation.degrees=10"], "degrees: 10\n"),
    "list": ([f"--data.augmentation=[{ROTATED}, {{class_path: {V2}.RandomHorizontalFlip}}]"], "degrees: 10\n"),
    "compose": (
        [f"--data.augmentation={{class_path: {V2}.Compose, init_args: {{transforms: [{ROTATED}]}}}}"],
        "degrees: 10\n",
    ),
    "preset": (["--data.augmentation=crops"], "augmentation: crops"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_command_line_prints_a_configuration_that_gives_the_same(tmp_path, capsys, name) -> None:
    options, words = WRITTEN[name]
    arguments = ["fit", "--method=FedAvg", *SMALL]
    assert main([*arguments, *options, "--print_config"]) == 0
    text = capsys.readouterr().out
    assert words in text
    (tmp_path / "a.yaml").write_text(text)
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["flop"], ['no class "flop". Did you mean "flips"', "known: none, flips, crops, AugMix"]),
        (
            ["torchvision.transforms.RandAugment"],
            ["the RandAugment of that import path is no torchvision.transforms.v2."],
        ),
        ([f"{V2}.RandAugmentt"], ['Did you mean "RandAugment"']),
        ([f"{V2}.RandAugment", "--data.augmentation.num_op=3"], ['Did you mean "num_ops"', "of RandAugment"]),
    ],
)
def test_a_wrong_class_is_told(capsys, options, words) -> None:
    assert main(["fit", "--method=FedAvg", *SMALL, f"--data.augmentation={options[0]}", *options[1:]]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
