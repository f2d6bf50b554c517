import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from sft_jax import config as settings
from sft_jax.config import Config, Duration, ModelConfig
from sft_jax.config_io import config_dict, from_dict, to_dict
from sft_jax.models import registry
from sft_jax.types import POOLS, SELECTING_POOLS, TOKENIZERS, ConfigError, ModalitySpec

CONFIGS = sorted(
    path
    for path in (Path(__file__).parent.parent / "configs").glob("*.py")
    if path.name != "__init__.py"
)


def spec(**changes):
    return ModalitySpec(**{"name": "a", "length": 12, "feature_dim": 6, "k": 3, **changes})


# --- the round trip -------------------------------------------------------------------------------

unit = st.floats(0, 1)
number = st.floats(0, 1e6)
count = st.integers(1, 10**6)
names = st.sampled_from(["rgb", "a", "z", "text_2", "m0", "B", "flow", "spec"])
durations = st.one_of(
    st.tuples(st.integers(1, 10**11).map(float), st.just("steps")),
    st.tuples(st.floats(1e-6, 1e6), st.just("epochs")),
)


@st.composite
def modality(draw, name):
    tokenizer = draw(st.sampled_from(TOKENIZERS))
    patch = draw(st.tuples(*[st.integers(1, 4)] * 2)) if tokenizer == "patch" else (1, 1)
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    tokens = rows * (columns if tokenizer == "patch" else 1)
    pool = draw(st.sampled_from(POOLS))
    size = draw(st.integers(1, tokens))
    sizes = {"k": size} if pool in SELECTING_POOLS else {"window": size}
    return {
        "name": name,
        "length": rows * patch[0],
        "feature_dim": columns * patch[1],
        "tokenizer": tokenizer,
        "patch": patch,
        "pool": pool,
        **(sizes if pool != "none" else {}),
    }


@st.composite
def settings_of_runs(draw):
    """Arguments, not configurations: the type checker draws at random where those are made."""
    heads = draw(st.integers(1, 8))
    chosen = draw(st.lists(names, max_size=8, unique=True))
    lengths = draw(st.lists(count, min_size=1, max_size=8))
    synthetic = {"lengths": tuple(lengths), "feature_dims": (3,) * len(lengths)}
    source = st.sampled_from(
        [
            ("smartwatch_exercises", {"window": 9, "split_seed": 2}),
            ("arrays", {"path": "x.npz", "class_names": ("no", "yes")}),
            ("synthetic", {**synthetic, "noise": 0.125}),
        ]
    )
    return {
        "modalities": [draw(modality(name)) for name in chosen],
        "model": {
            "preset": draw(st.sampled_from(["paper", "modern"])),
            "embed_dim": heads * draw(st.integers(1, 9)),
            "num_heads": heads,
            "num_pre_layers": draw(st.integers(0, 4)),
            "dropout": draw(st.floats(0, 0.9)),
            "dtype": draw(st.sampled_from(["float32", "bfloat16"])),
        },
        "source": draw(source),
        "augment": {"jitter": draw(number)},
        "optimizer": {"learning_rate": draw(number), "warmup": draw(durations)},
        "train": {
            "duration": draw(durations),
            "best_after": draw(durations),
            "label_smoothing": draw(unit),
        },
    }


def make(given):
    modalities = tuple(ModalitySpec(**entry) for entry in given["modalities"])
    rotate = tuple(s.name for s in modalities if s.feature_dim == 3 and s.tokenizer != "token")
    source, options = given["source"]
    times = ("warmup", "duration", "best_after")
    optimizer, train = (
        {k: Duration(*v) if k in times else v for k, v in given[part].items()}
        for part in ("optimizer", "train")
    )
    return Config(
        modalities=modalities,
        model=ModelConfig(**given["model"]),
        data=settings.DataConfig(
            source=source, options=settings.OPTIONS[source](**options), normalization="rms"
        ),
        augment=settings.AugmentConfig(
            rotate=rotate, rotation_degrees=30.0 if rotate else 0.0, **given["augment"]
        ),
        optimizer=settings.OptimizerConfig(**optimizer),
        train=settings.TrainConfig(**train),
    )


@given(
    arguments=settings_of_runs(),
    seed=st.integers(0, 2**31),
    rate=number,
    data_dir=st.text(max_size=5),
)
def test_round_trip(arguments, seed, rate, data_dir):
    config = make(arguments)
    assert from_dict(config_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    # What overrides on the command line do.
    overridden = config_dict(config)
    overridden.train.seed = seed
    overridden.optimizer.learning_rate = rate
    overridden.data.data_dir = data_dir
    expected = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, seed=seed),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        data=dataclasses.replace(config.data, data_dir=data_dir),
    )
    made = from_dict(overridden)
    assert made == expected
    again = from_dict(json.loads(json.dumps(to_dict(made))))
    assert again == expected
    assert [s.name for s in again.modalities] == [s.name for s in config.modalities]
    # Models hold their specs as static attributes.
    hash(again.modalities)


def test_order_of_modalities_survives_every_form():
    order = ("z", "a", "m", "b")
    config = Config(modalities=tuple(spec(name=name) for name in order))
    assert tuple(config_dict(config).modalities) == order
    assert tuple(s.name for s in from_dict(config_dict(config)).modalities) == order
    text = json.dumps(to_dict(config))
    assert tuple(s.name for s in from_dict(json.loads(text)).modalities) == order


def test_overrides_on_the_command_line(monkeypatch):
    command = [
        "program",
        "--config.modalities.z.k=5",
        "--config.modalities.a.window=4",
        "--config.modalities.a.pool=avg",
        "--config.optimizer.learning_rate=1e-2",
        "--config.train.duration=7 steps",
        "--config.data.options.lengths=(8,9)",
    ]
    # That is where ml_collections looks for what is overridden.
    monkeypatch.setattr("sys.argv", command)
    values = flags.FlagValues()
    given = config_dict(Config(modalities=(spec(name="z"), spec(pool="none", k=None))))
    config_flags.DEFINE_config_dict("config", given, flag_values=values)
    values(command)
    made = from_dict(values.config)
    assert made.modalities == (spec(name="z", k=5), spec(pool="avg", k=None, window=4))
    assert made.optimizer.learning_rate == 0.01
    assert made.train.duration == Duration(7.0, "steps")
    assert made.data.options.lengths == (8, 9)


def test_the_dict_for_the_command_line_is_locked():
    with pytest.raises(AttributeError, match="learning_rat"):
        config_dict(Config()).optimizer.learning_rat = 1.0


# --- what `from_dict` refuses -------------------------------------------------------------------

SHAPE = {"length": 4, "feature_dim": 4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trian": {}}, ["trian", "did you mean 'train'?", "modalities, model"]),
        ({"xyzzy": {}}, ["xyzzy", "remove it"]),
        ({"train": {"batchsize": 3}}, ["train.batchsize", "did you mean 'batch_size'?"]),
        ({"model": {"kernel": 3}}, ["model.kernel", "no such setting", "embed_dim"]),
        ({"optimizer": {"lr": 3}}, ["optimizer.lr", "learning_rate"]),
        ({"augment": {"rotation": ()}}, ["augment.rotation", "did you mean"]),
        ({"data": {"batch": 3}}, ["data.batch", "no such setting"]),
        ({"data": {"options": {"window": 3}}}, ["data.options.window", "num_classes"]),
        ({"data": {"source": "web", "options": {}}}, ["data.source", "'web'", "arrays"]),
        ({"data": {"options": 3}}, ["data.options", "given 3 (int)"]),
        ({"modalities": {"a": {"lenght": 3}}}, ["modalities.a.lenght", "did you mean 'length'?"]),
        ({"modalities": {"a": {}}}, ["modalities.a", "feature_dim, length", "set them"]),
        (
            {"modalities": {"a": {"patch": [4], **SHAPE}}},
            ["modalities.a.patch", "[4]", "[int, int]"],
        ),
        ({"modalities": {"a": {"patch": [4, 2, 2], **SHAPE}}}, ["[4, 2, 2]", "tuple[int, int]"]),
        ({"modalities": {"a": 5}}, ["modalities.a", "given 5", "mapping"]),
        ({"modalities": ["a"]}, ["modalities", "given list", "mapping from each name"]),
        (
            {"modalities": {"a": {"name": "b", "length": 3, "feature_dim": 1, "k": 1}}},
            ["modalities.a", "without 'name'", "its key is its name"],
        ),
        ({"train": 5}, ["train", "given 5 (int)", "TrainConfig"]),
        ({"train": {"batch_size": 5.0}}, ["train.batch_size", "5.0 (float)", "expected int"]),
        ({"train": {"batch_size": True}}, ["train.batch_size", "True (bool)", "expected int"]),
        ({"train": {"batch_size": "5"}}, ["train.batch_size", "'5' (str)", "expected int"]),
        ({"train": {"duration": 5}}, ["train.duration", "given 5", "'<whole number> steps'"]),
        ({"train": {"duration": "5 minutes"}}, ["train.duration", "'5 minutes'"]),
        ({"model": {"dropout": False}}, ["model.dropout", "False (bool)", "expected float"]),
        ({"model": {"preset": 1}}, ["model.preset", "1 (int)", "expected str"]),
        ({"data": {"options": {"lengths": "ab"}}}, ["data.options.lengths", "'ab' (str)", "tuple"]),
        (
            {"data": {"options": {"lengths": [1.5, 2]}}},
            ["data.options.lengths", "1.5 (float)", "int"],
        ),
        (
            {"modalities": {"a": {"length": 3, "feature_dim": 1, "k": True}}},
            ["modalities.a.k", "True (bool)", "expected int"],
        ),
    ],
)
def test_from_dict_errors(changes, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(changes)
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_unknown_entry_of_a_config_dict_is_found_too():
    given = config_dict(Config())
    with given.unlocked():
        given.train.warmup = 3
    with pytest.raises(ConfigError, match=r"train\.warmup: given, but there is no such setting"):
        from_dict(given)


def test_defaults_come_from_the_dataclasses_alone():
    assert from_dict({}) == Config()
    assert from_dict({"train": {}, "model": {}, "data": {}, "modalities": {}}) == Config()
    assert from_dict({"optimizer": {"learning_rate": 1}}).optimizer == settings.OptimizerConfig(
        learning_rate=1.0
    )
    assert isinstance(from_dict({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate, float)
    options = {"source": "arrays", "options": {"path": "x.npz"}}
    assert from_dict({"data": options}).data.options == settings.ArraysOptions(path="x.npz")
    given = {"a": {"length": 12, "feature_dim": 6, "k": 3}}
    assert from_dict({"modalities": given}).modalities == (spec(),)
    # Nothing but the given entries differs from the defaults.
    assert dataclasses.replace(from_dict({"train": {"seed": 3}}), train=Config().train) == Config()


# --- the files in configs/ ------------------------------------------------------------------------


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


# File -> classes of its data (where the file leaves them to it) and parameters, or None where the
# modalities too come from the data. A new file needs a new line.
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
PARAMETERS = {"arrays": None, "smartwatch": (7, 139_063), "synthetic": (4, 64_708)}


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
    if PARAMETERS[path.stem] is None:
        assert config.modalities == ()
        return
    classes, expected = PARAMETERS[path.stem]
    model = dataclasses.replace(config.model, num_classes=config.model.num_classes or classes)
    assert parameter_count(dataclasses.replace(config, model=model)) == expected


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


def test_source_without_options_takes_the_options_of_that_source():
    assert from_dict({"data": {"source": "arrays"}}).data.options == settings.ArraysOptions()
