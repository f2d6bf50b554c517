"""Times training and inference of configured models in turn on this machine."""

import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
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


class Candidate(NamedTuple):
    """A model to time.

    Attributes:
        train: Runs one optimizer step on a batch and returns the arrays to wait for.
        infer: Evaluates the same batch.
        batch_size: Samples of the batch.
        compile_seconds: Compilation time by kind; 0 if nothing is compiled ahead of time.
        temporary_bytes: By kind, bytes that a step reserves besides its arguments on all devices,
            as the compiler reports; None if unknown.
        moved_bytes: Function from a kind to the bytes that a step reads and writes on all devices
            (see `hlo_cost.program_cost`); None if there is no program to read.
    """

    train: Callable[[], Any]
    infer: Callable[[], Any]
    batch_size: int
    compile_seconds: dict[str, float]
    temporary_bytes: dict[str, int | None]
    moved_bytes: Callable[[str], int] | None = None


def candidate(config: Config) -> Candidate:
    """Compiles training and evaluation of a configuration on a random batch of its size.

    Nothing in the batch is masked, but masks are applied as in training. The batch is sharded over
    as many local devices as can take equal parts.

    Raises:
        ConfigError: Modalities or classes are left to the data.
    """
    check_complete(config)
    mesh = make_mesh(config.train, jax.devices()[: _shards(config)])
    trainer = Trainer.of(config, from_config(config), 1000, mesh)
    state, abstract = trainer.create_state()
    batch = put_batch(random_batch(config), mesh)
    start = time.perf_counter()
    evaluate = trainer.compile_eval_step().lower(state.params, batch).compile()
    middle = time.perf_counter()
    train = trainer.compile_train_step(abstract).lower(state, batch).compile()
    seconds = {"train": time.perf_counter() - middle, "infer": middle - start}
    holder = [state]

    def train_once():
        # The state is donated, so each call passes its result on to the next.
        holder[0], metrics = train(holder[0], batch)
        return metrics

    programs = {"train": train, "infer": evaluate}
    return Candidate(
        train=train_once,
        infer=lambda: evaluate(holder[0].params, batch),
        batch_size=config.train.batch_size,
        compile_seconds=seconds,
        temporary_bytes={
            kind: mesh.size * program.memory_analysis().temp_size_in_bytes
            for kind, program in programs.items()
        },
        moved_bytes=lambda kind: mesh.size * program_cost(programs[kind].as_text()).nbytes,
    )


def _shards(config: Config) -> int:
    """Largest number of devices that can share a batch and its mixup groups evenly."""
    train = config.train
    if -1 not in (train.data_parallel, train.fsdp_parallel):
        return jax.device_count()  # as configured; `make_mesh` raises if it cannot be
    groups = [] if config.mixup.mode == "none" else [config.mixup.groups]
    size = math.gcd(train.batch_size // train.accumulate, *groups)
    return max(n for n in range(1, jax.device_count() + 1) if size % n == 0)


def uncompiled(train: Callable[[], Any], infer: Callable[[], Any], batch_size: int) -> Candidate:
    """A candidate from another library's calls, each called once to compile."""
    seconds = {}
    for kind, call in {"train": train, "infer": infer}.items():
        start = time.perf_counter()
        call()
        seconds[kind] = time.perf_counter() - start
    return Candidate(train, infer, batch_size, seconds, dict.fromkeys(KINDS))


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
    candidates: Mapping[Name, Candidate],
    repeats: int,
    window: int,
    kinds: Sequence[str] = KINDS,
) -> dict[tuple[Name, str], Rate]:
    """Samples per second by name and kind, with candidates timed in turn."""
    calls = {
        (name, kind): getattr(entry, kind) for name, entry in candidates.items() for kind in kinds
    }
    timings = time_interleaved(calls, repeats, window)
    return {key: Rate.of(timing, candidates[key[0]].batch_size) for key, timing in timings.items()}


def megabytes(size: int | float | None) -> float | None:
    """Megabytes for a table; None if unknown."""
    return None if size is None else round(size / 1e6, 1)


def compare(configs: Mapping[str, Config], repeats: int) -> list[dict[str, Any]]:
    """Times configurations in turn, mixup included, and returns one table row for each.

    Args:
        configs: Configurations by the name of their row.
        repeats: Number of timed rounds.

    Raises:
        ConfigError: A configuration leaves modalities or classes to the data.
    """
    candidates = {name: candidate(config) for name, config in configs.items()}
    measured = rates(candidates, repeats, window=1)
    return [
        {
            "configuration": name,
            "parameters": num_parameters(config),
            "forward GFLOP": round(forward_gflop(config), 3),
            "train samples/s": round(measured[name, "train"].median, 1),
            "inference samples/s": round(measured[name, "infer"].median, 1),
            "temporary MB": megabytes(candidates[name].temporary_bytes["train"]),
        }
        for name, config in configs.items()
    ]


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


def measure(
    candidates: Mapping[str, Candidate],
    configs: Mapping[str, Config],
    peak: float,
    repeats: int,
    window: int,
) -> dict[str, Measurement]:
    """Times candidates in turn.

    Args:
        candidates: Candidates by name.
        configs: Configuration of each candidate's model, by the same names.
        peak: Operations per second that count as the peak (see `throughput.matmul_peak`).
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive steps per round, synchronised only at the end.
    """
    measured = rates(candidates, repeats, window)
    found = {}
    for name, entry in candidates.items():
        gflop = {"train": train_gflop(configs[name]), "infer": forward_gflop(configs[name])}
        rate = {kind: measured[name, kind] for kind in KINDS}
        found[name] = Measurement(
            rate=rate,
            compile_seconds=entry.compile_seconds,
            temporary_bytes=entry.temporary_bytes,
            parameters=num_parameters(configs[name]),
            gflop=gflop,
            share_of_peak={k: gflop[k] * 1e9 * rate[k].median / peak for k in KINDS},
        )
    return found


def to_json(measurement: Measurement) -> dict[str, Any]:
    """Plain data with keys such as `train.samples_per_second.median`."""
    return {
        "parameters": measurement.parameters,
        **{
            kind: {
                "samples_per_second": measurement.rate[kind]._asdict(),
                "compile_seconds": measurement.compile_seconds[kind],
                "temporary_bytes": measurement.temporary_bytes[kind],
                "gflop_per_sample": measurement.gflop[kind],
                "share_of_peak": measurement.share_of_peak[kind],
            }
            for kind in KINDS
        },
    }


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
    for name, entry in measured.items():
        for kind in KINDS:
            flops = entry.gflop[kind] * 1e9
            count = candidates[name].moved_bytes
            assert count is not None  # guaranteed by the caller
            moved = count(kind) / candidates[name].batch_size
            points.append(
                {
                    "model": name,
                    "kind": kind,
                    "flops_per_byte": flops / moved,
                    "flops_per_second": flops * entry.rate[kind].median,
                }
            )
    return points
