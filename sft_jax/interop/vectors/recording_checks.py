"""Checks of the entries of a recording, and the model that its `meta` describes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import (
    ConcatOptions,
    LateOptions,
    MbtOptions,
    ModelOptions,
    NoOptions,
    UnimodalOptions,
)
from sft_jax.config.run import ModelConfig
from sft_jax.files.json_files import integer, list_of, record, text
from sft_jax.types import DataError

# Pools that have another name in the reference.
_POOLS = {"attn": "attn_avg", "topk": "channel_topk", "attn_wkmedoids": "attn_kmedoids"}
# Names in recordings for text, audio and video, the order in which the reference's MulT joins them.
_MULT_ORDER = ({"text"}, {"spec", "spect", "audio"}, {"rgb", "vision", "video"})
_SIZE = integer(1, 2**20)
# Limits of the entries in `meta`. A huge depth would take long before anything else fails.
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
    """Checks types and ranges; shapes of inputs, weights and results are checked elsewhere.

    Args:
        file: Name of the recording.
        arrays: Entries of the recording.
        config: Configuration of the model.
        modalities: Number of modalities.
        samples: Number of samples in the batch.

    Raises:
        DataError: An entry has a wrong type, shape or range.
    """
    depth = config.num_pre_layers + config.num_post_layers
    check_numbers(file, arrays)
    for name in arrays:
        layer = re.match(r"layer(\d{1,9})/", name)
        if name.startswith("layer") and (layer is None or int(layer[1]) > depth):
            raise DataError(
                f"{file}: {name}: found with {depth} blocks, expected layer0/... to "
                f"layer{depth}/...; record the file again"
            )
    for name, stop in (("label", config.num_classes), ("index", samples)):
        if name in arrays:
            _within(file, name, arrays[name], stop)
    lam = arrays.get("lam", np.zeros(samples))
    if lam.shape not in ((samples,), (modalities, samples)):
        raise DataError(
            f"{file}: lam: found shape {lam.shape}, expected one share per sample, or one per "
            "modality and sample; record the file again"
        )
    if arrays.get("index", np.zeros(samples)).shape != (samples,):
        raise DataError(f"{file}: index: found {arrays['index'].shape}, expected one per sample")
    if arrays.get("losses", np.zeros(1)).ndim != 1:
        raise DataError(f"{file}: losses: found no list, expected one per step; record it again")


def check_numbers(file: str, arrays: Mapping[str, np.ndarray]):
    """Raises `DataError` unless every entry except `meta` has numbers."""
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


def recorded_model(meta: Mapping[str, Any]) -> tuple[ModelConfig, str]:
    """Model of a recording, and the pool of its modalities."""
    sizes = {
        "preset": "paper",
        "num_classes": meta["num_classes"],
        "embed_dim": meta["embed_dim"],
        "num_heads": meta["num_heads"],
        "num_pre_layers": meta["n_layers_pre_fusion"],
        "num_post_layers": meta["n_layers_post_fusion"],
    }
    kind, _, rest = meta["model"].partition("_")
    first = meta["kernel"][0]
    if kind == "sft":
        pool = re.sub(r"_(mixup|train\d*)$", "", rest)  # the suffix names the kind of results
        return ModelConfig(name="sft", **sizes), _POOLS.get(pool, pool)
    models: dict[str, tuple[str, ModelOptions]] = {
        "unimodal": ("unimodal", UnimodalOptions(modality=rest, window=first)),
        "latefuse": ("late", LateOptions(duplicate_cls=True)),
        "concat": ("concat", ConcatOptions(window=first)),
        "mbt": ("mbt", MbtOptions()),
        "MulT": ("mult", NoOptions()),
    }
    name, options = models[kind]
    # Baselines pool with the window of their own options.
    return ModelConfig(name=name, options=options, **sizes), "none"


def in_stream_order(specs: list[ModalitySpec]) -> list[ModalitySpec]:
    """Modalities of the reference's MulT in the order of its streams."""
    streams = [[spec for spec in specs if spec.name in names] for names in _MULT_ORDER]
    if len(specs) != len(_MULT_ORDER) or any(len(stream) != 1 for stream in streams):
        raise ValueError(
            f"modalities of a MulT: given {[spec.name for spec in specs]}, expected one each of "
            f"{', '.join('|'.join(sorted(names)) for names in _MULT_ORDER)}"
        )
    return [spec for (spec,) in streams]
