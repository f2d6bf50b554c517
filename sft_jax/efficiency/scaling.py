"""Configurations along a sweep of one setting, and the exponent with which a cost grows."""

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


def with_setting(config: Config, axis: str, value: Value) -> Config:
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


def parse_values(axis: str, texts: Sequence[str]) -> list[Value]:
    """Values of a setting from the command line; the default ones if there are none.

    Raises:
        ConfigError: The axis is unknown, or a value is not a whole number where one is needed.
    """
    check_choice("sweep", axis, tuple(AXES))
    wrong = [text for text in texts if axis != "dtype" and not text.isdecimal()]
    if wrong:
        raise ConfigError(f"values: given {', '.join(wrong)}, expected whole numbers for {axis}")
    return [text if axis == "dtype" else int(text) for text in texts] or list(AXES[axis][0])


def _length(config: Config, length: Value) -> Config:
    longest = max(config.modalities, key=lambda spec: spec.num_tokens)
    changes: dict[str, Any] = {"length": int(length)}
    if longest.pool in WINDOW_POOLS:
        changes["window"] = max(1, int(length) * longest.stride // longest.length)
    lengthened = dataclasses.replace(longest, **changes)
    model = config.model
    if model.attention == "fixed":
        stride = 2 ** round(math.log2(math.sqrt(model.expressivity * lengthened.num_tokens)))
        model = dataclasses.replace(model, stride=stride)
    modalities = tuple(lengthened if spec is longest else spec for spec in config.modalities)
    varied = dataclasses.replace(config, modalities=modalities, model=model)
    if not isinstance(model.options, UnimodalOptions | ConcatOptions):
        return varied
    window = model.options.window * _num_pooled(varied) // _num_pooled(config)
    return _with_window(varied, window)


def _batch(config: Config, size: Value) -> Config:
    train = dataclasses.replace(config.train, batch_size=int(size))
    return dataclasses.replace(config, train=train)


def _tokens_kept(config: Config, k: Value) -> Config:
    def keep(spec: ModalitySpec) -> ModalitySpec:
        count = min(int(k), spec.num_tokens)
        if spec.pool in COUNTING_POOLS:
            return dataclasses.replace(spec, k=count)
        if spec.pool in WINDOW_POOLS:
            return dataclasses.replace(spec, window=spec.num_tokens // count)
        return spec

    varied = dataclasses.replace(config, modalities=tuple(map(keep, config.modalities)))
    tokens = _num_pooled(varied)
    num_sequences = len(config.modalities) if config.model.name == "concat" else 1
    return _with_window(varied, tokens // min(tokens, int(k) * num_sequences))


def _num_pooled(config: Config) -> int:
    """Number of tokens that enter the max pool of `concat` or `unimodal`."""
    if config.model.name == "concat":
        return sum(spec.num_tokens + 1 for spec in config.modalities) - 1
    specs = {spec.name: spec for spec in config.modalities}
    name = getattr(config.model.options, "modality", "")
    return specs.get(name, config.modalities[0]).num_tokens


def _with_window(config: Config, window: int) -> Config:
    """Sets the window of a baseline that has one."""
    options = config.model.options
    if not isinstance(options, UnimodalOptions | ConcatOptions) or not options.window:
        return config
    return _with_model(config, options=dataclasses.replace(options, window=max(1, window)))


def _with_model(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


# Default values of a sweep, and the function that sets one.
AXES: dict[str, tuple[tuple[Value, ...], Callable[[Config, Value], Config]]] = {
    "length": ((1024, 2048, 4096, 8192, 16384), _length),
    "batch": ((1, 4, 16, 64), _batch),
    "k": ((1, 4, 16, 64), _tokens_kept),
    "width": ((40, 80, 160, 320), lambda config, width: _with_model(config, embed_dim=int(width))),
    "dtype": (("float32", "bfloat16"), lambda config, dtype: _with_model(config, dtype=str(dtype))),
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
