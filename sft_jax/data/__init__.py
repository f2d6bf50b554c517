"""Sources of samples, and the pipeline that turns them into batches.

`prepare` reads a source once and stores it, `open_source` opens what is stored, and `read_arrays`
checks a user's own file.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "arrays": "read_arrays",
        "records": "DataInfo describe to_arrays",
        "sources": "Source open_source prepare",
    },
)
