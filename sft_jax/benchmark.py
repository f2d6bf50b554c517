"""Measures attention: `python -m sft_jax.benchmark [--tokens=1200] [--fixed_tokens=4096] ...`.

With `--configs=configs/a.py,configs/b.py` it measures these models instead, one beside the other.
"""

from pathlib import Path

import jax
from absl import flags

from sft_jax import cli
from sft_jax.analysis.report import format_table
from sft_jax.config_io import load
from sft_jax.efficiency import attention, models

_BATCH = flags.DEFINE_integer("batch", 24, "Samples, dense attention.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 1200, "Queries and keys, dense attention.", lower_bound=1)
_FIXED_BATCH = flags.DEFINE_integer("fixed_batch", 2, "Samples, fixed pattern.", lower_bound=1)
_FIXED_TOKENS = flags.DEFINE_integer(
    "fixed_tokens", 4096, "Tokens behind CLS, fixed pattern; 0 leaves it out.", lower_bound=0
)
_FIXED_MASKED = flags.DEFINE_bool("fixed_masked", False, "Pad half of its samples by a quarter.")
_HEADS = flags.DEFINE_integer("heads", 5, "Heads.", lower_bound=1)
_HEAD_WIDTH = flags.DEFINE_integer("head_width", 8, "Width of a head.", lower_bound=1)
_SALIENCY = flags.DEFINE_bool("saliency", True, "Return the keys' saliency too.")
_CONFIGS = flags.DEFINE_list("configs", [], "Configurations whose models are compared.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed rounds.", lower_bound=1)


def main():
    """Prints attentions, or models, side by side, those of one table measured in turn."""
    if _CONFIGS.value:
        configs = {Path(path).stem: load(path) for path in _CONFIGS.value}
        print(format_table(models.compare(configs, _REPEATS.value)))
        print(f"\n({_machine()}, batches of the configurations' sizes, everything real.)")
        return
    shared = {
        "heads": _HEADS.value,
        "head_width": _HEAD_WIDTH.value,
        "saliency": _SALIENCY.value,
        "repeats": _REPEATS.value,
    }
    rows = attention.compare(batch=_BATCH.value, tokens=_TOKENS.value, **shared)
    print(f"{_heading(_BATCH.value, _TOKENS.value)}\n\n{format_table(rows)}")
    if _FIXED_TOKENS.value:
        size = {"batch": _FIXED_BATCH.value, "tokens": _FIXED_TOKENS.value}
        rows = attention.compare_fixed(**size, masked=_FIXED_MASKED.value, **shared)
        heading = _heading(_FIXED_BATCH.value, f"{_FIXED_TOKENS.value} behind CLS")
        print(f"\n{heading}, masked {_FIXED_MASKED.value}\n\n{format_table(rows)}")


def _heading(batch: int, tokens: int | str) -> str:
    return (
        f"b {batch}, t {tokens}, h {_HEADS.value}, head width {_HEAD_WIDTH.value}, "
        f"saliency {_SALIENCY.value}, float32, {_machine()}"
    )


def _machine() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"


if __name__ == "__main__":
    cli.run(main)
