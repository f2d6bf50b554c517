"""Sources of samples, and the pipeline that turns them into batches.

A source (one module of `builders`) is read once and written as ArrayRecord by `prepare`;
`open_source` reads the records back, and the pipeline normalises and batches them. A user's own
arrays are checked by `read_arrays` and `check_arrays`. Names are imported when they are first used,
since TFDS, Grain and HDF5 take seconds to load.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "array_entries": "as_array find_sequences load_entries",
        "arrays": "ArrayTable check_arrays read_arrays",
        "fake": "FAKES describe_files next_command write_fake",
        "pipeline": (
            "Normalizer batch_order collate empty_batch eval_batches infer_modalities train_batches"
        ),
        "records": (
            "SPLITS DataInfo ModalityInfo ModalityStatistics Record Records describe to_arrays"
        ),
        "sources": "Source open_source open_source_of_run prepare",
    },
)
