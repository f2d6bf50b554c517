"""Modalities: the shape of their records, how they are tokenized, and how they are pooled."""

import dataclasses
import math
import re

from sft_jax.config.checks import check_choice
from sft_jax.types import ConfigError

TOKENIZERS = ("feature", "patch", "tubelet", "token")


@dataclasses.dataclass(frozen=True)
class PoolKind:
    """The properties of a pool that are needed without running it.

    Attributes:
        size: Setting that determines the number of pooled tokens: `k`, `window`, or None if every
            token is kept.
        saliency: Whether the pool reads the mean attention that each token receives.
        selects_queries: Whether the pool chooses its tokens before attention, so that only CLS and
            the kept tokens are queries of the sparse-pooling block.
    """

    size: str | None
    saliency: bool = False
    selects_queries: bool = False


# The function of each pool is in `sft_jax/models/pools.py` under the same name.
POOLS = {
    "attn_topk": PoolKind("k", saliency=True),
    "cls_topk": PoolKind("k", selects_queries=True),
    "norm_topk": PoolKind("k", selects_queries=True),
    "attn_kmedoids": PoolKind("k", saliency=True),
    "attn_random": PoolKind("k", saliency=True),
    "random": PoolKind("k"),
    "channel_topk": PoolKind("k"),
    "merge": PoolKind("k"),
    "max": PoolKind("window"),
    "avg": PoolKind("window"),
    "attn_avg": PoolKind("window", saliency=True),
    "strided_random": PoolKind("window"),
    "none": PoolKind(None),
}
COUNTING_POOLS = tuple(name for name, kind in POOLS.items() if kind.size == "k")
WINDOW_POOLS = tuple(name for name, kind in POOLS.items() if kind.size == "window")

# Names of modalities become part of file names.
MAX_NAME_LENGTH = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """One modality.

    Attributes:
        name: Key of the modality in `Batch["inputs"]` and `Batch["mask"]`.
        length: Number of time steps `t` of a record, including padding.
        feature_dim: Number of features `f` per time step; vocabulary size if `tokenizer="token"`.
        tokenizer: `feature` (one token per time step), `patch` (one token per patch of time steps
            and features), `tubelet` (one token per box of frames, rows and columns of a video,
            arXiv 2103.15691), or `token` (a learned embedding of integer ids).
        patch: `(time steps, features)` of a patch if `tokenizer="patch"`; each must divide.
        frame: `(height, width, channels)` of a video frame if `tokenizer="tubelet"`. A time step is
            a frame flattened in this order: `f = height * width * channels`.
        tubelet: `(frames, height, width)` of a tubelet if `tokenizer="tubelet"`; each must divide.
            Tokens are ordered by time, then rows, then columns.
        pool: Key of `POOLS`: how the sparse-pooling block reduces the tokens.
        k: Number of tokens kept by a pool whose size is `k`.
        window: Window and stride, in tokens, of a pool whose size is `window`.
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
        where = f"modality {self.name[: MAX_NAME_LENGTH + 1]!r}"
        if not re.fullmatch(r"[A-Za-z]\w*", self.name) or len(self.name) > MAX_NAME_LENGTH:
            raise ConfigError(
                f"{where}: given as a name, expected a letter, then letters, digits and "
                f"underscores, at most {MAX_NAME_LENGTH} in all, since parameters, settings and "
                "files are called after it; rename it"
            )
        check_choice(f"{where}: tokenizer", self.tokenizer, TOKENIZERS)
        check_choice(f"{where}: pool", self.pool, tuple(POOLS))
        if self.length < 1 or self.feature_dim < 1:
            raise ConfigError(
                f"{where}: given length {self.length} and feature_dim {self.feature_dim}, expected "
                "both at least 1; set them to the shape of one record"
            )
        self._check_tokenizer(where)
        self._check_pool_size(where)

    def _check_tokenizer(self, where: str):
        for name, owner in (("patch", "patch"), ("frame", "tubelet"), ("tubelet", "tubelet")):
            value, default = tuple(getattr(self, name)), getattr(ModalitySpec, name)
            if self.tokenizer != owner and value != default:
                raise ConfigError(
                    f"{where}: given {name} {value} with tokenizer {self.tokenizer!r}, expected "
                    f"{default}; set tokenizer={owner!r} or leave {name} out"
                )
        valid_frame = min(self.frame) >= 1 and math.prod(self.frame) == self.feature_dim
        if self.tokenizer == "tubelet" and not valid_frame:
            raise ConfigError(
                f"{where}: given frame {self.frame} for feature_dim {self.feature_dim}, expected "
                "(height, width, channels) whose product it is; set the one or the other to the "
                "shape of a frame"
            )
        for setting, axis, size, part in self._axes:
            if part < 1 or size % part:
                raise ConfigError(
                    f"{where}: given {setting} {getattr(self, setting)} for {axis} {size}, "
                    f"expected a divisor of {size}; pad the records or choose another {setting}"
                )

    def _check_pool_size(self, where: str):
        size = POOLS[self.pool].size
        if size is None and (self.k is not None or self.window is not None):
            raise ConfigError(
                f"{where}: given k={self.k}, window={self.window} with pool {self.pool!r}, "
                "expected neither; remove them, since every token is kept"
            )
        if size is None:
            return
        value = getattr(self, size)
        if value is None or not 1 <= value <= self.num_tokens:
            raise ConfigError(
                f"{where}: given {size}={value} for pool {self.pool!r}, expected 1 to "
                f"{self.num_tokens} (its tokens); set {size} in that range"
            )
        unused = "window" if size == "k" else "k"
        if getattr(self, unused) is not None:
            raise ConfigError(
                f"{where}: given {unused}={getattr(self, unused)}, which pool {self.pool!r} does "
                "not use, expected none; set it to None"
            )

    @property
    def _axes(self) -> tuple[tuple[str, str, int, int], ...]:
        """`(setting, axis, size, size of a part)` of every axis that the tokenizer divides."""
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

    @property
    def num_tokens(self) -> int:
        """Number of tokens `t` without CLS."""
        return math.prod(self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tokens along time and every other divided axis; `(length, 1)` if none is."""
        return tuple(size // part for *_, size, part in self._axes) or (self.length, 1)

    @property
    def steps_per_token(self) -> int:
        """Number of time steps that a token covers."""
        return self.length // self.grid[0]

    @property
    def num_pooled(self) -> int:
        """Number of tokens that the pool returns: `k`, `t // window`, or `t`."""
        match POOLS[self.pool].size:
            case "k":
                return self.count
            case "window":
                return self.num_tokens // self.stride
        return self.num_tokens

    @property
    def count(self) -> int:
        """`k` of a pool that has one."""
        assert self.k is not None  # checked on construction
        return self.k

    @property
    def stride(self) -> int:
        """`window` of a pool that has one."""
        assert self.window is not None  # checked on construction
        return self.window
