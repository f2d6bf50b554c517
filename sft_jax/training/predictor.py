"""Prediction with a trained run, in memory and without the data it was trained on."""

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
from sft_jax.files import write_npz
from sft_jax.models import registry
from sft_jax.runs.run_files import read_config, read_data, read_decision
from sft_jax.tasks import Task, from_run, required_data
from sft_jax.training import session
from sft_jax.training.evaluation import eval_outputs, host_answers
from sft_jax.training.sharding import make_mesh
from sft_jax.training.trainer import Trainer, apply_function
from sft_jax.types import ConfigError, DataError

LARGEST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Kept:
    """Tokens of one modality that a pool kept.

    Attributes:
        indices: Token in each slot `[n, k]`, -1 in empty slots; most salient first if the pool
            ranks tokens.
        saliency: Saliency of these tokens `[n, k]`; None if the pool does not use it.
    """

    indices: np.ndarray
    saliency: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predictions for `n` samples.

    Attributes:
        id: Names of the samples `[n]`; their positions if they have no names.
        answers: Result of `Task.answer`, `{name: [n, ...]}`.
        legend: Arrays that explain the answers, see `Task.legend`.
        kept: Kept tokens by modality, for pools that select tokens.
    """

    id: np.ndarray
    answers: Mapping[str, np.ndarray]
    legend: Mapping[str, np.ndarray]
    kept: Mapping[str, Kept]

    def __getattr__(self, name: str) -> Any:
        """An answer or a part of the legend, such as `probabilities`, `value` or `class_names`."""
        for part in ("answers", "legend"):
            entries = self.__dict__.get(part, {})
            if name in entries:
                values = entries[name]
                return values if part == "answers" else tuple(values.tolist())
        known = ", ".join((*self.__dict__.get("answers", {}), *self.__dict__.get("legend", {})))
        raise AttributeError(f"a prediction of this task has no {name!r}, but {known}")

    def entries(self) -> dict[str, np.ndarray]:
        """All arrays by name: `id`, the answers, the legend, and `kept/<m>/...`."""
        kept = {
            f"kept/{name}/{part}": getattr(kept, part)
            for name, kept in self.kept.items()
            for part in ("indices", "saliency")
            if getattr(kept, part) is not None
        }
        return {"id": self.id, **self.answers, **self.legend, **kept}

    def save(self, path: Path):
        """Writes `entries` to `path` in the format of `.npz`, whatever its suffix."""
        write_npz(Path(path), self.entries())


class Predictor:
    """A trained model, ready to predict.

    Batches are padded to powers of two, so that a new batch size compiles at most once for all
    sizes up to the next power.

    Attributes:
        config: Configuration of the run.
        params: Parameters of the model.
        normalizer: Normalizer of the run, which `predict` applies.
        task: Task of the run.
    """

    def __init__(self, config: Config, params: Any, normalizer: Normalizer, task: Task):
        """Compiles the model for prediction; `load` does so from a run folder."""
        self.config, self.task = config, task
        self.params, self.normalizer = params, normalizer
        apply = apply_function(registry.build(config))
        self._outputs = jax.jit(functools.partial(eval_outputs, apply=apply, task=task))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; of classification."""
        return tuple(self.task.legend["class_names"].tolist())

    def with_pools(self, pool: str, k: int | None = None) -> "Predictor":
        """The same model with another pool in every modality; pools have no parameters.

        Args:
            pool: One of `types.POOLS`.
            k: Tokens that every modality keeps, or all of them if there are fewer; a pool over
                windows keeps at least as many. Not used by `none`.

        Raises:
            ConfigError: The pool is unknown or needs `k`, or the model has no pools.
        """
        if self.config.model.name != "sft":
            raise ConfigError(
                f"with_pools: given a run of model {self.config.model.name!r}, expected 'sft', the "
                "only one with pools; open another run"
            )
        specs = tuple(_pooled(spec, pool, k) for spec in self.config.modalities)
        config = dataclasses.replace(self.config, modalities=specs)
        return Predictor(config, self.params, self.normalizer, self.task)

    def predict(self, arrays: Any) -> Prediction:
        """Predicts for samples.

        Args:
            arrays: Mapping `{m: [n, t, f]}` (`[n, t]` ids for token modalities) in the units of the
                training data, with at most as many time steps as the model's; optionally
                `mask/<m> [n, t]` bool or `length/<m> [n]`, and `id [n]`. Values may be NumPy or JAX
                arrays, columns of pandas, or nested lists. An omitted modality counts as missing.

        Raises:
            DataError: The arrays do not fit the model or each other.
        """
        table = self.table(arrays)
        for remark in table.remarks:
            logging.warning("%s: %s", table.path, remark)
        return self.predict_table(table)

    def table(self, arrays: Any, where: str = "arrays") -> ArrayTable:
        """Checks arrays and selects the modalities of the run.

        Other entries are ignored if they do not look like modalities, or if all modalities of the
        run are present; the table's remarks name them.

        Args:
            arrays: See `predict`.
            where: Name of the arrays in error messages.

        Raises:
            DataError: The arrays do not fit each other, or have other names than the modalities.
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
        """Predicts for the samples of `table`, in batches of at most `LARGEST_BATCH`."""
        specs = self.config.modalities
        absent = [spec for spec in specs if spec.name not in table.inputs]
        parts = []
        for start in range(0, len(table), LARGEST_BATCH):
            indices = range(start, min(start + LARGEST_BATCH, len(table)))
            records = [_with_absent(table[i], absent) for i in indices]
            size = 1 << (len(indices) - 1).bit_length()
            batch = collate(records, indices, specs, self.normalizer, size, self.task.target)
            outputs = jax.device_get(self._outputs(self.params, batch))
            parts.append(jax.tree.map(operator.itemgetter(slice(len(indices))), outputs))
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        return Prediction(
            id=np.asarray(table.id),
            answers=host_answers(joined["answers"]),
            legend=self.task.legend,
            kept={name: Kept(**kept) for name, kept in joined["kept"].items()},
        )


def load(workdir: str | Path, checkpoint: str | None = None) -> Predictor:
    """Opens a run for prediction on one device.

    Args:
        workdir: Folder of a run that has a checkpoint.
        checkpoint: `best` or `last`; None takes the best if there is one.

    Raises:
        CheckpointError: There is no run, or no checkpoint.
    """
    workdir = Path(workdir).expanduser().absolute()
    config = read_config(workdir)
    data = read_data(workdir, "normalizer", *required_data(config))
    task = from_run(config, data)
    mesh = make_mesh(TrainConfig(), jax.devices()[:1])
    state = session.restore(Trainer.of(config, task, 1, mesh), workdir, checkpoint)
    if task.decides:
        decision = read_decision(workdir, int(state.step))
        if decision is None:
            logging.warning(
                "%s: no decision.json for the parameters of step %d, so that there are no "
                "prediction intervals and thresholds are 0.5; the data need a validation split, "
                "and checkpoint must be the one that is chosen by default",
                *(workdir, int(state.step)),
            )
        task = task.with_decision(decision or {})
    normalizer = Normalizer.from_json(data["normalizer"])
    return Predictor(config, state.params, normalizer, task)


def _pooled(spec: ModalitySpec, pool: str, k: int | None) -> ModalitySpec:
    """`spec` with a pool that keeps `k` tokens, or as few more as its windows allow."""
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
