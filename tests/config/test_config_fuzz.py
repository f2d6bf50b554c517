"""Configurations that nobody would write: refused by name, or taken and kept as they are."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sft_jax.config.data import OPTIONS, DataConfig
from sft_jax.config.io import from_dict, override, to_dict
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig
from sft_jax.types import ConfigError

SPECS = (
    ModalitySpec(name="rgb", length=12, feature_dim=4, tokenizer="patch", patch=(3, 2), k=3),
    ModalitySpec(name="words", length=20, feature_dim=30, tokenizer="token", pool="none"),
)
BASE = Config(modalities=SPECS)
TREES = [to_dict(BASE)] + [
    to_dict(Config(data=DataConfig(source=source, options=options())))
    for source, options in OPTIONS.items()
]
NAMES = st.sampled_from(
    ["../x", "a/b", "a\\b", "", ".", "..", "a\0b", "a" * 5000, "\ud800", "é", "1a", "label", "*"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 2, -1, 2**31, 2**63, -(2**63), 10**400]),
    st.floats(),
    st.text(max_size=8),
    NAMES,
    st.sampled_from(["1 steps", "0.5 epochs", "nan epochs", "inf steps", "1e400 steps", "1e12"]),
    st.sampled_from(["sft", "mbt", "max", "patch", "fixed", "arrays", "plateau", "bfloat16"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


def paths_of(tree, prefix=()):
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*prefix, key))


def keeps_or_refuses(build):
    try:
        config = build()
    except ConfigError:
        return
    kept = json.loads(json.dumps(to_dict(config)).encode())
    again = from_dict(kept)
    assert again == config
    assert to_dict(again) == to_dict(config)
    for spec in config.modalities:
        assert Path(spec.name).name == spec.name
        assert len(f"tokens_{spec.name}.png".encode()) <= 255


CHANGES = st.sampled_from(TREES).flatmap(
    lambda tree: st.tuples(
        st.just(tree),
        st.dictionaries(st.sampled_from(list(paths_of(tree))), VALUES, min_size=1, max_size=3),
    )
)


@settings(max_examples=40)
@given(CHANGES)
def test_any_value_of_a_stored_configuration_is_kept_or_refused(drawn):
    tree, changes = drawn
    tree = json.loads(json.dumps(tree))
    for path, value in changes.items():
        at = tree
        for key in path[:-1]:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[path[-1]] = value
    keeps_or_refuses(lambda: from_dict(tree))


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(list(to_dict(BASE))) | NAMES, VALUES, max_size=3))
def test_any_tree_is_kept_or_refused(tree):
    keeps_or_refuses(lambda: from_dict(tree))


@settings(max_examples=100)
@given(
    st.sampled_from([".".join(path) for path in paths_of(to_dict(BASE))])
    | st.sampled_from(["", ".", "modalities.*.k", "*.*", "modalities..k", "train.seed.x"])
    | NAMES,
    VALUES,
)
def test_any_override_is_kept_or_refused(path, value):
    keeps_or_refuses(lambda: override(BASE, {path: value}))


@settings(max_examples=60)
@given(NAMES | st.text(max_size=60))
def test_a_modality_is_called_what_a_file_can_be(name):
    spec = {"length": 4, "feature_dim": 2, "k": 1}
    keeps_or_refuses(lambda: from_dict({"modalities": {name: spec}}))


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", "..", "a\0b", "a" * 49])
def test_a_name_that_is_a_path_or_no_name_is_refused(name):
    with pytest.raises(ConfigError, match="expected a letter, then"):
        from_dict({"modalities": {name: {"length": 4, "feature_dim": 2, "k": 1}}})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.seed", 2**63),
        ("optimizer.learning_rate", 10**400),
        ("model.embed_dim", 10**400),
        ("data.data_dir", "\ud800"),
        ("data.source", ["arrays"]),
    ],
)
def test_what_no_file_or_array_can_hold_is_refused(path, value):
    with pytest.raises(ConfigError, match=rf"{path}: given .*, expected"):
        override(BASE, {path: value})


def test_lists_without_end_are_refused():
    deep = "x"
    for _ in range(900):
        deep = [deep]
    with pytest.raises(ConfigError, match=r"model.name: given .*, expected str"):
        from_dict({"model": {"name": deep}})
    assert ModelConfig().name == "sft"
