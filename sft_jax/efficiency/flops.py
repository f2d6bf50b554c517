"""Floating-point operations of a program, counted without running it."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

CONVENTION = "GFLOP counts matrix products alone, 2 operations a multiply-add"


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Operations in the matrix products of `function`, two a multiply-add.

    They are counted in the traced program, before any compiler has touched it: a loop's body as
    often as it runs, of a branch the dearest side. Element-wise work is left out, as in the
    figures that the field states; so the distances of `attn_kmedoids` do not count.

    Args:
        function: what to count; it is traced, not run.
        *args: its arguments, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: a loop whose number of turns the program does not say.
    """
    return sum(flops_by_scope(function, *args).values())


def flops_by_scope(function: Callable[..., Any], *args: Any) -> Counter[str]:
    """As `matmul_flops`, by the scope in which a product was asked for.

    Returns:
        Operations by path: the names of `jax.named_scope`, which linen opens for every module, with
        slashes between, in the order of the program.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr, "")


def _count(jaxpr: core.Jaxpr, scope: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        total.update(_equation(eqn, scope_of(eqn, scope)))
    return total


def scope_of(eqn: core.JaxprEqn, outer: str = "") -> str:
    """The path of an equation inside a program of scope `outer`."""
    return "/".join(part for part in (outer, str(eqn.source_info.name_stack)) if part)


def _equation(eqn: core.JaxprEqn, scope: str) -> Counter[str]:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        given: Any = eqn.invars[0].aval
        made: Any = eqn.outvars[0].aval
        size = math.prod(given.shape[axis] for axis in contracted)
        return Counter({scope: 2 * made.size * size})
    if name == "scan":
        once = _count(params["jaxpr"].jaxpr, scope)
        return Counter({path: params["length"] * flops for path, flops in once.items()})
    if name == "cond":
        return max((_count(branch.jaxpr, scope) for branch in params["branches"]), key=_total)
    inner = [_count(jaxpr, scope) for jaxpr in core.jaxprs_in_params(params)]
    if name == "while" and any(map(_total, inner)):
        raise ValueError(
            "a while loop with matrix products in it: its turns are not in the program; use a scan"
        )
    return sum(inner, Counter())


def _total(counter: Counter[str]) -> int:
    return sum(counter.values())
