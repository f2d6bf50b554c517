"""Parts shared by the studies of the smartwatch recordings (see configs/studies/)."""

from sft_jax.config.data import DataConfig, SmartwatchOptions
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import (
    AugmentConfig,
    Config,
    Duration,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from sft_jax.config.study import Condition, Setting, Study

SENSORS = ("accelerometer", "gyroscope")
NUM_FOLDS = 5
SEEDS = (0, 1, 2, 3, 4)
DENSE = {"modalities.*.pool": "none", "modalities.*.k": 0}
FIXED = {"model.attention": "fixed", "model.stride": 5, "model.expressivity": 1}
# What configs/studies/choice.py prefers of what costs at most a sixth of dense fusion.
CHOSEN = {
    "modalities.*.pool": "channel_topk",
    "modalities.*.k": 2,
    "model.num_post_layers": 2,
    **FIXED,
}
MISSING = (
    *(Condition(f"without {name}", missing=(name,)) for name in SENSORS),
    *(Condition(f"gaps of {gap:.0%}", gap=gap) for gap in (0.2, 0.5, 0.8)),
)
_PROTOCOLS = {
    "subjects": (
        "Smartwatch recordings, 5 folds: in each, two of the ten subjects are for testing and the "
        "other eight for training. Windows of 5 s, a new one every second."
    ),
    "validation": (
        "Smartwatch recordings, 5 folds: in each, two of the ten subjects are for testing, two for "
        "validation and the other six for training. Windows of 5 s, a new one every second."
    ),
    "time": (
        "Smartwatch recordings, 5 folds: in each, a fifth of every recording, a stretch of 4 to "
        "10 s, is for testing and the rest for training. Windows of at most 5 s within a stretch, "
        "a new one every second."
    ),
}
_TRAINING = (
    " {steps} steps with the learning rate going to zero, after which the parameters are judged."
)
_CHOSEN = (
    " Augmentation, widths and steps were chosen by accuracy on validation subjects, each of whom "
    "is a test subject of another fold."
)


def smartwatch(steps: int = 600, valid_subjects: int = 0) -> Config:
    """SFT on windows of accelerometer and gyroscope, without a fold yet.

    Widths, augmentation and optimizer were chosen by accuracy on validation subjects, with six
    subjects left to train on (`data.options.valid_subjects=2`). The last parameters are judged even
    if there are validation subjects.
    """
    return Config(
        # A token is a fifth of a second; three of the 25 are kept.
        modalities=tuple(
            ModalitySpec(
                name=name,
                length=250,
                feature_dim=3,
                tokenizer="patch",
                patch=(10, 3),
                pool="cls_topk",
                k=3,
            )
            for name in SENSORS
        ),
        model=ModelConfig(
            preset="modern", embed_dim=32, num_heads=4, num_pre_layers=0, num_post_layers=3
        ),
        data=DataConfig(
            source="smartwatch_exercises",
            options=SmartwatchOptions(
                window=250, step=50, valid_subjects=valid_subjects, folds=NUM_FOLDS
            ),
            normalization="rms",
        ),
        augment=AugmentConfig(
            rotate=SENSORS,
            rotation_degrees=30.0,
            jitter=0.05,
            scale=0.1,
            # A watch on the other arm.
            mirror_polar=("accelerometer",),
            mirror_axial=("gyroscope",),
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, weight_decay=0.05, schedule="cosine", warmup=_steps(40)
        ),
        train=TrainConfig(
            duration=_steps(steps),
            batch_size=32,
            label_smoothing=0.1,
            eval_every=_steps(100),
            checkpoint_every=_steps(steps),
            best_metric="top1",
            best_after=_steps(steps if valid_subjects else 0),
        ),
    )


def study(
    name: str,
    title: str,
    settings: tuple[Setting, ...],
    *,
    conditions: tuple[Condition, ...] = (),
    held_out: str = "subjects",
    valid_subjects: int = 0,
) -> Study:
    """A study of `smartwatch()` over five folds and five seeds.

    A fold holds out `subjects` or `time`. Validation subjects of a fold are there to choose a
    setting by.
    """
    base = smartwatch(valid_subjects=valid_subjects)
    held = {"data.options.held_out": held_out}
    protocol = _PROTOCOLS["validation" if valid_subjects else held_out]
    protocol += _TRAINING.format(steps=int(base.train.duration.value))
    protocol += "" if valid_subjects else _CHOSEN
    return Study(
        name=name,
        title=title,
        protocol=protocol,
        base=base,
        settings=settings,
        folds=tuple(
            Setting(f"fold{fold}", {"data.options.fold": fold, **held}) for fold in range(NUM_FOLDS)
        ),
        seeds=SEEDS,
        conditions=conditions,
    )


def _steps(count: int) -> Duration:
    return Duration(float(count), "steps")
