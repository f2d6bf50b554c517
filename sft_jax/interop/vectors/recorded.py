"""Our numbers beside recorded ones, for files in the format of the recorded reference vectors.

A file holds `param/<name>` (a reference state dict), `input/<m>`, `label`, `meta` (JSON), and what
the reference made of them: `logits`, `pooled/<m>`, `loss`, `grad/<name>`, `losses` of a few
training steps with `logits_after`, or `layer<i>/...` of mixup at depth `i` with `lam` and `index`.
Shapes, widths, depths and windows are read from the file.
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
from sft_jax.config.model import (
    ConcatOptions,
    LateOptions,
    MbtOptions,
    ModelOptions,
    NoOptions,
    UnimodalOptions,
)
from sft_jax.config.run import AugmentConfig, Config, ModelConfig, OptimizerConfig
from sft_jax.interop.vectors import metric_vectors
from sft_jax.interop.vectors.recording_checks import META, check_entries, check_numbers
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
# The reference's names of pools, where ours differ.
_POOLS = {"attn": "attn_avg", "topk": "channel_topk", "attn_wkmedoids": "attn_kmedoids"}
# The reference's MulT joins its streams as text, audio, video; in recordings they bear these names.
_MULT_ORDER = ({"text"}, {"spec", "spect", "audio"}, {"rgb", "vision", "video"})
# Every program runs a few times at most, so compiling it is what takes time.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    # XLA dropped the choice while jax was at 0.11, and refuses it as unknown.
    _QUICK["xla_cpu_use_fusion_emitters"] = False
_TRAINING = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=0.8)


class Difference(NamedTuple):
    """One compared quantity.

    Attributes:
        file: name of the recording.
        quantity: what was compared.
        largest: largest absolute difference, NaN where one side holds a NaN.
    """

    file: str
    quantity: str
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether it is at most `TOLERANCE`."""
        return self.largest <= TOLERANCE


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording opened: its arrays, and the model that it was made with."""

    file: str
    arrays: Mapping[str, np.ndarray]
    config: ModelConfig
    specs: tuple[ModalitySpec, ...]

    @classmethod
    def of(cls, path: Path, arrays: Mapping[str, np.ndarray]) -> "Recording":
        """The recording that a file holds.

        Raises:
            DataError: not a recording, or of a model that is not known.
        """
        names = _recorded_order(arrays)
        specs = []
        try:
            meta = json.loads(str(arrays["meta"]))
            META(meta, "meta")
            config, pool = _model(meta)
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
                specs = _as_streams(specs)
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
            raise DataError(
                f"{path}: not a recording ({error!r}), expected entries meta, input/<m>, "
                "param/<name> as the recorded vectors have them; check that it is the right file"
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
        """The recorded weights as our parameters.

        Raises:
            DataError: weights that are not those of the model.
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
        """The recorded inputs as a batch in which everything is real.

        Raises:
            DataError: shapes that are not those in meta, or labels that are not one a sample.
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
                f"{self.file}: {name}: not found, expected it beside {', '.join(self._results())}; "
                "record the file again"
            )
        return self.arrays[name]

    def _results(self) -> list[str]:
        inputs = ("param/", "input/")
        return sorted(name for name in self.arrays if not name.startswith(inputs))

    def differences(self) -> Iterator[Difference]:
        """Everything recorded, beside what we compute in float32.

        Raises:
            DataError: weights that are not those of the model, or results that nothing compares.
        """
        self.check()
        read = {"meta", "label", "lam", "index"}
        for part, names in (
            (self._outputs, r"logits|loss|pooled/.+|grad/.+"),
            (self._training, r"losses|logits_after"),
            (self._mixup, r"layer\d+/(logits|loss)"),
        ):
            found = {name for name in self._results() if re.fullmatch(names, name)}
            read |= found
            if found:
                yield from part()
        unread = sorted(set(self._results()) - read)
        if unread or not read - {"meta", "label", "lam", "index"}:
            raise DataError(
                f"{self.file}: found {unread or 'no results'}, expected logits, loss, pooled/<m>, "
                "grad/<name>, losses, logits_after or layer<i>/...; record the file again"
            )

    def check(self):
        """Raises `DataError` unless every entry can be computed on; compares nothing yet."""
        check_entries(
            self.file, self.arrays, self.config, len(self.specs), len(self.batch["target"])
        )
        jax.tree.leaves(self.params)

    def _compare(self, quantity: str, ours: Any, recorded: Any) -> Difference:
        ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
        if ours.shape != recorded.shape:
            raise DataError(
                f"{self.file}: {quantity}: recorded shape {recorded.shape}, ours {ours.shape}; "
                "check the sizes in meta"
            )
        return Difference(self.file, quantity, float(np.abs(ours - recorded).max(initial=0.0)))

    def _outputs(self) -> Iterator[Difference]:
        model, batch = self.model, self.batch
        has_gradients = any(name.startswith("grad/") for name in self.arrays)

        def loss_of(params):
            out: Any = model.apply({"params": params}, batch["inputs"], batch["mask"])
            return self.task.loss(out.logits, batch["target"])[0].mean(), out

        grads = None
        if has_gradients:
            step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=_QUICK)
            (loss, out), grads = step(self.params)
        else:
            loss, out = jax.jit(loss_of, compiler_options=_QUICK)(self.params)
        if "logits" in self.arrays:
            yield self._compare("logits", out.logits, self.arrays["logits"])
        if "loss" in self.arrays:
            yield self._compare("loss", loss, self.arrays["loss"])
        for name in (name for name in self.arrays if name.startswith("pooled/")):
            pooled = out.pooled.get(name.removeprefix("pooled/"))
            if pooled is None:
                raise DataError(
                    f"{self.file}: {name}: the model pools {sorted(out.pooled)}, expected one of "
                    "these; record the file again"
                )
            yield self._compare(name, pooled.tokens, self.arrays[name])
        if has_gradients:
            yield self._gradients(grads)

    def _gradients(self, grads: Any) -> Difference:
        """The recorded ones, by the reference's names: of every weight that got one."""
        recorded = {
            name.removeprefix("grad/"): leaf
            for name, leaf in self.arrays.items()
            if name.startswith("grad/")
        }
        ours = to_reference(grads, self.config, self._names, like=self._state("param/"))
        if unknown := sorted(set(recorded) - set(ours)):
            raise DataError(
                f"{self.file}: grad/: found {unknown}, expected names of weights that the result "
                "depends on; record the file again"
            )
        largest = [
            self._compare(f"grad/{n}", ours[n], leaf).largest for n, leaf in recorded.items()
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
            for quantity, ours in (("logits", logits), ("loss", loss)):
                if (name := f"layer{depth}/{quantity}") in self.arrays:
                    yield self._compare(name, ours, self.arrays[name])


def compare_folder(folder: Path) -> Iterator[tuple[str, list[Difference] | DataError]]:
    """For every recording of a folder its differences, or why it cannot be compared.

    Raises:
        DataError: there is no such folder, or no recording in it.
    """
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"{folder}: found no .npz file, expected a folder of recordings; give the folder that "
            "holds them"
        )
    for file in files:
        try:
            # A list, so that what a recording lacks is found here.
            yield file.name, list(differences(file))
        except (DataError, ConfigError) as error:
            yield file.name, DataError(str(error))


def differences(file: Path) -> Iterator[Difference]:
    """Everything recorded in a file beside what we compute.

    Raises:
        DataError: the file is not a recording, or does not fit the model it names.
    """
    arrays = read_arrays(file)
    if not any(name.startswith("param/") for name in arrays):
        yield from _metrics(file, arrays)
    else:
        yield from Recording.of(file, arrays).differences()


def _metrics(file: Path, arrays: Mapping[str, np.ndarray]) -> Iterator[Difference]:
    for name, (ours, recorded) in metric_vectors.compare(arrays).items():
        # What we call undefined must not pass for equal.
        yield Difference(file.name, name, math.nan if ours is None else abs(ours - recorded))


def _float32(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32)


def _as_streams(specs: list[ModalitySpec]) -> list[ModalitySpec]:
    """The modalities of the reference's MulT in the order of its streams."""
    found = [[spec for spec in specs if spec.name in names] for names in _MULT_ORDER]
    if len(specs) != len(_MULT_ORDER) or any(len(part) != 1 for part in found):
        raise ValueError(
            f"modalities {[spec.name for spec in specs]} of a MulT; one each of "
            f"{', '.join('|'.join(sorted(names)) for names in _MULT_ORDER)} is needed"
        )
    return [part[0] for part in found]


def _recorded_order(arrays: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("input/") for name in arrays if name.startswith("input/")]


def _model(meta: Mapping[str, Any]) -> tuple[ModelConfig, str]:
    """The model that a recording is of, and the pool that its modalities are read with."""
    sizes = {
        "preset": "paper",
        "num_classes": meta["num_classes"],
        "embed_dim": meta["embed_dim"],
        "num_heads": meta["num_heads"],
        "num_pre_layers": meta["n_layers_pre_fusion"],
        "num_post_layers": meta["n_layers_post_fusion"],
    }
    kind, _, rest = meta["model"].partition("_")
    first = meta["kernel"][0]
    if kind == "sft":
        pool = re.sub(r"_(mixup|train\d*)$", "", rest)  # what was recorded, not the model
        return ModelConfig(name="sft", **sizes), _POOLS.get(pool, pool)
    models: dict[str, tuple[str, ModelOptions]] = {
        "unimodal": ("unimodal", UnimodalOptions(modality=rest, window=first)),
        "latefuse": ("late", LateOptions(duplicate_cls=True)),
        "concat": ("concat", ConcatOptions(window=first)),
        "mbt": ("mbt", MbtOptions()),
        "MulT": ("mult", NoOptions()),
    }
    name, options = models[kind]
    # Their windows are in the options.
    return ModelConfig(name=name, options=options, **sizes), "none"
