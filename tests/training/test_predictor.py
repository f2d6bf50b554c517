"""A run on a user's own arrays, opened for prediction: one training run serves all tests here."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from run_fixtures import training_on_one_device

import sft_jax
from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, Duration, ModelConfig, OptimizerConfig, TrainConfig
from sft_jax.data.pipeline import Normalizer
from sft_jax.data.records import ModalityStatistics
from sft_jax.models import registry
from sft_jax.runs import run_files
from sft_jax.tasks.classification import Classification
from sft_jax.training import session
from sft_jax.training.predictor import Predictor
from sft_jax.types import CheckpointError, ConfigError, DataError

TASK = Classification(class_names=("x", "y", "z"))
SHAPES = {"audio": (20, 5), "video": (9, 6), "words": (7,)}


def make_arrays(n, seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    arrays = {
        name: rng.normal(size=(n, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
        if len(shape) == 2
    }
    arrays["audio"][:, :5] += 2 * np.eye(3, 5)[label][:, None]
    arrays["words"] = rng.integers(0, 11, (n, 7))
    return arrays, label


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    arrays, label = make_arrays(90, seed=0)
    arrays["words"][0, 0] = 10  # so that the vocabulary is known to be 11
    np.savez(folder / "mine.npz", label=label, **arrays)
    config = Config(
        model=ModelConfig(
            preset="modern", embed_dim=16, num_heads=2, num_pre_layers=1, num_post_layers=1
        ),
        data=DataConfig(
            source="arrays",
            options=ArraysOptions(path=str(folder / "mine.npz"), class_names=("a", "b", "c")),
            data_dir=str(folder / "prepared"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(duration=Duration(9.0, "epochs"), batch_size=16),
    )
    with training_on_one_device():
        session.train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def predictor(trained):
    return sft_jax.load(trained)


def test_predicts_what_evaluation_predicts(trained, predictor):
    evaluation = session.evaluate(trained, "test")
    records = evaluation.session.source.split("test")
    arrays = {name: np.stack([r["inputs"][name] for r in records]) for name in SHAPES}
    prediction = predictor.predict({**arrays, "id": evaluation.predictions["id"]})
    np.testing.assert_allclose(
        prediction.probabilities, evaluation.predictions["probabilities"], atol=1e-6
    )
    assert prediction.id.tolist() == evaluation.predictions["id"].tolist()
    for name in SHAPES:
        np.testing.assert_array_equal(
            prediction.kept[name].indices, evaluation.predictions[f"kept/{name}/indices"]
        )


def test_learned_what_the_arrays_say(predictor):
    arrays, label = make_arrays(60, seed=1)
    prediction = predictor.predict(arrays)
    assert (prediction.predicted == label).mean() > 0.8
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, atol=1e-5)
    assert prediction.class_names == ("a", "b", "c")


def test_batch_size_changes_no_number(predictor):
    arrays, _ = make_arrays(9, seed=2)
    together = predictor.predict(arrays).probabilities
    alone = [
        predictor.predict({name: x[i : i + 1] for name, x in arrays.items()}).probabilities[0]
        for i in range(9)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_sizes_up_to_a_power_of_two_share_one_program(trained):
    predictor = sft_jax.load(trained)
    for size in (5, 6, 7, 8):
        predictor.predict(make_arrays(size, seed=3)[0])
    assert predictor._outputs._cache_size() == 1
    predictor.predict(make_arrays(9, seed=3)[0])
    assert predictor._outputs._cache_size() == 2


def test_more_samples_than_the_largest_batch_come_back_in_order(predictor, monkeypatch):
    arrays, _ = make_arrays(19, seed=4)
    whole = predictor.predict(arrays)
    monkeypatch.setattr("sft_jax.training.predictor.LARGEST_BATCH", 8)
    pieces = predictor.predict(arrays)
    assert pieces.id.tolist() == [str(i) for i in range(19)]
    np.testing.assert_allclose(whole.probabilities, pieces.probabilities, atol=1e-5)


def test_kept_tokens_are_the_most_salient_first(predictor):
    kept = predictor.predict(make_arrays(4, seed=5)[0]).kept["audio"]
    assert kept.indices.shape == (4, 3)  # an eighth of 20, rounded up
    assert (np.diff(kept.saliency, axis=1) <= 0).all()
    assert ((kept.indices >= 0) & (kept.indices < 20)).all()


def test_pools_that_draw_are_saved_without_saliency(tmp_path):
    """From the pool to the file, through the step that evaluation runs as well."""
    spec = ModalitySpec(name="a", length=6, feature_dim=2, pool="random", k=2)
    model = ModelConfig(num_classes=3, embed_dim=8, num_heads=2, num_post_layers=1)
    config = Config(modalities=(spec,), model=model)
    x = np.random.default_rng(0).normal(size=(3, 6, 2)).astype(np.float32)
    built = registry.build(config)
    mask = np.ones((3, 6), bool)
    params = jax.jit(built.init)(jax.random.key(0), {"a": x}, {"a": mask})["params"]
    moments = ModalityStatistics(mean=(0.0, 0.0), std=(1.0, 1.0), rms=1.0, count=1)
    normalizer = Normalizer.from_statistics({"a": moments}, "none")
    prediction = Predictor(config, params, normalizer, TASK).predict({"a": x})
    assert prediction.kept["a"].indices.shape == (3, 2)
    assert prediction.kept["a"].saliency is None
    prediction.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["kept/a/indices"], prediction.kept["a"].indices)
        assert "kept/a/saliency" not in saved


def test_a_modality_left_out_is_one_masked_out(predictor):
    arrays, _ = make_arrays(4, seed=6)
    masked = predictor.predict({**arrays, "mask/video": np.zeros((4, 9), bool)})
    left_out = predictor.predict({name: x for name, x in arrays.items() if name != "video"})
    np.testing.assert_array_equal(masked.probabilities, left_out.probabilities)
    assert (left_out.kept["video"].indices == -1).all()


def test_shorter_sequences_are_padded(predictor):
    arrays, _ = make_arrays(4, seed=7)
    short = predictor.predict({**arrays, "audio": arrays["audio"][:, :13]})
    masked = predictor.predict({**arrays, "length/audio": np.full(4, 13)})
    np.testing.assert_allclose(short.probabilities, masked.probabilities, atol=1e-6)


def test_saved_predictions_hold_everything(predictor, tmp_path):
    prediction = predictor.predict(make_arrays(3, seed=8)[0])
    prediction.save(tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as file:
        names = {"id", "probabilities", "predicted", "class_names"}
        names |= {f"kept/{m}/{part}" for m in SHAPES for part in ("indices", "saliency")}
        assert set(file.files) == names
        np.testing.assert_array_equal(file["predicted"], prediction.predicted)
        np.testing.assert_array_equal(file["kept/audio/indices"], prediction.kept["audio"].indices)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"radar": np.zeros((2, 3, 1))},
            "found radar, expected at least one of audio, video",
        ),
        ({"audio": np.zeros((2, 20, 5)), "vidoe": np.zeros((2, 9, 6))}, r"remove \['vidoe'\]"),
        ({"audio": np.zeros((2, 21, 5))}, "21"),
        ({"audio": np.zeros((2, 20, 4))}, "4"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(predictor, arrays, message):
    with pytest.raises((DataError, ValueError), match=message):
        predictor.predict(arrays)


class Column:
    """A column as pandas has it: not an array, but NumPy makes an array of Python objects of it."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=object)


def test_lists_columns_and_jax_arrays_are_taken_as_numpy_arrays_are(predictor):
    arrays, _ = make_arrays(3, seed=11)
    given = {**arrays, "length/audio": np.array([20, 3, 7]), "id": np.array(["x", "y", "z"])}
    expected = predictor.predict(given)
    lists = {key: values.tolist() for key, values in given.items()}
    columns = lists | {key: Column(lists[key]) for key in ("length/audio", "id")}
    on_device = {key: v if key == "id" else jax.numpy.asarray(v) for key, v in given.items()}
    for same in (lists, columns, on_device):
        found = predictor.predict(same)
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        assert found.id.tolist() == ["x", "y", "z"]


def test_what_is_no_array_is_refused_by_name(predictor):
    arrays, _ = make_arrays(2, seed=11)
    with pytest.raises(DataError, match=r"audio: found list .*pad sequences to one length"):
        predictor.predict({**arrays, "audio": [[[0.0] * 5] * 20, [[0.0] * 5] * 19]})
    with pytest.raises(DataError, match=r"id: found Column of object, expected an array"):
        predictor.predict({**arrays, "id": Column(["x", float("nan")])})
    with pytest.raises(DataError, match=r"found ndarray, expected a dict of arrays by name"):
        predictor.predict(arrays["audio"])


def test_entries_beside_the_data_are_left_out_as_in_training(predictor):
    arrays, label = make_arrays(5, seed=12)
    expected = predictor.predict(arrays).probabilities
    beside = {"onehot": np.eye(3, dtype=int)[label], "age": np.arange(5.0)}
    other = {"radar": np.ones((5, 4, 2)), "length/radar": np.ones(5, int)}
    labels = {"label": np.full(5, np.nan), "split": ["?"] * 5}  # not looked at
    for more in (beside, other, labels):
        table = predictor.table({**arrays, **more})
        np.testing.assert_array_equal(predictor.predict_table(table).probabilities, expected)
        names = [name for name in more if "/" not in name and name not in labels]
        assert [text.split()[1] for text in table.remarks] == names


def test_evaluation_refuses_other_data_than_the_run_was_trained_on(trained, tmp_path):
    for entry in ("config.json", "data.json"):
        (tmp_path / entry).write_text((trained / entry).read_text())
    data = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps({**data, "fingerprint": "other"}))
    with pytest.raises(CheckpointError, match="expected other, which the run was trained on"):
        session.evaluate(tmp_path)


def test_evaluation_needs_no_devices_of_the_training(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["train"] |= {"data_parallel": 64, "batch_size": 13}
    path.write_text(json.dumps(config))
    moved = session.evaluate(tmp_path / "run", "valid")
    here = session.evaluate(trained, "valid")
    np.testing.assert_allclose(
        moved.predictions["probabilities"], here.predictions["probabilities"], atol=1e-6
    )


def test_checkpoint_says_what_it_is(trained):
    saved = list((trained / "checkpoints" / "best").glob("*/config/metadata"))
    assert len(saved) == 1
    assert json.loads(saved[0].read_text()) == json.loads((trained / "config.json").read_text())


def test_plateau_needs_a_validation_split(trained, tmp_path):
    config = run_files.read_config(trained)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, options=dataclasses.replace(config.data.options, valid_fraction=0.0)
        ),
        optimizer=dataclasses.replace(config.optimizer, schedule="plateau"),
    )
    with pytest.raises(ConfigError, match="'plateau' for data without a validation split"):
        session.train(config, tmp_path)


def test_needs_a_run_folder(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape("found no config.json")):
        sft_jax.load(tmp_path)


def test_a_run_does_not_go_on_with_its_modalities_in_another_order(trained):
    config = run_files.read_config(trained)
    turned = dataclasses.replace(config, modalities=config.modalities[::-1])
    with pytest.raises(CheckpointError, match=r"order of modalities .*audio.* -> .*words"):
        run_files.open_run(trained, turned, run_files.read_data(trained))


def test_needs_a_checkpoint(trained, tmp_path):
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_text((trained / name).read_text())
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        sft_jax.load(tmp_path)


def test_package_has_no_other_lazy_names():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = sft_jax.lode


@pytest.mark.slow
def test_verbs_predict_and_evaluate_and_report_from_the_command_line(trained, tmp_path):
    arrays, _ = make_arrays(5, seed=9)
    np.savez(tmp_path / "x.npz", **arrays)

    def verb(name, *flags):
        command = [sys.executable, "-m", f"sft_jax.{name}", f"--workdir={trained}", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = verb("predict", f"--input={tmp_path / 'x.npz'}", f"--output={tmp_path / 'y.npz'}")
    assert done.returncode == 0, done.stderr
    assert "5 samples" in done.stdout
    assert np.load(tmp_path / "y.npz")["probabilities"].shape == (5, 3)
    done = verb("evaluate", "--split=valid")
    assert done.returncode == 0, done.stderr
    assert re.search(r"top1 +\| sample +\| +\d", done.stdout)
    ablation = json.loads((trained / "ablation_valid.json").read_text())
    assert list(ablation["without"]) == list(SHAPES)
    done = verb("report")
    assert done.returncode == 0, done.stderr
    text = (trained / "report.md").read_text()
    assert "kept_tokens.png" in text
    for modality in SHAPES:
        assert f"| without {modality} " in text
    assert (trained / "report.html").is_file()
    missing = verb("evaluate", "--split=valid", "--workdir=nowhere")
    assert missing.returncode != 0
    assert missing.stderr.strip().startswith("CheckpointError: ")
    assert "Traceback" not in missing.stderr


def test_resolved_configuration_is_kept(trained, predictor):
    assert [spec.name for spec in predictor.config.modalities] == list(SHAPES)
    assert predictor.config.model.num_classes == 3
    assert dataclasses.asdict(predictor.config.modalities[2])["tokenizer"] == "token"


def test_another_pool_is_that_of_the_configuration_with_the_same_parameters(trained, predictor):
    arrays, _ = make_arrays(4, seed=9)
    same = predictor.with_pools("attn_topk", 3).predict(arrays)
    before = predictor.predict(arrays)
    np.testing.assert_array_equal(same.kept["audio"].indices, before.kept["audio"].indices)
    # Most salient first: fewer tokens are the first of more, and all of them a permutation.
    all_of_them = predictor.with_pools("attn_topk", 100).predict(arrays).kept
    np.testing.assert_array_equal(all_of_them["audio"].indices[:, :3], before.kept["audio"].indices)
    for name, shape in SHAPES.items():
        tokens = np.sort(all_of_them[name].indices, axis=1)
        np.testing.assert_array_equal(tokens, np.tile(np.arange(shape[0]), (4, 1)))


@pytest.mark.parametrize(
    ("pool", "k", "handed_on"),
    [
        ("max", 4, {"audio": 4, "video": 4, "words": 7}),
        ("random", 8, {"audio": 8, "video": 8, "words": 7}),
        ("none", None, {"audio": 20, "video": 9, "words": 7}),
    ],
)
def test_a_pool_hands_on_what_is_asked_for(predictor, pool, k, handed_on):
    opened = predictor.with_pools(pool, k)
    assert {s.name: s.num_pooled for s in opened.config.modalities} == handed_on
    assert {s.pool for s in opened.config.modalities} == {pool}
    total = opened.predict(make_arrays(2, seed=10)[0]).probabilities.sum(axis=1)
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_a_pool_without_its_count_and_a_model_without_pools_are_errors(predictor):
    with pytest.raises(ConfigError, match="given k=None for pool 'cls_topk', expected 1"):
        predictor.with_pools("cls_topk")
    with pytest.raises(ConfigError, match="pool: given 'best', expected one of"):
        predictor.with_pools("best", 3)
    model = dataclasses.replace(predictor.config.model, name="mbt")
    config = dataclasses.replace(predictor.config, model=model)
    other = Predictor(config, {}, Normalizer(kind="none", shift={}, scale={}), TASK)
    with pytest.raises(ConfigError, match="given a run of model 'mbt', expected 'sft'"):
        other.with_pools("attn_topk", 3)
