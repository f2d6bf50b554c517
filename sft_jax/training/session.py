"""Training and evaluation of a run, from a configuration and a folder."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sft_jax.config.data import relocate, with_fixed_paths
from sft_jax.config.io import to_dict
from sft_jax.config.run import Config
from sft_jax.data.pipeline import Normalizer, collate, eval_batches, infer_modalities, train_batches
from sft_jax.data.sources import Source, open_source, open_source_of_run
from sft_jax.files.errors import convert_disk_errors
from sft_jax.files.locks import locked
from sft_jax.metrics.ablation import ablation, without
from sft_jax.runs.evaluation_files import write_evaluation
from sft_jax.runs.run_files import (
    check_duration,
    open_run,
    read_config,
    read_data,
    read_decision,
    write_config,
    write_decision,
)
from sft_jax.runs.schema import stamped
from sft_jax.tasks import Task, from_source
from sft_jax.tasks import resolve as resolve_task
from sft_jax.training import loop
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.diagnosis import MOST_NAMED, Diagnosis, explain_rows, explain_step
from sft_jax.training.evaluation import Collected, collect
from sft_jax.training.processes import sync_processes
from sft_jax.training.sharding import for_these_devices, make_mesh
from sft_jax.training.state import TrainState
from sft_jax.training.summary import describe
from sft_jax.training.trainer import Trainer, check_best_metric, count_parameters, resolve
from sft_jax.training.unused_settings import unused_checkpoints, unused_settings
from sft_jax.types import Batch, CheckpointError, ConfigError


@dataclasses.dataclass(frozen=True)
class Session:
    """A resolved configuration with its data, task and mesh.

    Attributes:
        config: Resolved configuration.
        source: Prepared data.
        normalizer: Normalizer of the inputs.
        task: Task of the run.
        mesh: Mesh of all devices.
    """

    config: Config
    source: Source
    normalizer: Normalizer
    task: Task
    mesh: Mesh

    @classmethod
    def open(
        cls,
        config: Config,
        normalizer: Normalizer | None = None,
        fingerprint: str | None = None,
        source: Source | None = None,
    ) -> "Session":
        """Prepares the data if necessary and resolves `config` with it; its paths become absolute.

        Args:
            config: Configuration, resolved or not.
            normalizer: Normalizer of a run; None computes it from the training split.
            fingerprint: Fingerprint that the data must have; None accepts any.
            source: Source of `config.data` if it is already open.

        Raises:
            ConfigError: The settings do not fit the data or the devices.
            DataError: The data cannot be used.
            CheckpointError: The data are not those of the run.
        """
        mesh = make_mesh(config.train)
        source = open_source(config.data) if source is None else source
        config = dataclasses.replace(config, data=with_fixed_paths(config.data))
        info = source.info
        if fingerprint not in (None, info.fingerprint):
            raise CheckpointError(
                f"{info.directory}: holds data with fingerprint {info.fingerprint}, expected "
                f"{fingerprint}, which the run was trained on; give the place of the data it was "
                "trained on (--data_path, --data_dir)"
            )
        config = dataclasses.replace(config, task=resolve_task(config, info))
        task = from_source(
            config, info, lambda target: (source.targets("train", target), source.weights("train"))
        )
        check_best_metric(config, task)
        config = resolve(config, infer_modalities(info, config.modalities), task.output_size)
        if normalizer is None:
            normalizer = Normalizer.from_statistics(info.statistics, config.data.normalization)
        sync_processes("data")
        return cls(config, source, normalizer, task, mesh)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training split, including a last partial batch."""
        return -(-self.source.info.num_records["train"] // self.config.train.batch_size)

    @property
    def trainer(self) -> Trainer:
        """Trainer of this run."""
        return Trainer.of(self.config, self.task, self.steps_per_epoch, self.mesh)

    @property
    def needs_decision(self) -> bool:
        """Whether the task learns something from the validation split after training."""
        return self.task.decides and self.source.info.num_records["valid"] > 0

    def batches(self, split: str) -> Any:
        """Iterates over the records of a split in order, as batches of this process."""
        return eval_batches(
            self.source.split(split),
            self.config.modalities,
            self.normalizer,
            batch_size=self.config.train.batch_size,
            target=self.task.target,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def train(config: Config, workdir: Path, command: str = "", extend: bool = False) -> loop.Outcome:
    """Trains in a folder, or continues the training there, also to another `train.duration`.

    Args:
        config: Configuration, resolved or not.
        workdir: Folder of the run.
        command: Command line, for the report.
        extend: Whether another duration may stretch a schedule that depends on it.

    Raises:
        ConfigError: The settings cannot be used.
        DataError: The data cannot be used.
        CheckpointError: The folder belongs to another run, another process trains there, or it is
            not writable.
        NonFiniteError: A metric is NaN or infinite.
    """
    session = Session.open(config, source=_source_for(config, workdir))
    config = session.config
    if config.optimizer.schedule == "plateau" and not session.source.info.num_records["valid"]:
        raise ConfigError(
            "optimizer.schedule: given 'plateau' for data without a validation split, expected one "
            "to watch; hold samples out in data.options, or choose another schedule"
        )
    trainer = session.trainer
    state, abstract = trainer.create_state()
    record = {**_data_record(session, state), "command": command}
    with convert_disk_errors(workdir), locked(workdir):
        stored = open_run(workdir, config, record)
        if jax.process_index() == 0:
            parameters = count_parameters(state.params)
            print(describe(config, parameters, session.mesh), flush=True)
            validates = session.source.info.num_records["valid"] > 0
            warnings = [
                *session.source.info.warnings,
                *unused_settings(config, trainer.schedule, validates),
                *unused_checkpoints(config, trainer.schedule),
            ]
            for text in warnings:
                print(f"warning: {text}", file=sys.stderr, flush=True)
        return _train_locked(session, trainer, abstract, state, workdir, stored, extend)


def _source_for(config: Config, workdir: Path) -> Source:
    """Data of `config`, as prepared for the run in `workdir` if there is one."""
    if not (workdir / "data.json").exists():
        return open_source(config.data)
    return open_source_of_run(config.data, read_data(workdir, "fingerprint")["fingerprint"])


def _train_locked(
    session: Session,
    trainer: Trainer,
    abstract: TrainState,
    state: TrainState,
    workdir: Path,
    stored: Config,
    extend: bool,
) -> loop.Outcome:
    """Trains in a folder that is locked, whose `config.json` is `stored`."""
    config = session.config
    checkpoints = Checkpoints(workdir, config.train.keep, config=stamped(to_dict(config)))
    trained = checkpoints.latest("last") or 0
    check_duration(workdir, stored, config, session.steps_per_epoch, trained, extend)

    def begin():
        if stored.train.duration != config.train.duration and jax.process_index() == 0:
            write_config(workdir, stored, config.train.duration)

    parts = loop.Parts(
        task=session.task,
        step=trainer.compile_train_step(abstract),
        batches=_train_batches(session),
        validate=_validator(session, trainer),
        checkpoints=checkpoints,
        mesh=session.mesh,
        first=lambda: trainer.create_state()[0],
        diagnosis=_diagnosis(session, trainer),
        begin=begin,
    )
    try:
        outcome = loop.train(config, trainer.schedule, parts, abstract, state, workdir)
    except BaseException:
        # Closing would wait for the other processes, which may be gone or wait for this one.
        if jax.process_count() == 1:
            with contextlib.suppress(CheckpointError):  # must not hide the error that is raised
                checkpoints.close()
        raise
    checkpoints.close()
    if outcome.finished and session.needs_decision:
        state = restore(trainer, workdir)
        decision = _fit_decision(session, trainer, state)
        if jax.process_index() == 0:
            write_decision(workdir, int(state.step), decision)
    return outcome


def _fit_decision(session: Session, trainer: Trainer, state: TrainState) -> dict[str, Any]:
    """What the task learns from the validation split, such as thresholds."""
    eval_step = trainer.compile_eval_step()
    outputs = collect(eval_step, state.params, session.batches("valid"), session.mesh)
    return session.task.fit_decision(outputs.answers, outputs.target, outputs.weight)


class Evaluation(NamedTuple):
    """Result of an evaluation.

    Attributes:
        session: Session of the run.
        metrics: Result of `Task.score`.
        predictions: Arrays `[n, ...]` by the name of their entry in `predictions_<split>.npz`.
    """

    session: Session
    metrics: dict[str, Any]
    predictions: dict[str, np.ndarray]


def evaluate(
    workdir: Path,
    split: str = "test",
    checkpoint: str | None = None,
    data_dir: str | Path | None = None,
    ablate: bool = False,
    data_path: Sequence[str | Path] = (),
) -> Evaluation:
    """Scores a run on a split and writes `evaluation_<split>.json`, `predictions_<split>.npz`.

    Args:
        workdir: Folder of a run that has a checkpoint.
        split: `train`, `valid` or `test`.
        checkpoint: `best` or `last`; None takes the best if there is one.
        data_dir: Folder of the prepared data if it has moved since training.
        ablate: Whether to score the run without each modality as well, for
            `ablation_<split>.json`.
        data_path: Paths of the source files if they have moved since training.

    The devices may differ from those of the training.

    Raises:
        CheckpointError: There is no run or no checkpoint, or the data are not those of the run.
    """
    record = read_data(workdir, "normalizer", "fingerprint")
    normalizer = Normalizer.from_json(record["normalizer"])
    config = read_config(workdir)
    session = reopen(config, record["fingerprint"], normalizer, data_dir, data_path)
    trainer = session.trainer
    state = restore(trainer, workdir, checkpoint)
    if session.needs_decision:
        decision = read_decision(workdir, int(state.step))
        if decision is None:
            decision = _fit_decision(session, trainer, state)
        session = dataclasses.replace(session, task=session.task.with_decision(decision))
        trainer = session.trainer
    task = session.task
    eval_step = trainer.compile_eval_step()
    outputs = collect(eval_step, state.params, session.batches(split), session.mesh)
    groups = np.asarray(session.source.groups(split))
    shared = groups if np.unique(groups).size < groups.size else None
    result = task.score(
        outputs.answers,
        outputs.target,
        split=split,
        step=int(state.step),
        groups=shared,
        weight=outputs.weight,
        outputs=outputs.outputs,
        values=np.asarray(session.source.values(split)),
    )
    ablated = _without_each(session, eval_step, state.params, split) if ablate else {}
    predictions: dict[str, Any] = {
        "id": np.asarray(session.source.ids(split)),
        "group": groups,
        task.target_name: outputs.target,
        **outputs.answers,
        **{
            f"kept/{name}/{part}": value
            for name, parts in outputs.kept.items()
            for part, value in parts.items()
        },
    }
    if jax.process_index() == 0:
        without_each = None
        if ablated:
            without_each = ablation(
                outputs.entries(),
                {name: rows.entries() for name, rows in ablated.items()},
                scorer=lambda rows: task.scorer(rows, rows["target"], rows["weight"]),
                split=split,
                step=int(state.step),
                groups=shared,
            )
        write_evaluation(workdir, split, result, predictions, without_each)
    return Evaluation(session, result, predictions)


def _without_each(
    session: Session, eval_step: Any, params: Any, split: str
) -> dict[str, Collected]:
    """Outputs on a split by the modality that is masked; empty for a single modality."""
    names = [spec.name for spec in session.config.modalities]
    return {
        name: collect(eval_step, params, without(session.batches(split), name), session.mesh)
        for name in (names if len(names) > 1 else ())
    }


def restore(trainer: Trainer, workdir: Path, checkpoint: str | None = None) -> TrainState:
    """Restores a run from its best checkpoint, or the last if there is no best."""
    checkpoints = Checkpoints(workdir, trainer.config.train.keep, read_only=True)
    try:
        if checkpoint is None:
            checkpoint = "best" if checkpoints.latest("best") is not None else "last"
        return checkpoints.restore(checkpoint, trainer.abstract_state())[0]
    finally:
        checkpoints.close()


def reopen(
    config: Config,
    fingerprint: str,
    normalizer: Normalizer | None = None,
    data_dir: str | Path | None = None,
    data_path: Sequence[str | Path] = (),
) -> Session:
    """Opens a trained run on the present devices, with the data it was trained on.

    Prepared data are found by their fingerprint. Only files given by `data_path` are read.

    Args:
        config: Configuration stored in the run.
        fingerprint: Fingerprint of its data.
        normalizer: Normalizer of the run; None computes it from the training split.
        data_dir: Folder of the prepared data if it has moved since training.
        data_path: Paths of the source files if they have moved since training.

    Raises:
        ConfigError: The source has another number of files than `data_path`.
        DataError: The data cannot be used.
        CheckpointError: The data are not those of the run.
    """
    data = relocate(config.data, data_dir, data_path)
    find = open_source_of_run if data_path else open_source
    config = dataclasses.replace(for_these_devices(config), data=data)
    return Session.open(config, normalizer, fingerprint, find(data, fingerprint))


def _train_batches(session: Session) -> Any:
    return train_batches(
        session.source.split("train"),
        session.config.modalities,
        session.normalizer,
        batch_size=session.config.train.batch_size,
        seed=session.config.train.seed,
        target=session.task.target,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=session.config.data.num_threads,
        prefetch=session.config.data.prefetch,
    )


def _validator(session: Session, trainer: Trainer) -> Any:
    if not session.source.info.num_records["valid"]:
        return None
    eval_step = trainer.compile_eval_step()

    # Metrics that are no means over samples, such as mAP.
    exact = dict.fromkeys((*session.task.validated, session.config.train.best_metric))
    names = [name for name in exact if name not in session.task.logged]

    def validate(params: Any) -> dict[str, float]:
        outputs = collect(eval_step, params, session.batches("valid"), session.mesh)
        values = outputs.means()
        if names:
            rows = outputs.entries()
            score = session.task.scorer(rows, outputs.target, outputs.weight)
            found = score(np.ones(len(outputs.id), np.int64))
            # An undefined one, such as the correlation of equal predictions, is no result.
            values |= {name: found[name] for name in names if np.isfinite(found[name])}
        return values

    return validate


def _diagnosis(session: Session, trainer: Trainer) -> Diagnosis:
    def name(split: str) -> Any:
        return lambda position: session.source.ids(split)[position]

    def of_step(params: Any, batch: Batch, done: int) -> str:
        return explain_step(
            params, batch, done, model=trainer.model, config=trainer.step, name=name("train")
        )

    def of_validation(params: Any) -> str:
        eval_step = trainer.compile_eval_step()
        outputs = collect(eval_step, params, session.batches("valid"), session.mesh)
        finite = np.isfinite([sums for sums, _ in outputs.sums.values()]).all(axis=0)
        culprits = outputs.id[~finite].tolist()
        if not culprits:
            return "but repeated, it is finite for every sample"
        shown, records = culprits[:MOST_NAMED], session.source.split("valid")
        batch = collate(
            [records[position] for position in shown],
            shown,
            session.config.modalities,
            session.normalizer,
            len(shown),
            session.task.target,
        )
        return explain_rows(
            params, batch, model=trainer.model, name=name("valid"), count=len(culprits)
        )

    return Diagnosis(of_step=of_step, of_validation=of_validation)


def _data_record(session: Session, state: TrainState) -> dict[str, Any]:
    """Content of `data.json`, with which the run can predict without its data."""
    info = session.source.info
    return {
        **session.task.data_record(info),
        "modalities": [dataclasses.asdict(modality) for modality in info.modalities],
        "num_records": dict(info.num_records),
        "groups": {split: len(groups) for split, groups in info.groups.items()},
        "fingerprint": info.fingerprint,
        "normalizer": session.normalizer.to_json(),
        "num_parameters": count_parameters(state.params)["total"],
    }
