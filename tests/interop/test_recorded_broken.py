import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.interop.vectors import recorded
from sft_jax.interop.vectors.recorded import compare_folder
from sft_jax.types import DataError

VECTORS = Path(__file__).parent.parent / "reference_vectors"


def changed(folder, name, remove=(), **changes):
    """A recorded file with entries of `meta` or whole arrays removed or replaced."""
    arrays = recorded.read_arrays(VECTORS / "unimodal_text.npz")
    meta = json.loads(str(arrays["meta"]))
    for key in remove:
        (meta if key in meta else arrays).pop(key)
    for key, value in changes.items():
        (meta if key in meta else arrays)[key] = value
    if "meta" in arrays and "meta" not in changes:
        arrays["meta"] = np.array(json.dumps(meta))
    np.savez(folder / f"{name}.npz", **arrays)


BROKEN = {
    "no_meta": ({"remove": ["meta"]}, r"not a recording \(KeyError\('meta'\)\), expected entries"),
    "meta_text": ({"meta": np.array("{")}, "not a recording .*check that it is the right file"),
    "meta_list": ({"meta": np.array("[1]")}, "not a recording"),
    "no_width": ({"remove": ["embed_dim"]}, r"not a recording \(KeyError\('embed_dim'\)\)"),
    "no_kernel": ({"remove": ["kernel"]}, "not a recording"),
    "two_kernels": ({"kernel": [3, 8]}, "not a recording"),
    "two_lengths": ({"lengths": [12, 40]}, "not a recording"),
    "unknown": ({"model": "resnet_18"}, r"not a recording \(KeyError\('resnet'\)\)"),
    "unknown_pool": ({"model": "sft_median"}, "not a recording .*pool"),
    "other_model": ({"model": "mbt"}, "missing .*unexpected .*expected the names of a 'mbt' model"),
    "other_modality": ({"model": "unimodal_flow"}, "flow"),
    "mult_names": ({"model": "MulT", "input/extra": np.zeros((3, 4, 2))}, "not a recording"),
    "depth": ({"n_layers_post_fusion": 4}, r"missing \['network.attns_fused.3"),
    "heads": ({"num_heads": 4, "embed_dim": 24}, "param/: .*has shape.*expected.*sizes in meta"),
    "classes": ({"num_classes": 9}, r"\['head'\].* has shape .*expected .*sizes in meta"),
    "lengths": ({"lengths": [12, 40, 9]}, r"input/text: found shape \(3, 10, 6\), expected \(3, 9"),
    "rank": ({"input/text": np.zeros((3, 10))}, "not a recording"),
    "label": ({"label": np.zeros(4)}, r"input/rgb: found shape \(3, 12, 7\), expected \(4, 12, 7"),
    "no_label": ({"remove": ["label"]}, "label: not found, expected it with logits, meta"),
    "no_logits": ({"remove": ["logits"]}, "found no results, expected logits, loss"),
    "logits": ({"logits": np.zeros((3, 5))}, r"logits: found shape \(3, 5\), expected \(3, 4\)"),
    "grad": ({"grad/network.extra.bias": np.zeros(4)}, r"grad/: found \['network.extra.bias'\]"),
    "unread": ({"surplus": np.zeros(4)}, r"found \['surplus'\], expected logits, loss"),
    "deep": ({"meta": np.array("[" * 10**5)}, "not a recording"),
    "endless": ({"n_layers_post_fusion": 10**9}, "not a recording .*n_layers_post_fusion: found"),
    "too_deep": ({"n_layers_post_fusion": 900}, r"found \d+ arrays for 2 and 900 layers"),
    "model_number": ({"model": 3}, "not a recording .*model: found 3, expected text"),
    "text": ({"logits": np.full((3, 4), "x")}, "logits: found <U1, expected numbers"),
    "bytes": (
        {"input/text": np.full((3, 10, 6), b"\x84")},
        r"input/text: found \|S1, expected numb",
    ),
    "classes_out": ({"label": np.array([0, 1, 9])}, "label: found .*outside of 0 to 3"),
    "weights_text": ({"param/network.classifier.1.bias": np.full(4, "x")}, "found <U1, expected"),
    "no_layer": ({"layer99/logits": np.zeros((3, 4))}, "layer99/logits: found with 5 blocks"),
    "no_index": ({"lam": np.ones((3, 3)), "layer0/logits": np.zeros((3, 4))}, "index: not found"),
}


def test_broken_files_are_named_and_the_others_compared(tmp_path):
    for name, (change, _) in BROKEN.items():
        changed(tmp_path, name, **change)
    whole = (VECTORS / "unimodal_text.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-100])
    np.savez(tmp_path / "nothing.npz")
    shutil.copy(VECTORS / "unimodal_rgb.npz", tmp_path / "whole.npz")
    found = dict(compare_folder(tmp_path))
    assert [d.agrees for d in found.pop("whole.npz")] == [True]
    assert set(found) == {f"{name}.npz" for name in (*BROKEN, "cut", "nothing")}
    words = {name: pattern for name, (_, pattern) in BROKEN.items()}
    words |= {"cut": "found no readable .npz", "nothing": r"metrics file: found \[\]"}
    for name, pattern in words.items():
        error = found[f"{name}.npz"]
        assert isinstance(error, DataError), (name, error)
        with pytest.raises(DataError, match=pattern):
            raise error


def test_a_folder_without_recordings_is_named(tmp_path):
    with pytest.raises(DataError, match=r"found no .npz file, expected a folder of recordings"):
        next(compare_folder(tmp_path))
    with pytest.raises(DataError, match=r"none: found no .npz file.*give the folder"):
        next(compare_folder(tmp_path / "none"))
    with pytest.raises(DataError, match=r"found no .npz file"):
        next(compare_folder(VECTORS / "metrics.npz"))


def test_every_section_is_read_whatever_else_is_there(tmp_path):
    """Wrong logits beside a training, and depths that do not begin at 0, are not passed over."""
    with np.load(VECTORS / "sft_max_train5.npz") as arrays:
        np.savez(tmp_path / "training.npz", **dict(arrays), logits=np.zeros((3, 4), np.float32))
    with np.load(VECTORS / "sft_max_mixup.npz") as arrays:
        kept = {name: x for name, x in arrays.items() if not name.startswith("layer0/")}
        kept["layer3/loss"] = kept["layer3/loss"] + 1
        np.savez(tmp_path / "mixup.npz", **kept)
    found = dict(compare_folder(tmp_path))
    failed = {name: [d.quantity for d in ds if not d.agrees] for name, ds in found.items()}
    assert failed == {"training.npz": ["logits"], "mixup.npz": ["layer3/loss"]}
    assert len(found["mixup.npz"]) == 8


def test_other_precisions_and_a_window_longer_than_a_modality(tmp_path):
    """Float64 is computed in float32, bfloat16 read for what it is; late fusion has no window."""
    with np.load(VECTORS / "latefuse.npz") as arrays:
        arrays = dict(arrays)
    meta = json.loads(str(arrays["meta"]))
    wide = {
        name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in arrays.items()
    }
    np.savez(tmp_path / "wide.npz", **wide)
    long = json.dumps({**meta, "kernel": [30, 80, 20]})
    np.savez(tmp_path / "window.npz", **{**arrays, "meta": np.array(long)})
    rounded = {name: x.astype(jnp.bfloat16) for name, x in arrays.items() if "tokenizer" in name}
    np.savez(tmp_path / "rounded.npz", **{**arrays, **rounded})
    found = {name: ds[0].largest for name, ds in compare_folder(tmp_path)}
    assert found["wide.npz"] < 2e-5
    assert found["window.npz"] < 2e-5
    assert 1e-5 < found["rounded.npz"] < 0.5
