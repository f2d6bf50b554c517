"""Weights of the public PyTorch implementation of SFT, by the names in its state dict.

Linear kernels are transposed, packed projections split into query, key and value by head, and
layers after fusion stacked along a leading axis, as `nn.scan` keeps them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.types import DataError


def sft_from_reference(
    state: Mapping[str, np.ndarray],
    modalities: Sequence[str],
    *,
    num_heads: int,
    num_pre_layers: int,
    num_post_layers: int,
) -> dict[str, Any]:
    """Parameters of `SparseFusionTransformer` from a reference state dict.

    Args:
        state: arrays by name, torch layouts (`[out, in]`).
        modalities: names in the order that the reference's `sparse_attn` list has them.
        num_heads: of the model that the weights come from.
        num_pre_layers: likewise.
        num_post_layers: likewise.

    Returns:
        The `params` tree. It works on gradients named alike just as well.

    Raises:
        DataError: a name that is needed is missing, or one is left over.
    """
    take = _Taker(state)
    params: dict[str, Any] = {}
    for i, name in enumerate(modalities):
        encoder = {
            "tokenizer": {
                "proj": take.linear(f"{name}_tokenizer.proj"),
                "cls": take(f"{name}_tokenizer.cls_token"),
                "positions": take(f"{name}_tokenizer.pos_embedding"),
            },
            "pooling": {
                "attention": {"attention": take.attention(f"network.sparse_attn.{i}", num_heads)}
            },
        }
        for layer in range(num_pre_layers):
            encoder[f"block_{layer}"] = take.block(name, layer, num_heads)
        params[f"encoder_{name}"] = encoder
    layers = [take.block("fused", layer, num_heads) for layer in range(num_post_layers)]
    params["head"] = {
        "norm": take.norm("network.classifier.0"),
        "linear": take.linear("network.classifier.1"),
    }
    take.finish()
    if layers:
        params["fusion"] = {"block": _stack(layers)}
    return params


class _Taker:
    """Takes arrays out of a state dict by name and knows at the end what was left."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        self.state = state
        self.used: set[str] = set()
        self.missing: list[str] = []

    def __call__(self, name: str) -> np.ndarray:
        self.used.add(name)
        if name not in self.state:
            self.missing.append(name)
            return np.zeros((1, 1), np.float32)
        return np.asarray(self.state[name])

    def linear(self, name: str) -> dict[str, np.ndarray]:
        return {"kernel": self(f"{name}.weight").T, "bias": self(f"{name}.bias")}

    def norm(self, name: str) -> dict[str, Any]:
        return {"LayerNorm_0": {"scale": self(f"{name}.weight"), "bias": self(f"{name}.bias")}}

    def attention(self, name: str, num_heads: int) -> dict[str, Any]:
        # The reference's two attention classes keep the projections packed, or one by one.
        if any(f"{name}.q_proj.{kind}" in self.state for kind in ("weight", "bias")):
            weights, biases = (
                [self(f"{name}.{part}_proj.{kind}") for part in "qkv"]
                for kind in ("weight", "bias")
            )
        else:
            weights, biases = [self(f"{name}.in_proj_weight")], [self(f"{name}.in_proj_bias")]
        out = self.linear(f"{name}.out_proj")
        if self.missing:
            return {}  # the placeholders fit nowhere; `finish` raises
        weight, bias = np.concatenate(weights), np.concatenate(biases)
        d = weight.shape[1]
        return {
            "qkv_kernel": weight.T.reshape(d, 3, num_heads, -1),
            "qkv_bias": bias.reshape(3, num_heads, -1),
            "out": {"kernel": out["kernel"].reshape(num_heads, -1, d), "bias": out["bias"]},
        }

    def block(self, name: str, layer: int, num_heads: int) -> dict[str, Any]:
        return {
            "attention": {"attention": self.attention(f"network.attns_{name}.{layer}", num_heads)},
            "mlp": {
                "norm": self.norm(f"network.mlps_{name}.{layer}.0"),
                "in": self.linear(f"network.mlps_{name}.{layer}.1"),
                "out": self.linear(f"network.mlps_{name}.{layer}.4"),
            },
        }

    def finish(self):
        unused = sorted(set(self.state) - self.used)
        if self.missing or unused:
            raise DataError(
                f"state dict: missing {sorted(self.missing)}, left over {unused}; expected the "
                "names of the model that the weights come from, with its depths and modalities"
            )


def _stack(layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _stack([layer[key] for layer in layers])
        if isinstance(value, dict)
        else np.stack([layer[key] for layer in layers])
        for key, value in layers[0].items()
    }
