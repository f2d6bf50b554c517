"""Lower bounds of a step's time on a chip, and which resource limits it."""

from collections import Counter
from collections.abc import Sequence

from sft_jax.efficiency.chips import Chip
from sft_jax.efficiency.hlo.hlo_cost import Collective, ProgramCost


def sent_bytes(collective: Collective, num_chips: int) -> float:
    """Minimum bytes that a chip sends for one collective.

    Every chip sends `(n - 1) / n` of the array once to reduce it and once to broadcast the result
    (Patarasuk and Yuan, 2009, https://doi.org/10.1016/j.jpdc.2008.09.002).
    """
    group = collective.group or num_chips
    rounds = {"all-reduce": 2, "collective-permute": group / max(group - 1, 1)}
    return rounds.get(collective.kind, 1) * collective.nbytes * (group - 1) / group


def seconds(cost: ProgramCost, chip: Chip, dtype: str, num_chips: int) -> dict[str, float]:
    """Seconds of a step for each resource at the chip's peak rate.

    Args:
        cost: Cost of a step on one chip.
        chip: Entry of `chips.CHIPS`.
        dtype: Data type of the model's computation.
        num_chips: Number of chips of the topology.

    Returns:
        `products` at the peak of the matrix units, `memory` at the bandwidth of the main memory and
        `network` at that of all links; empty for a chip without published numbers.
    """
    if not chip.flops:
        return {}
    sent = sum(each.count * sent_bytes(each, num_chips) for each in cost.collectives)
    return {
        "products": cost.flops / chip.flops[dtype],
        "memory": cost.main_bytes / chip.bandwidth,
        "network": sent / chip.link_bandwidth,
    }


def by_kind(collectives: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """`{kind: {count, bytes}}` of a step on one chip."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for collective in collectives:
        counts[collective.kind] += collective.count
        sizes[collective.kind] += collective.count * collective.nbytes
    return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in counts}


def describe(collectives: Sequence[Collective], fsdp: int) -> str:
    """Describes the communication of a step in a few words.

    Args:
        collectives: Collectives of a step.
        fsdp: Size of the mesh's `fsdp` axis, along which parameters are gathered before use and
            gradients reduced in parts.
    """
    kinds = {collective.kind for collective in collectives}
    if not kinds:
        return "none"
    if kinds <= {"all-reduce"}:
        return "reductions only"
    if kinds <= {"all-reduce", "reduce-scatter", "all-gather"} and fsdp > 1:
        return f"reductions and parameter gathers of fsdp {fsdp}"
    return f"not only reductions: {', '.join(sorted(kinds))}"
