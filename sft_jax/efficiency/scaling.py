"""Growth of cost with one setting: configurations along a sweep, and the exponent of growth."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sft_jax.config.checks import check_choice
from sft_jax.config.modality import COUNTING_POOLS, WINDOW_POOLS, ModalitySpec
from sft_jax.config.model import ConcatOptions, UnimodalOptions
from sft_jax.config.run import Config
from sft_jax.types import ConfigError

Value = int | str


def at(config: Config, axis: str, value: Value) -> Config:
    """Returns `config` with one setting at another value.

    Args:
        config: Configuration with its modalities.
        axis: Key of `AXES`. `length` changes the longest modality: its pool keeps as many tokens
            as before (as far as a window can), and block-sparse attention uses blocks of about
            `sqrt(expressivity * length)` tokens, which minimises the keys of a row (arXiv
            1904.10509, section 4). `batch` is the batch size, `k` the tokens kept of every
            modality, `width` the embedding width with as many heads, `dtype` the data type.
        value: Value of that setting.

    Raises:
        ConfigError: The axis is unknown, or the value does not fit the configuration.
    """
    check_choice("sweep", axis, tuple(AXES))
    return AXES[axis][1](config, value)


def _length(config: Config, length: Value) -> Config:
    longest = max(config.modalities, key=lambda spec: spec.num_tokens)
    changes: dict[str, Any] = {"length": int(length)}
    if longest.pool in WINDOW_POOLS:
        changes["window"] = max(1, int(length) * longest.stride // longest.length)
    longer = dataclasses.replace(longest, **changes)
    model = config.model
    if model.attention == "fixed":
        stride = 2 ** round(math.log2(math.sqrt(model.expressivity * longer.num_tokens)))
        model = dataclasses.replace(model, stride=stride)
    modalities = tuple(longer if spec is longest else spec for spec in config.modalities)
    moved = dataclasses.replace(config, modalities=modalities, model=model)
    if not isinstance(model.options, UnimodalOptions | ConcatOptions):
        return moved
    window = model.options.window * _num_pooled(moved) // _num_pooled(config)
    return _with_window(moved, window)


def _batch(config: Config, size: Value) -> Config:
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_size=int(size))
    )


def _kept(config: Config, k: Value) -> Config:
    def keep(spec: ModalitySpec) -> ModalitySpec:
        count = min(int(k), spec.num_tokens)
        if spec.pool in COUNTING_POOLS:
            return dataclasses.replace(spec, k=count)
        if spec.pool in WINDOW_POOLS:
            return dataclasses.replace(spec, window=spec.num_tokens // count)
        return spec

    moved = dataclasses.replace(config, modalities=tuple(map(keep, config.modalities)))
    tokens = _num_pooled(moved)
    several = len(config.modalities) if config.model.name == "concat" else 1
    return _with_window(moved, tokens // min(tokens, int(k) * several))


def _num_pooled(config: Config) -> int:
    """Number of tokens that enter the max pool of `concat` or `unimodal`."""
    if config.model.name == "concat":
        return sum(spec.num_tokens + 1 for spec in config.modalities) - 1
    name = getattr(config.model.options, "modality", "")
    named = [spec for spec in config.modalities if spec.name == name]
    return (named or config.modalities)[0].num_tokens


def _with_window(config: Config, window: int) -> Config:
    """Sets the window of a baseline that has one."""
    options = config.model.options
    if not isinstance(options, UnimodalOptions | ConcatOptions) or not options.window:
        return config
    options = dataclasses.replace(options, window=max(1, window))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, options=options))


def _width(config: Config, width: Value) -> Config:
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, embed_dim=int(width))
    )


def _dtype(config: Config, dtype: Value) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=str(dtype)))


# Default values of a sweep, and the function that sets one.
AXES: dict[str, tuple[tuple[Value, ...], Callable[[Config, Value], Config]]] = {
    "length": ((1024, 2048, 4096, 8192, 16384), _length),
    "batch": ((1, 4, 16, 64), _batch),
    "k": ((1, 4, 16, 64), _kept),
    "width": ((40, 80, 160, 320), _width),
    "dtype": (("float32", "bfloat16"), _dtype),
}


def exponent(values: Sequence[int | float], costs: Sequence[int | float]) -> float:
    """Exponent `p` of the power law `cost ~ value^p`, by least squares on logarithms.

    Raises:
        ConfigError: There are fewer than two values, or one is not positive.
    """
    if len(values) < 2 or len(values) != len(costs) or min(*values, *costs) <= 0:
        raise ConfigError(
            f"sweep: given values {list(values)} with costs {list(costs)}, expected at least two "
            "positive values, each with its cost; sweep over more values"
        )
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])
