"""Settings of every data source, as frozen, checked dataclasses."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_jax.config.checks import check_at_least, check_choice, check_fraction
from sft_jax.types import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmartwatchOptions:
    """Shoulder exercises seen by a smartwatch (arXiv 1802.01489).

    Attributes:
        window: Length of a sample, in time steps of 1/50 s.
        step: Distance between the beginnings of two samples, in time steps.
        test_subjects: Number of the ten subjects in the test split, drawn before windowing.
        valid_subjects: Number of the ten subjects in the validation split.
        split_seed: Seed for the draw of subjects, or for their order in folds.
        folds: Number of folds of a cross-validation; 0 draws subjects once.
        fold: Index of the fold that is the test split; validation subjects come from the next ones.
        held_out: What a fold holds out: `subjects`, or `time`, a stretch of every recording. With
            `time` the next stretch is for validation, unless `valid_subjects` is 0.
    """

    window: int = 250
    step: int = 50
    test_subjects: int = 2
    valid_subjects: int = 2
    split_seed: int = 0
    folds: int = 0
    fold: int = 0
    held_out: str = "subjects"

    def __post_init__(self):
        check_at_least("data.options", self, 1, "window", "step", "test_subjects")
        check_at_least("data.options", self, 0, "valid_subjects", "split_seed", "folds", "fold")
        check_choice("data.options.held_out", self.held_out, ("subjects", "time"))
        if self.test_subjects + self.valid_subjects > 9:
            raise ConfigError(
                f"data.options: given {self.test_subjects} test and {self.valid_subjects} "
                "validation subjects, expected at most 9 together, since one of 10 must train"
            )
        self._check_folds()

    def _check_folds(self):
        most = 10 if self.held_out == "subjects" else 100
        least = 2 if not self.valid_subjects else 3
        if self.folds and not least <= self.folds <= most:
            raise ConfigError(
                f"data.options.folds: given {self.folds} of {self.held_out}, expected {least} to "
                f"{most}, so that something is left to train on, or 0 for one draw of subjects"
            )
        if self.fold >= max(1, self.folds):
            raise ConfigError(
                f"data.options.fold: given {self.fold} of {self.folds} folds, expected below "
                f"{max(1, self.folds)}; set data.options.folds to the number of folds"
            )
        if self.held_out == "time" and not self.folds:
            raise ConfigError(
                "data.options.held_out: given 'time' without folds, expected the number of "
                "stretches a recording is cut into; set data.options.folds"
            )
        if self.folds and self.test_subjects != SmartwatchOptions.test_subjects:
            raise ConfigError(
                f"data.options.test_subjects: given {self.test_subjects} with {self.folds} folds, "
                "which decide it; leave it out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """Learnable random sequences: each class is a motif hidden in noise.

    Attributes:
        lengths: Number of time steps of each modality; modalities are named `m0`, `m1`, ...
        feature_dims: Number of features of each modality.
        num_classes: Number of classes, drawn uniformly.
        num_train: Number of training samples.
        num_valid: Number of validation samples.
        num_test: Number of test samples.
        min_length: Shortest sequence as a share of its length; 1.0 keeps every sequence full.
        missing_rate: Probability that a modality is absent from a sample; one always stays.
        noise: Standard deviation of the noise around the motif, which has unit size.
        seed: Seed that all samples are drawn from.
    """

    lengths: tuple[int, ...] = (48, 96)
    feature_dims: tuple[int, ...] = (6, 4)
    num_classes: int = 4
    num_train: int = 512
    num_valid: int = 128
    num_test: int = 128
    min_length: float = 0.5
    missing_rate: float = 0.1
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if not 1 <= len(self.lengths) <= 8 or len(self.lengths) != len(self.feature_dims):
            raise ConfigError(
                f"data.options: given {len(self.lengths)} lengths and {len(self.feature_dims)} "
                "feature_dims, expected one of each for 1 to 8 modalities"
            )
        if min(self.lengths) < 1 or min(self.feature_dims) < 1:
            raise ConfigError(
                f"data.options: given lengths {self.lengths} and feature_dims {self.feature_dims}, "
                "expected every entry to be at least 1"
            )
        check_at_least("data.options", self, 2, "num_classes")
        check_at_least("data.options", self, 1, "num_train")
        check_at_least("data.options", self, 0, "num_valid", "num_test", "noise", "seed")
        check_fraction("data.options", self, "min_length", "missing_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraysOptions:
    """A user's own arrays: an `.npz` file or a directory of `.npy`, one entry per modality.

    Attributes:
        path: File or directory with entries `<m>`, one of `label`, `labels` and `value`, and
            optionally `mask/<m>` or `length/<m>`, `id`, `group` (samples of one group stay in one
            split), `split` and `weight`.
        modalities: Entries to take as modalities, in this order. Where empty, all that look like
            sequences are taken, and `prepare` says which are not.
        valid_fraction: Share of the groups (or of each class) in the validation split.
        test_fraction: Share of the groups (or of each class) in the test split.
        split_seed: Seed for the draw of the splits.
        class_names: Names of the classes in order; where empty, classes are named after the labels.
        label_names: Names of the columns of `labels`; where empty, their numbers.
        value_names: Names of the columns of `value`; where empty, `value` or their numbers.
    """

    path: str = ""
    modalities: tuple[str, ...] = ()
    valid_fraction: float = 0.2
    test_fraction: float = 0.2
    split_seed: int = 0
    class_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    value_names: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("modalities", "class_names", "label_names", "value_names"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ConfigError(
                    f"data.options.{name}: given {given}, expected each name once; remove one"
                )
        check_fraction("data.options", self, "valid_fraction", "test_fraction")
        check_at_least("data.options", self, 0, "split_seed")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"data.options: given valid_fraction {self.valid_fraction} and test_fraction "
                f"{self.test_fraction}, expected a sum below 1 so that something is left to train"
            )


_MULT_DATASETS = ("auto", "mosei", "mosi", "iemocap", "mosei_emotions")
_MMSA_TARGETS = ("regression_labels", "T", "A", "V", "M")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultPickleOptions:
    """CMU-MOSEI, CMU-MOSI or IEMOCAP as processed for MulT (arXiv 1906.00295); docs/data.md.

    Attributes:
        path: Path of the pickle, such as `mosei_senti_data_noalign.pkl`.
        dataset: Dataset in the file; `auto` recognises it by its labels and widths, any other
            name is checked against them.
        emotion: Emotion of IEMOCAP's four that is the class of a sample; unused elsewhere, and by
            task `multilabel`, which predicts all of them.
    """

    path: str = ""
    dataset: str = "auto"
    emotion: str = "happy"

    def __post_init__(self):
        check_choice("data.options.dataset", self.dataset, _MULT_DATASETS)
        check_choice("data.options.emotion", self.emotion, ("neutral", "happy", "sad", "angry"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MmsaPickleOptions:
    """CMU-MOSEI, CMU-MOSI or CH-SIMS as processed for MMSA; docs/data.md.

    Attributes:
        path: Path of the pickle, such as `unaligned_50.pkl`.
        target: Sentiment that is predicted: `regression_labels`, or that of one view: `T` (text),
            `A` (audio), `V` (vision) for `regression_labels_T` and so on, or `M` (all of them).
    """

    path: str = ""
    target: str = "regression_labels"

    def __post_init__(self):
        check_choice("data.options.target", self.target, _MMSA_TARGETS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VggsoundHdf5Options:
    """VGGSound features in two HDF5 files; docs/data.md.

    Attributes:
        train_path: Path of the training file, such as `vgg_train.h5py`.
        test_path: Path of the test file, such as `vgg_test.h5py`.
        valid_fraction: Share of every class of the training file held out for validation.
        split_seed: Seed for the draw of that share.
        modalities: Modalities that are read, in this order.
    """

    train_path: str = ""
    test_path: str = ""
    valid_fraction: float = 0.2
    split_seed: int = 0
    modalities: tuple[str, ...] = ("rgb", "spect", "flow")

    def __post_init__(self):
        check_fraction("data.options", self, "valid_fraction")
        check_at_least("data.options", self, 0, "split_seed")
        names = set(self.modalities)
        if not names or len(names) != len(self.modalities) or names - {"rgb", "spect", "flow"}:
            raise ConfigError(
                f"data.options.modalities: given {self.modalities}, expected at least one of rgb, "
                "spect, flow, each at most once"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleFeaturesOptions:
    """Handwritten digits in six views (UCI Multiple Features); docs/data.md.

    Attributes:
        path: Folder with `mfeat-fac.csv` and its five siblings, or the archive with them.
        folds: Number of folds of a cross-validation, stratified by class.
        fold: Index of the fold that is the test split.
        valid_fraction: Share of the other folds of every class held out for validation.
        split_seed: Seed for the draw of folds and validation samples.
    """

    path: str = ""
    folds: int = 5
    fold: int = 0
    valid_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self):
        check_at_least("data.options", self, 2, "folds")
        check_at_least("data.options", self, 0, "fold", "split_seed")
        _check_share("valid_fraction", self.valid_fraction)
        if self.fold >= self.folds:
            raise ConfigError(
                f"data.options.fold: given {self.fold} of {self.folds} folds, expected below "
                f"{self.folds}; folds count from 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JapaneseVowelsOptions:
    """Nine speakers told by twelve cepstrum coefficients (UCI Japanese Vowels); docs/data.md.

    Attributes:
        path: Folder with `JapaneseVowels_TRAIN.ts` and `JapaneseVowels_TEST.ts`, or the archive
            with them.
        valid_fraction: Share of every speaker's training utterances held out for validation.
        split_seed: Seed for the draw of that share.
    """

    path: str = ""
    valid_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self):
        check_at_least("data.options", self, 0, "split_seed")
        _check_share("valid_fraction", self.valid_fraction)


def _check_share(name: str, value: float):
    if not 0 <= value < 1:
        raise ConfigError(
            f"data.options.{name}: given {value}, expected from 0 to below 1, so that something is "
            "left to train on"
        )


NORMALIZATIONS = ("channel", "rms", "none")
OPTIONS = {
    "smartwatch_exercises": SmartwatchOptions,
    "multiple_features": MultipleFeaturesOptions,
    "japanese_vowels": JapaneseVowelsOptions,
    "synthetic": SyntheticOptions,
    "arrays": ArraysOptions,
    "mult_pickle": MultPickleOptions,
    "mmsa_pickle": MmsaPickleOptions,
    "vggsound_hdf5": VggsoundHdf5Options,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from.

    Attributes:
        source: Name of the source, a key of `OPTIONS`.
        options: Settings of the source.
        data_dir: Folder of prepared ArrayRecord files; `~` is expanded.
        normalization: Use of the training split's statistics: `channel` centres and scales every
            feature, `rms` divides a modality by one number and keeps directions in space, `none`.
        num_threads: Number of threads that read records.
        prefetch: Number of batches that are kept ready.
    """

    source: str = "synthetic"
    options: (
        SmartwatchOptions
        | MultipleFeaturesOptions
        | JapaneseVowelsOptions
        | SyntheticOptions
        | ArraysOptions
        | MultPickleOptions
        | MmsaPickleOptions
        | VggsoundHdf5Options
    ) = SyntheticOptions()
    data_dir: str = "~/.cache/sft_jax"
    normalization: str = "channel"
    num_threads: int = 4
    prefetch: int = 8

    def __post_init__(self):
        check_choice("data.source", self.source, tuple(OPTIONS))
        check_choice("data.normalization", self.normalization, NORMALIZATIONS)
        check_at_least("data", self, 0, "num_threads")
        check_at_least("data", self, 1, "prefetch")
        if not isinstance(self.options, OPTIONS[self.source]):
            raise ConfigError(
                f"data.options: given {type(self.options).__name__} for source {self.source!r}, "
                f"expected {OPTIONS[self.source].__name__}"
            )


def path_options(options: Any) -> tuple[str, ...]:
    """Returns the names of the options (or of their class) that are paths of source files."""
    names = [field.name for field in dataclasses.fields(options)]
    return tuple(name for name in names if name == "path" or name.endswith("_path"))


def relocate(
    data: DataConfig, data_dir: str | Path | None = None, data_path: Sequence[str | Path] = ()
) -> DataConfig:
    """Changes the paths of the data.

    Args:
        data: Configuration to change.
        data_dir: Folder of prepared data; None keeps it.
        data_path: Path of each source file, in the order of `path_options`; empty keeps them.

    Raises:
        ConfigError: The number of paths is not that of the source files.
    """
    names = path_options(data.options)
    if data_path and len(data_path) != len(names):
        expected = f"{len(names)} ({', '.join(names)})" if names else "none, since it reads no file"
        raise ConfigError(
            f"data_path: given {len(data_path)} paths for source {data.source!r}, expected "
            f"{expected}; separate paths with commas, or leave it out"
        )
    paths: dict[str, Any] = dict(zip(names, map(str, data_path), strict=False))
    folder = data.data_dir if data_dir is None else str(data_dir)
    options = dataclasses.replace(data.options, **paths)
    return dataclasses.replace(data, options=options, data_dir=folder)


def with_fixed_paths(data: DataConfig) -> DataConfig:
    """Makes relative paths absolute, so that they do not depend on the working directory.

    Paths that begin with `~` are unchanged, since they are expanded where they are used.
    """
    paths = [_fixed(getattr(data.options, name)) for name in path_options(data.options)]
    return relocate(data, _fixed(data.data_dir), paths)


def _fixed(path: str) -> str:
    return path if not path or path.startswith("~") else str(Path(path).absolute())
