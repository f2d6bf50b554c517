import dataclasses
import json
import math

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from sft_jax.config import data as data_config
from sft_jax.config import run as settings
from sft_jax.config.io import config_dict, from_dict, override, to_dict
from sft_jax.config.modality import COUNTING_POOLS, POOLS, TOKENIZERS, ModalitySpec
from sft_jax.config.model import OPTIONS, ConcatOptions
from sft_jax.config.run import (
    Config,
    Duration,
    MixupConfig,
    ModelConfig,
)
from sft_jax.models.registry import MODELS
from sft_jax.types import ConfigError


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
    tubelet = draw(st.tuples(*[st.integers(1, 3)] * 3)) if tokenizer == "tubelet" else (1, 1, 1)
    frame = (tubelet[1], columns * tubelet[2], 3) if tokenizer == "tubelet" else (1, 1, 1)
    features = math.prod(frame) if tokenizer == "tubelet" else columns * patch[1]
    tokens = rows * (columns if tokenizer in ("patch", "tubelet") else 1)
    pool = draw(st.sampled_from(tuple(POOLS)))
    size = draw(st.integers(1, tokens))
    sizes = {"k": size} if pool in COUNTING_POOLS else {"window": size}
    return {
        "name": name,
        "length": rows * patch[0] * tubelet[0],
        "feature_dim": features,
        "tokenizer": tokenizer,
        "patch": patch,
        "frame": frame,
        "tubelet": tubelet,
        "pool": pool,
        **(sizes if pool != "none" else {}),
    }


option_values = {
    "modality": names,
    "window": st.integers(0, 9),
    "duplicate_cls": st.booleans(),
    "num_bottlenecks": st.integers(1, 9),
    "exchange": st.sampled_from(["sequential", "average"]),
    "fuse_at": st.integers(-1, 20),
}


@st.composite
def models(draw):
    """A name, options of that model, and an attention that goes with both."""
    name = draw(st.sampled_from(tuple(OPTIONS)))
    fields = (field.name for field in dataclasses.fields(OPTIONS[name]))
    options = {key: draw(option_values[key]) for key in fields}
    model = {"name": name, "options": options}
    fixed = MODELS[name].supports_fixed_attention and not options.get("duplicate_cls", False)
    if fixed and draw(st.booleans()):
        model["attention"] = "fixed"
        model["stride"] = draw(st.integers(1, 64))
        model["expressivity"] = draw(st.integers(1, 16))
    return model


@st.composite
def mixups(draw, model):
    """Mixup, the batch that it cuts into groups, and the micro-batches that hold whole ones."""
    depths = {"within": model["num_pre_layers"], "fused": model["num_post_layers"]}
    depths["any"] = sum(depths.values())
    modes = [
        mode for mode, depth in depths.items() if depth and MODELS[model["name"]].supports_mixup
    ]
    accumulate, factor = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    groups = accumulate * factor
    mixup = {
        "mode": draw(st.sampled_from(["none", *modes])),
        "alpha": draw(st.floats(1e-3, 100)),
        "warmup": draw(durations),
        "groups": groups,
    }
    return mixup, {"batch_size": groups * draw(st.integers(2, 5)), "accumulate": accumulate}


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
            ("mult_pickle", {"path": "~/x.pkl", "dataset": "iemocap", "emotion": "sad"}),
            ("mmsa_pickle", {"path": "x.pkl", "target": "T"}),
            ("vggsound_hdf5", {"train_path": "x", "modalities": ("flow",), "split_seed": 3}),
            ("synthetic", {**synthetic, "noise": 0.125}),
        ]
    )
    model = {
        **draw(models()),
        "num_pre_layers": draw(st.integers(0, 4)),
        "num_post_layers": draw(st.integers(0, 4)),
    }
    if "fuse_at" in model["options"]:
        depth = model["num_pre_layers"] + model["num_post_layers"]
        model["options"]["fuse_at"] = min(depth, model["options"]["fuse_at"])
    mixup, batches = draw(mixups(model))
    return {
        "modalities": [draw(modality(name)) for name in chosen],
        "model": {
            **model,
            "preset": draw(st.sampled_from(["paper", "modern"])),
            "embed_dim": heads * draw(st.integers(1, 9)),
            "num_heads": heads,
            "dropout": draw(st.floats(0, 0.9)),
            "dtype": draw(st.sampled_from(["float32", "bfloat16"])),
        },
        "source": draw(source),
        "augment": {"jitter": draw(number)},
        "mixup": mixup,
        "optimizer": {"learning_rate": draw(number), "warmup": draw(durations)},
        "train": {
            **batches,
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
    optimizer, train, mixup = (
        {k: Duration(*v) if k in times else v for k, v in given[part].items()}
        for part in ("optimizer", "train", "mixup")
    )
    model = dict(given["model"])
    model["options"] = OPTIONS[model["name"]](**model["options"])
    return Config(
        modalities=modalities,
        model=ModelConfig(**model),
        mixup=MixupConfig(**mixup),
        data=data_config.DataConfig(
            source=source, options=data_config.OPTIONS[source](**options), normalization="rms"
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
        "--config.model.options.window=3",
        "--config.model.name=concat",
        "--config.mixup.warmup=2 epochs",
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
    assert (made.model.name, made.model.options) == ("concat", ConcatOptions(window=3))
    assert made.mixup == MixupConfig(warmup=Duration(2.0, "epochs"))


def test_the_dict_for_the_command_line_is_locked():
    with pytest.raises(AttributeError, match="learning_rat"):
        config_dict(Config()).optimizer.learning_rat = 1.0


# --- what `from_dict` refuses -------------------------------------------------------------------

SHAPE = {"length": 4, "feature_dim": 4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trian": {}}, ["trian", "did you mean 'train'?", "modalities, task, model"]),
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
        ({"mixup": {"warm_up": 3}}, ["mixup.warm_up", "did you mean 'warmup'?", "groups"]),
        ({"mixup": {"warmup": 3}}, ["mixup.warmup", "given 3", "'<number> epochs'"]),
        ({"mixup": {"alpha": "0.3"}}, ["mixup.alpha", "'0.3' (str)", "expected float"]),
        ({"mixup": "any"}, ["mixup", "'any' (str)", "MixupConfig"]),
        ({"model": {"options": 3}}, ["model.options", "3 (int)", "NoOptions"]),
        (
            {"model": {"name": "unimodal", "options": {"modal": "a"}}},
            ["model.options.modal", "'modality'?"],
        ),
        (
            {"model": {"options": {"window": 2}}},
            ["model.options.window", "no such setting; expected one of none"],
        ),
        (
            {"model": {"name": "concat", "options": {"window": 2.0}}},
            ["model.options.window", "2.0 (float)", "int"],
        ),
        ({"model": {"stride": "8"}}, ["model.stride", "'8' (str)", "expected int"]),
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
    assert from_dict({"data": options}).data.options == data_config.ArraysOptions(path="x.npz")
    given = {"a": {"length": 12, "feature_dim": 6, "k": 3}}
    assert from_dict({"modalities": given}).modalities == (spec(),)
    # Nothing but the given entries differs from the defaults.
    assert dataclasses.replace(from_dict({"train": {"seed": 3}}), train=Config().train) == Config()


def test_source_without_options_takes_the_options_of_that_source():
    assert from_dict({"data": {"source": "arrays"}}).data.options == data_config.ArraysOptions()


def test_overrides_are_those_of_a_command_line():
    given = Config(modalities=(spec(), spec(name="b")))
    changed = override(
        given,
        {
            "train.duration": "12 epochs",
            "modalities.b.pool": "max",
            "modalities.b.k": 0,
            "modalities.b.window": 4,
            "model": {"embed_dim": 80},
        },
    )
    assert changed.train == dataclasses.replace(given.train, duration=Duration(12.0, "epochs"))
    assert changed.modalities == (spec(), spec(name="b", pool="max", k=None, window=4))
    assert changed.model == ModelConfig(embed_dim=80)
    assert override(given, {}) == given


@pytest.mark.parametrize(
    "path", ["train.epochs", "modalities.c.k", "train.duration.value", "", "train.seed."]
)
def test_an_override_that_leads_nowhere_is_an_error(path):
    with pytest.raises(ConfigError, match=f"^{path}: given, but there is no such setting"):
        override(Config(modalities=(spec(),)), {path: 1})


def test_all_of_no_modalities_is_an_error():
    with pytest.raises(ConfigError, match=r"modalities.\*.k: given .* data name its modalities"):
        override(Config(), {"modalities.*.k": 3})


def test_an_override_of_the_wrong_type_names_its_path():
    with pytest.raises(ConfigError, match=r"train\.seed: given 'x' \(str\), expected int"):
        override(Config(), {"train.seed": "x"})
