"""Prediction from a run folder, in memory and without the data it was trained on."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from sft_jax.config.modality import COUNTING_POOLS, WINDOW_POOLS, ModalitySpec
from sft_jax.config.run import Config, TrainConfig
from sft_jax.data.array_entries import as_array, find_sequences
from sft_jax.data.arrays import ArrayTable, check_arrays
from sft_jax.data.pipeline import Normalizer, collate, empty_batch
from sft_jax.data.records import Record
from sft_jax.models import registry
from sft_jax.runs.run_files import read_config, read_data
from sft_jax.tasks import from_run
from sft_jax.training import session
from sft_jax.training.sharding import make_mesh
from sft_jax.training.step import eval_outputs
from sft_jax.training.trainer import Trainer, apply_function
from sft_jax.types import ConfigError, DataError

LARGEST_BATCH = 256
_NEEDED = ("normalizer", "class_names")


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a pool kept of one modality.

    Attributes:
        indices: `[n, k]` token in each slot, -1 in empty slots; pools that rank have the most
            salient first.
        saliency: `[n, k]` its saliency; None of pools that do not look at it.
    """

    indices: np.ndarray
    saliency: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predictions for `n` samples.

    Attributes:
        id: `[n]` names of the samples, their positions where they have none.
        probabilities: `[n, c]` float32.
        predicted: `[n]` most probable class.
        class_names: names of the `c` classes.
        kept: what was kept, by modality; only of pools that select.
    """

    id: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    class_names: tuple[str, ...]
    kept: dict[str, Kept]

    def entries(self) -> dict[str, np.ndarray]:
        """By name: `id`, `probabilities`, `predicted`, `class_names`, `kept/<m>/...`."""
        kept = {
            f"kept/{name}/{part}": getattr(kept, part)
            for name, kept in self.kept.items()
            for part in ("indices", "saliency")
            if getattr(kept, part) is not None
        }
        return {
            "id": self.id,
            "probabilities": self.probabilities,
            "predicted": self.predicted,
            "class_names": np.asarray(self.class_names),
            **kept,
        }

    def save(self, path: Path):
        """Writes `entries` as `.npz`."""
        arrays: dict[str, Any] = self.entries()
        np.savez_compressed(path, **arrays)


class Predictor:
    """A trained model, ready to predict.

    Batches are padded to powers of two, so that a new batch size compiles at most once for all
    sizes up to the next power.

    Attributes:
        config: of the run.
        params: the model's parameters.
        normalizer: of the run; `predict` applies it.
        class_names: names of the classes.
    """

    def __init__(
        self, config: Config, params: Any, normalizer: Normalizer, class_names: Sequence[str]
    ):
        """Takes what `load` finds in a run folder."""
        self.config, self.class_names = config, tuple(class_names)
        self.params, self.normalizer = params, normalizer
        task = from_run(config, {"class_names": self.class_names})
        apply = apply_function(registry.build(config))
        self._outputs = jax.jit(functools.partial(eval_outputs, apply=apply, task=task))

    def with_pools(self, pool: str, k: int | None = None) -> "Predictor":
        """The same parameters with another pool in every modality; no pool has any of its own.

        Args:
            pool: one of `types.POOLS`.
            k: tokens that every modality hands on, or all it has where they are fewer; a pool over
                windows hands on at least as many. Not used by `none`.

        Raises:
            ConfigError: an unknown pool, no `k` where one is needed, or a model without pools.
        """
        if self.config.model.name != "sft":
            raise ConfigError(
                f"with_pools: given a run of model {self.config.model.name!r}, expected 'sft', the "
                "one that has pools; open another run"
            )
        specs = tuple(_pooled(spec, pool, k) for spec in self.config.modalities)
        config = dataclasses.replace(self.config, modalities=specs)
        return Predictor(config, self.params, self.normalizer, self.class_names)

    def predict(self, arrays: Any) -> Prediction:
        """Classifies samples.

        Args:
            arrays: Mapping `{m: [n, t, f]}` (`[n, t]` ids for token modalities) in the units of the
                training data, at most as long as the model's; optionally `mask/<m> [n, t]` bool or
                `length/<m> [n]`, and `id [n]`. Values may be NumPy or JAX arrays, columns of
                pandas, or nested lists. A modality left out counts as missing.

        Raises:
            DataError: arrays that do not fit the model or each other.
        """
        table = self.table(arrays)
        for remark in table.remarks:
            logging.warning("%s: %s", table.path, remark)
        return self.predict_table(table)

    def table(self, arrays: Any, where: str = "arrays") -> ArrayTable:
        """Checks arrays and takes the modalities of the run.

        Other entries are left out if they do not look like modalities, or if all modalities of the
        run are there; the table's remarks name them.

        Args:
            arrays: As for `predict`.
            where: What errors call them.

        Raises:
            DataError: arrays that do not fit each other, or whose names are not the run's.
        """
        if not isinstance(arrays, Mapping):
            raise DataError(
                f"{where}: found {type(arrays).__name__}, expected a dict of arrays by name of "
                "their modality; give {name: array}"
            )
        entries = {key: as_array(values, key, where) for key, values in arrays.items()}
        expected = [spec.name for spec in self.config.modalities]
        present = [name for name in expected if name in entries]
        plausible = find_sequences(entries) - set(expected)
        if not present or (plausible and len(present) < len(expected)):
            unknown = sorted(plausible)
            raise DataError(
                f"{where}: found {', '.join(entries) or 'none'}, expected at least one of "
                f"{', '.join(expected)} and no other; name the arrays as the run's modalities"
                f"{f', and remove {unknown}' if unknown else ''}"
            )
        return check_arrays(entries, require_label=False, where=where, modalities=present)

    def predict_table(self, table: ArrayTable) -> Prediction:
        """Classifies the samples of a table that `table` returned."""
        specs = self.config.modalities
        absent = [spec for spec in specs if spec.name not in table.inputs]
        parts = []
        for start in range(0, len(table), LARGEST_BATCH):
            indices = range(start, min(start + LARGEST_BATCH, len(table)))
            records = [_with_absent(table[i], absent) for i in indices]
            size = 1 << (len(indices) - 1).bit_length()
            batch = collate(records, indices, specs, self.normalizer, size)
            outputs = jax.device_get(self._outputs(self.params, batch))
            parts.append(jax.tree.map(operator.itemgetter(slice(len(indices))), outputs))
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        return Prediction(
            id=np.asarray(table.id),
            probabilities=joined["answers"]["probabilities"],
            predicted=joined["answers"]["predicted"],
            class_names=self.class_names,
            kept={name: Kept(**kept) for name, kept in joined["kept"].items()},
        )


def load(workdir: str | Path, checkpoint: str | None = None) -> Predictor:
    """Opens a run for prediction on one device.

    Args:
        workdir: folder of a run that has a checkpoint.
        checkpoint: `best` or `last`; the best where there is one.

    Raises:
        CheckpointError: there is no run, or no checkpoint.
    """
    workdir = Path(workdir).expanduser().absolute()
    config, data = read_config(workdir), read_data(workdir, *_NEEDED)
    mesh = make_mesh(TrainConfig(), jax.devices()[:1])
    state = session.restore(
        Trainer.of(config, from_run(config, data), 1, mesh), workdir, checkpoint
    )
    normalizer = Normalizer.from_json(data["normalizer"])
    return Predictor(config, state.params, normalizer, data["class_names"])


def _pooled(spec: ModalitySpec, pool: str, k: int | None) -> ModalitySpec:
    """`spec` with a pool that hands on `k` tokens, or as few more as its windows allow."""
    count = None if k is None else min(k, spec.num_tokens)
    sizes: dict[str, Any] = {"k": count if pool in COUNTING_POOLS else None, "window": None}
    if pool in WINDOW_POOLS and count:
        sizes["window"] = spec.num_tokens // count
    return dataclasses.replace(spec, pool=pool, **sizes)


def _with_absent(record: Record, absent: Sequence[ModalitySpec]) -> Record:
    """`record` with an all-masked entry for every absent modality."""
    blank = empty_batch(absent, 1)
    inputs = {name: rows[0] for name, rows in blank["inputs"].items()}
    mask = {name: rows[0] for name, rows in blank["mask"].items()}
    return Record(**{**record, "inputs": record["inputs"] | inputs, "mask": record["mask"] | mask})
