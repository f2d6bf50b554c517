"""Artefacts on disk: writing, running in a separate process, and comparison with the model."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from sft_jax.config.checks import check_choice
from sft_jax.interop.artefacts import run_artefact
from sft_jax.interop.artefacts.stablehlo import (
    PLATFORMS,
    Exportable,
    describe,
    inference,
    signature,
    to_stablehlo,
)
from sft_jax.types import ConfigError

FORMATS = ("stablehlo", "onnx", "onnx_int8")
# Largest difference in logits that can be due to float32 rounding.
TOLERANCE = 1e-4
_SUFFIXES = {"stablehlo": ".stablehlo", "onnx": ".onnx", "onnx_int8": ".int8.onnx"}
# Suffixes that make a path that of a single artefact, not of a folder.
FILE_SUFFIXES = (".stablehlo", ".onnx")
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def write(model: Exportable, kinds: Sequence[str], path: Path) -> dict[str, Path]:
    """Writes artefacts, each with a description of its inputs and outputs in `<file>.json`.

    Args:
        model: Model to export.
        kinds: Formats among `FORMATS`.
        path: Folder for files named `model` with the suffix of their format, or the file itself if
            there is one format.

    Returns:
        Path by format.

    Raises:
        ConfigError: A format is unknown, or its libraries are not installed.
    """
    for kind in kinds:
        check_choice("format", kind, FORMATS)
    contents, abouts = {}, {"stablehlo": {"platforms": list(PLATFORMS)}}
    if "stablehlo" in kinds:
        contents["stablehlo"] = to_stablehlo(model)
    if set(kinds) - {"stablehlo"}:
        onnx_format = _import_onnx_format()
        contents["onnx"] = onnx_format.to_onnx(model)
        abouts |= {kind: {"opset": onnx_format.OPSET} for kind in ("onnx", "onnx_int8")}
        if "onnx_int8" in kinds:
            contents["onnx_int8"] = onnx_format.quantized(contents["onnx"])
    about, paths = describe(model), {}
    for kind in kinds:
        alone = len(kinds) == 1 and path.suffix in FILE_SUFFIXES
        paths[kind] = path if alone else path / f"model{_SUFFIXES[kind]}"
        paths[kind].parent.mkdir(parents=True, exist_ok=True)
        paths[kind].write_bytes(contents[kind])
        description = {"format": kind, "jax": jax.__version__, **abouts[kind], **about}
        Path(f"{paths[kind]}.json").write_text(json.dumps(description, indent=1) + "\n")
    return paths


def _import_onnx_format() -> ModuleType:
    missing = [
        n for n in ("jax2onnx", "onnx", "onnxruntime") if importlib.util.find_spec(n) is None
    ]
    if missing:
        raise ConfigError(
            f"format: given 'onnx', for which {', '.join(missing)} is not installed; install the "
            "extra: pip install 'sft_jax[export]'"
        )
    from sft_jax.interop.artefacts import onnx_format

    return onnx_format


def example(model: Exportable, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of different lengths, in which every other sample lacks a modality.

    Args:
        model: Model with the units of the inputs in `shift` and `scale`.
        rows: Number of samples.
        seed: Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    specs = model.config.modalities
    for i, spec in enumerate(specs):
        length = rng.integers(1, spec.length + 1, (rows, 1))
        length[0] = spec.length
        if len(specs) > 1:
            length[(np.arange(rows) % (2 * len(specs))) == 2 * i + 1] = 0
        shape = (rows, spec.length)
        if spec.tokenizer == "token":
            arrays[spec.name] = rng.integers(0, spec.feature_dim, shape, dtype=np.int32)
        else:
            x = rng.standard_normal((*shape, spec.feature_dim), np.float32)
            scale, shift = (
                np.asarray(of[spec.name], np.float32) for of in (model.scale, model.shift)
            )
            arrays[spec.name] = x * scale + shift
        arrays[f"mask/{spec.name}"] = np.arange(spec.length) < length
    return arrays


def reference(model: Exportable, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the model itself for the same arrays."""
    names = signature(model.config, len(next(iter(arrays.values()))))
    return jax.device_get(jax.jit(inference(model))({name: arrays[name] for name in names}))


@dataclasses.dataclass(frozen=True)
class Differences:
    """Differences between the outputs of an artefact and of the model.

    Attributes:
        logits: Largest absolute difference in logits.
        probabilities: Largest absolute difference in the task's answers that are numbers, such as
            probabilities.
        predicted: Share of the samples with another decision, such as another class.
        kept: Share of the kept tokens that differ.
    """

    logits: float
    probabilities: float
    predicted: float
    kept: float

    @classmethod
    def between(cls, outputs: Mapping[str, Any], expected: Mapping[str, Any]) -> "Differences":
        """Compares two dicts of outputs with the same names."""
        if outputs.keys() != expected.keys():
            raise ConfigError(f"outputs: given {sorted(outputs)}, expected {sorted(expected)}")
        answers = [name for name in expected if "/" not in name and name != "logits"]
        decided = [name for name in answers if expected[name].dtype.kind in "iub"]
        logits = float(np.abs(outputs["logits"] - expected["logits"]).max())
        numbers = [np.abs(outputs[n] - expected[n]).max() for n in answers if n not in decided]
        other = np.zeros(len(expected["logits"]), bool)
        for name in decided:
            rows = np.not_equal(outputs[name], expected[name])
            other |= rows.reshape(len(rows), -1).any(axis=1)
        differ = [outputs[n] != expected[n] for n in expected if n.endswith("/indices")]
        kept = float(np.mean(np.concatenate([x.ravel() for x in differ]))) if differ else 0.0
        return cls(logits, float(max(numbers, default=0.0)), float(other.mean()), kept)

    def check(self, kind: str):
        """Raises `ConfigError` if a float32 artefact differs from the model."""
        if kind != "onnx_int8" and not (self.logits <= TOLERANCE and self.kept == 0):
            raise ConfigError(
                f"{kind}: its logits differ from the model's by {self.logits:.2g} and "
                f"{self.kept:.3%} of its kept tokens differ, expected at most {TOLERANCE:g} and "
                "none; do not use the artefact with this version of its runtime"
            )


@dataclasses.dataclass(frozen=True)
class Running:
    """An artefact in a separate process that imports only its runtime.

    Attributes:
        outputs: Outputs by name.
        ready_seconds: Time from reading the file to the first result.
        runtime_bytes: Memory with the runtime imported, before the artefact is read.
        process: Handle of the process.
    """

    outputs: dict[str, np.ndarray]
    ready_seconds: float
    runtime_bytes: int
    process: Any

    def seconds(self, calls: int) -> list[float]:
        """Seconds of each of several consecutive calls on the first sample."""
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        return _answer(self.process)

    def peak_bytes(self) -> int:
        """Ends the process and returns its peak memory."""
        self.process.stdin.close()
        return _answer(self.process)["peak_bytes"]


@contextmanager
def running(
    path: Path, kind: str, arrays: Mapping[str, np.ndarray], rows: int = 1
) -> Iterator[Running]:
    """Runs an artefact in a separate process with one thread.

    Args:
        path: Path of the artefact.
        kind: Format among `FORMATS`.
        arrays: Inputs by name.
        rows: Number of samples per call.

    Raises:
        ConfigError: The process fails.
    """
    runtime = "stablehlo" if kind == "stablehlo" else "onnx"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        contents: dict[str, Any] = dict(arrays)
        np.savez(inputs, **contents)
        command = [sys.executable, "-P", run_artefact.__file__, runtime]
        process: Any = subprocess.Popen(
            [*command, path, inputs, outputs, str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags},
        )
        with process:
            try:
                about = _answer(process)
                with np.load(outputs) as file:
                    results = {name: file[name] for name in file.files}
                yield Running(results, process=process, **about)
            finally:
                process.stdin.close()
                process.stdout.read()


def _answer(process: Any) -> Any:
    line = process.stdout.readline()
    if not line:
        raise ConfigError(
            f"{process.args[4]}: its process ended with status {process.wait()} and the message "
            "above, expected it to run; install the runtime, or export again with this version"
        )
    return json.loads(line)


def compared(model: Exportable, path: Path, kind: str, rows: int = 5) -> Differences:
    """Compares an artefact with the model on an example batch.

    Args:
        model: Exported model.
        path: Path of the artefact.
        kind: Format among `FORMATS`.
        rows: Number of samples.

    Raises:
        ConfigError: A float32 artefact differs from the model.
    """
    arrays = example(model, rows)
    with running(path, kind, arrays, rows) as run:
        differences = Differences.between(run.outputs, reference(model, arrays))
    differences.check(kind)
    return differences
