"""Learnable random sequences: each class is a motif hidden in noise."""

import functools
import math

import numpy as np
from jaxtyping import Float32

from sft_jax.config.data import SyntheticOptions
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import (
    SPLITS,
    Contents,
    LazyRecords,
    ModalityInfo,
    Record,
    fixed_length,
    independent_record,
)

# First entry of the motifs' seeds, so that they share no random stream with the samples.
_MOTIF_STREAM = 3


class Synthetic(SourceBuilder, skip_registration=True):
    """Random sequences whose class is a short motif at a random position of each modality.

    A class `y` is two digits in base `ceil(sqrt(c))`. Even modalities carry a motif of the high
    digit, odd ones of the low digit, so no modality alone determines the class; a single modality
    has one motif per class. The motif lasts an eighth of the full length, starts anywhere inside
    the sequence, and has unit root mean square; noise is added everywhere.
    """

    options: SyntheticOptions

    def options_summary(self) -> str:
        """Returns sizes and seed."""
        o = self.options
        shapes = "_".join(f"{t}x{f}" for t, f in zip(o.lengths, o.feature_dims, strict=True))
        return f"{shapes}-c{o.num_classes}-n{o.num_train}-seed{o.seed}"

    def contents(self) -> Contents:
        """Returns records that are drawn when they are accessed."""
        o = self.options
        sizes = zip(SPLITS, (o.num_train, o.num_valid, o.num_test), strict=True)
        return Contents(
            modalities=tuple(
                ModalityInfo(name=f"m{i}", length=t, feature_dim=f, kind="feature")
                for i, (t, f) in enumerate(zip(o.lengths, o.feature_dims, strict=True))
            ),
            class_names=tuple(str(c) for c in range(o.num_classes)),
            splits={
                name: LazyRecords(size, functools.partial(sample, o, split))
                for split, (name, size) in enumerate(sizes)
            },
        )


def sample(options: SyntheticOptions, split: int, index: int) -> Record:
    """Draws record `index` of split 0 (train), 1 (valid) or 2 (test), independent of the others."""
    rng = np.random.default_rng([options.seed, split, index])
    label = int(rng.integers(options.num_classes))
    present = rng.random(len(options.lengths)) >= options.missing_rate
    present[rng.integers(len(present))] |= not present.any()
    inputs, mask = {}, {}
    for i, (length, width) in enumerate(zip(options.lengths, options.feature_dims, strict=True)):
        shortest = max(1, math.ceil(options.min_length * length))
        steps = int(rng.integers(shortest, length + 1))
        values = rng.normal(0, options.noise, (steps, width)).astype(np.float32)
        motif = class_motif(options, i, label)[:steps]
        start = int(rng.integers(steps - len(motif) + 1))
        values[start : start + len(motif)] += motif
        real = np.full(steps, present[i])
        inputs[f"m{i}"], mask[f"m{i}"] = fixed_length(values, real, length)
    return independent_record(f"{SPLITS[split]}{index:06d}", label, inputs, mask)


def motif_index(options: SyntheticOptions, modality: int, label: int) -> int:
    """Returns the index of a class's motif in a modality; classes may share one."""
    if len(options.lengths) == 1:
        return label
    base = int(np.ceil(np.sqrt(options.num_classes)))
    return label // base if modality % 2 == 0 else label % base


def class_motif(options: SyntheticOptions, modality: int, label: int) -> Float32[np.ndarray, "s f"]:
    """Returns the motif of a class in a modality, with unit root mean square."""
    steps = max(1, options.lengths[modality] // 8)
    index = motif_index(options, modality, label)
    rng = np.random.default_rng([options.seed, _MOTIF_STREAM, modality, index])
    motif = rng.normal(size=(steps, options.feature_dims[modality]))
    return (motif / np.sqrt(np.mean(motif**2))).astype(np.float32)
