"""Artefacts on disk: written with what they hold, run by their runtime alone, and compared."""

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
# The largest difference that two programs' float32 sums may show in a logit.
TOLERANCE = 1e-4
_SUFFIXES = {"stablehlo": ".stablehlo", "onnx": ".onnx", "onnx_int8": ".int8.onnx"}
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def write(model: Exportable, kinds: Sequence[str], path: Path) -> dict[str, Path]:
    """Writes artefacts, each with `<file>.json` beside it, which says what goes in and comes out.

    Args:
        model: what is exported.
        kinds: of `FORMATS`.
        path: a folder, where they are called `model` with the suffix of their format; or, of one
            kind, the file.

    Returns:
        The path of each.

    Raises:
        ConfigError: an unknown format, or one whose libraries are not installed.
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
        alone = len(kinds) == 1 and path.suffix in (".stablehlo", ".onnx")
        paths[kind] = path if alone else path / f"model{_SUFFIXES[kind]}"
        paths[kind].parent.mkdir(parents=True, exist_ok=True)
        paths[kind].write_bytes(contents[kind])
        made = {"format": kind, "jax": jax.__version__, **abouts[kind], **about}
        Path(f"{paths[kind]}.json").write_text(json.dumps(made, indent=1) + "\n")
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
    """Arrays of the kind that the model takes: of ragged lengths, every other row lacks a modality.

    Args:
        model: whose `shift` and `scale` say in which units.
        rows: samples.
        seed: of the draw.
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
    """What the model itself makes of them here, as `predict` computes it."""
    wanted = signature(model.config, len(next(iter(arrays.values()))))
    given = {name: arrays[name] for name in wanted}
    return jax.device_get(jax.jit(inference(model))(given))


@dataclasses.dataclass(frozen=True)
class Differences:
    """Between what an artefact returns and what the model returns.

    Attributes:
        logits: the largest, absolute.
        probabilities: the largest, absolute.
        predicted: share of the samples whose most probable class is another.
        kept: share of the slots with another token.
    """

    logits: float
    probabilities: float
    predicted: float
    kept: float

    @classmethod
    def between(cls, given: Mapping[str, Any], expected: Mapping[str, Any]) -> "Differences":
        """Of two dicts of outputs with the same names."""
        if given.keys() != expected.keys():
            raise ConfigError(f"outputs: given {sorted(given)}, expected {sorted(expected)}")
        logits, probabilities = (
            float(np.abs(given[n] - expected[n]).max()) for n in ("logits", "probabilities")
        )
        classes = (x["probabilities"].argmax(axis=-1) for x in (given, expected))
        slots = [given[n] != expected[n] for n in expected if n.endswith("/indices")]
        kept = float(np.mean(np.concatenate([x.ravel() for x in slots]))) if slots else 0.0
        return cls(logits, probabilities, float(np.mean(np.not_equal(*classes))), kept)

    def check(self, kind: str):
        """Raises `ConfigError` unless a float32 artefact computes what the model does."""
        if kind != "onnx_int8" and not (self.logits <= TOLERANCE and self.kept == 0):
            raise ConfigError(
                f"{kind}: its logits differ from the model's by {self.logits:.2g} and its kept "
                f"tokens in {self.kept:.3%} of the slots, expected at most {TOLERANCE:g} and none; "
                "do not use the artefact: what computes it here rounds or breaks ties otherwise"
            )


@dataclasses.dataclass(frozen=True)
class Running:
    """An artefact in a process that has its runtime alone.

    Attributes:
        outputs: what it makes of the inputs, by name.
        ready_seconds: from reading the file to the first answer.
        runtime_bytes: held with the runtime imported, before the artefact was read.
        process: the process, for `seconds` and `peak_bytes`.
    """

    outputs: dict[str, np.ndarray]
    ready_seconds: float
    runtime_bytes: int
    process: Any

    def seconds(self, calls: int) -> list[float]:
        """Of that many calls on the first row, one after the other."""
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        return _answer(self.process)

    def peak_bytes(self) -> int:
        """The most memory the process ever held; ends it."""
        self.process.stdin.close()
        return _answer(self.process)["peak_bytes"]


@contextmanager
def running(
    path: Path, kind: str, arrays: Mapping[str, np.ndarray], rows: int = 1
) -> Iterator[Running]:
    """Starts an artefact on some inputs, with one thread.

    Args:
        path: of the artefact.
        kind: of `FORMATS`.
        arrays: the inputs.
        rows: samples it is given at a time.

    Raises:
        ConfigError: it cannot be run.
    """
    runtime = "stablehlo" if kind == "stablehlo" else "onnx"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        given: dict[str, Any] = dict(arrays)
        np.savez(inputs, **given)
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
                    found = {name: file[name] for name in file.files}
                yield Running(found, process=process, **about)
            finally:
                process.stdin.close()
                process.stdout.read()


def _answer(process: Any) -> Any:
    line = process.stdout.readline()
    if not line:
        raise ConfigError(
            f"{process.args[4]}: its process ended with status {process.wait()} and said above "
            "why, expected it to run; install the runtime, or export again with this version of it"
        )
    return json.loads(line)


def compared(model: Exportable, path: Path, kind: str, rows: int = 5) -> Differences:
    """Runs an artefact on an example batch and holds it against the model.

    Raises:
        ConfigError: a float32 artefact that computes something else.
    """
    arrays = example(model, rows)
    with running(path, kind, arrays, rows) as run:
        found = Differences.between(run.outputs, reference(model, arrays))
    found.check(kind)
    return found
