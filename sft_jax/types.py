"""Types shared by the whole package: shape letters, batches, and the errors that users see.

Shape letters used in every signature and comment:

    b  batch            m  modality            t  tokens or time steps of a modality, without CLS
    f  input features   d  embedding width     h  attention heads     e  width of one head (d / h)
    k  tokens kept      n  fused sequence      c  classes             q  queries of an attention
"""

from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np


class ConfigError(ValueError):
    """A setting is invalid; the message says what was given, what was expected, and the remedy."""


class DataError(ValueError):
    """Data are invalid; the message names the file or record and says how to fix it."""


class CheckpointError(RuntimeError):
    """A run folder cannot be used; the message says what was found and the remedy."""


class NonFiniteError(FloatingPointError):
    """Training produced a NaN or an infinity; the message names step, metric and cause."""


Array = jax.Array | np.ndarray

# A leaf of a pytree class: an array, or whatever a tree transformation replaced it with (a shape, a
# sharding), which an array annotation would reject at run time.
Leaf = Any


class Target(NamedTuple):
    """Entry of a record that is predicted.

    Attributes:
        field: `label` (a class), `labels` (0, 1, or NaN for each label) or `value` (numbers, NaN
            where unknown).
        size: Number of labels or numbers; 0 for a class.
    """

    field: str = "label"
    size: int = 0


A_CLASS = Target()


class Batch(TypedDict):
    """One batch, a pytree whose leaves all have a leading batch axis.

    Attributes:
        inputs: `{m: [b, t, f]}` float32 features, or `{m: [b, t]}` int32 ids for a token modality.
        mask: `{m: [b, t]}` bool, true for real time steps and false for padding.
        target: `[b, ...]` value to predict, such as an int32 class index `[b]`.
        weight: `[b]` float32, what the sample counts; 0 for rows that fill up the last batch.
        id: `[b]` int32 position of the record in its split, -1 for rows that fill up the batch.
    """

    inputs: dict[str, Leaf]
    mask: dict[str, Leaf]
    target: Leaf
    weight: Leaf
    id: Leaf
