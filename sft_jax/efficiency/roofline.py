"""The least time that a step can take on a chip, and what decides it."""

from collections import Counter
from collections.abc import Sequence

from sft_jax.efficiency.chips import Chip
from sft_jax.efficiency.hlo.hlo_cost import Collective, ProgramCost


def sent_bytes(collective: Collective, num_chips: int) -> float:
    """Bytes that a chip must send for one run of a collective, at least.

    Every chip hands on `(n - 1) / n` of the array once to reduce it and once to spread the result
    (Patarasuk and Yuan, 2009, https://doi.org/10.1016/j.jpdc.2008.09.002).
    """
    group = collective.group or num_chips
    rounds = {"all-reduce": 2, "collective-permute": group / max(group - 1, 1)}
    return rounds.get(collective.kind, 1) * collective.nbytes * (group - 1) / group


def seconds(cost: ProgramCost, chip: Chip, dtype: str, num_chips: int) -> dict[str, float]:
    """Seconds of one step by what they are spent on, each at the chip's best.

    Args:
        cost: of a step on one chip.
        chip: of the table.
        dtype: of the model's computation.
        num_chips: of the topology.

    Returns:
        `products` at the peak of the matrix units, `memory` at the bandwidth of the main memory,
        `network` at that of all links; empty for a chip without published numbers.
    """
    if not chip.flops:
        return {}
    sent = sum(entry.count * sent_bytes(entry, num_chips) for entry in cost.collectives)
    return {
        "products": cost.flops / chip.flops[dtype],
        "memory": cost.main_bytes / chip.bandwidth,
        "network": sent / chip.link_bandwidth,
    }


def by_kind(collectives: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """`{kind: {count, bytes}}` of a step on one chip."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in collectives:
        counts[entry.kind] += entry.count
        sizes[entry.kind] += entry.count * entry.nbytes
    return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in counts}


def describe(collectives: Sequence[Collective], fsdp: int) -> str:
    """What a step communicates, in a few words.

    Args:
        collectives: of a step.
        fsdp: size of the mesh's `fsdp` axis, whose parameters are gathered before use and whose
            gradients are reduced in parts.
    """
    kinds = {entry.kind for entry in collectives}
    if not kinds:
        return "none"
    if kinds <= {"all-reduce"}:
        return "reductions only"
    if kinds <= {"all-reduce", "reduce-scatter", "all-gather"} and fsdp > 1:
        return f"reductions and parameter gathers of fsdp {fsdp}"
    return f"not only reductions: {', '.join(sorted(kinds))}"
