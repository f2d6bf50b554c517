"""Measures attention: `python -m sft_jax.benchmark [--tokens=1200] [--saliency=false] ...`."""

import jax
from absl import flags

from sft_jax import cli
from sft_jax.analysis.report import format_table
from sft_jax.efficiency import attention

_BATCH = flags.DEFINE_integer("batch", 24, "Samples.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 1200, "Queries and keys.", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", 5, "Heads.", lower_bound=1)
_HEAD_WIDTH = flags.DEFINE_integer("head_width", 8, "Width of a head.", lower_bound=1)
_SALIENCY = flags.DEFINE_bool("saliency", True, "Return the keys' saliency too.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed rounds.", lower_bound=1)


def main():
    """Prints both implementations side by side, measured in turn in this process."""
    rows = attention.compare(
        batch=_BATCH.value,
        tokens=_TOKENS.value,
        heads=_HEADS.value,
        head_width=_HEAD_WIDTH.value,
        saliency=_SALIENCY.value,
        repeats=_REPEATS.value,
    )
    print(
        f"b {_BATCH.value}, t {_TOKENS.value}, h {_HEADS.value}, head width {_HEAD_WIDTH.value}, "
        f"saliency {_SALIENCY.value}, float32, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n"
    )
    print(format_table(rows))


if __name__ == "__main__":
    cli.run(main)
