import csv
import json

import numpy as np
import pytest

from sft_jax.config import io as config_io
from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig
from sft_jax.runs.example_file import Example
from sft_jax.tasks import classification_scores

NAMES = ["up", "down", "still", "turn"]
LEVELS = {"sample": 0.0, "group": 0.05}
CLASSES = ["up", "down", "still"]


def write_study(
    folder,
    top1,
    *,
    settings=("sft", "dense"),
    folds=("fold0", "fold1", "fold2"),
    seeds=(0, 1),
    conditions=("complete", "without gyroscope"),
    levels=("sample", "group"),
    predictions=True,
    curves=True,
    valid=None,
    run=lambda setting, fold, seed: True,
    **record,
):
    """The folder of a study, as a sweep leaves it.

    `top1(setting, fold, seed)` is the score per sample on the complete test split; per group it is
    0.05 more, under the `i`-th condition `i / 10` less; `valid` is that of the validation split, if
    there is one. `run` says which runs are there. Every model names the true class of the first
    `n - 1` of `n` samples, with the confidence 0.9.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        (setting, fold, seed)
        for setting in settings
        for fold in folds
        for seed in seeds
        if run(setting, fold, seed)
    ]
    content = {
        "name": "toy",
        "title": "A toy study",
        "protocol": "Three folds by subject; the best epoch is chosen on validation subjects.",
        "metric": "top1",
        "class_names": CLASSES,
        "settings": [
            {
                "name": name,
                "overrides": {"modalities.*.pool": name},
                "model": "sft",
                "num_parameters": 1000 + i,
                "forward_gflop": 0.004 * (i + 1),
                "tokens_in": 100,
                "tokens_kept": 20 * (i + 1),
            }
            for i, name in enumerate(settings)
        ],
        "folds": [{"name": name, "overrides": {}, "test": [f"subject {name}"]} for name in folds],
        "seeds": list(seeds),
        **record,
    }
    (folder / "study.json").write_text(json.dumps(content))
    with (folder / "results.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["setting", "fold", "seed", "split", "condition", "level", "metric", "value"])
        for setting, fold, seed in runs:
            if valid is not None:
                where = [setting, fold, seed, "valid", "complete", "sample", "top1"]
                rows.writerow([*where, f"{valid(setting, fold, seed):.6g}"])
            for level in levels:
                for i, condition in enumerate(conditions):
                    value = top1(setting, fold, seed) + LEVELS[level] - i / 10
                    where = [setting, fold, seed, "test", condition, level]
                    rows.writerow([*where, "top1", f"{value:.6g}"])
                    rows.writerow([*where, "loss", f"{1 - value:.6g}"])
    if curves:
        with (folder / "curves.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["setting", "fold", "seed", "step", "metric", "value"])
            for setting, fold, seed in runs:
                for step in (10, 20):
                    end = top1(setting, fold, seed)
                    rows.writerow([setting, fold, seed, step, "valid top1", end * step / 20])
                    rows.writerow([setting, fold, seed, step, "train loss", 2 - end * step / 20])
    if predictions:
        (folder / "predictions").mkdir()
        label = np.arange(6) % 3
        named = np.where(np.arange(6) < 5, label, (label + 1) % 3)
        probabilities = np.full((6, 3), 0.05, np.float32)
        probabilities[np.arange(6), named] = 0.9
        for setting in settings:
            for fold in folds:
                own = [seed for seed in seeds if run(setting, fold, seed)]
                if own:
                    np.savez_compressed(
                        folder / "predictions" / f"{setting}-{fold}.npz",
                        seed=np.array(own),
                        label=label,
                        group=np.array([f"{fold} {i // 2}" for i in range(6)]),
                        id=np.array([f"{fold} {i}" for i in range(6)]),
                        probabilities=np.stack([probabilities] * len(own)),
                    )
    return folder


@pytest.fixture
def study(tmp_path):
    """`write_study` into a new folder."""

    def write(top1, **options):
        return write_study(tmp_path / "study", top1, **options)

    return write


def make_evaluation(split="test", group=True, n=40, **more):
    rng = np.random.default_rng(3)
    label = np.arange(n) % 4
    probabilities = rng.dirichlet(np.ones(4), n) * 0.5 + 0.5 * np.eye(4)[(label + (label == 3)) % 4]
    return classification_scores.evaluate(
        probabilities,
        label,
        split=split,
        step=120,
        class_names=NAMES,
        train_counts=np.array([10, 40, 10, 10]),
        group=np.array([f"rec{i % 8}" for i in range(n)]) if group else None,
        replicates=100,
        **more,
    )


@pytest.fixture
def evaluation():
    """Makes what `evaluate` returns: of 40 samples in 8 groups, 4 classes."""
    return make_evaluation


def write_run(folder):
    """The folder of a run of one modality, evaluated on its test split."""
    folder.mkdir()
    config = Config(
        modalities=(ModalitySpec(name="m0", length=48, feature_dim=6, k=6),),
        model=ModelConfig(
            preset="modern", embed_dim=32, num_heads=4, num_classes=4, num_post_layers=1
        ),
        data=DataConfig(source="synthetic", options=SyntheticOptions()),
    )
    data = {
        "class_names": NAMES,
        "modalities": [{"name": "m0", "length": 48, "feature_dim": 6}],
        "counts": {"train": [10, 40, 10, 10], "test": [10, 10, 10, 10]},
        "groups": {"test": 8},
        "num_parameters": 12345,
    }
    records = [
        {"kind": "train", "step": 10, "epoch": 0.5, "loss": 1.4, "top1": 0.25},
        {"kind": "valid", "step": 120, "epoch": 6.0, "loss": 0.7, "top1": 0.75},
    ]
    (folder / "config.json").write_text(json.dumps(config_io.to_dict(config)))
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "evaluation_test.json").write_text(json.dumps(make_evaluation()))
    return folder


@pytest.fixture
def workdir(tmp_path):
    return write_run(tmp_path / "a run")


def make_example():
    """A recording of which three tokens were kept, with an empty slot."""
    rng = np.random.default_rng(0)
    return Example(
        signals={"m0": rng.normal(size=(48, 6)).astype(np.float32)},
        kept={"m0": np.array([4, 2, 40, -1])},
        saliency={"m0": np.array([0.5, 0.25, 0.125, 0.0], np.float32)},
        spans={"m0": np.stack([np.arange(48), np.arange(1, 49)], axis=1)},
        sampling_rate=50.0,
        title="sample 7 | turn",
    )


@pytest.fixture
def example():
    return make_example()
