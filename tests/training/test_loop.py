import dataclasses
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config.run import Config, Duration, OptimizerConfig, TrainConfig
from sft_jax.config.task import TaskConfig
from sft_jax.runs.metric_log import MetricLog
from sft_jax.tasks import from_config
from sft_jax.training import loop, sharding
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.diagnosis import Diagnosis
from sft_jax.training.state import Progress, TrainState
from sft_jax.types import NonFiniteError

RATE = 1e-2
STEPS_PER_EPOCH = 4


class Numbers:
    """Endless batches that hold their own position, counted from 1."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        self.position += 1
        return {"x": np.full(1, self.position, np.float32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, given):
        self.position = given["position"]


@jax.jit
def fake_step(state, batch):
    """A parameter that depends on the order of the batches; loss = 10 / position."""
    x = batch["x"][0]
    count = jnp.float32(2)
    params = {"w": state.params["w"] * 0.5 + x * state.lr_scale}
    metrics = {
        "loss": (count * 10 / x, count),
        "top1": (jnp.float32(1), count),
        "samples": (count, jnp.float32(1)),
        "gradient_norm": (x, jnp.float32(1)),
        "learning_rate": (RATE * state.lr_scale, jnp.float32(1)),
    }
    return state.replace(step=state.step + 1, params=params), metrics


class Run:
    """A run around `fake_step` whose side effects are written down in the order they happen."""

    def __init__(self, workdir, mesh, monkeypatch):
        self.workdir, self.mesh, self.events = workdir, mesh, []
        self.losses = lambda step: 1 / step
        self.at_step = {}
        events = self.events

        class Recording(Checkpoints):
            def save(self, kind, state, progress):
                events.append(f"save {kind} {int(state.step)}")
                super().save(kind, state, progress)

        class Log(MetricLog):
            def write(self, kind, step, values, **facts):
                events.append(f"log {kind} {step}")
                super().write(kind, step, values, **facts)

        self._checkpoints = Recording
        monkeypatch.setattr(loop, "MetricLog", Log)

    def first_state(self):
        scalar = TrainState(
            step=jnp.int32(0), params={"w": jnp.float32(0)}, opt_state={}, lr_scale=jnp.ones(())
        )
        return jax.device_put(scalar, sharding.parameter_shardings(scalar, self.mesh))

    def train(self, validates=True, optimizer=None, total=12, diagnosis=None, **train):
        train = {"eval_every": "4 steps", "checkpoint_every": "3 steps", "log_every": 2} | train
        durations = {
            key: Duration.parse(value) if isinstance(value, str) and key != "best_metric" else value
            for key, value in train.items()
        }
        config = Config(
            optimizer=OptimizerConfig(**(optimizer or {})),
            train=TrainConfig(duration=Duration(float(total), "steps"), batch_size=2, **durations),
        )
        checkpoints = self._checkpoints(self.workdir, config.train.keep)
        batches, self.seen = Numbers(), []

        def step(state, batch):
            number = int(jax.device_get(batch["x"])[0])
            self.seen.append(number)
            self.events.append(f"step {number}")
            self.at_step.get(number, lambda: None)()
            return fake_step(state, batch)

        def validate(params):
            number = batches.position
            self.events.append(f"validate {number}")
            return {"loss": self.losses(number), "top1": -self.losses(number)}

        parts = loop.Parts(
            task=from_config(config),
            step=step,
            batches=batches,
            validate=validate if validates else None,
            checkpoints=checkpoints,
            mesh=self.mesh,
            first=self.first_state,
            diagnosis=diagnosis,
        )
        first = self.first_state()
        schedule = loop.Schedule.of(config, STEPS_PER_EPOCH)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), first
        )
        try:
            return loop.train(config, schedule, parts, abstract, first, self.workdir)
        finally:
            checkpoints.close()
            self.checkpoints = Checkpoints(self.workdir, config.train.keep)
            if self.checkpoints.latest("last") is not None:
                self.state, self.progress = self.checkpoints.restore("last", abstract)
            self.checkpoints.close()

    def records(self, kind=None):
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            assert (record.pop("samples_per_second", 1.0)) > 0
        return [record for record in records if kind in (None, record["kind"])]


@pytest.fixture
def run(tmp_path, devices, monkeypatch):
    mesh = sharding.make_mesh(TrainConfig(batch_size=1), devices[:1])
    return Run(tmp_path, mesh, monkeypatch)


def expected_weight(total):
    w = 0.0
    for x in range(1, total + 1):
        w = w * 0.5 + x
    return w


def test_the_order_of_side_effects(run):
    outcome = run.train(total=7)
    assert run.events == [
        "step 1",
        "step 2",
        "log train 2",
        "step 3",
        "log train 3",
        "save last 3",
        "step 4",
        "log train 4",
        "validate 4",
        "log valid 4",
        "save best 4",
        "step 5",
        "step 6",
        "log train 6",
        "save last 6",
        "step 7",
        "log train 7",
        "validate 7",
        "log valid 7",
        "save best 7",
        "save last 7",
    ]
    assert outcome == loop.Outcome(step=7, finished=True, best=1 / 7, best_step=7)
    assert run.state.step == 7
    assert run.state.params["w"] == expected_weight(7)
    assert run.progress.data == {"position": 7}


def test_durations_in_epochs_become_steps():
    config = Config(
        train=TrainConfig(
            duration=Duration(2.5, "epochs"),
            eval_every=Duration(0.1, "epochs"),
            checkpoint_every=Duration(7.0, "steps"),
            best_after=Duration(0.0, "epochs"),
        )
    )
    assert dataclasses.asdict(loop.Schedule.of(config, 4)) == {
        "warmup": 0,
        "total": 10,
        "eval_every": 1,
        "checkpoint_every": 7,
        "best_after": 0,
        "steps_per_epoch": 4,
    }


def test_records_are_means_since_the_record_before(run):
    run.train(total=4, log_every=3, checkpoint_every="100 steps")
    first, second = run.records("train")
    assert first["step"] == 3
    assert first["epoch"] == 0.75
    # Each step has 2 samples with a loss of 10 / position, one of them right.
    assert first["loss"] == pytest.approx((10 + 5 + 10 / 3) / 3, rel=1e-6)
    assert first["top1"] == 0.5
    assert first["gradient_norm"] == 2
    assert first["learning_rate"] == pytest.approx(RATE)
    assert (second["step"], second["loss"], second["gradient_norm"]) == (4, 2.5, 4)
    assert run.records("valid") == [
        {"kind": "valid", "step": 4, "epoch": 1.0, "loss": 0.25, "top1": -0.25}
    ]


def test_the_best_is_the_lowest_loss_and_kept_once(run):
    losses = {4: 3.0, 8: 1.0, 12: 1.0}
    run.losses = losses.get
    outcome = run.train(total=12)
    assert (outcome.best, outcome.best_step) == (1.0, 8)
    assert [event for event in run.events if "best" in event] == ["save best 4", "save best 8"]
    assert run.checkpoints.root.joinpath("best", "8").is_dir()


def test_the_best_top1_is_the_highest(run):
    run.losses = {4: -0.25, 8: -0.75, 12: -0.5}.get  # top1 is the negative
    outcome = run.train(best_metric="top1")
    assert (outcome.best, outcome.best_step) == (0.75, 8)


@pytest.mark.parametrize(
    ("task", "metric", "values", "best"),
    [
        ("classification", "loss", (2.0, 1.0, 3.0), 1),
        ("classification", "top1", (0.5, 0.75, 0.25), 1),
        ("multilabel", "macro_f1", (0.5, 0.25, 0.75), 2),
        ("regression", "mae", (1.0, 2.0, 3.0), 0),
        ("regression", "r2", (-1.0, 0.5, 0.25), 1),
        # Undefined, such as the correlation of equal predictions: neither better nor an error.
        ("regression", "pearson", (None, 0.25, None), 1),
    ],
)
def test_the_best_follows_the_direction_of_the_metric(run, task, metric, values, best):
    train = TrainConfig(best_metric=metric, eval_every=Duration(1.0, "steps"))
    config = Config(task=TaskConfig(name=task), train=train)
    chosen = from_config(config)
    assert metric in chosen.selectable
    schedule, state, progress = loop.Schedule.of(config, 4), run.first_state(), Progress(data={})
    for step, value in enumerate(values):
        given = {"loss": 1.0} | ({} if value is None else {metric: value})
        state, progress, _ = loop._judge(config, schedule, chosen, state, progress, step, given)
    assert (progress.best, progress.best_step) == (values[best], best)
    assert progress.stale == len(values) - 1 - best


EARLY = {"eval_every": "2 steps", "checkpoint_every": "5 steps", "total": 20, "patience": 2}


def test_training_stops_after_as_many_validations_without_a_better_one(run, capsys):
    # Not better at 6, better at 8, no better (the same is not better) at 10 and 12.
    run.losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 1.0, 10: 1.5, 12: 1.0}.get
    outcome = run.train(**EARLY)
    assert outcome == loop.Outcome(12, True, 1.0, 8, stopped_early=True)
    assert run.events[-2:] == ["log valid 12", "save last 12"]
    records = (run.workdir / "metrics.jsonl").read_text()
    run.events.clear()
    assert run.train(**EARLY) == outcome
    assert "step 12: training stopped early there" in capsys.readouterr().out
    assert run.events == []
    assert (run.workdir / "metrics.jsonl").read_text() == records


@pytest.mark.parametrize("stop", [9, 10, 11])
def test_a_resumed_run_stops_early_at_the_same_step(run, stop):
    run.losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 1.0, 10: 1.5, 12: 1.0}.get
    run.at_step = {stop: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    assert not run.train(**EARLY).finished
    run.at_step = {}
    assert run.train(**EARLY) == loop.Outcome(12, True, 1.0, 8, stopped_early=True)
    assert run.state.params["w"] == np.float32(expected_weight(12))


def test_patience_counts_from_best_after_and_never_without_it(run):
    run.losses = lambda step: float(step)  # the first is the best
    outcome = run.train(**EARLY | {"best_after": "7 steps"})
    assert (outcome.step, outcome.best_step) == (12, 8)


def test_without_patience_training_never_stops_early(run):
    run.losses = lambda step: float(step)
    outcome = run.train(**EARLY | {"patience": 0})
    assert (outcome.step, outcome.best_step, outcome.stopped_early) == (20, 2, False)


def test_a_validation_that_is_not_due_counts_for_no_rule(run):
    """Otherwise a run that is continued would differ from one that was longer from the start."""
    run.losses = lambda step: 1.0
    arguments = {
        "eval_every": "2 steps",
        "optimizer": {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5},
    }
    run.train(total=5, **arguments)
    assert run.state.lr_scale == 1 / 2
    assert (run.progress.plateau.scale, run.progress.stale) == (1 / 2, 1)


def test_progress_that_was_stored_without_the_count_loads():
    content = Progress(data={}, best=1.0, best_step=3).to_json()
    del content["stale"]
    assert Progress.from_json(content) == Progress(data={}, best=1.0, best_step=3)


def test_no_best_before_best_after(run):
    run.losses = {4: 0.1, 8: 3.0, 12: 2.0}.get
    outcome = run.train(best_after="5 steps")
    assert [event for event in run.events if "best" in event] == ["save best 8", "save best 12"]
    assert (outcome.best, outcome.best_step) == (2.0, 12)


def test_without_a_validation_split_there_is_no_best(run):
    outcome = run.train(validates=False, total=4)
    assert outcome == loop.Outcome(step=4, finished=True, best=None, best_step=0)
    assert not any("valid" in event or "best" in event for event in run.events)
    assert run.events[-1] == "save last 4"


def test_the_plateau_scales_the_rate_and_survives_a_restart(run):
    optimizer = {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5}
    run.losses = lambda step: 1.0
    run.at_step = {8: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    arguments = {"optimizer": optimizer, "log_every": 1, "eval_every": "2 steps", "total": 12}
    assert not run.train(**arguments).finished
    run.at_step = {}
    run.train(**arguments)
    rates = [record["learning_rate"] / RATE for record in run.records("train")]
    # The first validation, at step 2, sets the best; every later one halves.
    scales = [1, 1, 1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 16, 1 / 16]
    np.testing.assert_allclose(rates, scales, rtol=1e-6)
    assert run.state.lr_scale == 1 / 32
    assert run.progress.plateau.scale == 1 / 32


def test_sigterm_saves_and_the_next_call_goes_on(run):
    before = signal.getsignal(signal.SIGTERM)
    run.at_step = {5: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    outcome = run.train()
    assert (outcome.step, outcome.finished) == (5, False)
    assert run.events[-3:] == ["step 5", "log train 5", "save last 5"]
    assert run.progress.data == {"position": 5}
    assert signal.getsignal(signal.SIGTERM) is before
    run.at_step = {}
    outcome = run.train()
    assert run.seen == list(range(6, 13))
    assert outcome == loop.Outcome(step=12, finished=True, best=1 / 12, best_step=12)
    assert run.state.params["w"] == np.float32(expected_weight(12))


def test_sigterm_in_the_last_step_is_the_end(run):
    run.at_step = {12: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    assert run.train().finished


def test_a_finished_run_is_left_as_it_is(run, capsys):
    first = run.train()
    assert "going on" not in capsys.readouterr().out
    records = (run.workdir / "metrics.jsonl").read_text()
    run.events.clear()
    assert run.train() == first
    assert "checkpoint of step 12: no steps left; to" in capsys.readouterr().out
    assert run.events == []
    assert (run.workdir / "metrics.jsonl").read_text() == records


class KilledError(Exception):
    pass


def raise_killed():
    raise KilledError


@pytest.mark.parametrize("killed_at", [2, 4, 5, 8, 9, 10, 12])
def test_a_run_killed_anywhere_repeats_itself(run, tmp_path, devices, monkeypatch, killed_at):
    run.losses = {4: 0.5, 8: 0.2, 12: 0.9}.get
    run.at_step = {killed_at: raise_killed}
    with pytest.raises(KilledError):
        run.train()
    with (run.workdir / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 11, "lo')  # cut off while it was written
    run.at_step = {}
    outcome = run.train()
    saved = (killed_at - 1) // 3 * 3
    assert run.seen == list(range(saved + 1, 13))
    straight = Run(tmp_path / "straight", run.mesh, monkeypatch)
    straight.losses = run.losses
    straight.workdir.mkdir()
    assert straight.train() == outcome
    assert straight.records() == run.records()
    assert (straight.state, straight.progress) == (run.state, run.progress)


def test_records_after_the_checkpoint_are_dropped_on_resume(run):
    run.train(total=6)
    kept = run.records()
    with (run.workdir / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "train", "step": 7, "loss": 9.0}) + "\n")
        log.write('{"kind": "tr')
    run.train(total=6)
    assert run.records() == kept


def test_a_metric_that_is_not_finite_stops_before_it_is_saved(run, monkeypatch):
    real = Numbers.__next__

    def poisoned(self):
        batch = real(self)
        if self.position == 5:
            batch["x"][:] = 0  # 10 / 0
        return batch

    monkeypatch.setattr(Numbers, "__next__", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 5: metric 'loss' is inf.*learning_rate"):
        run.train(eval_every="100 steps")
    assert run.events[-1] == "step 6"
    assert (run.state.step, run.progress.data) == (3, {"position": 3})
    assert np.isfinite(run.state.params["w"])
    assert [record["step"] for record in run.records()] == [2, 3, 4]


# Says what it was asked about.
ASKED = Diagnosis(
    of_step=lambda params, batch, done: f"w {params['w']}, x {batch['x'][0]}, after {done}",
    of_validation=lambda params: f"w {params['w']}",
)


@pytest.mark.parametrize(("checkpoint_every", "saved"), [("3 steps", 6), ("100 steps", 0)])
def test_the_cause_is_sought_in_the_state_before_the_step(
    run, monkeypatch, checkpoint_every, saved
):
    """Though the loop has gone on to step 8; the plateau's scales are those of the first time."""
    real = Numbers.__next__

    def poisoned(self):
        batch = real(self)
        batch["x"][batch["x"] == 7] = -0.0  # 10 / 0
        return batch

    monkeypatch.setattr(Numbers, "__next__", poisoned)
    run.losses = lambda step: 1.0
    run.at_step = {}
    optimizer = {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5}
    options = {"optimizer": optimizer, "eval_every": "2 steps", "log_every": 4}
    with pytest.raises(NonFiniteError) as caught:
        run.train(checkpoint_every=checkpoint_every, diagnosis=ASKED, **options)
    w = 0.0
    for x, scale in zip(range(1, 7), [1, 1, 1, 1, 0.5, 0.5], strict=True):
        w = w * 0.5 + x * scale
    assert f"a finite number; w {w}, x -0.0, after 6. The newest" in str(caught.value)
    assert run.seen == [*range(1, 7), 0, 8, *range(saved + 1, 7), 0]


def test_a_step_that_goes_well_the_second_time_is_blamed_on_the_machine(run, monkeypatch):
    real, seen = Numbers.__next__, []

    def poisoned(self):
        batch = real(self)
        if self.position == 5 and not seen:
            seen.append(batch["x"].fill(0))
        return batch

    monkeypatch.setattr(Numbers, "__next__", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 5, repeated from the state of step 3.*memory"):
        run.train(validates=False, diagnosis=ASKED)


def test_what_goes_wrong_in_looking_for_the_cause_does_not_hide_the_error(run):
    def fail(params):
        raise OSError("no space")

    run.losses = {4: float("nan")}.get
    said = r"step 4: metric 'loss' is nan.*could not be found \(OSError: no space\)\. The newest"
    with pytest.raises(NonFiniteError, match=said) as caught:
        run.train(diagnosis=dataclasses.replace(ASKED, of_validation=fail))
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_that_is_not_finite_is_neither_best_nor_saved(run, value):
    run.losses = {4: 1.0, 8: value}.get
    said = rf"step 8: metric 'loss' is (nan|inf).*; w {expected_weight(8)}\. The.*validation"
    with pytest.raises(NonFiniteError, match=said):
        run.train(diagnosis=ASKED)
    assert run.checkpoints.root.joinpath("best", "4").is_dir()
    assert not run.checkpoints.root.joinpath("best", "8").exists()
    assert run.state.step == 6


def test_signals_are_left_alone_outside_the_main_thread(run):
    result = []
    thread = threading.Thread(target=lambda: result.append(run.train(total=3)))
    thread.start()
    thread.join()
    assert result == [loop.Outcome(step=3, finished=True, best=1 / 3, best_step=3)]


def test_event_files_hold_the_same_numbers(run):
    run.train(total=4)
    files = list((run.workdir / "events").iterdir())
    assert len(files) == 1
    content = files[0].read_bytes()
    for tag in (b"train/loss", b"train/learning_rate", b"valid/loss", b"valid/top1"):
        assert tag in content


def test_progress_is_saved_whole(run):
    run.train(total=4)
    assert run.progress == Progress(data={"position": 4}, best=0.25, best_step=4)
