"""What the JSON files of run and study folders hold, for whoever reads them."""

import math

from sft_jax.files.json_files import Shape, anything, both, file_name, integer, listed, mapped, nullable, number, record, text

_COUNTS = listed(integer())
_NUMBERS = listed(number())
_ESTIMATE = {"value": nullable(number()), "low": nullable(number()), "high": nullable(number())}
ESTIMATE = record(_ESTIMATE)
KNOWN = record({**_ESTIMATE, "value": number()})

# `data.json`. What a report needs and what a model needs differ, so each asks for its own.
_DATA = {
    "class_names": listed(text(), least=1),
    "modalities": listed(record({"name": text(), "length": integer(), "feature_dim": integer()})),
    "counts": mapped(_COUNTS),
    "groups": mapped(integer()),
    "num_parameters": integer(),
    "command": text(100_000),
    "fingerprint": text(),
    "normalizer": record(
        {
            "kind": text(),
            "shift": mapped(_NUMBERS),
            "scale": mapped(listed(number(least=1e-300))),
        }
    ),
}


def data_of_run(*needed: str) -> Shape:
    """The shape of `data.json` for a reader that needs these entries of it."""
    return record({name: _DATA[name] for name in needed}, _DATA)


# What is saved beside the state of a checkpoint; the lowest loss is infinite before the first.
PROGRESS = record(
    {
        "data": mapped(anything),
        "plateau": record(
            {"scale": number(least=0), "best": number(most=math.inf), "stale": integer()}
        ),
    },
    {"best": nullable(number()), "best_step": integer()},
)

# `metrics.jsonl`, a line; NaN where a metric was undefined.
_MEASURED = number(undefined=True)
METRIC_LINE = record(
    {"kind": text(), "step": integer()}, dict.fromkeys(("loss", "top1", "epoch"), _MEASURED)
)

_SENTIMENT = record(
    {
        **_ESTIMATE,
        "majority": nullable(number()),
        "num_samples": integer(),
        "left_out": integer(),
    }
)


def _metrics(*required: str) -> Shape:
    return both(record(dict.fromkeys(required, ESTIMATE)), mapped(ESTIMATE))


# `evaluation_<split>.json`.
_SCORES = record(
    {
        "class": text(),
        "precision": number(),
        "recall": number(),
        "f1": number(),
        "support": integer(),
    }
)
EVALUATION = record(
    {
        "split": file_name,
        "step": integer(),
        "num_samples": integer(least=1),
        "metrics": both(_metrics("macro_f1", "loss"), record({"top1": KNOWN})),
        "majority": record(
            {"class": text(), "top1": nullable(number())}, others=nullable(number())
        ),
        "per_class": listed(_SCORES),
        "confusion": listed(listed(integer(most=2**53)), least=1),
        "group": nullable(record({"num_groups": integer(), "top1": KNOWN})),
        "resampled": text(),
    },
    {
        "absent_classes": listed(text()),
        "ranked_by": text(),
        "sentiment": nullable(mapped(_SENTIMENT)),
    },
)

# `ablation_<split>.json`.
ABLATION = record(
    {
        "num_samples": integer(),
        "resampled": text(),
        "without": mapped(
            record(
                {
                    "num_samples": integer(),
                    "left_out": integer(),
                    "metrics": _metrics("top1"),
                    "difference": _metrics("top1", "loss"),
                }
            )
        ),
    }
)

# `study.json`.
_SETTING = record(
    {"name": file_name},
    {
        "overrides": mapped(anything),
        "model": text(),
        "num_parameters": integer(),
        "forward_gflop": nullable(number(least=0)),
        "tokens_in": nullable(integer()),
        "tokens_kept": nullable(integer()),
    },
)
_FOLD = record(
    {"name": file_name},
    {
        "overrides": mapped(anything),
        "test": listed(anything),
        "source_sha256": nullable(text()),
    },
)
STUDY = record(
    {
        "name": file_name,
        "title": text(10_000),
        "protocol": text(100_000),
        "metric": text(),
        "class_names": listed(text()),
        "settings": listed(_SETTING, least=1),
        "folds": listed(_FOLD, least=1),
        "seeds": listed(integer(), least=1),
    },
    {"base": mapped(anything), "conditions": listed(record({"name": text()}))},
)
