"""Writes arrays that a configuration's model takes: `draw_inputs.py CONFIG OUTPUT.npz`."""

import sys

import numpy as np

from sft_jax.config.io import load


def main(config: str, output: str):
    """Two samples of normal draws."""
    rng = np.random.default_rng(0)
    shapes = {m.name: (2, m.length, m.feature_dim) for m in load(config).modalities}
    np.savez(output, **{name: rng.normal(size=shape) for name, shape in shapes.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
