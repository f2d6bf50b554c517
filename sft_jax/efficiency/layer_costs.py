"""Cost of a model layer by layer, and as table rows.

Nothing is run. Products and saved activations are read off the traced program by module, so that no
formula can drift from the code. The size of attention maps follows from the arguments of each
attention.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend import core

from sft_jax.attention.fixed_blocks import keys_of_token
from sft_jax.config.run import Config
from sft_jax.efficiency.flops import CONVENTION, flops_by_scope, scope_of
from sft_jax.efficiency.model_costs import num_parameters, output_sum, with_plain_attention
from sft_jax.efficiency.variants import variant
from sft_jax.models.layers import BlockConfig, MultiHeadAttention

# Parts of a layer: the path of a layer ends before these.
_PARTS = ("attention", "mlp", "proj", "embedding", "linear", "norm")
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
    forward = _by_layer(flops_by_scope(function, shapes))
    train = _by_layer(flops_by_scope(jax.grad(function), shapes))
    attentions = _attentions(plain)
    names = list(dict.fromkeys([*forward, *attentions]))
    saved: Counter[str] = Counter()
    for path, size in _saved(config).items():
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


def _layer_of(scope: str) -> str:
    """Path of the module a scope belongs to, without the model's name and transformations."""
    scope = re.sub(r"(transpose|jvp|vmap|checkpoint|rematted_computation)\(|\)", "", scope)
    path = []
    for part in scope.split("/")[1:]:
        if part.split(".")[0] in _PARTS:  # "attention.of_chosen" is a method of it
            break
        if re.fullmatch(r"\w+", part) and part not in ("while", "body", "closed_call"):
            path.append(part)
    return "/".join(path) or _REST


def _by_layer(scopes: Counter[str]) -> Counter[str]:
    layers: Counter[str] = Counter()
    for scope, amount in scopes.items():
        layers[_layer_of(scope)] += amount
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
    observed: dict[tuple[tuple[str, ...], str], _Attention] = {}
    function, shapes = output_sum(config)

    def observe(call, args, kwargs, context):
        module, method = context.module, context.method_name
        if isinstance(module, MultiHeadAttention) and method in _ROWS:
            queries, keys = _ROWS[method](*args, **kwargs)
            params = shapes["params"]
            for part in module.path:
                params = params[part]
            depth = params["qkv_kernel"].shape[0] if params["qkv_kernel"].ndim == 5 else 1
            pairs = _pairs(module.config, method, queries, keys)
            size = 4 * module.config.num_heads * pairs * depth
            # Keyed by module, since the body of a loop may be traced several times.
            layer = "/".join(module.path[:-2])
            observed[module.path, method] = _Attention(layer, depth, keys, size)
        return call(*args, **kwargs)

    with nn.intercept_methods(observe):
        jax.eval_shape(function, shapes)
    layers: dict[str, list[_Attention]] = {}
    for attention in observed.values():
        layers.setdefault(attention.layer, []).append(attention)
    return layers


def _pairs(config: BlockConfig, method: str, queries: int, keys: int) -> int:
    if config.attention == "dense" or method == "of_cls":
        return queries * keys
    row = keys_of_token(keys - 1, config.stride, config.expressivity)
    # The first row belongs to CLS, which attends to everything.
    return (queries - 1) * row + keys if method == "__call__" else queries * row


# Numbers of queries and keys, from the arguments of an attention's methods.
_ROWS: dict[str, Callable[..., tuple[int, int]]] = {
    "__call__": lambda x, key_mask, *_, **__: (x.shape[1], key_mask.shape[1]),
    "of_cls": lambda x, keys_values, key_mask: (1, key_mask.shape[1]),
    "of_tokens": lambda x, indices, keys_values, key_mask: (x.shape[1], key_mask.shape[1]),
}


def _saved(config: Config) -> Counter[str]:
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
        saved[_layer_of(made_by[var])] += array.size * array.dtype.itemsize
    return saved
