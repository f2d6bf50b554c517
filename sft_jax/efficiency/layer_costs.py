"""Cost of a model layer by layer, and as table rows.

Nothing is run. Products and saved activations are read off the traced program by module, so that no
formula can drift from the code. The size of attention maps follows from the arguments of each
attention.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend import core

from sft_jax.attention.fixed_blocks import keys_of_token
from sft_jax.config.run import Config
from sft_jax.efficiency.flops import CONVENTION, flops_by_scope, scope_of
from sft_jax.efficiency.model_costs import num_parameters, output_sum, with_plain_attention
from sft_jax.efficiency.variants import variant
from sft_jax.models.layers import BlockConfig, Layer, MultiHeadAttention

_REST = "elsewhere"
NOTE = f"""One sample. {CONVENTION};
train is forward and backward pass. Maps: attention maps of all heads in float32, were they written
out. Saved: what the forward pass keeps for the backward pass, parameters aside."""


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Cost of one layer, or of a stack of equal layers, for one sample.

    Attributes:
        layer: Path of the module.
        count: Number of layers in the stack.
        tokens: Length of the attended sequence, CLS included; 0 without attention.
        forward_flops: Operations of its products in the forward pass, two per multiply-add.
        train_flops: Operations of forward and backward pass.
        attention_bytes: Bytes of the attention maps of all heads in float32, if written out.
        saved_bytes: Bytes kept for the backward pass, without parameters.
    """

    layer: str
    count: int
    tokens: int
    forward_flops: int
    train_flops: int
    attention_bytes: int
    saved_bytes: int


def layer_costs(config: Config) -> list[LayerCost]:
    """Costs of the layers of a configured model, roughly in execution order.

    Dense attention counts as its two products, whatever implementation would run, and block-sparse
    attention as the pairs of its pattern. Saved bytes are those of the implementation that would
    run on this machine.
    """
    plain = with_plain_attention(config)
    function, shapes = output_sum(plain)
    paths = _layer_paths(plain)
    forward = _by_layer(flops_by_scope(function, shapes), paths)
    train = _by_layer(flops_by_scope(jax.grad(function), shapes), paths)
    attentions = _attentions(plain)
    names = list(dict.fromkeys([*forward, *attentions]))
    saved: Counter[str] = Counter()
    for path, size in _saved(config, paths).items():
        saved[_owner(path, names)] += size
    names += [_REST] if saved[_REST] else []
    return [
        LayerCost(
            layer=name,
            count=attentions[name][0].num_layers if name in attentions else 1,
            tokens=attentions[name][0].tokens if name in attentions else 0,
            forward_flops=forward[name],
            train_flops=train[name],
            attention_bytes=sum(each.map_bytes for each in attentions.get(name, [])),
            saved_bytes=saved[name],
        )
        for name in names
    ]


def model_row(name: str, config: Config, layers: Sequence[LayerCost]) -> dict[str, Any]:
    """A row for a model with these layers."""
    return {"model": name, "parameters": num_parameters(config), **_costs(layers)}


def layer_row(layer: LayerCost) -> dict[str, Any]:
    """A row for one layer, or for a stack of equal layers."""
    return {
        "layer": layer.layer,
        "layers": layer.count,
        "tokens": layer.tokens or None,
        **_costs([layer]),
    }


def beside_dense(config: Config) -> list[dict[str, Any]]:
    """Rows of a configured model and, if it pools, of the same model with every token kept."""
    configs = {config.model.name: config}
    if config.model.name == "sft" and any(spec.pool != "none" for spec in config.modalities):
        configs["dense"] = variant(config, "dense")
    return [model_row(name, each, layer_costs(each)) for name, each in configs.items()]


def _costs(layers: Sequence[LayerCost]) -> dict[str, float]:
    return {
        "forward GFLOP": round(sum(layer.forward_flops for layer in layers) / 1e9, 4),
        "train GFLOP": round(sum(layer.train_flops for layer in layers) / 1e9, 4),
        "maps MB": round(sum(layer.attention_bytes for layer in layers) / 1e6, 2),
        "saved MB": round(sum(layer.saved_bytes for layer in layers) / 1e6, 2),
    }


def _layer_paths(config: Config) -> list[str]:
    """Paths of the modules of class `Layer` that a forward pass calls."""
    paths: dict[str, None] = {}
    function, shapes = output_sum(config)

    def observe(call, args, kwargs, context):
        if isinstance(context.module, Layer):
            paths["/".join(context.module.path)] = None
        return call(*args, **kwargs)

    with nn.intercept_methods(observe):
        jax.eval_shape(function, shapes)
    return list(paths)


def _layer_of(scope: str, layers: list[str]) -> str:
    """Layer that a scope lies in; otherwise its module, without names of transformations."""
    scope = re.sub(r"(transpose|jvp|vmap|checkpoint|rematted_computation)\(|\)", "", scope)
    parts = [part for part in scope.split("/")[1:] if re.fullmatch(r"\w+(\.\w+)?", part)]
    path = "/".join(part for part in parts if part not in ("while", "body", "closed_call"))
    # The parts of a layer include methods such as `attention.attend_from`.
    inside = (name for name in layers if f"{path}/".startswith(f"{name}/"))
    return next(inside, path.partition(".")[0] or _REST)


def _by_layer(scopes: Counter[str], paths: list[str]) -> Counter[str]:
    layers: Counter[str] = Counter()
    for scope, amount in scopes.items():
        layers[_layer_of(scope, paths)] += amount
    return layers


def _owner(path: str, names: list[str]) -> str:
    """The layer that contains a scope, or is contained in it (a loop only knows its stack)."""
    for name in names:
        if f"{path}/".startswith(f"{name}/") or f"{name}/".startswith(f"{path}/"):
            return name
    return _REST


class _Attention(NamedTuple):
    """One attention, or the attentions of a stack."""

    layer: str
    num_layers: int
    tokens: int
    map_bytes: int


def _attentions(config: Config) -> dict[str, list[_Attention]]:
    """Attentions of every layer, observed while the model is traced."""
    observed: dict[tuple[str, ...], _Attention] = {}
    function, shapes = output_sum(config)

    def observe(call, args, kwargs, context):
        module, method = context.module, context.method_name
        result = call(*args, **kwargs)
        if isinstance(module, MultiHeadAttention) and method in ("__call__", "attend_from"):
            # Both methods return the updated queries first; CLS is the first of them.
            queries, keys = result[0].shape[1], args[1].shape[1]
            params = shapes["params"]
            for part in module.path:
                params = params[part]
            depth = params["qkv_kernel"].shape[0] if params["qkv_kernel"].ndim == 5 else 1
            size = 4 * module.config.num_heads * _pairs(module.config, queries, keys) * depth
            # Keyed by module, since the body of a loop may be traced several times.
            layer = "/".join(module.path[:-2])
            observed[module.path] = _Attention(layer, depth, keys, size)
        return result

    with nn.intercept_methods(observe):
        jax.eval_shape(function, shapes)
    layers: dict[str, list[_Attention]] = {}
    for attention in observed.values():
        layers.setdefault(attention.layer, []).append(attention)
    return layers


def _pairs(config: BlockConfig, queries: int, keys: int) -> int:
    if config.attention == "dense":
        return queries * keys
    # The first query is CLS, which attends to everything.
    return (queries - 1) * keys_of_token(keys - 1, config.stride, config.expressivity) + keys


def _saved(config: Config, paths: list[str]) -> Counter[str]:
    """Bytes by layer that the forward pass keeps for the backward pass, without parameters."""
    function, shapes = output_sum(config)

    def saved_arrays(variables):
        return jax.tree.leaves(jax.vjp(function, variables)[1])

    jaxpr = jax.make_jaxpr(saved_arrays)(shapes).jaxpr
    made_by = {var: scope_of(eqn) for eqn in jaxpr.eqns for var in eqn.outvars}
    saved: Counter[str] = Counter()
    residuals = [v for v in jaxpr.outvars if not isinstance(v, core.Literal) and v in made_by]
    for var in dict.fromkeys(residuals):
        array: Any = var.aval
        saved[_layer_of(made_by[var], paths)] += array.size * array.dtype.itemsize
    return saved
