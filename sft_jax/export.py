"""Takes a run out of this package: `python -m sft_jax.export --workdir=runs/x --format=onnx`.

With `--score=test` it scores the run's artefacts of all formats; with `--config=... --measure=sft,
dense,mbt` it measures artefacts of untrained models on this machine.
"""

from absl import flags

from sft_jax import cli
from sft_jax.config.io import from_dict
from sft_jax.efficiency.model_costs import check_complete
from sft_jax.efficiency.variants import VARIANTS, variant
from sft_jax.interop.artefacts import artefact_files, artefact_table
from sft_jax.interop.artefacts.stablehlo import Exportable
from sft_jax.reports.text_tables import format_table
from sft_jax.training.predictor import load

_WORKDIR = cli.define_path("workdir", "Folder of the run.")
_FORMAT = flags.DEFINE_enum("format", "stablehlo", ["stablehlo", "onnx"], "Of the artefact.")
_INT8 = flags.DEFINE_bool("int8", False, "Store weights in int8; for onnx only.")
_OUTPUT = cli.define_output(
    "output",
    "File or folder; `export/` of the run if not given.",
    suffixes=artefact_files.FILE_SUFFIXES,
    folder=True,
)
_SCORE = flags.DEFINE_enum("score", None, ["valid", "test"], "Score all formats on this split.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", None, ["best", "last"], "Best, where there is one.")
_DATA = cli.define_data()
_CONFIG = cli.define_config(required=False)
_MEASURE = flags.DEFINE_list("measure", ["sft"], f"Models to measure, of {', '.join(VARIANTS)}.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Timed rounds of `--measure`.", lower_bound=1)
_JSON = cli.define_output("json", "File for the numbers.")
flags.mark_flags_as_mutual_exclusive(["workdir", "config"], required=True)


def main():
    """Writes an artefact and says how far it is from the model; or prints a table."""
    if _CONFIG.value is not None:
        check_complete(config := from_dict(_CONFIG.value))
        models = {n: Exportable.untrained(variant(config, n)) for n in _MEASURE.value}
        found = artefact_table.measure(models, _ROUNDS.value)
        return _show(found, artefact_table.cost_rows)
    workdir = _WORKDIR.value
    model = Exportable.of(load(workdir, _CHECKPOINT.value))
    if _SCORE.value is not None:
        found = artefact_table.score(model, workdir, _SCORE.value, **_DATA.places())
        return _show(found, artefact_table.score_rows)
    kind = _FORMAT.value + "_int8" * _INT8.value
    path = artefact_files.write(model, [kind], _OUTPUT.value or workdir / "export")[kind]
    off = artefact_files.compared(model, path, kind).logits
    return print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, logits differ by {off:.1g}")


def _show(found, to_rows):
    print(format_table(to_rows(found)))
    cli.write_json(_JSON, {"artefacts": found})


if __name__ == "__main__":
    cli.run(main)
