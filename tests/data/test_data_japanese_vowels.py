import zipfile

import numpy as np
import pytest

from sft_jax.config.data import DataConfig, JapaneseVowelsOptions
from sft_jax.data.builders.japanese_vowels import JapaneseVowels
from sft_jax.data.records import SPLITS
from sft_jax.data.sources import open_source, prepare
from sft_jax.types import ConfigError, DataError

SPEAKERS = ("1", "2", "3")
HEADER = [
    "#A comment, with a colon: and more",
    "@problemName JapaneseVowels",
    "@timeStamps false",
    "@missing false",
    "@univariate false",
    "@dimensions 12",
    "@equalLength false",
    f"@classLabel true {' '.join(SPEAKERS)}",
    "@data",
]


def utterances(count, seed):
    """Pairs of coefficients `[12][t]` as text, of 7 frames and more, and a speaker."""
    rng = np.random.default_rng(seed)
    return [
        ([[f"{x:.6f}" for x in rng.normal(size=7 + i % 23)] for _ in range(12)], SPEAKERS[i % 3])
        for i in range(count)
    ]


def content():
    return {"TRAIN": utterances(30, 0), "TEST": utterances(24, 1)}


def save(tmp_path, given, header=HEADER):
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    for role, rows in given.items():
        lines = [":".join([*map(",".join, series), speaker]) for series, speaker in rows]
        text = "\n".join([*header, *lines]) + "\n"
        (folder / f"JapaneseVowels_{role}.ts").write_text(text)
    return folder


def config(tmp_path, path, **options):
    options = JapaneseVowelsOptions(path=str(path), **options)
    return DataConfig(source="japanese_vowels", options=options, data_dir=str(tmp_path / "d"))


def test_records_by_hand(tmp_path):
    given = content()
    source = open_source(config(tmp_path, save(tmp_path, given)))
    info = source.info
    assert info.class_names == ("speaker1", "speaker2", "speaker3")
    assert [(m.name, m.length, m.feature_dim, m.sampling_rate) for m in info.modalities] == [
        ("low", 29, 6, 156.25),
        ("high", 29, 6, 156.25),
    ]
    # A fifth of ten utterances of each speaker.
    assert info.class_counts == {"train": (8,) * 3, "valid": (2,) * 3, "test": (8,) * 3}
    drawn = source.ids("train") + source.ids("valid")
    assert sorted(drawn) == [f"train{row:06d}" for row in range(30)]
    assert source.ids("test") == source.groups("test") == [f"test{row:06d}" for row in range(24)]
    lengths = set()
    for split in ("train", "valid", "test"):
        for record in source.split(split):
            row = int(record["id"][-6:])
            series, speaker = given["TEST" if split == "test" else "TRAIN"][row]
            frames = np.array(series, np.float32).T
            assert record["label"] == SPEAKERS.index(speaker)
            for m, own in (("low", frames[:, :6]), ("high", frames[:, 6:])):
                np.testing.assert_array_equal(record["inputs"][m][: len(own)], own)
                assert not record["inputs"][m][len(own) :].any()
                assert record["mask"][m].tolist() == [i < len(own) for i in range(29)]
            lengths.add(len(frames))
    assert lengths == set(range(7, 30))


def builder(tmp_path, path, **options):
    return JapaneseVowels(config(tmp_path, path, **options).options, tmp_path / "d")


def test_an_archive_is_as_good_as_a_folder(tmp_path):
    folder = save(tmp_path, content())
    path = tmp_path / "aeon-1.6.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"aeon/datasets/data/JapaneseVowels/{file.name}")
        archive.writestr("aeon/datasets/data/JapaneseVowels/JapaneseVowels_eq_TRAIN.ts", "other")
    one, two = builder(tmp_path, folder), builder(tmp_path, path)
    assert one.directory == two.directory
    for ours, theirs in zip(*(b.contents().splits["train"] for b in (one, two)), strict=True):
        assert (ours["id"], ours["label"]) == (theirs["id"], theirs["label"])
        for m in ("low", "high"):
            np.testing.assert_array_equal(ours["inputs"][m], theirs["inputs"][m])


def test_contents_and_options_decide(tmp_path):
    path = save(tmp_path, content())
    before = builder(tmp_path, path)
    for change in ({"split_seed": 1}, {"valid_fraction": 0.3}):
        assert builder(tmp_path, path, **change).fingerprint != before.fingerprint
    given = content()
    given["TEST"][0][0][0][0] = "9"
    save(tmp_path, given)
    assert builder(tmp_path, path).fingerprint != before.fingerprint


def test_no_validation_split_when_none_is_asked_for(tmp_path):
    contents = builder(tmp_path, save(tmp_path, content()), valid_fraction=0.0).contents()
    assert [len(contents.splits[name]) for name in SPLITS] == [30, 0, 24]


def put(role, row, speaker=None, **series):
    def change(given):
        found, own = given[role][row]
        for at, values in series.items():
            found[int(at[1:])] = values
        given[role][row] = (found, speaker or own)

    return change


# What is wrong -> how it comes about, whose file is named, and what is told.
BROKEN = {
    "unknown speaker": (
        put("TEST", 4, speaker="10"),
        "TEST",
        "row 4: found speaker '10', expected one of 1, 2, 3 behind the last colon; get the file",
    ),
    "a coefficient less": (
        lambda given: given["TRAIN"][2][0].pop(),
        "TRAIN",
        "row 2: found 11 coefficients, expected 12, and the speaker; get the file again",
    ),
    "a frame less": (
        put("TRAIN", 0, c3=["1"] * 6),
        "TRAIN",
        "row 0: found coefficients of [6, 7] frames, expected as many frames of each; get the",
    ),
    "a missing value": (
        put("TRAIN", 0, c3=["1"] * 6 + ["?"]),
        "TRAIN",
        "row 0: found '?', expected finite numbers; get the file again",
    ),
    "no value": (put("TEST", 9, c0=[""]), "TEST", "row 9: found '', expected finite numbers"),
    "too long": (
        put("TEST", 1, **{f"c{i}": ["1"] * 30 for i in range(12)}),
        "TEST",
        "row 1: found 30 frames, expected at most 29; get the file again",
    ),
    "no rows": (
        lambda given: given["TEST"].clear(),
        "TEST",
        "@data: found no row below it, expected one row per utterance; get the file again",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_told_by_file_key_and_remedy(tmp_path, what):
    change, role, words = BROKEN[what]
    given = content()
    change(given)
    path = save(tmp_path, given)
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path, path))
    assert str(caught.value).startswith(f"{path / f'JapaneseVowels_{role}.ts'}: {words}")
    assert not list((tmp_path / "d").rglob("*array_record*"))


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        (-1, None, r"@data: found 37 lines without it, expected that line before .*; get"),
        (-2, None, r"@classLabel: found no such line, expected 'true' and the names"),
        (-2, "@classLabel false", r"@classLabel: found false, expected 'true' and"),
        (-2, "@classLabel true", r"@classLabel: found true, expected 'true' and the names"),
        (-2, "@classLabel true 1 2 3 3", r"@classLabel: found true 1 2 3 3, .*all different; get"),
    ],
)
def test_broken_headers(tmp_path, line, instead, message):
    header = list(HEADER)
    header[line:] = [*([instead] if instead else []), *header[line:][1:]]
    path = save(tmp_path, content(), header)
    with pytest.raises(DataError, match=rf"_TRAIN\.ts: {message}"):
        builder(tmp_path, path).contents()


def test_files_of_two_sets(tmp_path):
    save(tmp_path, {"TEST": content()["TEST"]}, [*HEADER[:-2], "@classLabel true 3 2 1", "@data"])
    path = save(tmp_path, {"TRAIN": content()["TRAIN"]})
    with pytest.raises(DataError, match=r"_TEST\.ts: @classLabel: found .*as in training; take fi"):
        builder(tmp_path, path).contents()
    (path / "JapaneseVowels_TEST.ts").unlink()
    with pytest.raises(
        DataError, match=r"_TEST\.ts: found JapaneseVowels_TRAIN\.ts, expected a fi"
    ):
        builder(tmp_path, path).contents()


def test_options_that_cannot_be_used():
    with pytest.raises(
        ConfigError, match=r"valid_fraction: given 1\.0, expected from 0 to below 1"
    ):
        JapaneseVowelsOptions(valid_fraction=1.0)
    with pytest.raises(ConfigError, match=r"split_seed: given -1"):
        JapaneseVowelsOptions(split_seed=-1)
