"""Conversion of weights from the public PyTorch implementation of SFT and its baselines, and back.

Both directions use one list per model that pairs parameters of this package with names of the
reference's state dict. Linear kernels are transposed, packed projections split by head into query,
key and value, and the layers of a scanned stack are stacked along a leading axis.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.checks import check_choice
from sft_jax.config.model import MbtOptions, ModelConfig, UnimodalOptions
from sft_jax.interop.weights.state_dict import read_state
from sft_jax.types import DataError

Keys = tuple[str, ...]
# Letters of the reference's MulT for its streams, in the order of concatenation.
STREAMS = "lav"
# Entries of the state dict that have no effect.
_UNUSED = ("network.embed_positions._float_tensor",)


@dataclasses.dataclass(frozen=True)
class Slot:
    """A parameter, or one layer of it, and its names in the reference's state dict.

    Attributes:
        path: Keys of the parameter in the tree.
        names: Names in the state dict; three if query, key and value are separate.
        kind: Difference between the two layouts (see `_from_torch_layout`).
        layer: Index along the leading axis of a stack; None outside of stacks.
    """

    path: Keys
    names: tuple[str, ...]
    kind: str
    layer: int | None = None


def from_reference(
    state: Mapping[str, np.ndarray] | str | Path, config: ModelConfig, modalities: Sequence[str]
) -> dict[str, Any]:
    """Converts a reference state dict, or gradients with its names, to a parameter tree.

    Args:
        state: Arrays by name in PyTorch's layout (`[out, in]`), or the path of an `.npz`, `.pth` or
            `.pt` file (see `read_state`).
        config: Name, widths and depths of the model that the weights come from.
        modalities: Names of the modalities in the model's order. For `sft` it is the order of the
            reference's `sparse_attn` list, for `mult` it is text, audio, video.

    Returns:
        The `params` tree. Its shapes are checked by the model.

    Raises:
        DataError: A name is missing or unexpected, or an attention does not split into heads.
    """
    if not isinstance(state, Mapping):
        state = read_state(state)
    if max(config.num_pre_layers, config.num_post_layers) > len(state):
        raise DataError(
            f"state dict: found {len(state)} arrays for {config.num_pre_layers} and "
            f"{config.num_post_layers} layers, expected several for each layer; set the depths of "
            "the model that the weights come from"
        )
    for name, array in state.items():
        # NumPy identifies bfloat16 only by its name.
        if np.asarray(array).dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise DataError(
                f"state dict: {name}: found {array.dtype}, expected numbers; save it as float32"
            )
    slots = _slots(config, modalities, state)
    expected = {name for slot in slots for name in slot.names}
    extra = set(state) - expected - _ignored(config, modalities)
    missing = expected - set(state)
    if missing or extra:
        raise DataError(
            f"state dict: missing {sorted(missing)}, unexpected {sorted(extra)}; expected the "
            f"names of a {config.name!r} model with modalities {list(modalities)}; set the name, "
            "depths and modalities of the model that the weights come from"
        )
    leaves: dict[Keys, Any] = {}
    for slot in slots:
        arrays = [np.asarray(state[name]) for name in slot.names]
        leaf = _from_torch_layout(arrays, slot, config.num_heads)
        if slot.layer is None:
            leaves[slot.path] = leaf
        else:
            leaves.setdefault(slot.path, []).append(leaf)
    params: dict[str, Any] = {}
    for path, leaf in leaves.items():
        branch = params
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = _stacked(path, leaf) if isinstance(leaf, list) else leaf
    return params


def to_reference(
    params: Mapping[str, Any],
    config: ModelConfig,
    modalities: Sequence[str],
    like: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Converts parameters to a state dict of the reference; the inverse of `from_reference`.

    The reference's `unimodal` also has tokenizers for the other modalities. These have no
    counterpart here and are left out.

    Args:
        params: Parameter tree, or gradients in the same layout.
        config: Name, widths and depths of the model.
        modalities: Names of the modalities in the model's order.
        like: State dict that decides whether query, key and value are packed or separate; if not
            given, they are as in a new model of the reference.

    Raises:
        DataError: `params` are not those of the configured model.
    """
    state: dict[str, np.ndarray] = {}
    depths: dict[Keys, int] = {}
    slots = _slots(config, modalities, like)
    for slot in slots:
        depths[slot.path] = depths.get(slot.path, 0) + (slot.layer is not None)
    for slot in slots:
        leaf: Any = params
        for key in slot.path:
            if not isinstance(leaf, Mapping) or key not in leaf:
                raise DataError(
                    f"params: {'/'.join(slot.path)} not found, expected the parameters of model "
                    f"{config.name!r} with modalities {list(modalities)}; check name and depths"
                )
            leaf = leaf[key]
        if slot.layer is not None and len(leaf) != depths[slot.path]:
            raise DataError(
                f"params: {'/'.join(slot.path)} has {len(leaf)} layers, expected "
                f"{depths[slot.path]}; set the depths of the model that the parameters come from"
            )
        leaf = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
        state |= zip(slot.names, _to_torch_layout(leaf, slot, config.num_heads), strict=True)
    if extra := sorted("/".join(path) for path in _paths(params) if path not in depths):
        raise DataError(
            f"params: found {extra}, which the reference's model {config.name!r} does not have, "
            "expected the parameters of the paper preset; convert a model of that preset"
        )
    if config.name == "mult":
        state |= {name: np.zeros(1, np.float32) for name in _UNUSED}
    return state


def _paths(tree: Mapping[str, Any], prefix: Keys = ()) -> Iterator[Keys]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def _stacked(path: Keys, layers: list[np.ndarray]) -> np.ndarray:
    if len({layer.shape for layer in layers}) > 1:
        raise DataError(
            f"state dict: layers of {'/'.join(path)} have the shapes "
            f"{[layer.shape for layer in layers]}, expected equal shapes; check that all layers "
            "come from one model"
        )
    return np.stack(layers)


# --- layouts


def _from_torch_layout(arrays: list[np.ndarray], slot: Slot, num_heads: int) -> np.ndarray:
    array = arrays[0]
    try:
        array = np.concatenate(arrays)
        match slot.kind:
            case "same":
                return array
            case "transposed":
                return array.T
            case "qkv_weight":  # [3 d, d] -> [d, 3, h, e]
                return array.T.reshape(array.shape[1], 3, num_heads, -1)
            case "qkv_bias":  # [3 d] -> [3, h, e]
                return array.reshape(3, num_heads, -1)
            case "out_weight":  # [d, d] -> [h, e, d]
                return array.T.reshape(num_heads, -1, array.shape[0])
    except (ValueError, IndexError):
        pass
    raise DataError(
        f"state dict: {', '.join(slot.names)} of shape {array.shape} does not split into "
        f"{num_heads} heads; set num_heads of the model that the weights come from"
    )


def _to_torch_layout(leaf: np.ndarray, slot: Slot, num_heads: int) -> list[np.ndarray]:
    heads = {"qkv_weight": 2, "qkv_bias": 1, "out_weight": 0}.get(slot.kind)
    if heads is not None and leaf.shape[heads] != num_heads:
        raise DataError(
            f"params: {'/'.join(slot.path)} has {leaf.shape[heads]} heads, expected {num_heads}; "
            "set num_heads of the model that the parameters come from"
        )
    match slot.kind:
        case "transposed":
            leaf = leaf.T
        case "qkv_weight":
            leaf = leaf.reshape(leaf.shape[0], -1).T
        case "qkv_bias":
            leaf = leaf.reshape(-1)
        case "out_weight":
            leaf = leaf.reshape(-1, leaf.shape[-1]).T
    return np.split(leaf, len(slot.names))


# --- names


def _slots(
    config: ModelConfig, modalities: Sequence[str], state: Mapping[str, Any] | None
) -> list[Slot]:
    check_choice("model.name", config.name, tuple(_MODELS))
    slots = [*_MODELS[config.name](config, modalities)]
    classifier = "network.classifier"
    slots += [*_norm(("head", "norm"), f"{classifier}.0")]
    slots += [*_linear(("head", "linear"), f"{classifier}.1")]
    if state is None:
        return slots
    return [_named_as_in(slot, state) for slot in slots]


def _named_as_in(slot: Slot, state: Mapping[str, Any]) -> Slot:
    """The slot with query, key and value packed or separate, as the state dict has them."""
    if slot.kind not in ("qkv_weight", "qkv_bias") or any(name in state for name in slot.names):
        return slot
    packed = (slot.names[0].replace("q_proj.", "in_proj_"),)
    other = packed if len(slot.names) == 3 else _unpack(slot.names[0])
    is_other = any(name in state for name in other)
    return dataclasses.replace(slot, names=other) if is_other else slot


def _unpack(name: str) -> tuple[str, ...]:
    return tuple(name.replace("in_proj_", f"{part}_proj.") for part in "qkv")


def _ignored(config: ModelConfig, modalities: Sequence[str]) -> set[str]:
    if config.name == "mult":
        return set(_UNUSED)
    if config.name != "unimodal":
        return set()
    return {name for m in modalities for slot in _tokenizer((), m) for name in slot.names}


def _linear(path: Keys, name: str, layer: int | None = None) -> Iterator[Slot]:
    yield Slot((*path, "kernel"), (f"{name}.weight",), "transposed", layer)
    yield Slot((*path, "bias"), (f"{name}.bias",), "same", layer)


def _norm(path: Keys, name: str, layer: int | None = None) -> Iterator[Slot]:
    yield Slot((*path, "LayerNorm_0", "scale"), (f"{name}.weight",), "same", layer)
    yield Slot((*path, "LayerNorm_0", "bias"), (f"{name}.bias",), "same", layer)


def _attention(
    path: Keys, name: str, layer: int | None = None, packed: bool = True
) -> Iterator[Slot]:
    for key, part in (("qkv_kernel", "weight"), ("qkv_bias", "bias")):
        names: tuple[str, ...] = (f"{name}.in_proj_{part}",)
        yield Slot((*path, key), names if packed else _unpack(names[0]), f"qkv_{part}", layer)
    yield Slot((*path, "out", "kernel"), (f"{name}.out_proj.weight",), "out_weight", layer)
    yield Slot((*path, "out", "bias"), (f"{name}.out_proj.bias",), "same", layer)


def _tokenizer(path: Keys, modality: str) -> Iterator[Slot]:
    name = f"{modality}_tokenizer"
    yield from _linear((*path, "proj"), f"{name}.proj")
    yield Slot((*path, "cls"), (f"{name}.cls_token",), "same")
    yield Slot((*path, "positions"), (f"{name}.pos_embedding",), "same")


def _block(path: Keys, suffix: str, index: int, layer: int | None = None) -> Iterator[Slot]:
    """A block in the reference's lists `attns<suffix>` and `mlps<suffix>`."""
    attention = (*path, "attention", "attention")
    mlp = f"network.mlps{suffix}.{index}"
    yield from _attention(attention, f"network.attns{suffix}.{index}", layer)
    yield from _norm((*path, "mlp", "norm"), f"{mlp}.0", layer)
    yield from _linear((*path, "mlp", "in"), f"{mlp}.1", layer)
    yield from _linear((*path, "mlp", "out"), f"{mlp}.4", layer)


def _stack(path: Keys, suffix: str, start: int, stop: int) -> Iterator[Slot]:
    for index in range(start, stop):
        yield from _block(path, suffix, index, index - start)


def _sft(config: ModelConfig, modalities: Sequence[str]) -> Iterator[Slot]:
    for i, m in enumerate(modalities):
        encoder = f"encoder_{m}"
        yield from _tokenizer((encoder, "tokenizer"), m)
        for index in range(config.num_pre_layers):
            yield from _block((encoder, f"block_{index}"), f"_{m}", index)
        path = (encoder, "pooling", "attention", "attention")
        yield from _attention(path, f"network.sparse_attn.{i}", packed=False)
    yield from _stack(("fusion", "block"), "_fused", 0, config.num_post_layers)


def _unimodal(config: ModelConfig, modalities: Sequence[str]) -> Iterator[Slot]:
    assert isinstance(config.options, UnimodalOptions)
    modality = config.options.modality or modalities[0]
    yield from _tokenizer((f"tokenizer_{modality}",), modality)
    yield from _stack(("encoder", "block"), "", 0, config.num_pre_layers)
    yield from _stack(("fusion", "block"), "_fused", 0, config.num_post_layers)


def _late(config: ModelConfig, modalities: Sequence[str]) -> Iterator[Slot]:
    depth = config.num_pre_layers + config.num_post_layers
    for m in modalities:
        yield from _tokenizer((f"tokenizer_{m}",), m)
        if depth:
            yield from _block((f"first_{m}",), f"_{m}", 0)
        yield from _stack((f"rest_{m}", "block"), f"_{m}", 1, depth)


def _concat(config: ModelConfig, modalities: Sequence[str]) -> Iterator[Slot]:
    for m in modalities:
        yield from _tokenizer((f"tokenizer_{m}",), m)
    yield from _block(("first",), "", 0)
    yield from _stack(("rest", "block"), "", 1, config.num_pre_layers + config.num_post_layers)


def _mbt(config: ModelConfig, modalities: Sequence[str]) -> Iterator[Slot]:
    depth = config.num_pre_layers + config.num_post_layers
    assert isinstance(config.options, MbtOptions)
    start = config.options.num_unfused_layers(config.num_pre_layers, config.num_layers)
    for m in modalities:
        yield from _tokenizer((f"tokenizer_{m}",), m)
        yield from _stack((f"encoder_{m}", "block"), f"_{m}", 0, start)
        yield from _stack(("fusion", f"block_{m}"), f"_{m}", start, depth)


def _mult(config: ModelConfig, modalities: Sequence[str]) -> Iterator[Slot]:
    if len(modalities) != len(STREAMS):
        raise DataError(
            f"modalities: given {list(modalities)}, expected three for the reference's MulT: text, "
            "audio and video, in this order"
        )
    letters = dict(zip(modalities, STREAMS, strict=True))
    for i, target in enumerate(modalities):
        yield from _tokenizer((f"tokenizer_{target}",), target)
        for j, source in enumerate(modalities):
            if source != target:
                name = f"network.trans_{letters[target]}_with_{letters[source]}"
                path = (f"cross_{i}_{j}", "block")
                yield from _mult_stack(path, name, config.num_pre_layers)
        name = f"network.trans_{letters[target]}_mem"
        yield from _mult_stack((f"memory_{i}", "block"), name, config.num_post_layers)
    yield from _norm(("cross_norm",), "network.cross_modal_norm")
    yield from _norm(("memory_norm",), "network.atten_norm")
    yield from _linear(("proj_in",), "network.proj1")
    yield from _linear(("proj_out",), "network.proj2")


def _mult_stack(path: Keys, name: str, depth: int) -> Iterator[Slot]:
    for i in range(depth):
        yield from _norm((*path, "attention", "norm"), f"{name}.{i}.layer_norms.0", i)
        yield from _attention((*path, "attention", "attention"), f"{name}.{i}.self_attn", i)
        yield from _norm((*path, "mlp", "norm"), f"{name}.{i}.layer_norms.1", i)
        yield from _linear((*path, "mlp", "in"), f"{name}.{i}.fc1", i)
        yield from _linear((*path, "mlp", "out"), f"{name}.{i}.fc2", i)


_MODELS = {
    "sft": _sft,
    "unimodal": _unimodal,
    "late": _late,
    "concat": _concat,
    "mbt": _mbt,
    "mult": _mult,
}
