"""Floating-point operations of a program, counted without running it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


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
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: core.JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        shape = eqn.invars[0].aval.shape
        return 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "scan":
        return params["length"] * _count(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    inner = [_count(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "while" and any(inner):
        raise ValueError(
            "a while loop with matrix products in it: its turns are not in the program; use a scan"
        )
    return sum(inner)
