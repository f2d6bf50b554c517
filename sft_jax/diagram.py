"""Draws a sparse fusion model: `python -m sft_jax.diagram --config=configs/x.py --output=x.svg`.

Nothing is run and no data are read, so the configuration must name modalities and classes.
"""

from sft_jax import cli
from sft_jax.config.io import from_dict
from sft_jax.reports.figures.model_diagram import model_diagram, save_diagram

_CONFIG = cli.define_config()
_OUTPUT = cli.define_output(
    "output",
    "File to write: .svg, .png or .pdf.",
    required=True,
    suffixes=(".svg", ".png", ".pdf"),
)


def main():
    """Writes the drawing."""
    path = _OUTPUT.value
    save_diagram(model_diagram(from_dict(_CONFIG.value)), path)
    print(f"written: {path}")


if __name__ == "__main__":
    cli.run(main)
