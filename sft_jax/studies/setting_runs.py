"""Training of a study: all folds and seeds of a setting together, one setting after another."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sft_jax.config.run import Config
from sft_jax.config.study import COMPLETE, Setting, Study
from sft_jax.data.pipeline import batch_order
from sft_jax.studies.folds import Fold, FoldReader, apply_condition, rows_of
from sft_jax.studies.population import Members, Population, stack_folds
from sft_jax.tasks import Task
from sft_jax.training.optimizer import Plateau
from sft_jax.training.recorder import means
from sft_jax.training.session import Session
from sft_jax.training.trainer import Trainer
from sft_jax.training.unused_settings import unused_settings
from sft_jax.types import Batch, ConfigError, NonFiniteError


class Curve(NamedTuple):
    """Metrics of every run at one validation: step, and `{name: [r]}`."""

    step: int
    values: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Trained:
    """Trained runs of a setting.

    Attributes:
        config: Resolved configuration that all runs share, apart from fold and seed.
        task: Task of the runs.
        folds: Data of the folds.
        runs: Position of the fold, and seed, of each run.
        curves: Metrics during training.
        answers: Result of `Task.answer` for each run, by split and condition.
        chosen_step: Step of the parameters that were evaluated `[r]`.
    """

    config: Config
    task: Task
    folds: Sequence[Fold]
    runs: Sequence[tuple[int, int]]
    curves: list[Curve]
    answers: dict[tuple[str, str], list[dict[str, np.ndarray]]]
    chosen_step: np.ndarray


def train_setting(
    study: Study,
    setting: Setting,
    folds: Sequence[Setting],
    progress: Callable[[int], Any] = lambda steps: None,
    read: FoldReader | None = None,
) -> Trained:
    """Trains and evaluates one setting on the given folds with every seed.

    As in a single run, the parameters with the best validation are evaluated, or the last ones
    without a validation split. With `train.patience`, later validations of a run that would have
    stopped are ignored; it goes on with the others, so that its curves do.

    Args:
        study: Study to run.
        setting: Setting of the study.
        folds: Folds of the study.
        progress: Function that is called with the number of steps just taken.
        read: Reader of the folds, to be shared by all settings so that it reads each fold once.

    Raises:
        ConfigError: The folds differ in more than their data.
        DataError: The data cannot be used.
        NonFiniteError: A metric of a run is NaN or infinite.
    """
    read = FoldReader() if read is None else read
    opened = [read(fold.name, study.config(setting, fold, study.seeds[0])) for fold in folds]
    sessions, data = zip(*opened, strict=True)
    config = _shared_config(sessions, setting.name)
    runs = [(i, seed) for i in range(len(folds)) for seed in study.seeds]
    trainer = _SettingTrainer(config, sessions[0].task, data, runs)
    for text in unused_settings(config, trainer.schedule, None not in trainer.valid):
        tqdm.write(f"warning: setting {setting.name!r}: {text}", file=sys.stderr)
    curves = trainer.train(progress)
    answers = {}
    for split in ("valid", "test"):
        for condition in (COMPLETE, *study.conditions) if split == "test" else (COMPLETE,):
            if all(split in fold.splits for fold in data):
                batches = [apply_condition(condition, fold.splits[split]) for fold in data]
                answers[split, condition.name] = trainer.answers(trainer.best_params, batches)
    return Trained(
        config=config,
        task=sessions[0].task,
        folds=data,
        runs=runs,
        curves=curves,
        answers=answers,
        chosen_step=trainer.chosen_step[: len(runs)],
    )


def scores(trained: Trained) -> Iterator[dict[str, Any]]:
    """Yields rows of scores: `fold, seed, split, condition, level, metric, value`."""
    for (split, condition), runs in trained.answers.items():
        for (fold, seed), answers in zip(trained.runs, runs, strict=True):
            data = trained.folds[fold]
            target, weight = (data.splits[split][name] for name in ("target", "weight"))
            group = data.group if split == "test" else None
            run = {"fold": data.name, "seed": seed, "split": split, "condition": condition}
            for level, metrics in score_levels(
                trained.task, answers, target, group, weight
            ).items():
                for metric, value in metrics.items():
                    if np.isfinite(value):
                        yield {**run, "level": level, "metric": metric, "value": value}


def score_levels(
    task: Task,
    answers: dict[str, np.ndarray],
    target: np.ndarray,
    group: np.ndarray | None,
    weight: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Scores `{level: {metric: value}}` per sample, and per group if samples share groups."""
    once = np.ones(len(target), np.int64)
    levels = {"sample": task.scorer(answers, target, weight)(once)}
    if group is not None and len(np.unique(group)) < len(group):
        pooled = task.group(answers, target, group)
        if pooled is not None:
            levels["group"] = task.scorer(*pooled)(np.ones(len(pooled[1]), np.int64))
    return levels


def _shared_config(sessions: Sequence[Session], name: str) -> Config:
    """The configuration that all folds share, apart from their data."""
    first = sessions[0].config
    for session in sessions[1:]:
        other = dataclasses.replace(session.config, data=first.data)
        if other != first:
            raise ConfigError(
                f"setting {name!r}: given folds that differ in more than their data, expected the "
                "same model, lengths and training for all; remove such settings from the folds"
            )
    return first


class _SettingTrainer:
    """Training of the runs of one setting; arrays of runs are padded to the devices."""

    def __init__(
        self,
        config: Config,
        task: Task,
        folds: Sequence[Fold],
        runs: Sequence[tuple[int, int]],
    ):
        sizes = [len(fold.splits["train"]["weight"]) for fold in folds]
        self.config, self.task, self.num_runs = config, task, len(runs)
        per_epoch = -(-min(sizes) // config.train.batch_size)
        trainer = Trainer.of(config, task, per_epoch)
        self.schedule = trainer.schedule
        self.population = Population.of(trainer.step, trainer.init)
        # Devices take equal shares of the runs, so the last run is repeated as padding.
        padded = [*runs, *[runs[-1]] * (-len(runs) % self.population.mesh.size)]
        fold, seed = (np.array(column, np.int32) for column in zip(*padded, strict=True))
        self.fold = fold
        self.names = [f"fold {folds[f].name!r}, seed {s}" for f, s in padded]
        self.members = self.population.put(Members(seed=seed, fold=fold), runs=True)
        size = config.train.batch_size
        self.orders = [batch_order(sizes[f], size, s) for f, s in padded]
        self.train_split = self._put_split([fold.splits["train"] for fold in folds])
        # Used only if every fold has one.
        self.valid: list[Any] = [fold.splits.get("valid") for fold in folds]
        if config.optimizer.schedule == "plateau" and None in self.valid:
            raise ConfigError(
                "optimizer.schedule: given 'plateau' for folds without a validation split, "
                "expected one; hold out samples in data.options, or choose another schedule"
            )
        self.states = self.population.create(self.members)
        self.best_params = jax.tree.map(jnp.copy, self.states.params)  # states are donated
        self.chosen_step = np.zeros(len(padded), int)
        self.best = np.full(len(padded), -np.inf)
        self.stale = np.zeros(len(padded), int)
        self.plateaus = [Plateau()] * len(padded)

    def train(self, progress: Callable[[int], Any]) -> list[Curve]:
        size = self.config.train.batch_size
        curves, pending = [], []
        for step in range(1, self.schedule.total + 1):
            rows = rows_of([order[step - 1] for order in self.orders], size)
            rows = self.population.put(rows, runs=True)
            self.states, metrics = self.population.step(
                self.states, self.members, rows, self.train_split
            )
            pending.append(metrics)
            if step % self.schedule.eval_every == 0 or step == self.schedule.total:
                values = self._sums(step, pending)
                progress(len(pending))
                pending = []
                if all(split is not None for split in self.valid):
                    values |= self._validate(step)
                curves.append(Curve(step, {k: v[: self.num_runs] for k, v in values.items()}))
        # Without a validation that counts, the last parameters are evaluated.
        unchosen = self.population.put(self.chosen_step == 0, runs=True)
        self.best_params = self.population.keep(self.best_params, self.states.params, unchosen)
        self.chosen_step[self.chosen_step == 0] = self.schedule.total
        return curves

    def answers(self, params: Any, batches: Sequence[Batch]) -> list[dict[str, np.ndarray]]:
        """Answers of each run on the batch of its fold."""
        return [self.task.answer(x) for x in self._outputs(params, batches)[: self.num_runs]]

    def _outputs(self, params: Any, batches: Sequence[Batch]) -> list[np.ndarray]:
        size = self.config.train.batch_size
        counts = [len(batch["weight"]) for batch in batches]
        num_steps = -(-max(counts) // size)
        rows = rows_of([np.arange(count) for count in counts], num_steps * size)
        rows = rows.reshape(len(batches), num_steps, size)[self.fold]
        rows = self.population.put(rows, runs=True)
        outputs = self.population.outputs(params, self.members, rows, self._put_split(batches))
        by_run = np.asarray(outputs).reshape(len(rows), num_steps * size, -1)
        return [x[: counts[fold]] for x, fold in zip(by_run, self.fold, strict=True)]

    def _validate(self, step: int) -> dict[str, np.ndarray]:
        """Metrics of every run; updates the best parameters and the plateau rule."""
        outputs = self._outputs(self.states.params, self.valid)
        runs = [
            self._score(x, self.valid[fold]) for x, fold in zip(outputs, self.fold, strict=True)
        ]
        names = dict.fromkeys(
            (*self.task.logged, *self.task.validated, self.config.train.best_metric)
        )
        values = {name: np.array([run[name] for run in runs]) for name in names}
        _check_finite(step, {"validation loss": values["loss"]}, self.names)
        best = self.task.metrics[self.config.train.best_metric]
        score = values[best.name] * (1.0 if best.higher_is_better else -1.0)
        patience = self.config.train.patience
        counts = (step >= self.schedule.best_after) & ((patience == 0) | (self.stale < patience))
        better = (score > self.best) & counts
        self.stale = np.where(better, 0, self.stale + counts)
        self.best = np.where(better, score, self.best)
        self.chosen_step[better] = step
        flags = self.population.put(better, runs=True)
        self.best_params = self.population.keep(self.best_params, self.states.params, flags)
        if self.config.optimizer.schedule == "plateau":
            self.plateaus = [
                plateau.update(float(loss), self.config.optimizer)
                for plateau, loss in zip(self.plateaus, values["loss"], strict=True)
            ]
            scale = np.array([plateau.scale for plateau in self.plateaus], np.float32)
            lr_scale = self.population.put(scale, runs=True)
            self.states = dataclasses.replace(self.states, lr_scale=lr_scale)
        return {f"valid {name}": value for name, value in values.items()}

    def _score(self, outputs: np.ndarray, batch: Batch) -> dict[str, float]:
        score = self.task.scorer(self.task.answer(outputs), batch["target"], batch["weight"])
        return score(np.ones(len(outputs), np.int64))

    def _sums(self, step: int, pending: list[Any]) -> dict[str, np.ndarray]:
        """Training metrics since the last call, as in the log of a single run."""
        averages = means(jax.device_get(pending))
        values = {f"train {name}": averages[name] for name in self.task.logged}
        _check_finite(step, values, self.names)
        return values

    def _put_split(self, batches: Sequence[Batch]) -> Batch:
        return self.population.put(stack_folds(batches), runs=False)


def _check_finite(step: int, values: dict[str, np.ndarray], names: Sequence[str]):
    for name, value in values.items():
        if not np.isfinite(value).all():
            run = names[int(np.flatnonzero(~np.isfinite(value))[0])]
            raise NonFiniteError(
                f"step {step}: {name} of {run} is not finite; lower optimizer.learning_rate, or "
                "look at the data"
            )
