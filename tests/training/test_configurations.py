"""Every file of configs/ trains twenty steps, on small synthetic files in its layout."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from slow import corners
from small_files import digits, utterances

from sft_jax.config.io import from_dict
from sft_jax.data.fake import FAKES, write_fake
from sft_jax.training import session

CONFIGS = {path.stem: path for path in Path(__file__).parents[2].joinpath("configs").glob("*.py")}
STEPS = 20
# Time steps are a share of the true ones, features are as they are; a window is as small a share.
SHORTER = {"vggsound10": 20, "vggsound100": 20, "mosei": 10, "mosi": 10, "iemocap": 5, "mmsa": 10}
SHORTER |= {"av": 5, "mosei_emotions": 10}
# Of the configuration for a pod, the widths as well: 2 x 2 x 2 tubelets.
NARROW = {"embed_dim": 24, "num_heads": 3, "num_pre_layers": 1, "num_post_layers": 2}
NARROW_FRAMES, NARROW_FRAME = 4, (32, 32, 3)
# Evaluating compiles once more; these differ in what there is to score.
EVALUATED = ("vggsound10", "mosei", "mosei_regression", "mosei_emotions", "iemocap_multilabel")
SIZES = {"vggsound100": 300}


def imitated(name):
    """The set that a configuration needs a file of; none where it needs none."""
    kinds = [kind for kind in SHORTER if f"{name}_".startswith(f"{kind}_")]
    return max(kinds, key=len, default=None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of a set's synthetic files, written once, by option."""
    written = {}

    def paths(kind):
        if kind not in written:
            shapes = {
                m: (max(2, t // SHORTER[kind]), f) for m, (t, f) in FAKES[kind].shapes.items()
            }
            if kind == "av":
                shapes["video"] = (NARROW_FRAMES, math.prod(NARROW_FRAME))
            folder = tmp_path_factory.mktemp(kind)
            made = write_fake(kind, folder, SIZES.get(kind, 60), shapes=shapes)
            written[kind] = dict(zip(FAKES[kind].files, map(str, made), strict=True)), shapes
        return written[kind]

    return paths


def own_arrays(folder):
    rng = np.random.default_rng(0)
    path = folder / "mine.npz"
    np.savez(path, label=np.arange(60) % 3, audio=rng.normal(size=(60, 20, 4)))
    return str(path)


OWN = {"arrays": own_arrays, "multiple_features": digits, "japanese_vowels": utterances}


@pytest.mark.parametrize("name", corners(sorted(CONFIGS), "vggsound10", "mosei"))
def test_a_configuration_trains(name, files, tmp_path, one_device):
    given = runpy.run_path(str(CONFIGS[name]))["get_config"]()
    kind = imitated(name)
    given.data.data_dir = str(tmp_path / "data")
    if kind:
        paths, shapes = files(kind)
        given.data.options.update(paths)
        for modality, spec in given.modalities.items():
            spec.length, spec.feature_dim = shapes[modality]
            if kind == "av":
                spec.k = 4
            else:
                spec.window = max(1, spec.window // SHORTER[kind])
    if kind == "av":
        given.model.update(NARROW)
        given.modalities.video.frame = NARROW_FRAME
    elif name in OWN:
        given.data.options.path = OWN[name](tmp_path)
    elif name == "smartwatch":
        given.data.options.step = 400  # fewer windows of the same length
    given.train.update(
        {"duration": f"{STEPS} steps", "eval_every": "20 steps", "checkpoint_every": "20 steps"}
    )
    given.train.update({"best_after": "0 steps", "batch_size": 4})
    given.train.log_every = 5
    config = from_dict(given)
    if config.mixup.mode != "none":
        # Its warm-up is over after a few steps, so that both are passed through.
        given.mixup.warmup = "5 steps"
        config = from_dict(given)
    outcome = session.train(config, tmp_path / "run")
    assert outcome.step == STEPS
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert len(losses) >= STEPS // 5
    assert np.isfinite(losses).all()
    if name not in EVALUATED:
        return
    result = session.evaluate(tmp_path / "run").metrics
    assert result["num_samples"] > 0
    assert (result.get("sentiment") is not None) == (name == "mosei")
    assert result["metrics"][config.train.best_metric]["value"] is not None
