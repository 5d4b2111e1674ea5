"""The one list of options by their effect on results."""

import pytest

from pfedst.options import EFFECTS, PATHS, SEED, WEIGHTS, Effect, effect_of, of_the_study, with_effect


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("name", Effect.NONE),
        ("coordinator.workers", Effect.NONE),
        ("flower.sites", Effect.NONE),  # who was there is in the identity of a run
        ("trainer.logger", Effect.NONE),
        ("trainer.logger.init_args.project", Effect.NONE),  # of a group that is listed
        ("trainer.logger.class_path", Effect.NONE),
        ("data.init_args.root", Effect.LOCAL),
        ("data.init_args.num_workers", Effect.LOCAL),
        ("trainer.devices", Effect.LAST_DIGITS),
        ("data.init_args.cache", Effect.LAST_DIGITS),
        ("data.init_args.cache_device_bytes", Effect.LAST_DIGITS),
        ("data.init_args.evaluation_batch_bytes", Effect.STUDY),
        ("data.init_args.cache_folder", Effect.LOCAL),  # begins like `cache`, and is another option
        ("data.init_args.cache_dtype", Effect.STUDY),
        ("data.init_args.pixel_range", Effect.STUDY),  # other pixels are another study
        ("names", Effect.STUDY),
        ("trainer.loggers", Effect.STUDY),
        ("trainer.precision", Effect.STUDY),
        ("trainer.gradient_clip_val", Effect.STUDY),
        ("trainer.accumulate_grad_batches", Effect.STUDY),
        ("method.init_args.num_workers", Effect.STUDY),  # of another group
        ("an.option.that.is.new", Effect.STUDY),
        (SEED, Effect.STUDY),
        (WEIGHTS, Effect.STUDY),
    ],
)
def test_the_effect_of_an_option_is_that_of_its_longest_listed_prefix(key, effect) -> None:
    assert effect_of(key) is effect


def test_what_decides_on_images_by_a_path_is_local() -> None:
    assert {effect_of(key) for key in PATHS} == {Effect.LOCAL}


def test_options_are_picked_by_their_effect_in_order() -> None:
    options = {"trainer.precision": "bf16-mixed", "name": "a", "coordinator.threads": 2, "coordinator.rounds": 3}
    assert list(of_the_study(options).items()) == [("coordinator.rounds", 3), ("trainer.precision", "bf16-mixed")]
    assert with_effect(options, Effect.LAST_DIGITS) == {"coordinator.threads": 2}
    assert with_effect(options, Effect.NONE, Effect.LAST_DIGITS) == {"name": "a", "coordinator.threads": 2}
    assert with_effect(options, *Effect) == options


def test_every_listed_option_has_an_effect_other_than_the_default() -> None:
    assert Effect.STUDY not in EFFECTS.values()
