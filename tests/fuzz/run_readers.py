"""Readers of what a run leaves behind, and of what others may hand over in its place."""

import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np

from sft_jax.config import io as config_io
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig
from sft_jax.config.study import Setting, Study
from sft_jax.data.array_entries import load_entries
from sft_jax.data.pipeline import Normalizer
from sft_jax.files.json_files import anything, read_json, write_json
from sft_jax.interop.artefacts.stablehlo import Exportable, to_stablehlo
from sft_jax.interop.artefacts.untrusted import deserialized
from sft_jax.interop.vectors import recorded
from sft_jax.interop.weights import reference_weights as reference_weights
from sft_jax.reports import html_page, markdown, report_writer
from sft_jax.reports.document import Document, Pictures, Section
from sft_jax.reports.figures import plan_figures, speed_figures
from sft_jax.reports.sections.study_tables import StudyTables
from sft_jax.reports.seed_spread import spread_rows
from sft_jax.runs import metric_log, run_files
from sft_jax.runs.example_file import save_example
from sft_jax.runs.run_folder import read_run
from sft_jax.runs.study_folder import read_study_folder
from sft_jax.studies.results import Results
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_metrics import METRICS
from sft_jax.training import checkpoint, optimizer
from sft_jax.training.predictor import Predictor
from sft_jax.training.state import Progress, TrainState
from sft_jax.types import CheckpointError, ConfigError, DataError
from tests import torch_writer
from tests.fuzz.harness import Reader
from tests.report_fixtures import make_evaluation, make_example, write_run, write_study

ROOT = Path(__file__).parents[2]
_NAMED = (CheckpointError, ConfigError, DataError)
_SPECS = (
    ModalitySpec(name="sound", length=8, feature_dim=3, k=2),
    ModalitySpec(name="words", length=5, feature_dim=11, tokenizer="token", pool="none"),
)
_TINY = Config(
    modalities=_SPECS,
    model=ModelConfig(num_classes=3, embed_dim=8, num_heads=2, num_pre_layers=0, num_post_layers=1),
)


# Run folders.


def _run(folder: Path) -> list[Path]:
    workdir = write_run(folder / "run-0")
    for split in ("test", "valid"):
        found = {**make_evaluation(split), "sentiment": None}
        (workdir / f"evaluation_{split}.json").write_text(json.dumps(found))
    estimate = {"value": -0.25, "low": -0.4, "high": -0.125}
    scores = dict.fromkeys(("top1", "macro_f1", "loss"), estimate)
    lost = {"num_samples": 30, "left_out": 10, "metrics": scores, "difference": scores}
    ablation = {
        **{"split": "test", "step": 120, "num_samples": 40, "resampled": "group"},
        "without": {"m0": lost},
    }
    (workdir / "ablation_test.json").write_text(json.dumps(ablation))
    data = json.loads((workdir / "data.json").read_text())
    numbers = {"m0": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    data |= {
        "fingerprint": "0f",
        "normalizer": {"kind": "channel", "shift": numbers, "scale": numbers},
        "command": "python -m sft_jax.train --config=configs/x.py --workdir=runs/x",
    }
    (workdir / "data.json").write_text(json.dumps(data))
    rng = np.random.default_rng(0)
    np.savez_compressed(
        workdir / "predictions_test.npz",
        **{"id": np.arange(8).astype(str), "group": np.array(list("aabbccdd"))},
        **{"label": np.arange(8) % 4, "predicted": np.arange(8) % 4},
        **{"kept/m0/indices": rng.integers(-1, 48, (8, 6))},
        **{"kept/m0/saliency": rng.random((8, 6), np.float32)},
        probabilities=rng.dirichlet(np.ones(4), 8).astype(np.float32),
    )
    save_example(workdir / "example.npz", make_example())
    return [workdir]


def _read_run(path: Path) -> None:
    found = read_run(path)
    assert all(len(rows["label"]) for rows in found.predictions.values())
    assert found.ablations is not None
    assert found.example is None or found.example.signals
    for split in found.splits:
        spread_rows([path], split, "top1")
    assert config_io.from_dict(config_io.to_dict(run_files.read_config(path))) == found.config
    normalizer = Normalizer.from_json(run_files.read_data(path, "normalizer")["normalizer"])
    for name, scale in normalizer.scale.items():
        normalizer(name, np.ones((2, len(scale)), np.float32), np.ones(2, bool))
    assert all(line["step"] >= 0 for line in metric_log.read_metrics(path / "metrics.jsonl"))


# Reports: whatever is read is drawn to the end.


def _reports(folder: Path) -> list[Path]:
    options = {"folds": ("fold0",), "seeds": (0, 1), "levels": ("sample",)}
    study = write_study(folder / "study", lambda *run: 0.5, conditions=("complete",), **options)
    (workdir,) = _run(folder)
    (workdir / "evaluation_valid.json").unlink()
    return [workdir, study]


def _draw_report(path: Path) -> None:
    document = report_writer.read_document([path])
    for picture in document.pictures():
        assert Path(picture.name).name == picture.name
        picture.figure.draw_without_rendering()
    pages = [markdown.render(document)]
    pages.append(
        html_page.render(dataclasses.replace(document, sections=_without_pictures(document)))
    )
    for text in pages:
        text.encode()
    assert "<script" not in pages[1]


def _without_pictures(document: Document) -> list[Section]:
    return [
        Section(of.title, [block for block in of.blocks if not isinstance(block, Pictures)])
        for of in document.sections
    ]


# Studies, as reports and sweeps open them.


def _study() -> Study:
    return Study(
        name="toy",
        title="A toy study",
        protocol="Three folds.",
        base=_TINY,
        settings=(Setting("sft"), Setting("dense")),
        folds=(Setting("fold0"), Setting("fold1")),
        seeds=(0, 1),
    )


def _studies(folder: Path) -> list[Path]:
    written = write_study(
        folder / "written", lambda *run: 0.5, folds=("fold0", "fold1"), valid=lambda *run: 0.4
    )
    path = written / "study.json"
    content = json.loads(path.read_text())
    swept = json.loads(json.dumps(config_io.to_dict(_study().base)))
    content |= {"base": swept, "conditions": [], "title": "A toy study"}
    content["settings"] = [{**entry, "overrides": {}} for entry in content["settings"]]
    path.write_text(json.dumps(content))
    return [written]


def _read_study(path: Path) -> None:
    study = read_study_folder(path)
    tables = StudyTables(study, METRICS)
    for rows in (tables.overview(), tables.other_metrics(), tables.costs(), tables.curves()):
        assert rows is not None
    for name in study.names:
        assert all(len(part["label"]) for part in study.predictions(name).values())
    found = Results(path, _study())
    for setting in _study().settings:
        found.missing(setting)


# Checkpoints.


def _state() -> TrainState:
    params = {
        "kernel": np.arange(21, dtype=np.float32).reshape(7, 3),
        "bias": np.zeros(3, np.float32),
    }
    built = optimizer.build_optimizer(
        _TINY.optimizer, optimizer.learning_rate(_TINY.optimizer, 1, 0)
    )
    placed = jax.device_put(params)
    return TrainState(
        step=jax.numpy.int32(3),
        params=placed,
        opt_state=built.init(placed),
        lr_scale=jax.numpy.ones(()),
    )


@functools.cache
def _abstract_state() -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state()
    )


def _checkpoints(folder: Path) -> list[Path]:
    summed, bare = folder / "summed", folder / "bare"
    opened = checkpoint.Checkpoints(summed, config=config_io.to_dict(_TINY))
    progress = Progress(data={"epoch": 1}, best=0.5, best_step=3)
    for kind in ("best", "last"):
        opened.save(kind, _state(), progress)
    opened.close()
    shutil.copytree(summed, bare)
    for path in bare.rglob("checksums.json"):
        path.unlink()
    return [summed, bare]


def _read_checkpoint(path: Path) -> None:
    opened = checkpoint.Checkpoints(path, read_only=True)
    try:
        for kind in ("last", "best"):
            if opened.latest(kind) is None:
                raise CheckpointError("no step is left")
            state, progress = opened.restore(kind, _abstract_state())
            jax.block_until_ready(state)
            assert progress.best is None or math.isfinite(progress.best)
            assert progress.plateau.stale >= 0
    finally:
        opened.close()


# Exported programs.


def _artefacts(folder: Path) -> list[Path]:
    path = folder / "model.stablehlo"
    path.write_bytes(to_stablehlo(Exportable.untrained(_TINY)))
    return [path]


def _read_artefact(path: Path) -> None:
    # The program within is parsed in a process of its own, which may end as it will.
    deserialized(path)


# Recordings of another implementation, and state dicts.


def _recordings(folder: Path) -> list[Path]:
    vectors = ROOT / "tests" / "reference_vectors"
    names = ("unimodal_rgb.npz", "sft_max_mixup.npz", "metrics.npz")
    return [Path(shutil.copy(next(vectors.rglob(name)), folder / name)) for name in names]


def _read_recording(path: Path) -> None:
    arrays = recorded.read_arrays(path)
    if any(name.startswith("param/") for name in arrays):
        recorded.Recording.of(path, arrays).check()
    else:
        list(recorded.differences(path))


# Weights of another implementation.

# The reference has no words, and no model without layers of a modality's own.
_REFERENCE = dataclasses.replace(
    _TINY,
    modalities=(_SPECS[0], ModalitySpec(name="picture", length=6, feature_dim=4, k=3)),
    model=dataclasses.replace(_TINY.model, num_pre_layers=1),
)
_NAMES = ("sound", "picture")


@functools.cache
def _state_dict() -> dict[str, np.ndarray]:
    params = Exportable.untrained(_REFERENCE).params
    return reference_weights.to_reference(params, _REFERENCE.model, _NAMES)


def _weights(folder: Path) -> list[Path]:
    state = _state_dict()
    plain, marked = folder / "weights.npz", folder / "marked.npz"
    np.savez(plain, **state)
    named = {f"param/module.{name}": value for name, value in state.items()}
    np.savez_compressed(marked, **named, label=np.arange(3))
    half = {name: torch_writer.bfloat16(value) for name, value in state.items()}
    return [
        *(plain, marked),
        torch_writer.save(state, folder / "weights.pt"),
        torch_writer.save({"epoch": 3, "state_dict": half}, folder / "half.pth"),
    ]


def _read_weights(path: Path) -> None:
    params = reference_weights.from_reference(path, _REFERENCE.model, _NAMES)
    assert set(reference_weights.to_reference(params, _REFERENCE.model, _NAMES)) == set(
        _state_dict()
    )


# Samples to predict.


@functools.cache
def _predictor() -> Predictor:
    numbers = {"sound": (1.0, 2.0, 3.0), "words": (1.0,)}
    normalizer = Normalizer(kind="channel", shift=numbers, scale=numbers)
    params = Exportable.untrained(_TINY).params
    return Predictor(_TINY, params, normalizer, Classification(class_names=("down", "up", "still")))


def _samples(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    path = folder / "x.npz"
    np.savez(
        path,
        **{"sound": rng.normal(size=(4, 8, 3)).astype(np.float32)},
        **{"words": rng.integers(0, 11, (4, 5)), "id": np.arange(4).astype(str)},
        **{"length/words": np.array([5, 3, 0, 1]), "mask/sound": np.ones((4, 8), bool)},
    )
    return [path]


def _predict(path: Path) -> None:
    predictor = _predictor()
    found = predictor.predict_table(predictor.table(load_entries(path), str(path)))
    assert found.probabilities.shape == (len(found.id), 3)
    found.save(path.with_name("out.npz"))


# Configurations, and numbers that were measured.


def _configs(folder: Path) -> list[Path]:
    paths = []
    mult = dataclasses.replace(_TINY, model=dataclasses.replace(_TINY.model, name="mbt"))
    for name, config in (("tiny", _TINY), ("mbt", mult), ("plain", Config())):
        paths.append(folder / name)
        paths[-1].mkdir()
        write_json(paths[-1] / "config.json", config_io.to_dict(config))
    return paths


def _read_config(path: Path) -> None:
    config = run_files.read_config(path)
    kept = json.loads(json.dumps(config_io.to_dict(config)))
    assert config_io.from_dict(kept) == config
    for spec in config.modalities:
        assert Path(spec.name).name == spec.name
    given = read_json(path / "config.json", anything)
    changes = given.get("train", {})
    config_io.override(Config(), {f"train.{name}": value for name, value in changes.items()})


def _measured(folder: Path) -> list[Path]:
    names = ("throughput_mosei", "batch_vggsound10", "plan_av_base", "plan_memory_vggsound10")
    results = ROOT / "docs" / "results"
    return [Path(shutil.copy(results / f"{name}.json", folder)) for name in names]


def _draw_measured(path: Path) -> None:
    found = read_json(path, anything)
    if not isinstance(found, dict):
        return
    if "sweep" in found:
        figure = speed_figures.sweep_lines(found["sweep"], found.get("axis"))
    elif "topologies" in found:
        figure = plan_figures.time_points(found["topologies"], "sft")
    elif "topology" in found:
        figure = plan_figures.memory_bars(found.get("models"))
    else:
        figure = speed_figures.throughput_bars(found.get("models"))
    figure.draw_without_rendering()


RUN_READERS = (
    Reader("run_folder", _run, _read_run, _NAMED),
    Reader("report", _reports, _draw_report, _NAMED, share=0.4),
    Reader("study_folder", _studies, _read_study, _NAMED),
    Reader("checkpoint", _checkpoints, _read_checkpoint, (CheckpointError,)),
    Reader("stablehlo", _artefacts, _read_artefact, (DataError,)),
    Reader("recordings", _recordings, _read_recording, (DataError,)),
    Reader("weights", _weights, _read_weights, (DataError,)),
    Reader("predict_input", _samples, _predict, (DataError,)),
    Reader("config", _configs, _read_config, (ConfigError, CheckpointError)),
    Reader("measured", _measured, _draw_measured, (CheckpointError, DataError), share=0.6),
)
