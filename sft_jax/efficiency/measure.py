"""Timing of training and inference of configured models on this machine."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from sft_jax.config.run import Config
from sft_jax.efficiency.hlo.hlo_cost import program_cost
from sft_jax.efficiency.model_costs import (
    check_complete,
    forward_gflop,
    num_parameters,
    random_batch,
    train_gflop,
)
from sft_jax.efficiency.throughput import Timing, time_interleaved
from sft_jax.tasks import from_config
from sft_jax.training.sharding import make_mesh, put_batch
from sft_jax.training.trainer import Trainer

Name = TypeVar("Name", bound=Hashable)
KINDS = ("train", "infer")
_PROFILED_STEPS = 3


class Candidate(NamedTuple):
    """A model to time.

    Attributes:
        config: Configuration of the model and its batch.
        train: Runs one optimizer step on a batch and returns the arrays to wait for.
        infer: Evaluates the same batch.
        compile_seconds: Compilation time by kind; 0 if nothing is compiled ahead of time.
        temporary_bytes: By kind, bytes that a step reserves besides its arguments on all devices,
            as the compiler reports; None if unknown.
        run_alone: Picklable function that builds the model and runs both kinds once.
        moved_bytes: Function from a kind to the bytes that a step reads and writes on all devices
            (see `hlo_cost.program_cost`); None if there is no program to read.
    """

    config: Config
    train: Callable[[], Any]
    infer: Callable[[], Any]
    compile_seconds: dict[str, float]
    temporary_bytes: dict[str, int | None]
    run_alone: Callable[[], Any]
    moved_bytes: Callable[[str], int] | None = None

    @property
    def batch_size(self) -> int:
        """Samples per step."""
        return self.config.train.batch_size


def candidate(config: Config) -> Candidate:
    """Compiles training and evaluation of a configuration on a random batch of its size.

    Nothing in the batch is masked, but masks are applied as in training. The batch is sharded over
    as many local devices as can take equal parts.

    Raises:
        ConfigError: Modalities or outputs are left to the data.
    """
    check_complete(config)
    mesh = make_mesh(config.train, jax.devices()[: _num_shards(config)])
    trainer = Trainer.of(config, from_config(config), 1000, mesh)
    state, abstract = trainer.create_state()
    batch = put_batch(random_batch(config), mesh)
    start = time.perf_counter()
    evaluate = trainer.compile_eval_step().lower(state.params, batch).compile()
    middle = time.perf_counter()
    train = trainer.compile_train_step(abstract).lower(state, batch).compile()
    seconds = {"train": time.perf_counter() - middle, "infer": middle - start}

    def train_once():
        # The state is donated, so each call passes its result on to the next.
        nonlocal state
        state, metrics = train(state, batch)
        return metrics

    programs = {"train": train, "infer": evaluate}
    return Candidate(
        config=config,
        train=train_once,
        infer=lambda: evaluate(state.params, batch),
        compile_seconds=seconds,
        temporary_bytes={
            kind: mesh.size * program.memory_analysis().temp_size_in_bytes
            for kind, program in programs.items()
        },
        run_alone=functools.partial(_run_once, config),
        moved_bytes=lambda kind: mesh.size * program_cost(programs[kind].as_text()).nbytes,
    )


def _run_once(config: Config):
    model = candidate(config)
    jax.block_until_ready([model.train(), model.infer()])


def _num_shards(config: Config) -> int:
    """Largest number of devices that can share a batch and its mixup groups evenly."""
    train = config.train
    if -1 not in (train.data_parallel, train.fsdp_parallel):
        return jax.device_count()  # as configured; `make_mesh` raises if it cannot be
    groups = [] if config.mixup.mode == "none" else [config.mixup.groups]
    size = math.gcd(train.batch_size // train.accumulate, *groups)
    return max(n for n in range(1, jax.device_count() + 1) if size % n == 0)


def uncompiled(
    config: Config,
    train: Callable[[], Any],
    infer: Callable[[], Any],
    run_alone: Callable[[], Any],
) -> Candidate:
    """A candidate from another library's functions, each of which is called once to compile it."""
    seconds = {}
    for kind, call in {"train": train, "infer": infer}.items():
        start = time.perf_counter()
        call()
        seconds[kind] = time.perf_counter() - start
    return Candidate(config, train, infer, seconds, dict.fromkeys(KINDS), run_alone)


class Rate(NamedTuple):
    """Samples per second over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, timing: Timing, batch_size: int) -> "Rate":
        """Converts seconds per batch into samples per second."""
        return cls(batch_size / timing.median, batch_size / timing.high, batch_size / timing.low)


def rates(
    candidates: Mapping[Name, Candidate], repeats: int, window: int
) -> dict[Name, dict[str, Rate]]:
    """Samples per second by name and kind, with candidates timed in turn.

    Args:
        candidates: Candidates by name.
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive steps per round, synchronised only at the end.
    """
    calls = {
        (name, kind): getattr(model, kind) for name, model in candidates.items() for kind in KINDS
    }
    timings = time_interleaved(calls, repeats, window)
    return {
        name: {kind: Rate.of(timings[name, kind], model.batch_size) for kind in KINDS}
        for name, model in candidates.items()
    }


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Measurements of one model on this machine.

    Attributes:
        rate: Samples per second by kind.
        compile_seconds: Compilation time by kind.
        temporary_bytes: Temporary bytes by kind; None if unknown.
        parameters: Number of trained parameters.
        gflop: GFLOP of matrix products for one sample, by kind.
        share_of_peak: Fraction of the rate of a large matrix product on this machine, by kind.
    """

    rate: dict[str, Rate]
    compile_seconds: dict[str, float]
    temporary_bytes: dict[str, int | None]
    parameters: int
    gflop: dict[str, float]
    share_of_peak: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data with keys such as `train.samples_per_second.median`."""
        return {
            "parameters": self.parameters,
            **{
                kind: {
                    "samples_per_second": self.rate[kind]._asdict(),
                    "compile_seconds": self.compile_seconds[kind],
                    "temporary_bytes": self.temporary_bytes[kind],
                    "gflop_per_sample": self.gflop[kind],
                    "share_of_peak": self.share_of_peak[kind],
                }
                for kind in KINDS
            },
        }


def measure(
    candidates: Mapping[str, Candidate], peak: float, repeats: int, window: int
) -> dict[str, Measurement]:
    """Times candidates in turn.

    Args:
        candidates: Candidates by name.
        peak: Operations per second that count as the peak (see `throughput.matmul_peak`).
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive steps per round, synchronised only at the end.
    """
    measured = {}
    for name, rate in rates(candidates, repeats, window).items():
        model = candidates[name]
        gflop = {"train": train_gflop(model.config), "infer": forward_gflop(model.config)}
        measured[name] = Measurement(
            rate=rate,
            compile_seconds=model.compile_seconds,
            temporary_bytes=model.temporary_bytes,
            parameters=num_parameters(model.config),
            gflop=gflop,
            share_of_peak={k: gflop[k] * 1e9 * rate[k].median / peak for k in KINDS},
        )
    return measured


def intensities(
    candidates: Mapping[str, Candidate], measured: Mapping[str, Measurement]
) -> list[dict[str, Any]]:
    """Points of a roofline plot (Williams et al., 2009, https://doi.org/10.1145/1498765.1498785).

    Args:
        candidates: Candidates by name, each with a readable program.
        measured: Measurements by the same names.

    Returns:
        One `{model, kind, flops_per_byte, flops_per_second}` for each name and kind.
    """
    points = []
    for name, measurement in measured.items():
        for kind in KINDS:
            flops = measurement.gflop[kind] * 1e9
            moved_bytes = candidates[name].moved_bytes
            assert moved_bytes is not None  # guaranteed by the caller
            points.append(
                {
                    "model": name,
                    "kind": kind,
                    "flops_per_byte": flops * candidates[name].batch_size / moved_bytes(kind),
                    "flops_per_second": flops * measurement.rate[kind].median,
                }
            )
    return points


def profile(candidates: Mapping[str, Candidate], folder: Path):
    """Writes a trace of a few named steps of each candidate, for Perfetto or XProf."""
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for name, model in candidates.items():
            for kind in KINDS:
                for step in range(_PROFILED_STEPS):
                    with jax.profiler.StepTraceAnnotation(f"{name} {kind}", step_num=step):
                        jax.block_until_ready(getattr(model, kind)())
