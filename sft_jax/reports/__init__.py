"""HTML and Markdown reports of runs and studies, with their figures and tables.

`read_document` reads a whole report and `write_report` writes it. The modules of figures,
`example_recording` and `format_table` make its parts one by one, as the notebooks do.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "figures.model_diagram": "model_diagram save_diagram",
        "report_writer": "default_folder read_document write_report",
        "text_tables": "format_table",
    },
    submodules=(
        "example_recording figures.plan_figures figures.pool_figures figures.run_figures "
        "figures.speed_figures"
    ),
)
