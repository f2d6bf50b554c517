import dataclasses

import pytest

from sft_jax.config.io import override
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, TrainConfig
from sft_jax.config.study import Condition, Setting, Study, load_study
from sft_jax.config.training import Duration
from sft_jax.types import ConfigError

STEPS = Duration(10.0, "steps")
BASE = Config(
    modalities=(
        ModalitySpec(name="a", length=8, feature_dim=3, k=2),
        ModalitySpec(name="b", length=6, feature_dim=2, k=2),
    ),
    train=TrainConfig(duration=STEPS, eval_every=STEPS, checkpoint_every=STEPS),
)


def study(**changes):
    values = {
        "name": "s",
        "title": "S",
        "protocol": "p",
        "base": BASE,
        "settings": (Setting("one"), Setting("two", {"model.embed_dim": 20})),
        "folds": (Setting("f0", {"data.options.seed": 4}), Setting("f1")),
        "seeds": (0, 1),
    }
    return Study(**values | changes)


def test_overrides_reach_one_modality_or_all():
    changed = override(BASE, {"modalities.*.k": 3, "modalities.a.k": 1, "model.dropout": 0.5})
    assert [spec.k for spec in changed.modalities] == [1, 3]
    assert changed.model.dropout == 0.5
    pools = override(
        BASE, {"modalities.*.pool": "max", "modalities.*.k": 0, "modalities.*.window": 2}
    )
    assert [(s.pool, s.k, s.window) for s in pools.modalities] == [("max", None, 2)] * 2
    assert override(BASE, {}) == BASE


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.width", r"model.width: given, but there is no such setting: 'width' is none of"),
        ("modalities.c.k", r"'c' is none of a, b; give one of them"),
        ("model.dropout.x", r"no such setting: 'dropout'"),
    ],
)
def test_overrides_that_lead_nowhere(path, message):
    with pytest.raises(ConfigError, match=message):
        override(BASE, {path: 1})


def test_a_run_is_setting_fold_and_seed():
    made = study()
    config = made.config(made.settings[1], made.folds[0], 7)
    assert (config.model.embed_dim, config.data.options.seed, config.train.seed) == (20, 4, 7)
    assert made.config(made.settings[0], made.folds[1], 0) == BASE


def test_parts_of_a_study():
    part = study().only(settings=["two"], seeds=[1])
    assert [s.name for s in part.settings] == ["two"]
    assert part.folds == study().folds
    assert part.seeds == (1,)
    with pytest.raises(ConfigError, match="setting 'three': given, expected one of one, two"):
        study().only(settings=["three"])


def test_durations_in_epochs_are_refused():
    epochs = dataclasses.replace(BASE.train, eval_every=Duration(1.0, "epochs"))
    made = study(base=dataclasses.replace(BASE, train=epochs))
    with pytest.raises(ConfigError, match=r"setting 'one': given train.eval_every in epochs"):
        made.config(made.settings[0], made.folds[0], 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setting("a/b"), "given the name 'a/b'"),
        (lambda: Setting(""), "given the name ''"),
        (lambda: Condition("c", gap=1.0), "given gap 1.0"),
        (lambda: study(seeds=()), "given seeds"),
        (lambda: study(conditions=(Condition("complete"),)), "none of them 'complete'"),
        (lambda: study(conditions=(Condition("x"), Condition("x"))), "expected different names"),
        (lambda: study().only(seeds=[0, 7]), r"given seeds \[7\], expected some of \(0, 1\)"),
        (lambda: study(folds=(Setting("x"), Setting("x"))), "given folds .*all different"),
    ],
)
def test_what_cannot_be_a_study(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_loading(tmp_path):
    with pytest.raises(ConfigError, match="not found"):
        load_study(tmp_path / "no.py")
    (tmp_path / "x.py").write_text("def get_config():\n    return None\n")
    with pytest.raises(ConfigError, match="no get_study in it"):
        load_study(tmp_path / "x.py")
