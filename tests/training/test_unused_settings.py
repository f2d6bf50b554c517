"""Settings that have no effect in combination are said, and others are not."""

import pytest

from sft_jax.config.io import override
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config
from sft_jax.training.optimizer import Schedule
from sft_jax.training.unused_settings import unused_checkpoints, unused_settings

ONE = ModalitySpec(name="m0", length=4, feature_dim=3, k=1)
STEPS_PER_EPOCH = 5
# Of 20 steps, with four validations, the last one at the end.
BASE = {"train.duration": "20 steps", "train.eval_every": "5 steps"}
PLATEAU = {"optimizer.schedule": "plateau"}
MIXUP = {"mixup.mode": "any", "mixup.groups": 8}


def said(changes, validates=True, modalities=()):
    config = override(Config(modalities=modalities), BASE | changes)
    schedule = Schedule.of(config, STEPS_PER_EPOCH)
    found = [*unused_settings(config, schedule, validates), *unused_checkpoints(config, schedule)]
    return [text.partition(": given")[0] for text in found]


@pytest.mark.parametrize(
    ("setting", "without_effect", "with_effect"),
    [
        ("optimizer.warmup", {"optimizer.warmup": "21 steps"}, {"optimizer.warmup": "20 steps"}),
        ("optimizer.warmup", {"optimizer.warmup": "5 epochs"}, {"optimizer.warmup": "4 epochs"}),
        (
            "optimizer.schedule",
            {"optimizer.schedule": "cosine", "optimizer.warmup": "20 steps"},
            {"optimizer.schedule": "cosine", "optimizer.warmup": "19 steps"},
        ),
        # Of the validations of steps 5, 10 and 15, two are no better than the first.
        (
            "optimizer.plateau_patience",
            PLATEAU | {"optimizer.plateau_patience": 2},
            PLATEAU | {"optimizer.plateau_patience": 1},
        ),
        (
            "optimizer.plateau_factor, optimizer.plateau_patience",
            {"optimizer.plateau_factor": 0.5, "optimizer.plateau_patience": 1},
            PLATEAU | {"optimizer.plateau_factor": 0.5, "optimizer.plateau_patience": 1},
        ),
        (
            "mixup.warmup",
            MIXUP | {"mixup.warmup": "20 steps"},
            MIXUP | {"mixup.warmup": "3 epochs"},
        ),
        ("mixup.alpha", {"mixup.alpha": 0.7}, MIXUP | {"mixup.alpha": 0.7}),
        ("train.best_after", {"train.best_after": "21 steps"}, {"train.best_after": "20 steps"}),
        # Of the validations of steps 5, 10 and 15, two are no better than the first.
        ("train.patience", {"train.patience": 3}, {"train.patience": 2}),
        (
            "train.patience",
            {"train.patience": 2, "train.best_after": "6 steps"},
            {"train.patience": 2, "train.best_after": "5 steps"},
        ),
        ("train.eval_every", {"train.eval_every": "21 steps"}, {"train.eval_every": "20 steps"}),
        (
            "train.checkpoint_every",
            {"train.checkpoint_every": "21 steps"},
            {"train.checkpoint_every": "20 steps"},
        ),
    ],
)
def test_a_setting_without_effect_is_said(setting, without_effect, with_effect):
    assert said(without_effect) == [setting]
    assert said(with_effect) == []


def test_without_a_validation_split_nothing_is_chosen():
    assert said({"train.best_after": "6 steps"}, validates=False) == ["train.best_after"]
    assert said({"train.eval_every": "21 steps"}, validates=False) == []
    assert said({"train.patience": 1}, validates=False) == ["train.patience"]


def test_a_single_modality_is_never_hidden():
    second = ModalitySpec(name="m1", length=4, feature_dim=3, k=1)
    assert said({"augment.hide": 0.5}, modalities=(ONE,)) == ["augment.hide"]
    assert said({"augment.hide": 0.5}, modalities=(ONE, second)) == []


def test_defaults_are_not_blamed():
    """An epoch may be longer than a short trial."""
    config = override(Config(), {"train.duration": "2 steps"})
    schedule = Schedule.of(config, STEPS_PER_EPOCH)
    assert unused_settings(config, schedule, True) == []
    assert unused_checkpoints(config, schedule) == []
