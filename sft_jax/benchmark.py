"""Measures on this machine: `python -m sft_jax.benchmark [--config=a.py --compare=sft,mbt]`.

With `--config` it times training and inference of its model beside those in `--compare` (and, with
`--against=torch`, the same model in PyTorch), or along a `--sweep`. With `--configs=a.py,b.py` it
times these as they stand. Without any of them it measures attention alone.
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from sft_jax import cli
from sft_jax.config.io import from_dict, load
from sft_jax.efficiency import attention_benchmark, benchmarks, measure, process_memory, scaling
from sft_jax.efficiency.flops import CONVENTION
from sft_jax.efficiency.model_costs import random_batch
from sft_jax.efficiency.throughput import matmul_peak, one_device_a_core, peak_memory
from sft_jax.efficiency.variants import VARIANTS, variant
from sft_jax.interop.torch import torch_benchmark
from sft_jax.reports.figures import speed_figures, style
from sft_jax.reports.text_tables import format_table

_CONFIG = cli.define_config(required=False)
_COMPARE = flags.DEFINE_list("compare", ["sft"], f"Models to time, of {', '.join(VARIANTS)}.")
_AGAINST = flags.DEFINE_enum("against", "", ["", "torch"], "Another library to time beside them.")
_SWEEP = flags.DEFINE_enum("sweep", "", ["", *scaling.AXES], "Setting to vary.")
_VALUES = flags.DEFINE_list("values", [], "Its values; a usual range where none are given.")
_JSON = flags.DEFINE_string("json", "", "File for the numbers.")
_PLOT = flags.DEFINE_string("plot", "", "File for the figure, a PNG.")
_PROFILE = flags.DEFINE_string("profile", "", "Folder for a trace of a few steps of each model.")
_PROCESS_MEMORY = flags.DEFINE_bool(
    "process_memory", False, "Run each model once more in a process of its own, for its memory."
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed rounds.", lower_bound=1)
_WINDOW = flags.DEFINE_integer("window", 3, "Steps a round, waited for once.", lower_bound=1)
_CONFIGS = flags.DEFINE_list("configs", [], "Configurations whose models are compared.")
_BATCH = flags.DEFINE_integer("batch", 24, "Samples, dense attention.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 1200, "Queries and keys, dense attention.", lower_bound=1)
_FIXED_BATCH = flags.DEFINE_integer("fixed_batch", 2, "Samples, fixed pattern.", lower_bound=1)
_FIXED_TOKENS = flags.DEFINE_integer(
    "fixed_tokens", 4096, "Tokens behind CLS, fixed pattern; 0 leaves it out.", lower_bound=0
)
_FIXED_STRIDES = flags.DEFINE_list("fixed_strides", ["32", "128"], "Tokens in a block of it.")
_FIXED_MASKED = flags.DEFINE_bool("fixed_masked", False, "Pad half of its samples by a quarter.")
_HEADS = flags.DEFINE_integer("heads", 5, "Heads.", lower_bound=1)
_HEAD_WIDTH = flags.DEFINE_integer("head_width", 8, "Width of a head.", lower_bound=1)
_SALIENCY = flags.DEFINE_bool("saliency", True, "Return the keys' saliency too.")


def main():
    """Prints models, a sweep, configurations or attentions, those of one table timed in turn."""
    if _CONFIG.value is not None:
        (_sweep if _SWEEP.value else _models)(from_dict(_CONFIG.value))
    elif _CONFIGS.value:
        configs = {Path(path).stem: load(path) for path in _CONFIGS.value}
        print(format_table(measure.compare(configs, _REPEATS.value)))
        print(f"\n({_machine()}, batches of the configurations' sizes, everything real.")
        print(f"{CONVENTION}.)")
    else:
        _attention()


def _models(config):
    configs = {name: variant(config, name) for name in _COMPARE.value}
    candidates = {name: measure.candidate(own) for name, own in configs.items()}
    alone: dict[str, Any] = {name: (process_memory.run_once, own) for name, own in configs.items()}
    if _AGAINST.value:
        own = next(iter(configs.values()))
        batch = random_batch(own)
        for other, calls in torch_benchmark.torch_candidates(own, batch).items():
            configs[other] = own
            candidates[other] = measure.uncompiled(*calls, own.train.batch_size)
            alone[other] = (torch_benchmark.run_once, own, batch, other)
    peak = matmul_peak(config.model.dtype)
    measured = measure.measure(candidates, configs, peak, _REPEATS.value, _WINDOW.value)
    peaks = {}
    if _PROCESS_MEMORY.value:
        peaks = {name: process_memory.peak_alone(*run) for name, run in alone.items()}
    print(format_table(benchmarks.rows(measured, peaks)))
    print(
        f"\n{_machine()}, batch {config.train.batch_size}, {config.model.dtype}, everything real, "
        f"without mixup. Median of {_REPEATS.value} rounds of {_WINDOW.value} steps, in turn, "
        f"with the slowest and the fastest. {CONVENTION}; its share is that of the largest product "
        f"here, {peak / 1e9:.0f} GFLOP/s. Most memory this process held: "
        f"{peak_memory() / 1e6:.0f} MB."
    )
    numbers = {name: measure.to_json(entry) for name, entry in measured.items()}
    for name, size in peaks.items():
        numbers[name]["process_peak_bytes"] = size
    about = {"matmul_peak_flops_per_second": peak, "process_peak_bytes": peak_memory()}
    _keep(config, {**about, "models": numbers}, speed_figures.throughput_bars(numbers))
    if _PROFILE.value:
        benchmarks.profile(candidates, Path(_PROFILE.value))


def _sweep(config):
    axis = _SWEEP.value
    values = [int(v) if v.isdigit() else v for v in _VALUES.value] or scaling.AXES[axis][0]
    configs = {name: variant(config, name) for name in _COMPARE.value}
    points = benchmarks.along(configs, axis, values, _REPEATS.value, _WINDOW.value)
    print(format_table(benchmarks.sweep_rows(points, axis)))
    powers = {}
    if axis != "dtype" and len(values) > 1:
        powers = benchmarks.exponents(points)
        print(f"\nPower of {axis} that a cost grows with:\n")
        print(format_table(benchmarks.exponent_rows(powers)))
    print(
        f"\n{_machine()}, batch {config.train.batch_size}, {config.model.dtype}, but for what is "
        f"varied; times and memory of a sample. Median of {_REPEATS.value} rounds of "
        f"{_WINDOW.value} steps, in turn, with the fastest and the slowest."
    )
    numbers = [point.to_json(axis) for point in points]
    figure = speed_figures.sweep_lines(numbers, axis)
    _keep(config, {"axis": axis, "sweep": numbers, "exponents": powers}, figure)


def _keep(config, numbers, figure):
    if _JSON.value:
        about = {
            "machine": _machine(),
            "batch_size": config.train.batch_size,
            "dtype": config.model.dtype,
            "rounds": _REPEATS.value,
            "steps_per_round": _WINDOW.value,
            "flop_convention": CONVENTION,
        }
        Path(_JSON.value).write_text(json.dumps({**about, **numbers}, indent=1) + "\n")
    if _PLOT.value:
        style.save(figure, Path(_PLOT.value))


def _attention():
    shared: dict[str, Any] = {
        "heads": _HEADS.value,
        "head_width": _HEAD_WIDTH.value,
        "saliency": _SALIENCY.value,
        "repeats": _REPEATS.value,
    }
    rows = attention_benchmark.compare(batch=_BATCH.value, tokens=_TOKENS.value, **shared)
    print(f"{_heading(_BATCH.value, _TOKENS.value)}\n\n{format_table(rows)}")
    if _FIXED_TOKENS.value:
        size: dict[str, Any] = {"batch": _FIXED_BATCH.value, "tokens": _FIXED_TOKENS.value}
        size["strides"] = [int(stride) for stride in _FIXED_STRIDES.value]
        rows = attention_benchmark.compare_fixed(**size, masked=_FIXED_MASKED.value, **shared)
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
    one_device_a_core()
    cli.run(main)
