"""Unrolling of a traced program into a flat list of operations, for converters.

Layers run in loops over stacked parameters, and some values depend only on parameters. Unrolled,
every layer has its own weights, and such values are constants. Each weight is then a direct operand
of its matrix product, where converters and quantisers expect it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Calls to inline, with the parameter that has their body; gradients are not needed.
_BODIES = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def unrolled(function: Callable[..., Any], *args: Any) -> Callable[..., list[Any]]:
    """Returns `function` without loops of known length, calls, and operations on constants.

    Args:
        function: Function of arrays, which is traced once.
        *args: Its arguments, arrays or `jax.ShapeDtypeStruct`, whose first axis may be symbolic.

    Returns:
        A function of the same arguments that returns the leaves of the result.
    """
    closed = jax.make_jaxpr(function)(*args)

    def flat(*args: Any) -> list[Any]:
        return _run(closed, jax.tree.leaves(args))

    return flat


def _run(closed: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    consts = [np.asarray(x) if _is_plain(x) else x for x in closed.consts]
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for eqn in jaxpr.eqns:
        results = _equation(eqn, [read(variable) for variable in eqn.invars])
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _equation(eqn: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _scan(eqn, inputs)
    if name in _REWRITTEN:
        return [_REWRITTEN[name](*inputs, **params)]
    if name in _BODIES:
        body = params[_BODIES[name]]
        if not isinstance(body, core.ClosedJaxpr):
            body = core.ClosedJaxpr(body, ())
        return _run(body, inputs)
    if _is_constant(eqn, inputs):
        with jax.ensure_compile_time_eval():
            return [np.asarray(x) for x in _bind(eqn, inputs)]
    return _bind(eqn, inputs)


def _is_constant(eqn: core.JaxprEqn, inputs: list[Any]) -> bool:
    """Whether an operation depends neither on arguments nor on their sizes."""
    shapes = [size for variable in eqn.outvars for size in getattr(variable.aval, "shape", ())]
    return (
        bool(inputs)
        and not any(isinstance(x, jax.core.Tracer) for x in inputs)
        and all(isinstance(size, int) for size in shapes)
        and all(_is_plain(variable.aval) for variable in eqn.outvars)
    )


def _is_plain(x: Any) -> bool:
    """Whether NumPy has the data type; it lacks random keys."""
    return not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)


def _bind(eqn: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    results = eqn.primitive.bind(*inputs, **eqn.params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _scan(eqn: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    # Scanned arrays have one more axis outside of the body. Unlike the parameters of the equation,
    # this holds in every version of jax.
    num_carry = sum(map(_same_rank, eqn.outvars, body.jaxpr.outvars))
    num_unscanned = sum(map(_same_rank, eqn.invars, body.jaxpr.invars))
    consts, scanned = inputs[: num_unscanned - num_carry], inputs[num_unscanned:]
    carry = inputs[num_unscanned - num_carry : num_unscanned]
    stacked: list[list[Any]] = [[] for _ in eqn.outvars[num_carry:]]
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        results = _run(body, [*consts, *carry, *(x[i] for x in scanned)])
        carry = results[:num_carry]
        for rows, row in zip(stacked, results[num_carry:], strict=True):
            rows.append(row)
    if eqn.params["reverse"]:
        stacked = [rows[::-1] for rows in stacked]
    return [*carry, *(jax.numpy.stack(rows) for rows in stacked)]


def _same_rank(outer: Any, inner: Any) -> bool:
    return len(outer.aval.shape) == len(inner.aval.shape)


def _pad(x, value, *, padding_config):
    """Pads by concatenation, which converters also support along symbolic axes."""
    for axis, (low, high, _) in enumerate(padding_config):
        parts = [x]
        for size, at in ((low, 0), (high, 1)):
            if size:
                shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
                parts.insert(at * len(parts), jax.lax.broadcast_in_dim(value, shape, ()))
        x = jax.lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _dot(x, y, *, dimension_numbers, **params):
    """Rewrites a product as one of matrices, with one contracted axis."""
    (x_contracted, y_contracted), (x_batch, y_batch) = dimension_numbers
    x_free = [axis for axis in range(x.ndim) if axis not in (*x_contracted, *x_batch)]
    y_free = [axis for axis in range(y.ndim) if axis not in (*y_contracted, *y_batch)]
    batch, rows = [x.shape[axis] for axis in x_batch], [x.shape[axis] for axis in x_free]
    columns = [y.shape[axis] for axis in y_free]
    size = math.prod(x.shape[axis] for axis in x_contracted)
    # Without a batch the axes of rows are not merged, since one of them may be symbolic.
    row_axes = rows if not batch else [math.prod(rows)]
    x = x.transpose(*x_batch, *x_free, *x_contracted).reshape(*batch, *row_axes, size)
    y = y.transpose(*y_batch, *y_contracted, *y_free).reshape(*batch, size, math.prod(columns))
    axes = tuple(range(len(batch)))
    numbers = (((x.ndim - 1,), (len(batch),)), (axes, axes))
    product = jax.lax.dot_general_p.bind(x, y, dimension_numbers=numbers, **params)
    return product.reshape(*batch, *rows, *columns)


def _remainder(x, y):
    """Computes an integer remainder by division, which converters support for symbolic shapes."""
    return x - jax.lax.div(x, y) * y


_REWRITTEN: dict[str, Callable[..., Any]] = {"pad": _pad, "dot_general": _dot, "rem": _remainder}
