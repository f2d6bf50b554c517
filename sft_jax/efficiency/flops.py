"""Floating-point operations of a traced function, counted without running it."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

CONVENTION = "GFLOP counts matrix products alone, 2 operations a multiply-add"


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Operations of the matrix products in `function`, two per multiply-add.

    Counted in the traced program, before compilation: loop bodies times their trip counts, and the
    most expensive side of a branch. Element-wise work is left out, as is usual in published
    figures, so the distances of `attn_kmedoids` do not count.

    Args:
        function: Function to trace; it is not run.
        *args: Its arguments, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: The trip count of a loop is not in the program.
    """
    return sum(flops_by_scope(function, *args).values())


def flops_by_scope(function: Callable[..., Any], *args: Any) -> Counter[str]:
    """Like `matmul_flops`, by the scope of each product.

    Returns:
        Operations by path of `jax.named_scope` names (linen opens one for every module), in the
        order of the program.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr, "")


def _count(jaxpr: core.Jaxpr, scope: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        total.update(_equation(eqn, scope_of(eqn, scope)))
    return total


def scope_of(eqn: core.JaxprEqn, outer: str = "") -> str:
    """Scope path of an equation inside a program of scope `outer`."""
    return "/".join(part for part in (outer, str(eqn.source_info.name_stack)) if part)


def _equation(eqn: core.JaxprEqn, scope: str) -> Counter[str]:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        left: Any = eqn.invars[0].aval
        result: Any = eqn.outvars[0].aval
        size = math.prod(left.shape[axis] for axis in contracted)
        return Counter({scope: 2 * result.size * size})
    if name == "scan":
        body = _count(params["jaxpr"].jaxpr, scope)
        return Counter({path: params["length"] * flops for path, flops in body.items()})
    if name == "cond":
        return max((_count(branch.jaxpr, scope) for branch in params["branches"]), key=_total)
    inner = [_count(jaxpr, scope) for jaxpr in core.jaxprs_in_params(params)]
    if name == "while" and any(map(_total, inner)):
        raise ValueError(
            "found a while loop with matrix products, expected a scan, whose trip count is in the "
            "program; write the loop as a scan"
        )
    return sum(inner, Counter())


def _total(counter: Counter[str]) -> int:
    return sum(counter.values())
