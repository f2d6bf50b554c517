"""Sources of samples, and the pipeline that turns them into batches.

A source (one module of `builders`) is read once and written as ArrayRecord by `prepare`;
`open_source` reads the records back, and the pipeline normalises and batches them. A user's own
arrays are checked by `read_arrays` and `check_arrays`. Names are imported when they are first used,
since TFDS, Grain and HDF5 take seconds to load.
"""

import importlib
from typing import Any

_MODULES = {
    "array_entries": ("as_array", "find_sequences", "load_entries"),
    "arrays": ("ArrayTable", "check_arrays", "read_arrays"),
    "fake": ("FAKES", "describe_files", "next_command", "write_fake"),
    "pipeline": (
        "Normalizer",
        "batch_order",
        "collate",
        "empty_batch",
        "eval_batches",
        "infer_modalities",
        "train_batches",
    ),
    "records": (
        "SPLITS",
        "DataInfo",
        "ModalityInfo",
        "ModalityStatistics",
        "Record",
        "Records",
        "describe",
        "to_arrays",
    ),
    "sources": ("Source", "open_source", "open_source_of_run", "prepare"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
