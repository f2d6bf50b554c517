"""The files in configs/, and the parameters of the models that they ask for."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sft_jax.config.io import from_dict, to_dict
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig
from sft_jax.data.fake import FAKES
from sft_jax.data.pipeline import infer_modalities
from sft_jax.data.records import DataInfo, ModalityInfo
from sft_jax.models import registry
from sft_jax.types import ConfigError

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs").glob("*.py")
    if path.name != "__init__.py"
)


def spec(**changes):
    return ModalitySpec(**{"name": "a", "length": 12, "feature_dim": 6, "k": 3, **changes})


def load(path):
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def parameter_count(config):
    model = registry.build(config)
    inputs, mask = {}, {}
    for made in config.modalities:
        shape = (1, made.length)
        token = made.tokenizer == "token"
        inputs[made.name] = (
            jnp.zeros(shape, jnp.int32) if token else jnp.zeros((*shape, made.feature_dim))
        )
        mask[made.name] = jnp.ones(shape, bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs, mask)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


# File -> outputs that its data and task need (where the file leaves them to it) and parameters. A
# new file needs a new line.
#
# synthetic, modern preset, d = 32: a norm has 2 d = 64 parameters, an attention residual
# 64 + (32 * 96 + 96) + (32 * 32 + 32) = 4288, an MLP residual of ratio 4
# 64 + (32 * 128 + 128) + (128 * 32 + 32) = 8416, a block 12704. Encoders: projection of 6 and of 4
# features 224 and 160, CLS 32, positions (48 + 1) * 32 = 1568 and (96 + 1) * 32 = 3104, one block
# 12704, one more attention residual 4288: 18816 and 20288. Two blocks after fusion 25408. Head for
# 4 classes 64 + 32 * 4 + 4 = 196. Together 64708.
#
# smartwatch, d = 48: attention residual 9504, MLP residual 18768, block 28272. An encoder:
# projection of a patch of 5 x 3 values 15 * 48 + 48 = 768, CLS 48, positions (250 / 5 + 1) * 48 =
# 2448, block 28272, attention residual 9504: 41040; two of them 82080. Two blocks after fusion
# 56544. Head for 7 classes 439. Together 139063.
#
# multiple_features, d = 32, parts as of synthetic: projections of 424 features 424 * 32 + 6 * 32 =
# 13760, CLS 192, positions (5 * 2 + 17) * 32 = 864, six blocks and attention residuals 101952. Two
# blocks after fusion 25408. Head for 10 classes 394. Together 142570. japanese_vowels: projections
# 448, CLS 64, positions 2 * 30 * 32 = 1920, two blocks and attention residuals 33984, after fusion
# 25408, head for 9 classes 361. Together 62185.
#
# mosi, modern preset, d = 64: an attention residual 16768, a block 49984. Projections of 20 + 5 +
# 300 features 325 * 64 + 3 * 64 = 20992, CLS 192, positions (501 + 376 + 51) * 64 = 59392, three
# blocks and attention residuals 200256. Two blocks after fusion 99968. Head for 7 classes 583.
# Together 381383. iemocap, mmsa and arrays differ in lengths, features and classes alone, and so do
# mosi_regression (6 * 65 = 390 less), iemocap_multilabel (2 * 65 = 130 more than iemocap) and
# mosei_emotions: projections 409 * 64 + 192 = 26368, CLS 192, positions (501 + 501 + 51) * 64 =
# 67392, blocks 300224 as of mosi, head for 6 labels 518. Together 394694.
#
# mosei_regression, d = 40: 6 * 41 = 246 less than mosei.
#
# av_base, d = 768: attention residual 1536 + (768 * 2304 + 2304) + (768 * 768 + 768) = 2363904,
# MLP residual 1536 + (768 * 3072 + 3072) + (3072 * 768 + 768) = 4723968, block 7087872. Audio:
# projection of a patch of 16 x 16 values 256 * 768 + 768 = 197376, CLS 768, positions
# (50 * 8 + 1) * 768 = 307968, three blocks 21263616, attention residual: 24133632. Video:
# projection of 2 x 16 x 16 x 3 values 1536 * 768 + 768 = 1180416, CLS 768, positions
# (8 * 14 * 14 + 1) * 768 = 1204992, as much again: 26013696. Nine blocks after fusion 63790848.
# Head for 10 classes 1536 + 7690 = 9226. Together 113947402.
PARAMETERS = {
    "arrays": (3, 316_483),
    "av_base": (10, 113_947_402),
    "iemocap": (2, 386_114),
    "iemocap_multilabel": (4, 386_244),
    "japanese_vowels": (9, 62_185),
    "mmsa": (7, 411_335),
    "mosei": (7, 217_647),
    "mosei_emotions": (6, 394_694),
    "mosei_regression": (1, 217_401),
    "mosi": (7, 381_383),
    "mosi_regression": (1, 380_993),
    "multiple_features": (10, 142_570),
    "smartwatch": (7, 139_063),
    "synthetic": (4, 64_708),
    "vggsound10": (10, 297_490),
    "vggsound100": (100, 301_180),
    "vggsound10_concat": (10, 257_970),
    "vggsound10_late": (10, 496_050),
    "vggsound10_mbt": (10, 496_050),
    "vggsound10_mult": (10, 2_944_290),
    "vggsound10_unimodal": (10, 172_770),
}


# Time steps and features where a file leaves its modalities to the data: those of the sets that it
# is for, and of README's arrays.
SETS = {name: name for name in ("iemocap", "mmsa", "mosi", "mosei_emotions")}
SETS |= {"iemocap_multilabel": "iemocap", "mosi_regression": "mosi"}
SHAPES = {name: FAKES[kind].shapes for name, kind in SETS.items()}
SHAPES["arrays"] = {"audio": (120, 16), "video": (40, 32), "text": (24, 8)}


def of_the_data(name):
    """The modalities that a run takes from its data."""
    found = tuple(
        ModalityInfo(name=m, length=t, feature_dim=f, kind="feature")
        for m, (t, f) in SHAPES[name].items()
    )
    # Nothing else of the data is looked at.
    tables = ("statistics", "repairs", "num_records", "class_counts", "groups", "split_units")
    empty = {**{field: {} for field in (*tables, "options")}, "class_names": ()}
    empty |= dict.fromkeys(("source", "source_sha256", "fingerprint", "directory"), "")
    return infer_modalities(DataInfo(modalities=found, **empty), ())


def test_every_configuration_has_its_line_in_the_table():
    assert [path.stem for path in CONFIGS] == sorted(PARAMETERS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_files(path):
    module = load(path)
    assert "python -m sft_jax.train" in module.__doc__
    assert f"--config=configs/{path.name}" in module.__doc__
    given = module.get_config()
    assert given.is_locked
    config = from_dict(given)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert (config.modalities == ()) == (path.stem in SHAPES)
    classes, expected = PARAMETERS[path.stem]
    model = dataclasses.replace(config.model, num_classes=config.model.num_classes or classes)
    modalities = config.modalities or of_the_data(path.stem)
    filled = dataclasses.replace(config, model=model, modalities=modalities)
    assert parameter_count(filled) == expected


def test_parameters_of_the_paper_preset_by_hand():
    # d = 8, relu MLP of ratio 1, attention norms without parameters. Attention 8 * 24 + 24 +
    # 8 * 8 + 8 = 288, MLP 16 + 72 + 72 = 160, block 448. Encoder: projection 6 * 8 + 8 = 56, CLS 8,
    # positions 13 * 8 = 104, one block 448, attention 288: 904. Three fusion blocks 1344. Head
    # 16 + 8 * 5 + 5 = 61. Together 2309.
    model = ModelConfig(
        num_classes=5, embed_dim=8, num_heads=2, num_pre_layers=1, num_post_layers=3
    )
    config = Config(modalities=(spec(),), model=model)
    assert parameter_count(config) == 2309
    # A vocabulary of six words: 6 * 8 instead of the projection.
    token = dataclasses.replace(config, modalities=(spec(tokenizer="token"),))
    assert parameter_count(token) == 2309 - 8


def test_unknown_model_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"model\.name: given 'resnet', expected one of .*sft"):
        registry.build(Config(model=ModelConfig(name="resnet")))
