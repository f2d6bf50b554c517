"""Tables and JSON of plans for several models and topologies."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from sft_jax.config.run import Config
from sft_jax.efficiency import roofline
from sft_jax.efficiency.hlo.hlo_cost import ProgramCost
from sft_jax.efficiency.plan import Plan, default_batch, largest_batch, plan, with_batch
from sft_jax.efficiency.topology import Topology

Row = dict[str, Any]


class Entry(NamedTuple):
    """A plan, and the largest global batch that fits (None if not searched)."""

    plan: Plan
    largest: int | None


Plans = Mapping[Topology, Mapping[str, Entry]]


def entry(config: Config, topology: Topology, batch_size: int, largest: bool) -> Entry:
    """Plans one model on one topology.

    Args:
        config: Configuration of the model.
        topology: Devices to compile for.
        batch_size: Samples per step over all chips; 0 takes `default_batch`.
        largest: Whether to search for the largest batch, if the chip's memory is known.
    """
    size = batch_size or default_batch(config, topology.num_chips)
    first = plan(with_batch(config, size), topology)
    if not largest or not first.memory.capacity:
        return Entry(first, None)
    unit = topology.num_chips * config.train.accumulate
    low, _ = largest_batch(lambda size: plan(with_batch(config, size), topology), first, unit)
    return Entry(first, low)


def heading(topology: Topology, found: Plan) -> str:
    """One line about the topology, batch and mesh that the tables are for."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    return (
        f"{topology}; batch {found.batch_size} ({found.rows:g} a chip), {found.dtype}, {mesh}, "
        f"jax {jax.__version__}"
    )


def memory_rows(models: Mapping[str, Entry]) -> list[Row]:
    """Rows with the memory of one chip."""
    return [
        {
            "model": name,
            "fits": _fits(found),
            **{
                f"{part} MB": getattr(found.memory, part) / 1e6
                for part in ("parameters", "optimizer", "batch", "padding", "temporary")
            },
            "of it activations": found.memory.activations / 1e6,
            "total MB": found.memory.total / 1e6,
            "capacity MB": round(found.memory.capacity / 1e6) or None,
            "largest batch": largest,
        }
        for name, (found, largest) in models.items()
    ]


def work_rows(models: Mapping[str, Entry]) -> list[Row]:
    """Rows with operations, bytes and the lower bound of a step's time."""
    rows = []
    for name, (found, _) in models.items():
        times = seconds(found)
        rows.append(
            {
                "model": name,
                "GFLOP a step": _scaled(found, "flops", 1e9, per_sample=False),
                "GB a step": _scaled(found, "nbytes", 1e9, per_sample=False),
                "GFLOP a sample": _scaled(found, "flops", 1e9),
                "MB a sample": _scaled(found, "nbytes", 1e6),
                "of main memory": _scaled(found, "main_bytes", 1e6),
                **{f"{part} ms": time * 1e3 for part, time in times.items()},
                "bound by": _longest(times),
                "samples/s at best": _rate(found, times),
            }
        )
    return rows


def collective_rows(models: Mapping[str, Entry]) -> list[Row]:
    """Rows with the collectives of a step."""
    rows = []
    for name, (found, _) in models.items():
        if found.cost is None:
            continue
        what = roofline.describe(found.cost.collectives, found.mesh["fsdp"])
        kinds = roofline.by_kind(found.cost.collectives) or {"": {"count": 0, "bytes": 0}}
        for kind, total in kinds.items():
            row = {"model": name, "collective": kind or None, "count": total["count"]}
            rows.append(row | {"MB a chip": total["bytes"] / 1e6, "in all": what})
    return rows


def overview_rows(plans: Plans) -> list[Row]:
    """One row for each topology and model."""
    rows = []
    for topology, models in plans.items():
        for name, (found, largest) in models.items():
            times, cost = seconds(found), found.cost
            rows.append(
                {
                    "topology": topology.name,
                    "chips": topology.num_chips,
                    "model": name,
                    "batch": found.batch_size,
                    "fits": _fits(found),
                    "GB a chip": found.memory.total / 1e9,
                    "largest batch": largest,
                    "GFLOP a sample": _scaled(found, "flops", 1e9),
                    "MB a sample": _scaled(found, "nbytes", 1e6),
                    "of main memory": _scaled(found, "main_bytes", 1e6),
                    "sent by": cost and roofline.describe(cost.collectives, found.mesh["fsdp"]),
                    "MB sent": cost and _collective_bytes(cost) / 1e6,
                    "ms a step": max(times.values()) * 1e3 if times else None,
                    "bound by": _longest(times),
                    "samples/s at best": _rate(found, times),
                }
            )
    return rows


def to_json(plans: Plans) -> dict[str, Any]:
    """Plain data: `models` by name; with several topologies, below `topologies` by name."""
    found = {
        topology.name: {
            "topology": str(topology),
            "chips": topology.num_chips,
            "jax": jax.__version__,
            "models": {name: _numbers(found, largest) for name, (found, largest) in models.items()},
        }
        for topology, models in plans.items()
    }
    return {"topologies": found} if len(found) > 1 else next(iter(found.values()))


def _numbers(found: Plan, largest: int | None) -> dict[str, Any]:
    numbers = {
        "batch_size": found.batch_size,
        "mesh": found.mesh,
        "dtype": found.dtype,
        "fits": found.fits,
        "memory": {**dataclasses.asdict(found.memory), "total": found.memory.total},
        "largest_batch": largest,
    }
    if found.cost is None:
        return numbers
    cost, times = found.cost, seconds(found)
    return numbers | {
        "bytes_per_sample": cost.nbytes / found.rows,
        "main_memory_bytes_per_sample": cost.main_bytes / found.rows,
        "flops_per_sample": cost.flops / found.rows,
        "bytes_per_step": cost.nbytes * found.topology.num_chips,
        "flops_per_step": cost.flops * found.topology.num_chips,
        "loops_of_unknown_length": cost.unknown_loops,
        "communication": roofline.describe(cost.collectives, found.mesh["fsdp"]),
        "collectives": roofline.by_kind(cost.collectives),
        "collective_bytes_per_chip": _collective_bytes(cost),
        "seconds_at_best": times,
        "bound_by": _longest(times),
    }


def seconds(found: Plan) -> dict[str, float]:
    """Lower bounds of a step's time (see `roofline.seconds`)."""
    if found.cost is None:
        return {}
    topology = found.topology
    return roofline.seconds(found.cost, topology.chip, found.dtype, topology.num_chips)


def _longest(times: dict[str, float]) -> str | None:
    return max(times, key=lambda part: times[part]) if times else None


def _collective_bytes(cost: ProgramCost) -> int:
    return sum(entry.count * entry.nbytes for entry in cost.collectives)


def _fits(found: Plan) -> str | None:
    return None if found.fits is None else ("yes" if found.fits else "no")


def _rate(found: Plan, times: Mapping[str, float]) -> int | None:
    return round(found.batch_size / max(times.values())) if times else None


def _scaled(found: Plan, what: str, unit: float, per_sample: bool = True) -> float | None:
    if found.cost is None:
        return None
    value = getattr(found.cost, what) / unit
    return value / found.rows if per_sample else value * found.topology.num_chips
