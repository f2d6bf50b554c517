"""UCI Japanese Vowels: identification of speakers from sequences of several lengths."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from sft_jax.config.data import JapaneseVowelsOptions
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import (
    Contents,
    ModalityInfo,
    Record,
    fixed_length,
    independent_record,
    select,
)
from sft_jax.data.splits import stratified, train_test_rows
from sft_jax.files import Member, layout_error, members_sha256, parse_numbers, read_members

FILES = {"train": "JapaneseVowels_TRAIN.ts", "test": "JapaneseVowels_TEST.ts"}
NUM_COEFFICIENTS = 12
MAX_FRAMES = 29
# Frames are 6.4 ms apart.
SAMPLING_RATE = 1000 / 6.4
# Lower coefficients describe the broad shape of a spectrum, upper ones its details.
MODALITIES = {"low": slice(0, 6), "high": slice(6, 12)}
_REMEDY = "get the file again (docs/data.md)"


class Utterance(NamedTuple):
    """Frames `[t, 12]` of one utterance and its speaker, from 0."""

    frames: np.ndarray
    label: int


class JapaneseVowels(SourceBuilder, skip_registration=True):
    """Nine men say two Japanese vowels, /ae/ (UCI Japanese Vowels).

    An utterance is 7 to 29 frames of 12 LPC cepstrum coefficients, of which the lower and the upper
    six are a modality each, padded at the end. Training and test files are kept apart; validation
    is a fraction of every speaker's training utterances.
    """

    options: JapaneseVowelsOptions

    def members(self) -> dict[str, Member]:
        """Reads the two files, by name."""
        return read_members(self.options.path, "data.options.path", tuple(FILES.values()))

    def source_sha256(self) -> str:
        """Returns the SHA-256 over the hashes of both files."""
        return members_sha256(self.members())

    def options_summary(self) -> str:
        """Returns the size and seed of the validation split."""
        return f"valid{self.options.valid_fraction:g}-split{self.options.split_seed}"

    def contents(self) -> Contents:
        """Reads both files, and draws the validation split."""
        members = self.members()
        utterances, speakers = {}, {}
        for name, file in FILES.items():
            utterances[name], speakers[name] = read_utterances(members[file])
        if speakers["test"] != speakers["train"]:
            path, expected = members[FILES["test"]].path, f"{speakers['train']}, as in training"
            remedy = "take files of one set"
            raise layout_error(path, "@classLabel", speakers["test"], expected, remedy)
        label = np.array([utterance.label for utterance in utterances["train"]])
        held_out = stratified(label, self.options.valid_fraction, self.options.split_seed)
        rows = train_test_rows(held_out, len(utterances["test"]))
        return Contents(
            modalities=tuple(
                ModalityInfo(
                    name=name,
                    length=MAX_FRAMES,
                    feature_dim=columns.stop - columns.start,
                    kind="feature",
                    sampling_rate=SAMPLING_RATE,
                )
                for name, columns in MODALITIES.items()
            ),
            class_names=tuple(f"speaker{name}" for name in speakers["train"]),
            splits={
                name: select(part, functools.partial(_read_record, file, utterances[file]))
                for name, (file, part) in rows.items()
            },
        )


def read_utterances(member: Member) -> tuple[list[Utterance], list[str]]:
    """Parses a file of the `.ts` format: lines of `@key value`, `@data`, then one utterance a line.

    A line holds the coefficients and the speaker, separated by colons; values of a coefficient over
    time are separated by commas.

    Returns:
        The utterances, and the names of the speakers.

    Raises:
        DataError: The file does not follow the format.
    """
    lines = [line for line in member.lines() if not line.startswith("#")]
    if "@data" not in lines:
        found = f"{len(lines)} lines without it"
        raise layout_error(member.path, "@data", found, "that line before the first row", _REMEDY)
    start = lines.index("@data")
    header = {key: rest for key, _, rest in (line.partition(" ") for line in lines[:start])}
    has_labels, *speakers = header.get("@classLabel", "").split() or [""]
    if has_labels != "true" or not speakers or len(set(speakers)) != len(speakers):
        found = header.get("@classLabel", "no such line")
        expected = "'true' and the names of the speakers, all different"
        raise layout_error(member.path, "@classLabel", found, expected, _REMEDY)
    rows = lines[start + 1 :]
    if not rows:
        raise layout_error(
            member.path, "@data", "no row below it", "one row per utterance", _REMEDY
        )
    utterances = []
    for row, line in enumerate(rows):
        *columns, speaker = line.split(":")
        frames = _parse_frames(member.path, f"row {row}", columns)
        if speaker not in speakers:
            expected = f"one of {', '.join(speakers)} behind the last colon"
            raise layout_error(member.path, f"row {row}", f"speaker {speaker!r}", expected, _REMEDY)
        utterances.append(Utterance(frames, speakers.index(speaker)))
    return utterances, speakers


def _parse_frames(path: str, key: str, columns: list[str]) -> Float32[np.ndarray, "t 12"]:
    if len(columns) != NUM_COEFFICIENTS:
        expected = f"{NUM_COEFFICIENTS}, and the speaker"
        raise layout_error(path, key, f"{len(columns)} coefficients", expected, _REMEDY)
    series = [parse_numbers(path, key, column.split(",")) for column in columns]
    lengths = sorted({len(values) for values in series})
    if len(lengths) > 1:
        found = f"coefficients of {lengths} frames"
        raise layout_error(path, key, found, "as many frames of each", _REMEDY)
    if lengths[0] > MAX_FRAMES:
        raise layout_error(path, key, f"{lengths[0]} frames", f"at most {MAX_FRAMES}", _REMEDY)
    return np.array(series, np.float32).T


def _read_record(file: str, utterances: list[Utterance], row: int) -> Record:
    frames, label = utterances[row]
    padded, mask = fixed_length(frames, np.ones(len(frames), bool), MAX_FRAMES)
    inputs = {name: padded[:, columns] for name, columns in MODALITIES.items()}
    return independent_record(f"{file}{row:06d}", label, inputs, dict.fromkeys(MODALITIES, mask))
