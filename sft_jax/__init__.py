"""Sparse Fusion Transformers (arXiv 2111.11992) in JAX and Flax.

The names below are the public interface; they are imported when they are first used, so that
`import sft_jax` starts neither JAX nor anything else. `python -m sft_jax` lists the commands.
"""

from typing import TYPE_CHECKING

from sft_jax.lazy import lazy_exports
from sft_jax.version import __version__

if TYPE_CHECKING:
    from sft_jax.api import evaluate as evaluate
    from sft_jax.api import load as load
    from sft_jax.api import load_config as load_config
    from sft_jax.api import prepare as prepare
    from sft_jax.api import report as report
    from sft_jax.api import train as train
    from sft_jax.config.modality import ModalitySpec as ModalitySpec
    from sft_jax.config.run import Config as Config
    from sft_jax.types import CheckpointError as CheckpointError
    from sft_jax.types import ConfigError as ConfigError
    from sft_jax.types import DataError as DataError
    from sft_jax.types import NonFiniteError as NonFiniteError

__getattr__, _, _names = lazy_exports(
    __name__,
    {
        "api": "load_config prepare train evaluate load report",
        "config.modality": "ModalitySpec",
        "config.run": "Config",
        "types": "ConfigError DataError CheckpointError NonFiniteError",
    },
)
__all__ = ["__version__", *_names]


def __dir__() -> list[str]:
    return __all__
