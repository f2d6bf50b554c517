"""Training and inference of configured models, timed in turn on this machine."""

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
    """Something to time.

    Attributes:
        train: takes one optimizer step on one batch and returns what to wait for.
        infer: evaluates the same batch.
        batch_size: samples of a batch.
        compile_seconds: by kind; 0 where nothing is compiled ahead.
        temporary_bytes: by kind, what the compiler says a step holds beside its arguments, on all
            devices together; None where it does not say.
        moved_bytes: takes a kind and counts what the instructions of a step read and write, on all
            devices together (see `hlo_cost.program_cost`); None where no program can be read.
    """

    train: Callable[[], Any]
    infer: Callable[[], Any]
    batch_size: int
    compile_seconds: dict[str, float]
    temporary_bytes: dict[str, int | None]
    moved_bytes: Callable[[str], int] | None = None


def candidate(config: Config) -> Candidate:
    """The training and the evaluation step of a configuration, on a random batch of its size.

    The batch is everything real; masks are applied all the same, as in training. It is shared by
    as many of the devices here as can have equal parts of it.

    Raises:
        ConfigError: modalities or classes that are left to the data.
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
        # The state is donated, so the next call takes what this one hands back.
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
    """The most devices that a batch (and its groups of mixup partners) can be shared by."""
    train = config.train
    if -1 not in (train.data_parallel, train.fsdp_parallel):
        return jax.device_count()  # as the configuration says, or an error of `make_mesh`
    groups = [] if config.mixup.mode == "none" else [config.mixup.groups]
    size = math.gcd(train.batch_size // train.accumulate, *groups)
    return max(n for n in range(1, jax.device_count() + 1) if size % n == 0)


def uncompiled(train: Callable[[], Any], infer: Callable[[], Any], batch_size: int) -> Candidate:
    """Another library's calls, called once each, so that whatever they compile is compiled."""
    seconds = {}
    for kind, call in {"train": train, "infer": infer}.items():
        start = time.perf_counter()
        call()
        seconds[kind] = time.perf_counter() - start
    return Candidate(train, infer, batch_size, seconds, dict.fromkeys(KINDS))


class Rate(NamedTuple):
    """Samples a second over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, timing: Timing, batch_size: int) -> "Rate":
        """The rate at which batches that take so long pass through."""
        return cls(batch_size / timing.median, batch_size / timing.high, batch_size / timing.low)


def rates(
    candidates: Mapping[Name, Candidate],
    repeats: int,
    window: int,
    kinds: Sequence[str] = KINDS,
) -> dict[tuple[Name, str], Rate]:
    """Samples a second by name and kind, all candidates taking turns."""
    calls = {
        (name, kind): getattr(entry, kind) for name, entry in candidates.items() for kind in kinds
    }
    timings = time_interleaved(calls, repeats, window)
    return {key: Rate.of(timing, candidates[key[0]].batch_size) for key, timing in timings.items()}


def megabytes(size: int | float | None) -> float | None:
    """Bytes for a table; None where they are not known."""
    return None if size is None else round(size / 1e6, 1)


def compare(configs: Mapping[str, Config], repeats: int) -> list[dict[str, Any]]:
    """Rows of a table, one a configuration, as they stand (mixup, too), timed in turn.

    Args:
        configs: by the name that a row gets.
        repeats: timed rounds.

    Raises:
        ConfigError: a configuration that leaves modalities or classes to the data.
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
    """One model on this machine.

    Attributes:
        rate: samples a second by kind.
        compile_seconds: by kind.
        temporary_bytes: by kind; None where the compiler does not say.
        parameters: trained numbers.
        gflop: of products for one sample, by kind.
        share_of_peak: by kind, of what a large product reaches on this machine.
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
    """Candidates timed in turn.

    Args:
        candidates: by name.
        configs: by the same names, of the model that each computes.
        peak: operations a second that a share is taken of (see `throughput.matmul_peak`).
        repeats: timed rounds, after one that does not count.
        window: steps in a row, synchronised at the end only.
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
    """As plain data: `train.samples_per_second.median`, `infer.samples_per_second.median`, ..."""
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
    """Points of a roofline (Williams et al., 2009, https://doi.org/10.1145/1498765.1498785).

    Args:
        candidates: by name, each with a program to read.
        measured: of the same names.

    Returns:
        For every name and kind `model`, `kind`, `flops_per_byte` of its products and of the bytes
        that its instructions read and write, and `flops_per_second` as measured.
    """
    points = []
    for name, entry in measured.items():
        for kind in KINDS:
            flops = entry.gflop[kind] * 1e9
            count = candidates[name].moved_bytes
            assert count is not None  # as asked for
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
