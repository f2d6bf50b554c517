import pytest

from sft_jax.config import data as data_config
from sft_jax.config import model as model_config
from sft_jax.config import run as settings
from sft_jax.config.modality import POOLS, TOKENIZERS, ModalitySpec
from sft_jax.config.run import Config, Duration
from sft_jax.types import ConfigError


def spec(**changes):
    return ModalitySpec(**{"name": "a", "length": 12, "feature_dim": 6, "k": 3, **changes})


# --- errors: given, expected, and to do ---------------------------------------------------------


VIDEO = {"tokenizer": "tubelet", "frame": (1, 2, 3)}


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
        ({"tubelet": (2, 1, 1)}, ["tubelet (2, 1, 1)", "'feature'", "(1, 1, 1)", "'tubelet'"]),
        ({"frame": (1, 2, 3)}, ["frame (1, 2, 3)", "'feature'", "set tokenizer='tubelet'"]),
        ({"tokenizer": "tubelet", "patch": (2, 1)}, ["patch (2, 1)", "set tokenizer='patch'"]),
        ({"tokenizer": "tubelet"}, ["frame (1, 1, 1)", "feature_dim 6", "product"]),
        ({**VIDEO, "frame": (-1, -2, 3)}, ["frame (-1, -2, 3)", "feature_dim 6", "set"]),
        ({**VIDEO, "tubelet": (5, 1, 1)}, ["tubelet (5, 1, 1)", "length 12", "of 12", "pad"]),
        ({**VIDEO, "tubelet": (4, 2, 1)}, ["tubelet (4, 2, 1)", "height 1", "divisor of 1"]),
        ({**VIDEO, "tubelet": (4, 1, 0)}, ["tubelet (4, 1, 0)", "width 2", "divisor of 2"]),
        ({**VIDEO, "tubelet": (4, 1, 1), "k": 7}, ["k=7", "1 to 6"]),
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
        ("ModelConfig", {"name": "resnet"}, ["model.name", "'resnet'", "sft", "mbt", "mult"]),
        ("ModelConfig", {"attention": "sparse"}, ["model.attention", "'sparse'", "dense", "fixed"]),
        ("ModelConfig", {"attention": "fixed", "stride": 0}, ["model.stride", "at least 1"]),
        ("ModelConfig", {"attention": "fixed", "expressivity": 0}, ["model.expressivity", "least"]),
        ("MbtOptions", {"exchange": "x"}, ["model.options.exchange", "'x'", "average"]),
        ("ConcatOptions", {"window": -1}, ["model.options.window", "-1", "at least 0"]),
        ("MbtOptions", {"num_bottlenecks": 0}, ["options.num_bottlenecks", "at least 1"]),
        ("MbtOptions", {"fuse_at": -2}, ["model.options.fuse_at", "-2", "at least -1"]),
        ("MixupConfig", {"mode": "all"}, ["mixup.mode", "'all'", "none, any, within, fused"]),
        ("MixupConfig", {"alpha": 0.0}, ["mixup.alpha", "0.0", "at least 0.001"]),
        ("MixupConfig", {"alpha": float("inf")}, ["mixup.alpha", "inf", "finite"]),
        ("MixupConfig", {"groups": 0}, ["mixup.groups", "given 0", "at least 1"]),
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
        ("ArraysOptions", {"split_seed": -1}, ["data.options.split_seed", "-1", "at least 0"]),
        ("MultPickleOptions", {"dataset": "cmu"}, ["data.options.dataset", "'cmu'", "iemocap"]),
        ("MultPickleOptions", {"emotion": "joy"}, ["data.options.emotion", "'joy'", "angry"]),
        ("MmsaPickleOptions", {"target": "text"}, ["data.options.target", "'text'", "T, A, V, M"]),
        ("VggsoundHdf5Options", {"modalities": ()}, ["data.options.modalities", "()", "spect"]),
        ("VggsoundHdf5Options", {"valid_fraction": 2.0}, ["valid_fraction", "2.0", "0 and 1"]),
        ("VggsoundHdf5Options", {"split_seed": -1}, ["data.options.split_seed", "-1"]),
        ("DataConfig", {"source": "mmsa_pickle"}, ["'mmsa_pickle'", "MmsaPickleOptions"]),
        ("DataConfig", {"source": "web"}, ["data.source", "'web'", "synthetic", "arrays"]),
        ("DataConfig", {"normalization": "l2"}, ["data.normalization", "'l2'", "rms"]),
        ("DataConfig", {"source": "arrays"}, ["SyntheticOptions", "'arrays'", "ArraysOptions"]),
        ("DataConfig", {"prefetch": 0}, ["data.prefetch", "at least 1"]),
        ("SmartwatchOptions", {"folds": 2}, ["data.options.folds", "2 of subjects", "3 to 10"]),
        ("SmartwatchOptions", {"folds": 11}, ["11 of subjects", "3 to 10"]),
        ("SmartwatchOptions", {"fold": 1}, ["data.options.fold", "1 of 0 folds", "below 1"]),
        ("SmartwatchOptions", {"folds": 5, "fold": 5}, ["5 of 5 folds", "below 5"]),
        ("SmartwatchOptions", {"held_out": "time"}, ["'time' without folds", "stretches"]),
        ("SmartwatchOptions", {"held_out": "arm"}, ["'arm'", "subjects, time"]),
        ("SmartwatchOptions", {"folds": 5, "test_subjects": 3}, ["3 with 5 folds", "leave it"]),
        ("AugmentConfig", {"hide": 1.5}, ["augment.hide", "1.5", "between 0 and 1"]),
        ("AugmentConfig", {"mirror_polar": ("a",), "mirror_axial": ("a",)}, ["a in both", "one"]),
        ("AugmentConfig", {"jitter": -0.1}, ["augment.jitter", "-0.1", "at least 0"]),
        ("OptimizerConfig", {"schedule": "step"}, ["optimizer.schedule", "'step'", "plateau"]),
        ("OptimizerConfig", {"learning_rate": -1.0}, ["optimizer.learning_rate", "-1.0"]),
        ("OptimizerConfig", {"b2": 1.1}, ["optimizer.b2", "1.1", "between 0 and 1"]),
        ("TrainConfig", {"batch_size": 0}, ["train.batch_size", "given 0", "at least 1"]),
        ("TrainConfig", {"accumulate": 5}, ["train.accumulate", "5", "24", "divisor of 24"]),
        ("TrainConfig", {"duration": Duration(0.0, "steps")}, ["train.duration", "positive"]),
        ("TrainConfig", {"eval_every": Duration(0.0, "epochs")}, ["train.eval_every", "positive"]),
        ("Config", {"modalities": (spec(), spec())}, ["['a', 'a']", "8 different names"]),
        ("Config", {"modalities": tuple(spec(name=f"m{i}") for i in range(9))}, ["8 different"]),
    ],
)
def test_setting_errors(name, changes, words):
    module = next(m for m in (data_config, model_config, settings) if hasattr(m, name))
    with pytest.raises(ConfigError) as caught:
        getattr(module, name)(**changes)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("setting", ["rotate", "mirror_polar", "mirror_axial"])
@pytest.mark.parametrize("turned", [spec(), spec(feature_dim=3, tokenizer="token"), spec(name="b")])
def test_only_three_axis_modalities_turn(turned, setting):
    other = spec(name="x", feature_dim=3)
    data = data_config.DataConfig(normalization="rms")
    degrees = {"rotation_degrees": 9.0} if setting == "rotate" else {}
    turn = {name: settings.AugmentConfig(**{setting: (name,)}, **degrees) for name in "ax"}
    with pytest.raises(ConfigError, match=rf"augment.{setting}: given 'a', .*'x'"):
        Config(modalities=(turned, other), data=data, augment=turn["a"])
    with pytest.raises(ConfigError, match=f"augment.{setting}: given with data.normalization"):
        Config(modalities=(other,), augment=turn["x"])
    Config(modalities=(turned, other), data=data, augment=turn["x"])


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
        ({**VIDEO, "tubelet": (4, 1, 1)}, (3, 1, 2), 6, 3),
        ({**VIDEO, "tubelet": (6, 1, 2), "pool": "none", "k": None}, (2, 1, 1), 2, 2),
    ],
)
def test_token_counts_by_hand(changes, grid, tokens, pooled):
    made = spec(**changes)
    assert (made.grid, made.num_tokens, made.num_pooled) == (grid, tokens, pooled)
    assert made.steps_per_token * grid[0] == 12


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


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "1st", "two words"])
def test_modality_names_must_serve_as_names_of_settings_and_parameters(name):
    with pytest.raises(ConfigError, match="expected a letter, then letters, digits"):
        spec(name=name)


@pytest.mark.parametrize("given", [0, -2])
def test_mesh_sizes_are_positive_or_minus_one(given):
    with pytest.raises(ConfigError, match=f"train.fsdp_parallel: given {given}, expected"):
        settings.TrainConfig(fsdp_parallel=given)


def test_numbers_are_finite():
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: given inf"):
        settings.OptimizerConfig(learning_rate=float("inf"))


def rotating(normalization="rms", degrees=30.0, **changes):
    return Config(
        modalities=(ModalitySpec(name="a", length=12, feature_dim=3, k=3),),
        data=data_config.DataConfig(normalization=normalization),
        augment=settings.AugmentConfig(rotate=("a",), rotation_degrees=degrees),
        **changes,
    )


def test_rotation_needs_a_frame_that_normalisation_leaves_alone():
    assert rotating().augment.rotate == ("a",)
    with pytest.raises(ConfigError, match="'channel', expected 'rms' or 'none'"):
        rotating(normalization="channel")


def test_rotation_without_an_angle_is_refused():
    with pytest.raises(ConfigError, match=r"rotation_degrees: given 0.0 with rotate"):
        rotating(degrees=0.0)


def test_rotation_may_wait_for_modalities_that_the_data_name():
    config = Config(
        data=data_config.DataConfig(normalization="rms"),
        augment=settings.AugmentConfig(rotate=("a",), rotation_degrees=30.0),
    )
    assert config.modalities == ()
