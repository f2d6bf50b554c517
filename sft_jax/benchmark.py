"""Measures models or attention on this machine: `python -m sft_jax.benchmark --config=a.py`."""

from pathlib import Path

from absl import flags

from sft_jax import cli
from sft_jax.config.io import from_dict, load
from sft_jax.efficiency import attention_benchmark, benchmarks, scaling
from sft_jax.efficiency.throughput import one_device_a_core
from sft_jax.efficiency.variants import VARIANTS, variant
from sft_jax.interop.torch import torch_benchmark
from sft_jax.reports.figures import speed_figures, style
from sft_jax.reports.text_tables import format_table

_CONFIG = cli.define_config(required=False)
_CONFIGS = flags.DEFINE_list("configs", [], "Configurations to time as they are, instead.")
_COMPARE = flags.DEFINE_list("compare", ["sft"], f"Models to time, of {', '.join(VARIANTS)}.")
_AGAINST = flags.DEFINE_enum("against", "", ["", "torch"], "Another library to time.")
_SWEEP = flags.DEFINE_enum("sweep", "", ["", *scaling.AXES], "Setting to vary.")
_VALUES = flags.DEFINE_list("values", [], "Values of the setting; a default range if empty.")
_JSON = cli.define_output("json", "File for the numbers.")
_PLOT = cli.define_output("plot", "PNG file for the figure.", suffixes=(".png",))
_PROFILE = cli.define_output(
    "profile", "Folder for a trace of a few steps of each model.", folder=True
)
_PROCESS_MEMORY = flags.DEFINE_bool("process_memory", False, "Measure each model's process memory.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed rounds.", lower_bound=1)
_WINDOW = flags.DEFINE_integer("window", 3, "Steps per round.", lower_bound=1)
_ATTENTION = flags.DEFINE_list("attention", ["xla", "streamed", "fixed"], "Implementations.")
_SHAPE = flags.DEFINE_list("shape", ["24", "1200", "5", "8"], "Sizes b, t, h, e of a query.")
_STRIDES = flags.DEFINE_list("strides", ["32", "128"], "Block sizes of fixed attention.")
_SALIENCY = flags.DEFINE_bool("saliency", True, "Return the saliency of the keys too.")
_MASKED = flags.DEFINE_bool("masked", True, "Pad every other sample.")


def main():
    """Prints tables and how they were measured; saves numbers and a figure on request."""
    configs = {Path(path).stem: load(path) for path in _CONFIGS.value}
    if _CONFIG.value is not None:
        configs = {name: variant(from_dict(_CONFIG.value), name) for name in _COMPARE.value}
    rounds = _REPEATS.value, _WINDOW.value
    if not configs:
        sizes = _SHAPE.value, _STRIDES.value, _SALIENCY.value, _MASKED.value
        result = attention_benchmark.compare(_ATTENTION.value, *sizes, *rounds)
    elif _SWEEP.value:
        result = benchmarks.sweep(configs, _SWEEP.value, _VALUES.value, *rounds)
    else:
        others = torch_benchmark.torch_candidates if _AGAINST.value else None
        result = benchmarks.compare_models(
            configs, *rounds, others, _PROCESS_MEMORY.value, _PROFILE.value
        )
    print(result.text(format_table))
    if _JSON.value:
        result.save(_JSON.value)
    if _PLOT.value:
        style.save(speed_figures.benchmark_figure(result.numbers), _PLOT.value)


if __name__ == "__main__":
    one_device_a_core()
    cli.run(main)
