"""Artefacts against the model they come from; ONNX where its libraries are installed."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from sft_jax.config.modality import POOLS, WINDOW_POOLS, ModalitySpec
from sft_jax.config.model import ConcatOptions
from sft_jax.config.run import Config, ModelConfig
from sft_jax.data.pipeline import Normalizer
from sft_jax.interop.artefacts import artefact_files, artefact_table
from sft_jax.interop.artefacts import stablehlo as stablehlo_format
from sft_jax.interop.artefacts.artefact_files import Differences
from sft_jax.tasks.classification import Classification
from sft_jax.training.predictor import Predictor
from sft_jax.types import ConfigError

TASK = Classification(class_names=("down", "up", "still"))
PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
MODEL = {"num_classes": 3, "embed_dim": 8, "num_heads": 2, "num_pre_layers": 0}


def spec(name, pool="attn_topk", **changes):
    size = {"window": 3} if pool in WINDOW_POOLS else {} if pool == "none" else {"k": 3}
    return ModalitySpec(
        **{"name": name, "length": 9, "feature_dim": 4, "pool": pool} | size | changes
    )


def config(*specs, **changes):
    return Config(modalities=specs, model=ModelConfig(**{**MODEL, "num_post_layers": 1, **changes}))


@pytest.fixture(scope="module")
def predictor():
    """A model with normalisation, as a run opens it: long enough to stream on a CPU, and ids."""
    own = config(
        spec("sound", length=132, tokenizer="patch", patch=(1, 2)),
        spec("words", "max", length=7, feature_dim=11, tokenizer="token"),
        num_pre_layers=1,
        num_post_layers=2,
    )
    drawn = stablehlo_format.Exportable.untrained(own)
    rng = np.random.default_rng(1)
    numbers = {
        part: {s.name: tuple(rng.uniform(1, 3, s.feature_dim)) for s in own.modalities}
        for part in ("shift", "scale")
    }
    normalizer = Normalizer(kind="channel", **numbers)
    return Predictor(own, drawn.params, normalizer, TASK)


@pytest.fixture(scope="module")
def model(predictor):
    return stablehlo_format.Exportable.of(predictor)


@pytest.fixture(scope="module")
def arrays(model):
    arrays = artefact_files.example(model, rows=5)
    for name in ("sound", "words"):
        lengths = arrays[f"mask/{name}"].sum(axis=1)
        assert len(set(lengths)) > 2  # ragged, and
        assert 0 in lengths  # missing altogether in some row
    return arrays


@pytest.fixture(scope="module")
def stablehlo(model, tmp_path_factory):
    return artefact_files.write(model, ["stablehlo"], tmp_path_factory.mktemp("artefact"))[
        "stablehlo"
    ]


@pytest.fixture(scope="module")
def onnx_paths(model, tmp_path_factory):
    for name in ("jax2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason="the extra 'export' is optional and not installed")
    return artefact_files.write(model, ["onnx", "onnx_int8"], tmp_path_factory.mktemp("artefact"))


def assert_predicts(outputs, predictor, arrays):
    expected = predictor.predict(arrays)
    np.testing.assert_allclose(outputs["probabilities"], expected.probabilities, atol=1e-5)
    for name, kept in expected.kept.items():
        np.testing.assert_array_equal(outputs[f"kept/{name}/indices"], kept.indices)
        np.testing.assert_allclose(outputs[f"kept/{name}/saliency"], kept.saliency, atol=1e-6)
    assert {n for n in outputs if n.startswith("kept/")} == {
        f"kept/{name}/{part}" for name in expected.kept for part in ("indices", "saliency")
    }


def test_stablehlo_predicts_from_raw_arrays_without_this_package(stablehlo, predictor, arrays):
    # The process raises on importing sft_jax, flax, and what else is not the runtime.
    with artefact_files.running(stablehlo, "stablehlo", arrays, rows=2) as run:
        assert_predicts(run.outputs, predictor, arrays)
        assert len(run.seconds(3)) == 3
        assert run.peak_bytes() >= run.runtime_bytes >= 0


def test_onnx_predicts_from_raw_arrays_without_jax(onnx_paths, predictor, arrays):
    for rows in (1, 2):
        with artefact_files.running(onnx_paths["onnx"], "onnx", arrays, rows) as run:
            assert_predicts(run.outputs, predictor, arrays)


def test_int8_predicts_the_same_classes(onnx_paths, model):
    import onnx

    arrays = artefact_files.example(model, rows=300)
    outputs = opened("onnx_int8", onnx_paths["onnx_int8"])(arrays)
    differences = Differences.between(outputs, artefact_files.reference(model, arrays))
    assert differences.predicted <= 0.01
    assert differences.probabilities > 1e-6
    kinds = {t.data_type for t in onnx.load(onnx_paths["onnx_int8"]).graph.initializer if t.dims}
    assert onnx.TensorProto.INT8 in kinds
    products = [n.op_type for n in onnx.load(onnx_paths["onnx"]).graph.node]
    assert "Einsum" not in products


def opened(kind, path):
    """An artefact as a function of a dict of arrays, in this process."""
    if kind == "stablehlo":
        return artefact_files.run_artefact.open_stablehlo(path)
    return artefact_files.run_artefact.open_onnx(path, rows=2)


def assert_rows_are_independent(call, arrays):
    """The answer for a row is the same alone, in a batch, and beside rows of any size."""
    together = call(arrays)
    alone = [call({name: x[i : i + 1] for name, x in arrays.items()}) for i in range(5)]
    louder = {name: x.copy() for name, x in arrays.items()}
    louder["sound"][0] *= 1000
    louder["sound"][4] *= 1e-3
    beside = call(louder)
    reversed_rows = call({name: x[::-1].copy() for name, x in arrays.items()})
    for name in together:
        expected = np.concatenate([outputs[name] for outputs in alone])
        np.testing.assert_allclose(together[name], expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(reversed_rows[name][::-1], expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(beside[name][1:4], expected[1:4], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["onnx", "onnx_int8"])
def test_rows_of_an_onnx_artefact_are_independent(onnx_paths, kind, arrays):
    assert_rows_are_independent(opened(kind, onnx_paths[kind]), arrays)


def test_rows_of_a_stablehlo_artefact_are_independent(stablehlo, arrays):
    assert_rows_are_independent(opened("stablehlo", stablehlo), arrays)


def test_rows_of_a_prediction_are_independent(predictor, arrays):
    def call(given):
        entries = predictor.predict(given).entries()
        return {name: entries[name] for name in entries if name not in ("id", "class_names")}

    # A sample needs at least one real step here.
    rows = np.flatnonzero(arrays["mask/sound"].any(axis=1) | arrays["mask/words"].any(axis=1))
    assert len(rows) == 5
    assert_rows_are_independent(call, arrays)


def test_quantized_columns_by_hand():
    onnx_format = pytest.importorskip(
        "sft_jax.interop.artefacts.onnx_format",
        reason="the extra 'export' is optional and not installed",
        exc_type=ImportError,
    )
    matrix = np.array([[1.27, 0.0, 200.0], [-0.642, 0.0, -254.0]], np.float32)
    values, scale = onnx_format.quantize_columns(matrix)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    np.testing.assert_array_equal(values, [[127, 0, 100], [-64, 0, -127]])
    np.testing.assert_allclose(scale, [0.01, 1.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize(("kind", "module"), [("stablehlo", "sft_jax"), ("onnx", "jax")])
def test_processes_cannot_import_what_is_not_the_runtime(tmp_path, kind, module):
    """The program is the one that the tests above run, with an import planted in it."""
    source = Path(artefact_files.run_artefact.__file__).read_text()
    planted = source.replace("    __import__(", f"    import {module}\n    __import__(")
    assert planted != source
    (tmp_path / "planted.py").write_text(planted)
    command = [sys.executable, "-P", tmp_path / "planted.py", kind, "x", "x", "x", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"import of {module} halted; None in sys.modules" in done.stderr


def test_an_artefact_that_cannot_be_read_is_named(tmp_path, model):
    path = tmp_path / "model.stablehlo"
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"model\.stablehlo: its process ended with status 1"):
        artefact_files.compared(model, path, "stablehlo")


def test_stablehlo_holds_for_three_platforms_and_any_batch_size(stablehlo):
    exported = jax.export.deserialize(bytearray(stablehlo.read_bytes()))
    assert exported.platforms == ("cpu", "tpu", "cuda")
    assert {str(x.shape[0]) for x in (*exported.in_avals, *exported.out_avals)} == {"b"}
    text = exported.mlir_module()
    # Nothing of one device's: the assertion is that of the batch size, checked when it is called.
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}
    assert "stablehlo.case" in text  # the CPU has a program of its own


def test_parameters_are_in_the_artefact_once(stablehlo, model):
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    exported = jax.export.deserialize(bytearray(stablehlo.read_bytes()))
    constants = re.findall(r'dense<"0x([0-9A-F]+)"', exported.mlir_module())
    kernel = np.asarray(
        model.params["encoder_sound"]["block_0"]["attention"]["attention"]["qkv_kernel"]
    )
    assert sum(kernel.tobytes().hex().upper() in text for text in constants) == 1
    assert stablehlo.stat().st_size < held + 250_000


FIRST, SECOND = tuple(POOLS)[:6], tuple(POOLS)[6:]


@pytest.mark.parametrize(
    "own",
    [
        config(*(spec(f"m{i}", pool) for i, pool in enumerate(FIRST))),
        config(*(spec(f"m{i}", pool) for i, pool in enumerate(SECOND))),
        config(spec("a", "cls_topk"), spec("b"), attention="fixed", stride=4, expressivity=1),
        config(spec("a"), spec("b"), name="mbt"),
        config(spec("a"), spec("b"), name="mult"),
        config(spec("a"), spec("b"), name="late"),
        config(spec("a"), spec("b"), name="concat", options=ConcatOptions(window=4)),
        config(spec("a"), dtype="bfloat16", remat="block"),
    ],
    ids=["pools", "more pools", "fixed", "mbt", "mult", "late", "concat", "bfloat16"],
)
def test_every_model_and_pool_can_be_exported(own):
    """In this process: lowered for all platforms with a symbolic batch, and right on this one."""
    model = stablehlo_format.Exportable.untrained(own)
    exported = jax.export.deserialize(bytearray(stablehlo_format.to_stablehlo(model)))
    assert exported.platforms == stablehlo_format.PLATFORMS
    given = artefact_files.example(model, rows=3)
    Differences.between(
        jax.device_get(exported.call(given)), artefact_files.reference(model, given)
    ).check("stablehlo")


def test_the_paper_stands_beside_it(stablehlo, model):
    about = json.loads(Path(f"{stablehlo}.json").read_text())
    assert about["inputs"] == [
        {"name": "sound", "shape": ["b", 132, 4], "dtype": "float32"},
        {"name": "mask/sound", "shape": ["b", 132], "dtype": "bool"},
        {"name": "words", "shape": ["b", 7], "dtype": "int32"},
        {"name": "mask/words", "shape": ["b", 7], "dtype": "bool"},
    ]
    outputs = {x["name"]: (x["shape"], x["dtype"]) for x in about["outputs"]}
    assert outputs == {
        "logits": (["b", 3], "float32"),
        "probabilities": (["b", 3], "float32"),
        "predicted": (["b"], "int32"),
        "kept/sound/indices": (["b", 3], "int32"),
        "kept/sound/saliency": (["b", 3], "float32"),
    }
    assert about["class_names"] == ["down", "up", "still"]
    assert about["platforms"] == ["cpu", "tpu", "cuda"]


def test_differences_by_hand():
    given = {
        "logits": np.array([[1.0, 2.0], [0.5, 0.25]]),
        "probabilities": np.array([[0.4, 0.6], [0.55, 0.45]]),
        "predicted": np.array([1, 0]),
        "kept/a/indices": np.array([[1, 2], [3, 4]]),
    }
    expected = {
        "logits": np.array([[1.0, 2.0], [0.25, 0.5]]),
        "probabilities": np.array([[0.4, 0.6], [0.45, 0.55]]),
        "predicted": np.array([1, 1]),
        "kept/a/indices": np.array([[1, 2], [3, 5]]),
    }
    found = Differences.between(given, expected)
    assert found.logits == 0.25
    assert found.probabilities == pytest.approx(0.1)
    assert (found.predicted, found.kept) == (0.5, 0.25)
    found.check("onnx_int8")  # which is not held to it
    for kind in ("stablehlo", "onnx"):
        with pytest.raises(ConfigError, match=r"differ from the model's by 0\.25 and 25\.000% of"):
            found.check(kind)
    with pytest.raises(ConfigError, match="do not use the artefact"):
        dataclasses.replace(found, logits=float("nan"), kept=0.0).check("onnx")
    with pytest.raises(ConfigError, match=r"outputs: given \['logits'\]"):
        Differences.between({"logits": 1}, expected)


def test_a_changed_artefact_is_refused(stablehlo, model):
    scale = {name: [2 * x for x in numbers] for name, numbers in model.scale.items()}
    with pytest.raises(ConfigError, match="stablehlo: its logits differ"):
        artefact_files.compared(dataclasses.replace(model, scale=scale), stablehlo, "stablehlo")


def test_missing_libraries_are_named_with_their_remedy(monkeypatch, model, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; .*pip install 'sft_jax\[export\]'"):
        artefact_files.write(model, ["onnx"], tmp_path)
    with pytest.raises(
        ConfigError, match="given 'stablehlo_int8', expected one of stablehlo, onnx"
    ):
        artefact_files.write(model, ["stablehlo_int8"], tmp_path)


def test_measures_every_format_in_a_row_of_its_own(monkeypatch, model):
    monkeypatch.setattr(artefact_files, "FORMATS", ("stablehlo",))
    (row,) = artefact_table.measure({"tiny": model}, rounds=2, calls=3)
    assert (row["model"], row["format"]) == ("tiny", "stablehlo")
    assert row["latency_seconds"]["low"] <= row["latency_seconds"]["median"]
    assert row["differences"]["logits"] <= artefact_files.TOLERANCE
    (shown,) = artefact_table.cost_rows([row])
    assert shown["file kB"] == round(row["file_bytes"] / 1e3)
    assert shown["latency ms"] == round(1e3 * row["latency_seconds"]["median"], 2)


def snippet(word):
    (found,) = [x for x in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if word in x]
    assert len([line for line in found.splitlines() if line.strip()]) <= 8
    return found


def run_snippet(word, path, arrays, blocked):
    np.savez(path.parent / "inputs.npz", **arrays)
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n{snippet(word)}"
    code += "\nnp.save('found.npy', probabilities)\n"
    subprocess.run([sys.executable, "-c", code], cwd=path.parent, check=True)
    return np.load(path.parent / "found.npy")


def test_the_page_s_stablehlo_snippet(stablehlo, predictor, arrays):
    found = run_snippet("jax.export", stablehlo, arrays, ["sft_jax", "flax"])
    np.testing.assert_allclose(found, predictor.predict(arrays).probabilities, atol=1e-5)


def test_the_page_s_onnx_snippet(onnx_paths, predictor, arrays):
    found = run_snippet("onnxruntime", onnx_paths["onnx"], arrays, ["sft_jax", "jax", "flax"])
    np.testing.assert_allclose(found, predictor.predict(arrays).probabilities, atol=1e-5)
