"""Words shared by every room: the shape letters, a batch, a modality, and the errors users see.

Shape letters used in every signature and comment:

    b  batch            m  modality            t  tokens (or time steps) of a modality, without CLS
    f  input features   d  embedding width     h  attention heads     e  width of one head (d / h)
    k  tokens kept      n  fused sequence      c  classes             q  queries of an attention
"""

import dataclasses
import math
import re
from typing import Any, TypedDict

import jax
import numpy as np

TOKENIZERS = ("feature", "patch", "tubelet", "token")
# Pools that hand on `k` tokens, and pools that hand on one token a window.
COUNTING_POOLS = (
    "attn_topk",
    "cls_topk",
    "attn_kmedoids",
    "attn_random",
    "random",
    "channel_topk",
    "merge",
)
WINDOW_POOLS = ("max", "avg", "attn_avg", "strided_random")
POOLS = (*COUNTING_POOLS, *WINDOW_POOLS, "none")
# Pools that rank or weigh tokens by the column mean of the attention map.
SALIENCY_POOLS = ("attn_topk", "attn_kmedoids", "attn_random", "attn_avg")


# Characters of a modality's name, which becomes part of the names of files.
LONGEST_NAME = 48


class ConfigError(ValueError):
    """A setting that cannot be used: the message says what was given, expected, and to do."""


class DataError(ValueError):
    """Data that cannot be used: the message names the file or record, found, expected, remedy."""


class CheckpointError(RuntimeError):
    """A run folder that cannot be used: the message says what was found and what to do."""


class NonFiniteError(FloatingPointError):
    """Training met a NaN or an infinity: the message names step and metric, and the cause."""


Array = jax.Array | np.ndarray

# A leaf of a pytree class: an array, or what a tree transformation put in its place (a shape, a
# sharding, a sum), which an array annotation would refuse.
Leaf = Any


class Batch(TypedDict):
    """One batch, a pytree whose every leaf has the batch axis in front.

    Attributes:
        inputs: `{m: [b, t, f]}` float32 features, or `{m: [b, t]}` int32 ids for a token modality.
        mask: `{m: [b, t]}` bool, true where a real time step is.
        target: `[b, ...]` what is to be predicted, such as an int32 class `[b]`.
        weight: `[b]` float32, 0 on the rows that pad a ragged last batch.
        id: `[b]` int32 position of the record in its split, -1 on padding rows.
    """

    inputs: dict[str, Leaf]
    mask: dict[str, Leaf]
    target: Leaf
    weight: Leaf
    id: Leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """One modality: what a record holds of it, how it is cut into tokens, and how it is pooled.

    Attributes:
        name: its key in `Batch["inputs"]` and `Batch["mask"]`.
        length: time steps `t` of a record, padding included.
        feature_dim: features `f` of a time step; the vocabulary size for `tokenizer="token"`.
        tokenizer: `feature` (a token a time step), `patch` (a token a patch of time x features),
            `tubelet` (a token a box of frames x height x width of a video, arXiv 2103.15691), or
            `token` (a learned vector an integer id).
        patch: `(time steps, features)` of one patch, for `tokenizer="patch"`; both must divide.
        frame: `(height, width, channels)` of a video's frames, for `tokenizer="tubelet"`. A time
            step is a frame, flattened in this order: `f = height * width * channels`.
        tubelet: `(frames, height, width)` of one tubelet, for `tokenizer="tubelet"`; each must
            divide. Tokens run over time first, then rows, then columns.
        pool: how the sparse-pooling block reduces its tokens.
        k: tokens that a pool with a count hands on.
        window: window and stride, in tokens, of a pool over windows.
    """

    name: str
    length: int
    feature_dim: int
    tokenizer: str = "feature"
    patch: tuple[int, int] = (1, 1)
    frame: tuple[int, int, int] = (1, 1, 1)
    tubelet: tuple[int, int, int] = (1, 1, 1)
    pool: str = "attn_topk"
    k: int | None = None
    window: int | None = None

    def __post_init__(self):
        where = f"modality {self.name[: LONGEST_NAME + 1]!r}"
        if not re.fullmatch(r"[A-Za-z]\w*", self.name) or len(self.name) > LONGEST_NAME:
            raise ConfigError(
                f"{where}: given as a name, expected a letter, then letters, digits and "
                f"underscores, at most {LONGEST_NAME} in all, since parameters, settings and files "
                "are called after it; rename it"
            )
        check_choice(f"{where}: tokenizer", self.tokenizer, TOKENIZERS)
        check_choice(f"{where}: pool", self.pool, POOLS)
        if self.length < 1 or self.feature_dim < 1:
            raise ConfigError(
                f"{where}: given length {self.length} and feature_dim {self.feature_dim}, expected "
                "both at least 1; set them to the shape of one record"
            )
        self._check_cuts(where)
        if self.pool in COUNTING_POOLS:
            self._check_size("k", self.k, unused="window")
        elif self.pool in WINDOW_POOLS:
            self._check_size("window", self.window, unused="k")
        elif self.k is not None or self.window is not None:
            raise ConfigError(
                f"{where}: given k={self.k}, window={self.window} with pool 'none', expected "
                "neither; remove them, since every token is kept"
            )

    def _check_cuts(self, where: str):
        for name, owner in (("patch", "patch"), ("frame", "tubelet"), ("tubelet", "tubelet")):
            given, unused = tuple(getattr(self, name)), getattr(ModalitySpec, name)
            if self.tokenizer != owner and given != unused:
                raise ConfigError(
                    f"{where}: given {name} {given} with tokenizer {self.tokenizer!r}, expected "
                    f"{unused}; set tokenizer={owner!r} or leave {name} out"
                )
        fits = min(self.frame) >= 1 and math.prod(self.frame) == self.feature_dim
        if self.tokenizer == "tubelet" and not fits:
            raise ConfigError(
                f"{where}: given frame {self.frame} for feature_dim {self.feature_dim}, expected "
                "(height, width, channels) whose product it is; set the one or the other to the "
                "shape of a frame"
            )
        for name, what, size, part in self._cuts:
            if part < 1 or size % part:
                raise ConfigError(
                    f"{where}: given {name} {getattr(self, name)} for {what} {size}, expected a "
                    f"divisor of {size}; pad the records or choose another {name}"
                )

    @property
    def _cuts(self) -> tuple[tuple[str, str, int, int], ...]:
        """Setting, axis, its size and the size of a part of it, for every axis that is cut."""
        if self.tokenizer == "patch":
            return (
                ("patch", "length", self.length, self.patch[0]),
                ("patch", "feature_dim", self.feature_dim, self.patch[1]),
            )
        if self.tokenizer == "tubelet":
            frames, height, width = self.tubelet
            return (
                ("tubelet", "length", self.length, frames),
                ("tubelet", "frame height", self.frame[0], height),
                ("tubelet", "frame width", self.frame[1], width),
            )
        return ()

    def _check_size(self, what: str, value: int | None, unused: str):
        if value is None or not 1 <= value <= self.num_tokens:
            raise ConfigError(
                f"modality {self.name!r}: given {what}={value} for pool {self.pool!r}, expected 1 "
                f"to {self.num_tokens} (its tokens); set {what} in that range"
            )
        if getattr(self, unused) is not None:
            raise ConfigError(
                f"modality {self.name!r}: given {unused}={getattr(self, unused)}, which pool "
                f"{self.pool!r} does not use, expected none; set it to None"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens `t` after the tokenizer, without CLS."""
        return math.prod(self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along time and along what else is cut; `(length, 1)` where nothing is."""
        return tuple(size // part for *_, size, part in self._cuts) or (self.length, 1)

    @property
    def steps_per_token(self) -> int:
        """Time steps that one token covers."""
        return self.length // self.grid[0]

    @property
    def num_pooled(self) -> int:
        """Tokens that the pool hands to fusion (`k`, `t // w`, or `t`)."""
        if self.pool in COUNTING_POOLS:
            return self.count
        if self.pool in WINDOW_POOLS:
            return self.num_tokens // self.stride
        return self.num_tokens

    @property
    def count(self) -> int:
        """`k` of a pool with a count."""
        assert self.k is not None  # as checked when it was made
        return self.k

    @property
    def stride(self) -> int:
        """`window` of a pool over windows."""
        assert self.window is not None  # as checked when it was made
        return self.window


def check_choice(what: str, given: str, choices: tuple[str, ...]):
    """Raises `ConfigError` unless `given` is one of `choices`."""
    if given not in choices:
        raise ConfigError(f"{what}: given {given!r}, expected one of {', '.join(choices)}")


def check_at_least(where: str, config: object, least: int | float, *names: str):
    """Raises `ConfigError` unless every named setting is at least `least`."""
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise ConfigError(f"{where}.{name}: given {value}, expected at least {least}, finite")


def check_fraction(where: str, config: object, *names: str):
    """Raises `ConfigError` unless every named setting is between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{where}.{name}: given {value}, expected between 0 and 1")
