"""UCI Japanese Vowels: who speaks, from sequences of several lengths."""

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from sft_jax.config.data import JapaneseVowelsOptions
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import Contents, LazyRecords, ModalityInfo, Record, fixed_length
from sft_jax.data.splits import stratified
from sft_jax.files.archives import Member, members_sha256, numbers, read_members
from sft_jax.files.errors import layout_error

FILES = {"train": "JapaneseVowels_TRAIN.ts", "test": "JapaneseVowels_TEST.ts"}
NUM_COEFFICIENTS = 12
LONGEST = 29
# Frames are 6.4 ms apart.
SAMPLING_RATE = 1000 / 6.4
# The lower coefficients tell the broad shape of a spectrum, the upper ones its detail.
MODALITIES = {"low": slice(0, 6), "high": slice(6, 12)}
_AGAIN = "get the file again (docs/data.md)"


class Utterance(NamedTuple):
    """Frames `[t, 12]` of one utterance, and its speaker from 0."""

    frames: np.ndarray
    label: int


class JapaneseVowels(SourceBuilder, skip_registration=True):
    """Nine men say two Japanese vowels, /ae/ (UCI Japanese Vowels).

    An utterance is 7 to 29 frames of 12 LPC cepstrum coefficients, of which the lower and the upper
    six are a modality each, padded at the end. The given training and test files; validation is a
    share of every speaker's training utterances.
    """

    options: JapaneseVowelsOptions

    def members(self) -> dict[str, Member]:
        """The two files, by name."""
        return read_members(self.options.path, "data.options.path", tuple(FILES.values()))

    def source_sha256(self) -> str:
        """SHA-256 over the hashes of both files."""
        return members_sha256(self.members())

    def identity(self) -> dict[str, Any]:
        """The options but for the path, since the contents decide."""
        return {key: value for key, value in super().identity().items() if key != "path"}

    def readable(self) -> str:
        """How validation is held out."""
        return f"valid{self.options.valid_fraction:g}-split{self.options.split_seed}"

    def contents(self) -> Contents:
        """Reads both files, and draws validation."""
        members = self.members()
        given, speakers = {}, {}
        for name, file in FILES.items():
            given[name], speakers[name] = read_utterances(members[file])
        if speakers["test"] != speakers["train"]:
            where, wanted = members[FILES["test"]].where, f"{speakers['train']}, as in training"
            raise layout_error(
                where, "@classLabel", speakers["test"], wanted, "take files of one set"
            )
        label = np.array([utterance.label for utterance in given["train"]])
        held_out = stratified(label, self.options.valid_fraction, self.options.split_seed)
        rows = {
            "train": ("train", np.flatnonzero(~held_out)),
            "valid": ("train", np.flatnonzero(held_out)),
            "test": ("test", np.arange(len(given["test"]))),
        }
        return Contents(
            modalities=tuple(
                ModalityInfo(
                    name=name,
                    length=LONGEST,
                    feature_dim=own.stop - own.start,
                    kind="feature",
                    sampling_rate=SAMPLING_RATE,
                )
                for name, own in MODALITIES.items()
            ),
            class_names=tuple(f"speaker{name}" for name in speakers["train"]),
            splits={
                name: LazyRecords(len(own), functools.partial(_record, file, given[file], own))
                for name, (file, own) in rows.items()
                if len(own)
            },
        )


def read_utterances(member: Member) -> tuple[list[Utterance], list[str]]:
    """Reads a file of the `.ts` format: lines of `@key value`, `@data`, then a line an utterance.

    Such a line holds the values of each coefficient over time, separated by commas, coefficient
    after coefficient and the speaker last, separated by colons.

    Returns:
        The utterances, and the names of the speakers.

    Raises:
        DataError: the file is not as documented.
    """
    lines = [line for line in member.lines() if not line.startswith("#")]
    if "@data" not in lines:
        found = f"{len(lines)} lines without it"
        raise layout_error(member.where, "@data", found, "that line before the first row", _AGAIN)
    start = lines.index("@data")
    header = {key: rest for key, _, rest in (line.partition(" ") for line in lines[:start])}
    given, *speakers = header.get("@classLabel", "").split() or [""]
    if given != "true" or not speakers or len(set(speakers)) != len(speakers):
        found = header.get("@classLabel", "no such line")
        wanted = "'true' and the names of the speakers, all different"
        raise layout_error(member.where, "@classLabel", found, wanted, _AGAIN)
    rows = lines[start + 1 :]
    if not rows:
        raise layout_error(member.where, "@data", "no row below it", "a row an utterance", _AGAIN)
    utterances = []
    for row, line in enumerate(rows):
        *columns, speaker = line.split(":")
        frames = _frames(member.where, f"row {row}", columns)
        if speaker not in speakers:
            wanted = f"one of {', '.join(speakers)} behind the last colon"
            raise layout_error(member.where, f"row {row}", f"speaker {speaker!r}", wanted, _AGAIN)
        utterances.append(Utterance(frames, speakers.index(speaker)))
    return utterances, speakers


def _frames(where: str, key: str, columns: list[str]) -> Float32[np.ndarray, "t 12"]:
    if len(columns) != NUM_COEFFICIENTS:
        wanted = f"{NUM_COEFFICIENTS}, and the speaker"
        raise layout_error(where, key, f"{len(columns)} coefficients", wanted, _AGAIN)
    series = [numbers(where, key, column.split(",")) for column in columns]
    lengths = sorted({len(values) for values in series})
    if len(lengths) > 1:
        found = f"coefficients of {lengths} frames"
        raise layout_error(where, key, found, "as many frames of each", _AGAIN)
    if lengths[0] > LONGEST:
        raise layout_error(where, key, f"{lengths[0]} frames", f"at most {LONGEST}", _AGAIN)
    return np.array(series, np.float32).T


def _record(
    file: str, utterances: list[Utterance], rows: Int[np.ndarray, " n"], index: int
) -> Record:
    row = int(rows[index])
    frames, label = utterances[row]
    padded, mask = fixed_length(frames, np.ones(len(frames), bool), LONGEST)
    name = f"{file}{row:06d}"
    return Record(
        inputs={modality: padded[:, own] for modality, own in MODALITIES.items()},
        mask=dict.fromkeys(MODALITIES, mask),
        label=label,
        value=float("nan"),
        id=name,
        group=name,
    )
