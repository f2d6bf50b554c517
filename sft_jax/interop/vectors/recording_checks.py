"""Whether the entries of a recording are such that a model can be built of them and run on them."""

import re
from collections.abc import Mapping

import numpy as np

from sft_jax.config.run import ModelConfig
from sft_jax.files.json_files import integer, list_of, record, text
from sft_jax.types import DataError

_SIZE = integer(1, 2**20)
# `meta`, where its entries are there; a depth costs time before it can be seen to be wrong.
META = record(
    {},
    {
        "model": text(),
        "num_classes": _SIZE,
        "embed_dim": _SIZE,
        "num_heads": _SIZE,
        "n_layers_pre_fusion": integer(0, 1000),
        "n_layers_post_fusion": integer(0, 1000),
        "lengths": list_of(integer(1, 2**31 - 1)),
        "kernel": list_of(integer(1, 2**31 - 1), least=1),
        "pool_k": _SIZE,
    },
)


def check_entries(
    file: str,
    arrays: Mapping[str, np.ndarray],
    config: ModelConfig,
    modalities: int,
    samples: int,
):
    """Checks kinds and ranges; shapes of inputs, weights and results are for others.

    Args:
        file: name of the recording.
        arrays: its entries.
        config: of its model.
        modalities: of its model.
        samples: in its batch.

    Raises:
        DataError: an entry that cannot be computed on.
    """
    depth = config.num_pre_layers + config.num_post_layers
    check_numbers(file, arrays)
    for name in arrays:
        layer = re.match(r"layer(\d{1,9})/", name)
        if name.startswith("layer") and (layer is None or int(layer[1]) > depth):
            raise DataError(
                f"{file}: {name}: found for {depth} blocks, expected layer0/... to "
                f"layer{depth}/...; record the file again"
            )
    for name, stop in (("label", config.num_classes), ("index", samples)):
        if name in arrays:
            _within(file, name, arrays[name], stop)
    lam = arrays.get("lam", np.zeros(samples))
    if lam.shape not in ((samples,), (modalities, samples)):
        raise DataError(
            f"{file}: lam: found shape {lam.shape}, expected a share a sample, or one a modality "
            "and sample; record the file again"
        )
    if arrays.get("index", np.zeros(samples)).shape != (samples,):
        raise DataError(f"{file}: index: found {arrays['index'].shape}, expected one a sample")
    if arrays.get("losses", np.zeros(1)).ndim != 1:
        raise DataError(f"{file}: losses: found no list, expected one a step; record it again")


def check_numbers(file: str, arrays: Mapping[str, np.ndarray]):
    """Raises `DataError` unless every entry but `meta` holds numbers."""
    for name, array in arrays.items():
        if name != "meta":
            _numbers(file, name, array)


def _numbers(file: str, name: str, array: np.ndarray):
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DataError(
            f"{file}: {name}: found {array.dtype}, expected numbers; record the file again"
        )


def _within(file: str, name: str, array: np.ndarray, stop: int):
    _numbers(file, name, array)
    if not array.size or not (0 <= array.min() <= array.max() < stop):
        raise DataError(
            f"{file}: {name}: found none, or values outside of 0 to {stop - 1}, expected whole "
            "numbers in that range; record the file again"
        )
