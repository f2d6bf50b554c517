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
from sft_jax.types import (
    POOLS,
    SELECTING_POOLS,
    TOKENIZERS,
    ConfigError,
    ModalitySpec,
)

CONFIGS = sorted(
    path
    for path in (Path(__file__).parent.parent / "configs").glob("*.py")
    if path.name != "__init__.py"
)


def spec(**changes):
    return ModalitySpec(**{"name": "a", "length": 12, "feature_dim": 6, "k": 3, **changes})


# --- errors: given, expected, and to do ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "words"}, ["modality 'a': tokenizer", "'words'", *TOKENIZERS]),
        ({"pool": "topk"}, ["modality 'a': pool", "'topk'", *POOLS]),
        ({"length": 0}, ["'a'", "length 0", "at least 1", "set them"]),
        ({"feature_dim": 0}, ["'a'", "feature_dim 0", "at least 1", "set them"]),
        ({"k": None}, ["'a'", "k=None", "'attn_topk'", "1 to 12", "set k"]),
        ({"k": 0}, ["k=0", "1 to 12"]),
        ({"k": 13}, ["k=13", "1 to 12"]),
        ({"window": 2}, ["window=2", "'attn_topk'", "set it to None"]),
        ({"pool": "max"}, ["window=None", "'max'", "1 to 12", "set window"]),
        ({"pool": "max", "window": 13}, ["window=13", "1 to 12"]),
        ({"pool": "avg", "window": 2}, ["k=3", "'avg'", "set it to None"]),
        ({"pool": "none"}, ["k=3", "'none'", "remove them"]),
        ({"pool": "none", "k": None, "window": 2}, ["window=2", "'none'", "remove them"]),
        ({"patch": (2, 1)}, ["(2, 1)", "'feature'", "(1, 1)", "set tokenizer='patch'"]),
        ({"tokenizer": "patch", "patch": (5, 6)}, ["(5, 6)", "length 12", "divisor of 12", "pad"]),
        ({"tokenizer": "patch", "patch": (4, 4)}, ["(4, 4)", "feature_dim 6", "divisor of 6"]),
        ({"tokenizer": "patch", "patch": (0, 6)}, ["(0, 6)", "length 12"]),
        ({"tokenizer": "patch", "patch": (4, 6), "k": 4}, ["k=4", "1 to 3"]),
    ],
)
def test_modality_errors(changes, words):
    with pytest.raises(ConfigError) as caught:
        spec(**changes)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("ModelConfig", {"preset": "new"}, ["model.preset", "'new'", "paper", "modern"]),
        ("ModelConfig", {"implementation": "x"}, ["model.implementation", "'x'", "streamed"]),
        ("ModelConfig", {"dtype": "float16"}, ["model.dtype", "'float16'", "bfloat16"]),
        ("ModelConfig", {"embed_dim": 0}, ["model.embed_dim", "given 0", "at least 1"]),
        ("ModelConfig", {"num_post_layers": -1}, ["model.num_post_layers", "-1", "at least 0"]),
        ("ModelConfig", {"dropout": 1.0}, ["model.dropout", "1.0", "0 and 0.9"]),
        ("ModelConfig", {"dropout": float("nan")}, ["model.dropout", "nan"]),
        ("ModelConfig", {"num_heads": 3}, ["num_heads", "3", "40", "divisor of 40", "change one"]),
        ("SmartwatchOptions", {"window": 0}, ["data.options.window", "given 0", "at least 1"]),
        ("SmartwatchOptions", {"test_subjects": 8}, ["8 test", "2 validation", "at most 9"]),
        ("SyntheticOptions", {"lengths": (1,)}, ["1 lengths", "2 feature_dims", "1 to 8"]),
        ("SyntheticOptions", {"lengths": (), "feature_dims": ()}, ["0 lengths", "1 to 8"]),
        ("SyntheticOptions", {"lengths": (4,) * 9, "feature_dims": (1,) * 9}, ["9 lengths"]),
        ("SyntheticOptions", {"lengths": (4, 0)}, ["(4, 0)", "at least 1"]),
        ("SyntheticOptions", {"num_classes": 1}, ["data.options.num_classes", "at least 2"]),
        ("SyntheticOptions", {"missing_rate": 1.5}, ["missing_rate", "1.5", "between 0 and 1"]),
        ("ArraysOptions", {"valid_fraction": 0.6, "test_fraction": 0.4}, ["0.6", "0.4", "below 1"]),
        ("DataConfig", {"source": "web"}, ["data.source", "'web'", "synthetic", "arrays"]),
        ("DataConfig", {"normalization": "l2"}, ["data.normalization", "'l2'", "rms"]),
        ("DataConfig", {"source": "arrays"}, ["SyntheticOptions", "'arrays'", "ArraysOptions"]),
        ("DataConfig", {"prefetch": 0}, ["data.prefetch", "at least 1"]),
        ("AugmentConfig", {"jitter": -0.1}, ["augment.jitter", "-0.1", "at least 0"]),
        ("OptimizerConfig", {"schedule": "step"}, ["optimizer.schedule", "'step'", "plateau"]),
        ("OptimizerConfig", {"learning_rate": -1.0}, ["optimizer.learning_rate", "-1.0"]),
        ("OptimizerConfig", {"b2": 1.1}, ["optimizer.b2", "1.1", "between 0 and 1"]),
        ("TrainConfig", {"batch_size": 0}, ["train.batch_size", "given 0", "at least 1"]),
        ("TrainConfig", {"accumulate": 5}, ["train.accumulate", "5", "24", "divisor of 24"]),
        ("TrainConfig", {"best_metric": "f1"}, ["train.best_metric", "'f1'", "top1"]),
        ("TrainConfig", {"duration": Duration(0.0, "steps")}, ["train.duration", "positive"]),
        ("TrainConfig", {"eval_every": Duration(0.0, "epochs")}, ["train.eval_every", "positive"]),
        ("Config", {"modalities": (spec(), spec())}, ["['a', 'a']", "8 different names"]),
        ("Config", {"modalities": tuple(spec(name=str(i)) for i in range(9))}, ["8 different"]),
    ],
)
def test_setting_errors(name, changes, words):
    with pytest.raises(ConfigError) as caught:
        getattr(settings, name)(**changes)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    "rotated", [spec(), spec(feature_dim=3, tokenizer="token"), spec(name="b")]
)
def test_only_three_axis_modalities_rotate(rotated):
    other = spec(name="xyz", feature_dim=3)
    with pytest.raises(ConfigError, match=r"augment.rotate: given 'a', .*'xyz'"):
        Config(modalities=(rotated, other), augment=settings.AugmentConfig(rotate=("a",)))
    Config(modalities=(rotated, other), augment=settings.AugmentConfig(rotate=("xyz",)))


# --- derived sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "grid", "tokens", "pooled"),
    [
        ({}, (12, 1), 12, 3),
        ({"pool": "max", "k": None, "window": 5}, (12, 1), 12, 2),
        ({"pool": "none", "k": None}, (12, 1), 12, 12),
        ({"tokenizer": "token"}, (12, 1), 12, 3),
        ({"tokenizer": "patch", "patch": (4, 3)}, (3, 2), 6, 3),
        (
            {"tokenizer": "patch", "patch": (4, 3), "pool": "avg", "k": None, "window": 4},
            (3, 2),
            6,
            1,
        ),
    ],
)
def test_token_counts_by_hand(changes, grid, tokens, pooled):
    made = spec(**changes)
    assert (made.grid, made.num_tokens, made.num_pooled) == (grid, tokens, pooled)


# --- Duration -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "unit", "steps"),
    [
        ("500 steps", 500.0, "steps", 500),
        ("1 step", 1.0, "steps", 1),
        ("0 steps", 0.0, "steps", 0),
        ("1e3 steps", 1000.0, "steps", 1000),
        ("20 epochs", 20.0, "epochs", 140),
        ("1 epoch", 1.0, "epochs", 7),
        ("0.5 epochs", 0.5, "epochs", 4),
        ("0.01 epochs", 0.01, "epochs", 1),
        ("0 epochs", 0.0, "epochs", 0),
    ],
)
def test_duration_by_hand(text, value, unit, steps):
    made = Duration.parse(text)
    assert (made.value, made.unit) == (value, unit)
    # Seven steps an epoch; half of them, 3.5, rounds to 4.
    assert made.to_steps(7) == steps


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "steps", "five steps", "5 minutes", "5 s", "5 stepss", "5steps", "1 2 steps"),
        *("-1 steps", "0.5 steps", "inf steps", "nan steps", "inf epochs", "nan epochs"),
        *("1e12 steps", "1e13 epochs", 5, None, ["5", "steps"]),
    ],
)
def test_duration_errors(text):
    with pytest.raises(ConfigError) as caught:
        Duration.parse(text, "train.duration")
    message = str(caught.value)
    assert message.startswith(f"train.duration: given {text!r}, expected")
    assert "'<whole number> steps' or '<number> epochs'" in message


@pytest.mark.parametrize(
    ("value", "unit"), [(-1.0, "steps"), (1.0, "step"), (1.5, "steps"), (1.0, "")]
)
def test_duration_is_checked_however_it_is_made(value, unit):
    with pytest.raises(ConfigError, match=r"duration: given .* expected"):
        Duration(value, unit)


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
        data=settings.DataConfig(source=source, options=settings.OPTIONS[source](**options)),
        augment=settings.AugmentConfig(rotate=rotate, **given["augment"]),
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
# smartwatch, modern preset, d = 64: a norm has 2 d = 128 parameters, an attention residual
# 128 + (64 * 192 + 192) + (64 * 64 + 64) = 16768, an MLP residual of ratio 4
# 128 + (64 * 256 + 256) + (256 * 64 + 64) = 33216, a block 49984. An encoder: projection of a
# patch of 5 x 3 values 15 * 64 + 64 = 1024, CLS 64, positions (250 / 5 + 1) * 64 = 3264, two blocks
# 99968, one more attention residual 16768: 121088; two of them 242176. Two blocks after fusion
# 99968. Head for 7 classes 128 + 64 * 7 + 7 = 583. Together 342727.
#
# synthetic, d = 32: attention residual 64 + 3168 + 1056 = 4288, MLP residual 64 + 4224 + 4128 =
# 8416, block 12704. Encoders 224 + 32 + 49 * 32 + 12704 + 4288 = 18816 and
# 160 + 32 + 97 * 32 + 12704 + 4288 = 20288; fusion 25408; head 64 + 32 * 4 + 4 = 196: 64708.
PARAMETERS = {"arrays": None, "smartwatch": (7, 342_727), "synthetic": (4, 64_708)}


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
