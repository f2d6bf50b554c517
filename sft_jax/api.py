"""The functions that users call from Python; each does what the command of its name does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sft_jax.config import io
from sft_jax.config.run import Config
from sft_jax.data import sources
from sft_jax.data.records import DataInfo
from sft_jax.efficiency.layer_costs import NOTE, beside_dense
from sft_jax.reports import default_folder, example_recording, read_document, write_report
from sft_jax.runs.example_file import save_example
from sft_jax.training import predictor, session
from sft_jax.training.loop import Outcome


def _folder(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def load_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration that a file describes.

    Args:
        path: File with a function `get_config`, such as `configs/synthetic.py`. Files of
            `configs/` are found in any working directory.
        changes: Other values by dotted path, such as `{"train.duration": "12 epochs"}`; `*` stands
            for all entries of a level, as in `modalities.*.pool`.

    Raises:
        ConfigError: There is no such file or setting, or a value cannot be used.
    """
    return io.override(io.load(path), changes or {})


def prepare(config: Config) -> DataInfo:
    """Reads the data of a configuration, stores them for training, and describes them.

    Raises:
        DataError: The data cannot be used.
    """
    return sources.prepare(config.data)


def train(config: Config, workdir: str | Path, extend: bool = False) -> Outcome:
    """Trains a model in a folder; continues where an earlier call was stopped or had finished.

    Args:
        config: Configuration of the run.
        workdir: Folder of the run; created where it is missing.
        extend: Whether another `train.duration` may stretch the cosine schedule of a run.

    Raises:
        ConfigError: A setting cannot be used with the data or the devices.
        DataError: The data cannot be used.
        CheckpointError: The folder belongs to another run, or cannot be written to.
        NonFiniteError: Training diverged.
    """
    return session.train(config, _folder(workdir), extend=extend)


def evaluate(
    workdir: str | Path,
    split: str = "test",
    checkpoint: str | None = None,
    data_dir: str | Path | None = None,
    ablation: bool = True,
    data_path: str | Path | Sequence[str | Path] = (),
) -> session.Evaluation:
    """Scores a run on a split and writes the scores, predictions and an example into its folder.

    Args:
        workdir: Folder of a run that has a checkpoint.
        split: `train`, `valid` or `test`.
        checkpoint: `best` or `last`; by default the best one where there is one.
        data_dir: Folder of the prepared data; by default the one of the training.
        ablation: Whether to score the run without each of its modalities as well.
        data_path: Path of the source file, or paths of several, if they have moved since training.

    Raises:
        CheckpointError: There is no run or no checkpoint, or the data are not those of the run.
    """
    folder = _folder(workdir)
    paths = [data_path] if isinstance(data_path, str | Path) else data_path
    result = session.evaluate(folder, split, checkpoint, data_dir, ablation, paths)
    if jax.process_index() == 0:
        opened = result.session
        example = example_recording.of_split(
            opened.source, split, result.predictions, opened.config.modalities
        )
        if example is not None:
            save_example(folder / "example.npz", example)
    return result


def load(workdir: str | Path, checkpoint: str | None = None) -> predictor.Predictor:
    """The trained model of a run, ready to predict on one device.

    Args:
        workdir: Folder of a run that has a checkpoint.
        checkpoint: `best` or `last`; by default the best one where there is one.

    Raises:
        CheckpointError: There is no run or no checkpoint.
    """
    return predictor.load(workdir, checkpoint)


def report(workdirs: str | Path | Sequence[str | Path], folder: str | Path | None = None) -> Path:
    """Writes the report of a run, of several runs, or of a study; returns its HTML page.

    Args:
        workdirs: Folder of a run or a study, or folders of several runs.
        folder: Folder to write to; by default the one reported on, or the parent of several.

    Raises:
        CheckpointError: A folder holds neither a run nor a study, or a file is damaged.
        DataError: The files contradict each other.
    """
    given = [workdirs] if isinstance(workdirs, str | Path) else workdirs
    workdirs = list(map(_folder, given))
    document = read_document(workdirs, beside_dense, NOTE)
    folder = default_folder(workdirs) if folder is None else _folder(folder)
    return write_report(document, folder)
