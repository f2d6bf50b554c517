"""Comparison of the models with recordings of the reference implementation.

A recording has `param/<name>` (a reference state dict), `input/<m>`, `label`, `meta` (JSON), and
results of the reference: `logits`, `pooled/<m>`, `loss`, `grad/<name>`, `losses` of a few training
steps with `logits_after`, or `layer<i>/...` for mixup at depth `i` with `lam` and `index`. Shapes,
widths, depths and windows are read from the file.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.config.modality import COUNTING_POOLS, ModalitySpec
from sft_jax.config.run import AugmentConfig, Config, ModelConfig, OptimizerConfig
from sft_jax.interop.vectors import metric_vectors, task_vectors
from sft_jax.interop.vectors.recording_checks import (
    META,
    check_entries,
    check_numbers,
    in_stream_order,
    recorded_model,
)
from sft_jax.interop.weights.reference_weights import from_reference, to_reference
from sft_jax.interop.weights.state_dict import read_arrays
from sft_jax.models import registry
from sft_jax.models.mixup import Mixup
from sft_jax.tasks import Task, from_config
from sft_jax.training.optimizer import build_optimizer, learning_rate
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepConfig, mixed_loss, train_step
from sft_jax.training.trainer import apply_function
from sft_jax.types import ConfigError, DataError

TOLERANCE = 2e-5
# Each program runs only a few times, so compilation dominates.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    # Unknown to the XLA of later versions.
    _QUICK["xla_cpu_use_fusion_emitters"] = False
_TRAINING = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=0.8)


class Difference(NamedTuple):
    """One compared quantity.

    Attributes:
        file: Name of the recording.
        quantity: Name of the compared quantity.
        largest: Largest difference; NaN if a value is NaN.
        tolerance: Largest difference that agrees.
    """

    file: str
    quantity: str
    largest: float
    tolerance: float = TOLERANCE

    @property
    def agrees(self) -> bool:
        """Whether the difference is at most `tolerance`."""
        return self.largest <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording and the model it was made with.

    Attributes:
        file: Name of the file.
        arrays: Entries of the file.
        config: Configuration of the model.
        specs: Modalities of the model.
    """

    file: str
    arrays: Mapping[str, np.ndarray]
    config: ModelConfig
    specs: tuple[ModalitySpec, ...]

    @classmethod
    def of(cls, path: Path, arrays: Mapping[str, np.ndarray]) -> "Recording":
        """Reads the model's configuration from the entries of a file.

        Raises:
            DataError: The entries are not those of a recording, or the model is unknown.
        """
        names = [name.removeprefix("input/") for name in arrays if name.startswith("input/")]
        specs = []
        try:
            meta = json.loads(str(arrays["meta"]))
            META(meta, "meta")
            config, pool = recorded_model(meta)
            for name, length, window in zip(names, meta["lengths"], meta["kernel"], strict=True):
                shape = arrays[f"input/{name}"].shape
                size = {}
                if pool != "none":
                    counts = pool in COUNTING_POOLS
                    size = {"k": min(meta["pool_k"], length)} if counts else {"window": window}
                specs.append(
                    ModalitySpec(name=name, length=length, feature_dim=shape[2], pool=pool, **size)
                )
            if config.name == "mult":
                specs = in_stream_order(specs)
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
            raise DataError(
                f"{path}: not a recording ({error!r}), expected entries meta, input/<m> and "
                "param/<name>; check that it is the right file"
            ) from error
        return cls(path.name, arrays, config, tuple(specs))

    @functools.cached_property
    def model(self) -> nn.Module:
        """The model, without parameters."""
        return registry.build(Config(modalities=self.specs, model=self.config))

    @property
    def task(self) -> Task:
        """The task of the recorded losses."""
        return from_config(Config(model=self.config))

    @functools.cached_property
    def params(self) -> Any:
        """The recorded weights as parameters of the model.

        Raises:
            DataError: The weights are not those of the model.
        """
        params = from_reference(self._state("param/"), self.config, self._names)
        shapes = jax.eval_shape(
            self.model.init, jax.random.key(0), self.batch["inputs"], self.batch["mask"]
        )["params"]
        expected = dict(jax.tree.leaves_with_path(shapes))
        for path, leaf in jax.tree.leaves_with_path(params):
            if path not in expected or leaf.shape != expected[path].shape:
                raise DataError(
                    f"{self.file}: param/: {jax.tree_util.keystr(path)} has shape {leaf.shape}, "
                    f"expected {expected[path].shape if path in expected else 'none'}; check the "
                    "sizes in meta"
                )
        return jax.tree.map(_float32, params)

    @functools.cached_property
    def batch(self) -> dict[str, Any]:
        """The recorded inputs as a batch without padding.

        Raises:
            DataError: Shapes differ from those in `meta`, or there is not one label per sample.
        """
        check_numbers(self.file, self.arrays)
        inputs = {s.name: _float32(self._entry(f"input/{s.name}")) for s in self.specs}
        label = jnp.asarray(self._entry("label"), jnp.int32)
        for spec in self.specs:
            expected = (*label.shape, spec.length, spec.feature_dim)
            if label.ndim != 1 or inputs[spec.name].shape != expected:
                raise DataError(
                    f"{self.file}: input/{spec.name}: found shape {inputs[spec.name].shape}, "
                    f"expected {expected} (labels, length, features); check the sizes in meta"
                )
        return {
            "inputs": inputs,
            "mask": {name: jnp.ones(x.shape[:2], bool) for name, x in inputs.items()},
            "target": label,
            "weight": jnp.ones(label.shape, jnp.float32),
            "id": jnp.arange(len(label), dtype=jnp.int32),
        }

    @property
    def _names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def _state(self, prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def _entry(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise DataError(
                f"{self.file}: {name}: not found, expected it with {', '.join(self._results())}; "
                "record the file again"
            )
        return self.arrays[name]

    def _results(self) -> list[str]:
        """Names of entries that are neither weights nor inputs."""
        inputs = ("param/", "input/")
        return sorted(name for name in self.arrays if not name.startswith(inputs))

    def differences(self) -> Iterator[Difference]:
        """Compares every recorded result with the one computed here in float32.

        Raises:
            DataError: The weights are not those of the model, or a result is unknown.
        """
        self.check()
        results = set(self._results()) - {"meta", "label", "lam", "index"}
        unknown = set(results)
        for compare, pattern in (
            (self._outputs, r"logits|loss|pooled/.+|grad/.+"),
            (self._training, r"losses|logits_after"),
            (self._mixup, r"layer\d+/(logits|loss)"),
        ):
            matching = {name for name in results if re.fullmatch(pattern, name)}
            unknown -= matching
            if matching:
                yield from compare()
        if unknown or not results:
            raise DataError(
                f"{self.file}: found {sorted(unknown) or 'no results'}, expected logits, loss, "
                "pooled/<m>, grad/<name>, losses, logits_after or layer<i>/...; record it again"
            )

    def check(self):
        """Raises `DataError` unless every entry has a valid type, shape and range."""
        check_entries(
            self.file, self.arrays, self.config, len(self.specs), len(self.batch["target"])
        )
        jax.tree.leaves(self.params)

    def _compare(self, quantity: str, computed: Any, recorded: Any) -> Difference:
        computed, recorded = np.asarray(computed, np.float64), np.asarray(recorded, np.float64)
        if computed.shape != recorded.shape:
            raise DataError(
                f"{self.file}: {quantity}: found shape {recorded.shape}, expected "
                f"{computed.shape}; check the sizes in meta"
            )
        difference = float(np.abs(computed - recorded).max(initial=0.0))
        return Difference(self.file, quantity, difference)

    def _outputs(self) -> Iterator[Difference]:
        model, batch = self.model, self.batch
        has_gradients = bool(self._state("grad/"))

        def loss_of(params):
            out: Any = model.apply({"params": params}, batch["inputs"], batch["mask"])
            return self.task.loss(out.logits, batch["target"])[0].mean(), out

        grads = None
        if has_gradients:
            step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=_QUICK)
            (loss, out), grads = step(self.params)
        else:
            loss, out = jax.jit(loss_of, compiler_options=_QUICK)(self.params)
        for name, computed in (("logits", out.logits), ("loss", loss)):
            if name in self.arrays:
                yield self._compare(name, computed, self.arrays[name])
        for modality, tokens in self._state("pooled/").items():
            if modality not in out.pooled:
                raise DataError(
                    f"{self.file}: pooled/{modality}: found, expected one of the modalities that "
                    f"the model pools, {sorted(out.pooled)}; record the file again"
                )
            yield self._compare(f"pooled/{modality}", out.pooled[modality].tokens, tokens)
        if has_gradients:
            yield self._gradients(grads)

    def _gradients(self, grads: Any) -> Difference:
        """Compares all recorded gradients, by the reference's names."""
        recorded = self._state("grad/")
        computed = to_reference(grads, self.config, self._names, like=self._state("param/"))
        if unknown := sorted(set(recorded) - set(computed)):
            raise DataError(
                f"{self.file}: grad/: found {unknown}, expected names of the model's weights; "
                "record the file again"
            )
        largest = [
            self._compare(f"grad/{name}", computed[name], leaf).largest
            for name, leaf in recorded.items()
        ]
        return Difference(self.file, f"{len(largest)} gradients", float(np.max(largest)))

    def _training(self) -> Iterator[Difference]:
        optimizer = build_optimizer(_TRAINING, learning_rate(_TRAINING, 1, 0))
        config = StepConfig(
            apply=apply_function(self.model),
            optimizer=optimizer,
            task=self.task,
            schedule=learning_rate(_TRAINING, 1, 0),
            augmentation=AugmentConfig(),
            accumulate=1,
            seed=0,
        )
        step = jax.jit(functools.partial(train_step, config=config), compiler_options=_QUICK)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=self.params,
            opt_state=optimizer.init(self.params),
            lr_scale=jnp.ones(()),
        )
        losses = []
        for _ in self.arrays["losses"]:
            state, metrics = step(state, self.batch)
            loss, count = metrics["loss"]
            losses.append(loss / count)
        yield self._compare("losses", losses, self.arrays["losses"])
        if "logits_after" in self.arrays:
            batch, apply = self.batch, jax.jit(self.model.apply, compiler_options=_QUICK)
            out = apply({"params": state.params}, batch["inputs"], batch["mask"])
            yield self._compare("logits_after", out.logits, self.arrays["logits_after"])

    def _mixup(self) -> Iterator[Difference]:
        batch = self.batch

        @functools.partial(jax.jit, compiler_options=_QUICK)
        def run(params, mixup):
            inputs = batch["inputs"], batch["mask"]
            out: Any = self.model.apply({"params": params}, *inputs, None, mixup)
            losses, _ = mixed_loss(self.task, out.logits, batch["target"], mixup)
            return out.logits, losses.mean()

        lam = _float32(self._entry("lam"))
        partner = jnp.asarray(self._entry("index"), jnp.int32)
        layers = {int(m[1]) for m in map(re.compile(r"layer(\d+)/").match, self.arrays) if m}
        for depth in sorted(layers):
            logits, loss = run(self.params, Mixup(jnp.int32(depth), lam, partner))
            for quantity, computed in (("logits", logits), ("loss", loss)):
                if (name := f"layer{depth}/{quantity}") in self.arrays:
                    yield self._compare(name, computed, self.arrays[name])


def compare_folder(folder: Path) -> Iterator[tuple[str, list[Difference] | DataError]]:
    """Compares every file of a folder: its name with the differences, or with an error.

    Raises:
        DataError: The folder does not exist or has no `.npz` file.
    """
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"{folder}: found no .npz file, expected a folder of recordings; give the folder they "
            "are in"
        )
    for file in files:
        try:
            # A list, so that errors are raised here.
            yield file.name, list(differences(file))
        except (DataError, ConfigError) as error:
            yield file.name, DataError(str(error))


def differences(file: Path) -> Iterator[Difference]:
    """Compares every result recorded in a file, of a model, of losses or of metrics.

    Raises:
        DataError: The file is not a recording, or does not match its model.
    """
    arrays = read_arrays(file)
    if any(name.startswith("param/") for name in arrays):
        yield from Recording.of(file, arrays).differences()
        return
    if task_vectors.kind_of(arrays) is not None:
        for name, largest in task_vectors.compare(arrays):
            yield Difference(file.name, name, largest, task_vectors.TOLERANCE)
        return
    for name, (computed, recorded) in metric_vectors.compare(arrays).items():
        # An undefined metric must not count as equal.
        yield Difference(
            file.name, name, math.nan if computed is None else abs(computed - recorded)
        )


def _float32(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32)
