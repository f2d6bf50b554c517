"""Tables and JSON of plans for several models and topologies."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from sft_jax.efficiency import roofline
from sft_jax.efficiency.plan import Plan
from sft_jax.efficiency.topology import Topology

Row = dict[str, Any]
Plans = Mapping[Topology, Mapping[str, Plan]]


def heading(plan: Plan) -> str:
    """One line about the topology, batch and mesh of a plan."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    return (
        f"{plan.topology}; batch {plan.batch_size} ({plan.rows:g} a chip), {plan.dtype}, {mesh}, "
        f"jax {jax.__version__}"
    )


def memory_rows(models: Mapping[str, Plan]) -> list[Row]:
    """Rows with the memory of one chip."""
    return [
        {
            "model": name,
            "fits": _fits(plan),
            **{
                f"{part} MB": getattr(plan.memory, part) / 1e6
                for part in ("parameters", "optimizer", "batch", "padding", "temporary")
            },
            "of it activations": plan.memory.activations / 1e6,
            "total MB": plan.memory.total / 1e6,
            "capacity MB": round(plan.memory.capacity / 1e6) or None,
            "largest batch": plan.largest_batch,
        }
        for name, plan in models.items()
    ]


def work_rows(models: Mapping[str, Plan]) -> list[Row]:
    """Rows with operations, bytes and the lower bound of a step's time."""
    return [
        {
            "model": name,
            "GFLOP a step": _per_step(plan, "flops", 1e9),
            "GB a step": _per_step(plan, "nbytes", 1e9),
            **_per_sample_columns(plan),
            **{f"{part} ms": time * 1e3 for part, time in plan.seconds.items()},
            **_bound_columns(plan),
        }
        for name, plan in models.items()
    ]


def collective_rows(models: Mapping[str, Plan]) -> list[Row]:
    """Rows with the collectives of a step."""
    rows = []
    for name, plan in models.items():
        if plan.cost is None:
            continue
        kinds = roofline.by_kind(plan.cost.collectives) or {"": {"count": 0, "bytes": 0}}
        for kind, total in kinds.items():
            row: Row = {"model": name, "collective": kind or None, "count": total["count"]}
            rows.append(row | {"MB a chip": total["bytes"] / 1e6, "in all": plan.communication})
    return rows


def overview_rows(plans: Plans) -> list[Row]:
    """One row for each topology and model."""
    return [
        {
            "topology": topology.name,
            "chips": topology.num_chips,
            "model": name,
            "batch": plan.batch_size,
            "fits": _fits(plan),
            "GB a chip": plan.memory.total / 1e9,
            "largest batch": plan.largest_batch,
            **_per_sample_columns(plan),
            "sent by": plan.communication,
            "MB sent": plan.cost and plan.cost.collective_bytes / 1e6,
            "ms a step": max(plan.seconds.values()) * 1e3 if plan.seconds else None,
            **_bound_columns(plan),
        }
        for topology, models in plans.items()
        for name, plan in models.items()
    ]


def to_json(plans: Plans) -> dict[str, Any]:
    """Plain data: `models` by name; with several topologies, below `topologies` by name."""
    topologies = {
        topology.name: {
            "topology": str(topology),
            "chips": topology.num_chips,
            "jax": jax.__version__,
            "models": {name: _numbers(plan) for name, plan in models.items()},
        }
        for topology, models in plans.items()
    }
    return {"topologies": topologies} if len(topologies) > 1 else next(iter(topologies.values()))


def _numbers(plan: Plan) -> dict[str, Any]:
    numbers = {
        "batch_size": plan.batch_size,
        "mesh": plan.mesh,
        "dtype": plan.dtype,
        "fits": plan.fits,
        "memory": {**dataclasses.asdict(plan.memory), "total": plan.memory.total},
        "largest_batch": plan.largest_batch,
    }
    if plan.cost is None:
        return numbers
    cost = plan.cost
    return numbers | {
        "bytes_per_sample": cost.nbytes / plan.rows,
        "main_memory_bytes_per_sample": cost.main_bytes / plan.rows,
        "flops_per_sample": cost.flops / plan.rows,
        "bytes_per_step": cost.nbytes * plan.topology.num_chips,
        "flops_per_step": cost.flops * plan.topology.num_chips,
        "loops_of_unknown_length": cost.unknown_loops,
        "communication": plan.communication,
        "collectives": roofline.by_kind(cost.collectives),
        "collective_bytes_per_chip": cost.collective_bytes,
        "seconds_at_best": plan.seconds,
        "bound_by": plan.bound_by,
    }


def _fits(plan: Plan) -> str | None:
    return None if plan.fits is None else ("yes" if plan.fits else "no")


def _per_step(plan: Plan, what: str, unit: float) -> float | None:
    if plan.cost is None:
        return None
    return getattr(plan.cost, what) / unit * plan.topology.num_chips


def _per_sample_columns(plan: Plan) -> Row:
    columns = {
        "GFLOP a sample": ("flops", 1e9),
        "MB a sample": ("nbytes", 1e6),
        "of main memory": ("main_bytes", 1e6),
    }
    return {
        column: plan.cost and getattr(plan.cost, what) / unit / plan.rows
        for column, (what, unit) in columns.items()
    }


def _bound_columns(plan: Plan) -> Row:
    times = plan.seconds.values()
    return {
        "bound by": plan.bound_by,
        "samples/s at best": round(plan.batch_size / max(times)) if times else None,
    }
