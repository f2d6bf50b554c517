"""Checkpoints of PyTorch: what `torch.save` wrote, and what strangers make of it."""

import collections
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch_writer as writer

from sft_jax.files import torch_files
from sft_jax.files.torch_files import read_torch
from sft_jax.interop.weights.state_dict import read_state
from sft_jax.types import DataError

# Written by PyTorch 2.14 of values that are known: see `test_every_kind_of_tensor`.
RECORDED = Path(__file__).with_name("recorded_by_torch.pt")
KINDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")


def same(got, expected, dtype="float32"):
    np.testing.assert_array_equal(got.astype(np.float64), np.array(expected, np.float64))
    assert (got.shape, got.dtype) == (np.shape(expected), np.dtype(getattr(jnp, dtype)))


def test_every_kind_of_tensor():
    found = read_torch(RECORDED)
    assert (found["epoch"], found["size"]) == (3, (2, 3))
    state = found["state_dict"]
    assert isinstance(state, collections.OrderedDict)
    assert list(state)[:4] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    same(state["0.weight"], [[0, 0.25, 0.5], [0.75, 1, 1.25]])
    same(state["1.num_batches_tracked"], 0, "int64")
    numbers = np.arange(12).reshape(3, 4)
    for got, expected in zip(
        found["views"],
        (numbers, numbers.T[1:], numbers[1, 2:], np.zeros((2, 2))),
        strict=True,
    ):
        same(got, expected)
    for name in KINDS:
        same(found["kinds"][name], [0, 1, 2], name)
    assert found["kinds"]["bool"].tolist() == [False, True, True]
    same(found["parameter"], 1.5)
    same(found["empty"], np.zeros((0, 3)))


def test_the_writer_of_these_tests_writes_the_same(tmp_path):
    """Of what both can write; so what is refused below is refused for what it is."""
    found = read_torch(RECORDED)
    content = {"epoch": 3, "state_dict": collections.OrderedDict(found["state_dict"])}
    again = read_torch(writer.save(content, tmp_path / "again.pt"))
    assert list(again) == list(content)
    assert list(again["state_dict"]) == list(content["state_dict"])
    for name, array in content["state_dict"].items():
        same(again["state_dict"][name], array, array.dtype.name)


def test_torch_reads_it_alike(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra 'torch' is optional and not installed")
    ours, theirs = read_torch(RECORDED), torch.load(RECORDED, weights_only=True)
    for name, tensor in theirs["state_dict"].items():
        np.testing.assert_array_equal(ours["state_dict"][name], tensor.numpy())
    for got, tensor in zip(ours["views"], theirs["views"], strict=True):
        np.testing.assert_array_equal(got, tensor.numpy())
    legacy = tmp_path / "old.pt"
    torch.save(theirs["state_dict"], legacy, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="found no zip archive"):
        read_torch(legacy)


def test_views_share_memory_and_cannot_be_written_to(tmp_path):
    whole, transposed, *_ = read_torch(RECORDED)["views"]
    assert np.shares_memory(whole, transposed)
    with pytest.raises(ValueError, match="read-only"):
        whole[0, 0] = 1


def test_what_checkpoints_hold_beside_tensors(tmp_path):
    """As schedules and optimizers do, whose state lies beside the weights."""
    content = {
        "milestones": collections.Counter([3, 5, 5]),
        "device": writer.Calls(writer.DEVICE, "cuda", 1),
        "dtype": writer.INT64,
        "parameter": writer.Calls(writer.WITH_STATE, np.zeros(2), True, {}, {"mine": 3}),
        "betas": (0.9, 0.999),
    }
    found = read_torch(writer.save(content, tmp_path / "x.pt"))
    assert found.pop("parameter").tolist() == [0, 0]
    assert found == {
        **{"milestones": {3: 1, 5: 2}, "device": "cuda:1", "dtype": "torch.int64"},
        "betas": (0.9, 0.999),
    }


# --- what strangers write


def refused(path, words):
    with pytest.raises(DataError, match=rf"(?s)^{path}: .*{words}"):
        read_torch(path)


def tensor(storage, offset=0, size=(2,), stride=(1,), **metadata):
    others = (metadata,) if metadata else ()
    return writer.Calls(writer.REBUILD, storage, offset, size, stride, False, {}, *others)


THREE = writer.Storage("float32", "0", 3)
LARGE = 2**40


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tensor(THREE, offset=2), "number 3 of 3"),
        (tensor(THREE, offset=3, size=(), stride=()), "number 3 of 3"),
        (tensor(THREE, size=(4,)), "number 3 of 3"),
        (tensor(THREE, size=(3, 2), stride=(1, 1)), "number 3 of 3"),
        # numpy counts bytes in 64 bits: 4 times 2**60 steps of 4 bytes each would be none.
        (tensor(THREE, size=(5,), stride=(2**60,)), f"number {2**62} of 3"),
        (tensor(THREE, size=(2**19 + 1,), stride=(2**43,)), f"number {2**62} of 3"),
        (tensor(THREE, size=(2,) * 9, stride=(2**59,) * 8 + (1,)), f"number {2**62 + 1} of 3"),
        (tensor(THREE, offset=2**64), "may not be of"),
        (tensor(THREE, size=(2**64,) * 2, stride=(0, 0)), "may not be of"),
        (tensor(THREE, size=(2**40, 0), stride=(1, 1)), "an empty array of float32 may not"),
        (tensor(THREE, offset=-1), "may not be of"),
        (tensor(THREE, stride=(-1,)), "may not be of"),
        (tensor(THREE, size=(2, 1)), "may not be of"),
        (tensor(THREE, size=(1,) * 40, stride=(1,) * 40), "may not be of"),
        (tensor(THREE, size=(LARGE,), stride=(0,)), "too much memory one by one"),
        (tensor(THREE, size=(2.0,)), "may not be of"),
        (tensor(THREE, size=b"12", stride=b"11"), "may not be of b'12'"),
        (tensor(THREE, neg=True), "a negated or conjugated view; resolve it and save again"),
        (tensor([1.0, 2.0]), "a tensor may not be made of a list"),
        (writer.Calls(writer.PARAMETER, [1.0]), "a parameter may not be made of a list"),
        (writer.Calls(writer.SIZE, ("x",)), "may not be of a tuple"),
        (writer.Storage("float32", "0", 4), "4 numbers of float32 in place of 3 of float32"),
        (writer.Storage("float64", "0", 3), "buffer size must be a multiple of element size"),
        ([THREE, writer.Storage("float16", "0", 6)], "6 numbers of float16 in place of 3 of float"),
        (writer.Storage("float32", "7", 3), "no item named 'weights/data/7'"),
        (writer.Storage("float32", "../data.pkl", 3), "no item named"),
        (writer.Calls(writer.STORAGES["float32"], LARGE), "not callable"),
        (writer.Calls(bytearray, LARGE), "a bytearray may not be made of"),
        (
            writer.Calls(print, "code"),
            r"asks for __builtin__.print, .*nothing of it was run.*save model.state_dict\(\) alone",
        ),
        (writer.Calls(getattr, THREE, "made"), "asks for __builtin__.getattr"),
    ],
)
def test_what_a_pickle_may_not_ask_for(tmp_path, capsys, content, words):
    stream, _ = writer.dumps(content)
    refused(writer.write(tmp_path / "x.pt", stream, [np.arange(3, dtype="f4").tobytes()]), words)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("reference", ["storage", ("storage", 1), ("module", 1, "0", "cpu", 3)])
def test_references_to_anything_but_storages(tmp_path, reference):
    strange = writer.Storage("float32", "0", 3)
    strange.reference = reference
    stream, _ = writer.dumps([strange])
    refused(writer.write(tmp_path / "x.pt", stream, [bytes(12)]), "a reference to")


@pytest.mark.parametrize("key", ["kind", "name"])
def test_references_to_storages_of_what_is_no_storage(tmp_path, key):
    strange = writer.Storage("float32", "0", 3)
    _, kind, _, *rest = strange.reference
    strange.reference = ("storage", *((4, "0") if key == "kind" else (kind, 0)), *rest)
    stream, _ = writer.dumps([strange])
    refused(writer.write(tmp_path / "x.pt", stream, [bytes(12)]), "a storage of .* under")


BUILD = pickle.EMPTY_DICT + pickle.BUILD + pickle.STOP


@pytest.mark.parametrize("kind", ["_Tensor", "_Storage", "_StorageType"])
def test_nothing_may_be_set_on_what_stands_for_tensors(tmp_path, kind):
    made = {"_Tensor": tensor(THREE), "_Storage": THREE, "_StorageType": writer.STORAGES["float32"]}
    stream, _ = writer.dumps(made[kind])
    path = writer.write(tmp_path / "x.pt", stream[:-1] + BUILD, [bytes(12)])
    refused(path, f"a {kind} may not be given a dict")


def test_all_views_of_one_storage_count(tmp_path, monkeypatch):
    """Each takes its own memory once it becomes a parameter."""
    numbers = writer.Storage("float32", "0", 1 << 18)
    stream, _ = writer.dumps([tensor(numbers, size=(1 << 18,)) for _ in range(16)])
    path = writer.write(tmp_path / "x.pt", stream, [bytes(1 << 20)])
    assert len(read_torch(path)) == 16
    limit = 16 << 20  # of the numbers themselves, and 16 copies
    monkeypatch.setattr(torch_files, "memory_limit", lambda: limit)
    refused(path, "tensors that would take too much memory one by one")
    monkeypatch.undo()
    stream, _ = writer.dumps([tensor(numbers, size=(1 << 18,)) for _ in range(19)])
    path = writer.write(tmp_path / "more.pt", stream, [bytes(1 << 20)])
    refused(path, "tensors that would take too much memory one by one")


def test_archives_that_torch_does_not_write(tmp_path):
    stream, raw = writer.dumps({"a": np.zeros(1 << 16)})
    packed = writer.write(tmp_path / "packed.pt", stream, raw, zipfile.ZIP_DEFLATED)
    refused(packed, "compressed, which torch.save does not do")
    refused(writer.write(tmp_path / "big.pt", stream, raw, order=b"big"), "another byte order")
    with zipfile.ZipFile(tmp_path / "none.pt", "w") as archive:
        archive.writestr("weights/data/0", raw[0])
    refused(tmp_path / "none.pt", "0 pickles in the archive, expected one")
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        archive.writestr("a/data.pkl", stream)
        archive.writestr("b/data.pkl", stream)
    refused(tmp_path / "two.pt", "2 pickles in the archive, expected one")
    (tmp_path / "text.pt").write_text("not a zip")
    refused(tmp_path / "text.pt", "no zip archive, .*since PyTorch 1.6; .*save it again")


def change_entry(path, name, offset, value):
    """Writes four bytes into what the table at an archive's end says of a member."""
    changed = bytearray(path.read_bytes())
    start = changed.rindex(name.encode()) - 46 + offset
    changed[start : start + 4] = value.to_bytes(4, "little")
    path.write_bytes(changed)


@pytest.mark.parametrize("field", [20, 24], ids=["in the file", "unpacked"])
def test_a_member_that_claims_more_than_the_file_is_refused_before_it_is_read(tmp_path, field):
    stream, raw = writer.dumps({"a": np.zeros(8)})
    path = writer.write(tmp_path / "x.pt", stream, raw)
    change_entry(path, "weights/data/0", field, 2**31)
    refused(path, rf"weights/data/0: .*{2**31}")
    change_entry(path, "weights/data/0", 44 - field, 2**31)
    refused(path, r"parts of \d+ bytes in a file of")


def test_members_that_lie_upon_each_other_count_as_many(tmp_path):
    """Each of them is in the file, but not all of them."""
    stream, raw = writer.dumps({"a": np.zeros(1 << 12)})
    path = writer.write(tmp_path / "x.pt", stream, [raw[0], b"", b""])
    for name in ("weights/data/1", "weights/data/2"):
        for field, value in ((20, 1 << 15), (24, 1 << 15), (42, 0)):
            change_entry(path, name, field, value)
    refused(path, r"parts of \d+ bytes in a file of")


def test_what_would_not_fit_is_refused(tmp_path, monkeypatch):
    stream, raw = writer.dumps({"a": np.zeros(1 << 12)})
    path = writer.write(tmp_path / "x.pt", stream, raw)
    monkeypatch.setattr(torch_files, "memory_limit", lambda: 1 << 15)
    refused(path, "bytes to hold in memory, which is more than there are")


def test_attributes_from_the_stream_are_left_out(tmp_path):
    """An `items` of its own would be asked instead of the weights."""

    class Set(collections.OrderedDict):
        def __reduce__(self):
            return collections.OrderedDict, (), {"items": 3, "get": 5}, None, iter(self.items())

    path = writer.save(Set(a=np.ones(2)), tmp_path / "x.pt")
    assert read_state(path)["a"].tolist() == [1, 1]


def test_cut_and_flipped_files_are_named(tmp_path):
    whole = RECORDED.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.pt", "no zip archive")
    with zipfile.ZipFile(RECORDED) as archive:
        pickled = archive.getinfo("recorded_by_torch/data.pkl")
    flipped = bytearray(whole)
    flipped[pickled.header_offset + 200] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    refused(tmp_path / "flipped.pt", "Bad CRC-32")


def test_text_that_is_longer_than_the_file_is_refused_before_it_is_read(tmp_path):
    """Its length is said in 8 bytes, for which memory may be taken at once."""
    stream = b"\x80\x04\x8d" + LARGE.to_bytes(8, "little") + b"x."
    refused(writer.write(tmp_path / "x.pt", stream, []), "the file ends after")
