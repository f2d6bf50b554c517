"""Files that ask for more memory than there is, for other files, or for code to be run."""

import io
import json
import pickle
import sys
import tracemalloc
import zipfile
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest

import sft_jax.files.errors
from sft_jax.config.data import ArraysOptions, DataConfig, SyntheticOptions, VggsoundHdf5Options
from sft_jax.data.arrays import check_arrays, read_arrays
from sft_jax.data.builders.multiple_features import VIEWS, file_name, read_view
from sft_jax.data.builders.vggsound_hdf5 import VggsoundHdf5
from sft_jax.data.prepared import read_info
from sft_jax.data.sources import Source, prepare
from sft_jax.files.archives import Member, read_members
from sft_jax.files.errors import check_fits, memory_limit
from sft_jax.files.mapped_pickles import map_pickle
from sft_jax.files.npz import map_npy
from sft_jax.files.pickles import checked_shape, load_npy_object, load_pickle
from sft_jax.files.rows import as_rows
from sft_jax.types import DataError


@pytest.fixture
def little_memory(monkeypatch):
    """A machine of 100 kB."""
    monkeypatch.setattr(sft_jax.files.errors, "memory_limit", lambda: 100_000)


def load(stream):
    return load_pickle(io.BytesIO(stream), "x")


def test_there_is_less_memory_than_the_machine_has_where_it_is_limited(tmp_path, monkeypatch):
    limit = memory_limit()
    assert limit > 0
    group = tmp_path / "memory.max"
    monkeypatch.setattr(sft_jax.files.errors, "_CGROUP_LIMITS", (str(group),))
    group.write_text("1000000\n")
    assert memory_limit() == 1_000_000
    group.write_text("max\n")
    assert memory_limit() >= limit


def test_what_would_not_fit_names_size_limit_and_remedy(little_memory):
    check_fits(100_000, "f", "k", "less")
    with pytest.raises(
        DataError, match=r"^f: k: found 100,001 bytes .*expected at most 100,000, .*; less$"
    ):
        check_fits(100_001, "f", "k", "less")


def npy(shape, descr="'<f8'", values=b""):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (npy((1 << 40,)), r"0 bytes for float64 of shape \(1099511627776,\)"),
        (npy((2**40, 2**40), "'|u1'"), "0 bytes for uint8"),
        (npy((-2, -4), values=bytes(64)), "64 bytes for float64"),
        (npy((1,), "'|O'", pickle.dumps([print])), "Python objects, which could run"),
        (npy((1,), "[('a', '|O')]", bytes(8)), "Python objects, which could run"),
        (b"text", "ValueError"),
        (b"", "ValueError"),
    ],
)
def test_members_must_be_as_large_as_their_header_says(tmp_path, member, words):
    label = npy((1,), "'<i8'", bytes(8))
    path = archive(tmp_path / "x.npz", [("rgb.npy", member), ("label.npy", label)])
    with pytest.raises(DataError, match=words):
        read_arrays(path, require_label=True)


def header_of_4_gib(folder):
    folder.mkdir()
    body = npy((1,), values=bytes(8))[10:]
    path = folder / "rgb.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + body)
    return path


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_arrays(path.parent, require_label=False),
        lambda path: read_arrays(
            archive(path.with_suffix(".npz"), [("rgb.npy", path.read_bytes())]), False
        ),
        load_npy_object,
    ],
    ids=["folder", "archive", "objects"],
)
def test_a_header_takes_no_more_memory_than_the_file(tmp_path, read):
    path = header_of_4_gib(tmp_path / "x")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"rgb\.npy.*EOF: reading array header"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_mapped_arrays_are_as_large_as_their_header_says(tmp_path):
    (tmp_path / "rgb.npy").write_bytes(npy((2, 3, 1), values=bytes(40)))
    with pytest.raises(DataError, match=r"rgb\.npy: 40 bytes for float64 of shape \(2, 3, 1\)"):
        read_arrays(tmp_path, require_label=False)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(4, 3, 2), (0, 3, 2), ()])
def test_arrays_are_mapped_in_either_order(tmp_path, rng, shape, order):
    values = np.asarray(rng.normal(size=shape), order=order)
    np.save(tmp_path / "a.npy", values)
    mapped = map_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(mapped, values)
    assert mapped.dtype == values.dtype
    assert not mapped.flags.writeable


def test_members_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(tmp_path / "x.npz", [("a.npy", npy((0,))), ("a.npy", npy((0,)))])
    with pytest.raises(DataError, match="two arrays of one name"):
        read_arrays(path, require_label=False)


def test_a_size_that_no_compression_reaches_is_refused(tmp_path):
    path = archive(tmp_path / "x.npz", [("rgb.npy", npy((10_000_000 - 60,), "'|u1'"))])
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    size = int.from_bytes(data[entry + 24 : entry + 28], "little")
    claimed = size + 10_000_000 - 60
    data[entry + 24 : entry + 28] = claimed.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"rgb\.npy: {claimed} bytes from \d\d"):
        read_arrays(path, require_label=False)


@pytest.mark.parametrize("name", ["x.npz", "x"])
def test_arrays_that_would_not_fit_are_refused_by_their_headers(tmp_path, name, little_memory):
    values = np.zeros((20, 10, 200), np.uint8)
    if name == "x":
        (tmp_path / "x").mkdir()
        np.save(tmp_path / "x" / "rgb.npy", values)
    else:
        np.savez_compressed(tmp_path / name, rgb=values)
    with pytest.raises(DataError, match="bytes to hold in memory, expected at most 100,000"):
        read_arrays(tmp_path / name, require_label=False)


def test_a_folder_may_hold_archives_and_links_of_that_name(tmp_path):
    content = {"rgb": np.ones((4, 2, 3)), "label": np.zeros(4, int)}
    for name, values in content.items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "lost.npy").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.npy").mkdir()
    options = ArraysOptions(path=str(tmp_path), valid_fraction=0.25, test_fraction=0.25)
    config = DataConfig(source="arrays", options=options, data_dir=str(tmp_path / "d"))
    assert prepare(config).num_records == {"train": 2, "valid": 1, "test": 1}
    np.savez(tmp_path / "packed.npz", **content)
    (tmp_path / "packed.npz").rename(tmp_path / "packed.npy")
    with pytest.raises(DataError, match="expected complete arrays"):
        prepare(config)


@pytest.mark.parametrize("label", [1_000_000, 1 << 40])
def test_a_class_far_out_takes_no_memory(label):
    entries = {"rgb": np.ones((2, 2, 3)), "label": np.array([0, label])}
    table = check_arrays(entries, require_label=True)
    assert table.class_names == ("0", str(label))


@pytest.mark.parametrize("names", [np.array([b"\xff", b"b"]), np.array(["\ud800", "b"])])
def test_names_that_are_no_text(names):
    entries = {"rgb": np.ones((2, 2, 3)), "id": names}
    with pytest.raises(DataError, match="expected UTF-8 text in id"):
        check_arrays(entries, require_label=False)


def doubled(levels, use):
    """A pickle that uses a list of twice a list of twice a list ... of numbers."""
    places = [b"](K\x01K\x02eq\x00"]
    places += [b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(levels)]
    return b"".join(places) + b"0" + use % (b"h%c" % levels)


def frombuffer():
    """A pickle of an array of objects, made as protocol 5 makes those of numbers."""
    dtype = b"cnumpy\ndtype\n(VO\ntR"
    return b"cnumpy._core.numeric\n_frombuffer\n(]" + dtype + b"K\x00\x85VC\ntR."


def letters(shape):
    """A pickle of a text with a number that no letter has, a scalar without a shape."""
    dtype = b"cnumpy\ndtype\n(VU1\ntR(K\x03V<\nNNNK\x04K\x04K\x00tb"
    text = b"C\x04\xff\xff\xff\x7f"
    if not shape:
        return b"cnumpy.core.multiarray\nscalar\n(" + dtype + text + b"tR."
    return b"cnumpy._core.numeric\n_frombuffer\n(" + text + dtype + shape + b"VC\ntR."


def fields_of_fields():
    """A pickle of a dtype of one field, which is a dtype of one field."""
    made = b"cnumpy\ndtype\n(Vi4\ntR"
    for _ in range(2):
        fields = b"}Va\n" + made + b"K\x00\x86s"
        made = b"cnumpy\ndtype\n(VV4\ntR(K\x03V|\nNVa\n\x85" + fields + b"K\x04K\x01K\x00tb"
    return made + b"."


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        # Of a number, bytes are as many zeros.
        (b"cbuiltins\nbytearray\n(J\x00\x00\x00\x40tR.", "bytearray may not be made of"),
        (b"c__builtin__\nbytes\n(J\x00\x00\x00\x40tR.", "bytes may not be made of"),
        # The table of what is remembered would have 2^31 places.
        (b"Nr\xff\xff\xff\x7f.", "LONG_BINPUT far out"),
        (b"Np2147483647\n.", "PUT far out"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.", "in the middle"),
        (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "bytes may not be made of"),
        (b"cnumpy.core.multiarray\nscalar\n(N}tb.", "cannot have state"),
        # Left in the file where it is mapped, and encoded by any module of Python's for that.
        (b"c_codecs\nencode\n(V" + b"x" * 5000 + b"\nVpunycode\ntR.", "by 'punycode'"),
        (b"c_codecs\nencode\nX\x88\x13\0\0" + b"x" * 5000 + b"Vpunycode\n\x86R.", "'punycode'"),
        # Hashed level by level on the stack of the processor, which ends at a hundred thousand.
        (b"})" + b"\x85" * 200_000 + b"K\x01s.", "a tuple of very many levels"),
        # Written out in a message, 2^60 numbers.
        (doubled(60, b"cnumpy\ndtype\n(%btR."), "a dtype may not be made of a list"),
        (doubled(60, b"c_codecs\nencode\n(%bVlatin1\ntR."), "bytes may not be made of a list"),
        # Arrays of objects that are entries of each other are freed on that stack, too.
        (frombuffer(), "an array of object may not be made of list"),
        (letters(b"(K\x01t"), "2147483647 in place of a character"),
        (letters(b""), "2147483647 in place of a character"),
        (fields_of_fields(), "a dtype may not have fields within fields"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_pickles_may_not_ask_for_memory_or_change_functions(tmp_path, stream, words, mapped):
    (tmp_path / "x.pkl").write_bytes(stream)
    with pytest.raises(DataError, match=words):
        map_pickle(tmp_path / "x.pkl") if mapped else load(stream)


@pytest.mark.parametrize("opcode", [pickle.EMPTY_SET, pickle.EMPTY_LIST, pickle.EMPTY_DICT])
@pytest.mark.parametrize("count", [300, 2000])
def test_objects_of_one_byte_are_counted_before_they_are_made(opcode, count, little_memory):
    stream = pickle.PROTO + b"\x04" + pickle.MARK + count * opcode + pickle.TUPLE + pickle.STOP
    if count == 300:
        assert len(load_pickle(io.BytesIO(stream), "small")) == count
    else:
        with pytest.raises(DataError, match=r"large: .*more objects than fit in memory up to byte"):
            load_pickle(io.BytesIO(stream), "large")


def test_a_part_may_not_be_there_again_and_again():
    value = [1] * 9
    # 9^12 entries in some hundred bytes.
    for _ in range(11):
        value = [value] * 9
    with pytest.raises(DataError, match="entries, most of them the same few again"):
        load(pickle.dumps({"train": value}, protocol=4))


@pytest.mark.parametrize("kind", [lambda key: {key: 1}, lambda key: {key}])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_key_may_not_take_forever(kind, protocol):
    key = made = (1, "x")
    for _ in range(40):
        made = (made, made)
    # In a list: to make a dict or a set of it takes forever here as well.
    stream = pickle.dumps([key, made], protocol=protocol)
    with pytest.raises(DataError, match="a tuple of very many parts"):
        load(stream)
    plain = kind((key, (key, key)))
    assert load(pickle.dumps(plain, protocol=protocol)) == plain


def test_a_part_may_be_there_twice():
    part = [1.5, (2, "x")]
    found = load(pickle.dumps({"a": part, "b": part}, protocol=4))
    assert found == {"a": part, "b": part}
    assert found["a"] is found["b"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((-2, -3), "f8"),
        ((2.0, 3), "f8"),
        ((0, 1 << 40), "f8"),
        ((1 << 40, 0), "f8"),
        ((1 << 40,), "S0"),
    ],
)
def test_shapes_of_pickled_arrays_are_whole_numbers(shape, dtype):
    with pytest.raises(pickle.UnpicklingError, match="may not be of shape"):
        checked_shape(shape, np.dtype(dtype))
    assert checked_shape([2, 0, 3], np.dtype("f8")) == (2, 0, 3)


def test_lists_are_numbers_of_one_shape_or_no_array():
    np.testing.assert_array_equal(as_rows([[1, 2], [3, 4]])[:], [[1, 2], [3, 4]])
    # As an array, each of the names would be as long as the longest.
    assert as_rows(["a"] * 1000 + ["b" * 1_000_000]) is None
    assert as_rows([[b"a"], ["b"]]) is None


def test_members_that_would_not_fit_or_are_larger_than_they_say(tmp_path, little_memory):
    path = archive(tmp_path / "x.whl", [("a.csv", b"1" * 30_000)])
    with pytest.raises(DataError, match=r"a\.csv: size: found 120,000 bytes .* 100,000"):
        read_members(str(path), "s", ("a.csv",))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"expected a complete a\.csv"):
        read_members(str(path), "s", ("a.csv",))


def test_no_table_is_made_for_lines_without_cells():
    view, (steps, width) = next(iter(VIEWS.items()))
    member = Member(file_name(view), b"a\n" * 3_000_000)
    with pytest.raises(DataError, match=r"headings: found 1 columns"):
        read_view(member, steps * width)


def hdf5(path, change=None):
    with h5py.File(path, "w") as file:
        file["rgb"] = np.full((3, 2, 2), path.stem == "train", "f4")
        file["class_name"] = np.array([b"a", b"b", b"a"])
        if change:
            change(file)


def long_name(file):
    """Three samples of a class whose name takes half of the file, of which there is one."""
    del file["class_name"]
    made = file.create_dataset("class_name", 3, h5py.string_dtype())
    made[:] = ["a" * 20_000, "b", "c"]
    file.flush()
    place = made.id.get_offset()
    path = Path(file.filename)
    file.close()
    content = bytearray(path.read_bytes())
    content[place : place + 48] = content[place : place + 16] * 3
    path.write_bytes(content)


def outside(file):
    del file["rgb"]
    file["rgb"] = h5py.ExternalLink("other.h5", "rgb")


def elsewhere(file):
    del file["rgb"]
    file.create_dataset("rgb", (3, 2, 2), "f4", external=[("raw", 0, 48)])


def virtual(file):
    del file["rgb"]
    layout = h5py.VirtualLayout((3, 2, 2), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "rgb", (3, 2, 2))
    file.create_virtual_dataset("rgb", layout)


def never_written(file):
    del file["rgb"]
    file.create_dataset("rgb", (3, 2000, 2000), "f4", chunks=(1, 10, 10))


def wide(file):
    del file["rgb"]
    file.create_dataset("rgb", (3, 1 << 20, 1 << 20), "f4", chunks=(1, 10, 10))


def many_names(file):
    del file["class_name"]
    file.create_dataset("class_name", (1 << 40,), "S10", chunks=(10,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (outside, "rgb: found a link, expected a dataset rgb"),
        (elsewhere, "rgb: found values in another file"),
        (virtual, "rgb: found values in another file"),
        (never_written, r"rgb: found 0 bytes for float32 of shape \(3, 2000, 2000\)"),
        (wide, "rgb: found 13,194,139,533,312 bytes to hold in memory"),
        (many_names, "class_name: found [0-9,]+ bytes to hold in memory"),
        (long_name, r"class_name: found 40,000 letters in the first 2 names"),
    ],
)
def test_hdf5_files_hold_their_own_values(tmp_path, change, words):
    hdf5(tmp_path / "train.h5", change)
    hdf5(tmp_path / "test.h5")
    hdf5(tmp_path / "other.h5")
    options = VggsoundHdf5Options(
        train_path=str(tmp_path / "train.h5"),
        test_path=str(tmp_path / "test.h5"),
        modalities=("rgb",),
    )
    builder = VggsoundHdf5(options, tmp_path / "d")
    with builder.resources, pytest.raises(DataError, match=words):
        builder.contents()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    options = SyntheticOptions(
        lengths=(4, 3), feature_dims=(3, 2), num_train=6, num_valid=3, num_test=0
    )
    folder = tmp_path_factory.mktemp("prepared")
    return Path(prepare(DataConfig(options=options, data_dir=str(folder))).directory)


@pytest.fixture
def copied(prepared, tmp_path):
    folder = tmp_path / prepared.name
    folder.mkdir()
    for path in prepared.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_prepared_folder_imports_nothing(copied, tmp_path, monkeypatch):
    (tmp_path / "bait_of_a_folder.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = copied / "features.json"
    text = path.read_text()
    assert "pythonClassName" in text
    given = json.loads(text)
    given["pythonClassName"] = "bait_of_a_folder.Features"
    path.write_text(json.dumps(given))
    source = Source(copied)
    assert len(source.split("train")) == 6
    assert "bait_of_a_folder" not in sys.modules


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_names", []),
        ("class_names", [1, 2, 3, 4]),
        ("class_values", [1.0]),
        ("modalities", []),
        ("num_records", {"train": 6, "valid": 3}),
        ("num_records", {"train": -6, "valid": 3, "test": 0}),
        ("num_records", {"train": 10**30, "valid": 3, "test": 0}),
        ("class_counts", {"train": [1], "valid": [1], "test": [1]}),
        ("statistics", {}),
        ("class_values", [10**400, 1, 1, 1]),
        ("groups", {"train": [1], "valid": [], "test": []}),
        ("repairs", {"x": "y"}),
        ("options", []),
        ("fingerprint", 3),
    ],
)
def test_metadata_that_is_not_what_was_written(copied, field, value):
    path = copied / "metadata.json"
    given = json.loads(path.read_text())
    assert field in given
    path.write_text(json.dumps({**given, field: value}))
    with pytest.raises(DataError, match=r"(?s)metadata\.json: .*prepare the source again"):
        Source(copied)


def test_a_modality_has_no_more_ids_than_there_are_embeddings(copied):
    path = copied / "metadata.json"
    given = json.loads(path.read_text())
    first = given["modalities"][0]
    first["kind"] = "token"
    del given["statistics"][first["name"]]
    for ids, named in ((10_000_000, ""), (10_000_001, "modalities")):
        first["feature_dim"] = ids
        path.write_text(json.dumps(given))
        with pytest.raises(DataError) if named else nullcontext() as error:
            read_info(copied)
        assert not named or f"metadata.json: {named}: found" in str(error.value)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"a":' * 100_000, "\x00"])
def test_metadata_that_is_none(copied, text):
    (copied / "metadata.json").write_text(text)
    with pytest.raises(
        DataError, match=r"(?s)metadata\.json: file: found .*expected what was prep"
    ):
        Source(copied)


def test_lengths_that_would_not_fit(copied, little_memory):
    path = copied / "metadata.json"
    given = json.loads(path.read_text())
    given["modalities"][0]["length"] = 1 << 30
    path.write_text(json.dumps(given))
    with pytest.raises(DataError, match="bytes to hold in memory"):
        Source(copied)


def test_shards_that_are_missing_damaged_or_of_another_split(copied):
    (copied / "checksums.json").unlink()  # or they would be found out by their sums
    train, valid = (next(copied.glob(f"*-{split}.array_record*")) for split in ("train", "valid"))
    whole = train.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 1
    train.write_bytes(flipped)
    with pytest.raises(DataError, match=r"record 0 of train: found .*prepare the source again"):
        Source(copied).split("train")
    train.write_bytes(valid.read_bytes())
    with pytest.raises(DataError, match="train: found 3 records, expected 6"):
        Source(copied).split("train")
    train.write_bytes(b"")
    with pytest.raises(DataError, match="train: found "):
        Source(copied).split("train")
    train.rename(train.with_name(train.name.replace("of-00001", "of-00002")))
    with pytest.raises(DataError, match="expected all shards of the split"):
        Source(copied).split("train")
    assert len(Source(copied).split("valid")) == 3


def test_objects_behind_a_header_ask_for_no_memory(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(npy((), "'|O'", b"cbuiltins\nbytes\n(J\x00\x00\x00\x40tR."))
    with pytest.raises(DataError, match="bytes may not be made of"):
        load_npy_object(path)
