"""What each layer of a model costs: tokens, products, attention maps, saved activations.

Nothing is run. Products and saved activations are read off the traced program by the module that
made them, so that no formula can drift from the code; attention maps follow from what each
attention is given.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend import core

from sft_jax.attention.fixed_blocks import keys_of_token
from sft_jax.config.run import Config
from sft_jax.efficiency.flops import flops_by_scope, scope_of
from sft_jax.efficiency.model_costs import traceable, written_out
from sft_jax.models.layers import BlockConfig, MultiHeadAttention

# What a layer is made of: its path ends in front of these.
_PARTS = ("attention", "mlp", "proj", "embedding", "linear", "norm")
_REST = "elsewhere"


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One layer, or a stack of equal ones, for one sample.

    Attributes:
        layer: path of the module.
        count: layers of the stack.
        tokens: length of the sequence that is attended to, CLS included; 0 without attention.
        forward_flops: of its products in the forward pass, two a multiply-add.
        train_flops: of forward and backward pass.
        attention_bytes: of the attention maps of all heads in float32, were they written out.
        saved_bytes: what the forward pass keeps of it for the backward pass, parameters aside.
    """

    layer: str
    count: int
    tokens: int
    forward_flops: int
    train_flops: int
    attention_bytes: int
    saved_bytes: int


def layer_costs(config: Config) -> list[LayerCost]:
    """The layers of a configured model, roughly in the order in which they run.

    Products are those of dense attention written out, whatever implementation would run, and of
    the pairs of the block-sparse pattern; what is kept for the backward pass is that of the
    implementation that would run on this machine.
    """
    plain = written_out(config)
    logits, shapes = traceable(plain)
    forward = _by_layer(flops_by_scope(logits, shapes))
    train = _by_layer(flops_by_scope(jax.grad(logits), shapes))
    attentions = _attentions(plain)
    names = list(dict.fromkeys([*forward, *attentions]))
    saved: Counter[str] = Counter()
    for path, size in _saved(config).items():
        saved[_owner(path, names)] += size
    names += [_REST] if saved[_REST] else []
    return [
        LayerCost(
            layer=name,
            count=attentions[name][0].count if name in attentions else 1,
            tokens=attentions[name][0].tokens if name in attentions else 0,
            forward_flops=forward[name],
            train_flops=train[name],
            attention_bytes=sum(own.map_bytes for own in attentions.get(name, [])),
            saved_bytes=saved[name],
        )
        for name in names
    ]


def _layer_of(scope: str) -> str:
    """The path of the module a scope belongs to, without the model's own name and what it maps."""
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
    """The layer that a scope lies in, or that lies in it (a loop knows its stack alone)."""
    for name in names:
        if f"{path}/".startswith(f"{name}/") or f"{name}/".startswith(f"{path}/"):
            return name
    return _REST


class _Attention(NamedTuple):
    """One attention, or those of a stack."""

    layer: str
    count: int  # type: ignore[assignment]  # tuple.count, which nobody needs here
    tokens: int
    map_bytes: int


def _attentions(config: Config) -> dict[str, list[_Attention]]:
    """What goes into the attentions of every layer, seen while the model is traced."""
    found: dict[tuple[tuple[str, ...], str], _Attention] = {}
    logits, shapes = traceable(config)

    def watch(call, args, kwargs, context):
        module, method = context.module, context.method_name
        if isinstance(module, MultiHeadAttention) and method in _ROWS:
            queries, keys = _ROWS[method](*args, **kwargs)
            params = shapes["params"]
            for part in module.path:
                params = params[part]
            depth = params["qkv_kernel"].shape[0] if params["qkv_kernel"].ndim == 5 else 1
            pairs = _pairs(module.config, method, queries, keys)
            size = 4 * module.config.num_heads * pairs * depth
            # By its key once, however often a loop's body is traced.
            layer = "/".join(module.path[:-2])
            found[module.path, method] = _Attention(layer, depth, keys, size)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(logits, shapes)
    layers: dict[str, list[_Attention]] = {}
    for attention in found.values():
        layers.setdefault(attention.layer, []).append(attention)
    return layers


def _pairs(config: BlockConfig, method: str, queries: int, keys: int) -> int:
    if config.attention == "dense" or method == "of_cls":
        return queries * keys
    row = keys_of_token(keys - 1, config.stride, config.expressivity)
    # Of all rows the first one is that of CLS, which attends to everything.
    return (queries - 1) * row + keys if method == "__call__" else queries * row


# Queries and keys by the arguments of an attention's methods.
_ROWS: dict[str, Callable[..., tuple[int, int]]] = {
    "__call__": lambda x, key_mask, *_, **__: (x.shape[1], key_mask.shape[1]),
    "of_cls": lambda x, keys_values, key_mask: (1, key_mask.shape[1]),
    "of_tokens": lambda x, indices, keys_values, key_mask: (x.shape[1], key_mask.shape[1]),
}


def _saved(config: Config) -> Counter[str]:
    """Bytes by layer of what a backward pass is handed by the forward pass, parameters aside."""
    logits, shapes = traceable(config)
    jaxpr = jax.make_jaxpr(lambda variables: jax.tree.leaves(jax.vjp(logits, variables)[1]))(shapes)
    jaxpr = jaxpr.jaxpr
    made_by = {var: scope_of(eqn) for eqn in jaxpr.eqns for var in eqn.outvars}
    saved: Counter[str] = Counter()
    kept = [var for var in jaxpr.outvars if not isinstance(var, core.Literal) and var in made_by]
    for var in dict.fromkeys(kept):
        array: Any = var.aval
        saved[_layer_of(made_by[var])] += array.size * array.dtype.itemsize
    return saved
