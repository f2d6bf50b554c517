import dataclasses
import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_writer

from sft_jax.interop.vectors.recorded import Recording
from sft_jax.interop.weights.reference_weights import from_reference, to_reference
from sft_jax.interop.weights.state_dict import read_arrays, read_state
from sft_jax.types import DataError

VECTORS = Path(__file__).parent.parent / "reference_vectors"
FILES = sorted(path.stem for path in VECTORS.glob("*.npz") if path.stem != "metrics")
WITH_GRADIENTS = [
    f"sft_{pool}" for pool in ("attn", "attn_topk", "attn_wkmedoids", "avg", "max", "topk")
]
# One file of every set of names.
MODELS = ["MulT", "concat", "latefuse", "mbt", "sft_max"]
MODELS += [f"unimodal_{modality}" for modality in ("rgb", "spec", "text")]
NOTHING = "network.embed_positions._float_tensor"  # a buffer of MulT that nothing reads


@functools.cache
def recorded(name):
    path = VECTORS / f"{name}.npz"
    return Recording.of(path, read_arrays(path))


def state_of(name, prefix="param/"):
    """Weights or gradients of a recording, by the reference's names."""
    arrays = recorded(name).arrays
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def modalities_of(name):
    return [spec.name for spec in recorded(name).specs]


def convert(name, state=None, modalities=None, **changes):
    config = dataclasses.replace(recorded(name).config, **changes)
    state = state_of(name) if state is None else state
    return from_reference(state, config, modalities or modalities_of(name))


def convert_back(name, params, modalities=None, **changes):
    config = dataclasses.replace(recorded(name).config, **changes)
    return to_reference(params, config, modalities or modalities_of(name))


def unused(name):
    """Tokenizers of modalities that a unimodal model does not look at."""
    if not name.startswith("unimodal_"):
        return set()
    others = {"rgb", "spec", "text"} - {name.removeprefix("unimodal_")}
    prefixes = tuple(f"{other}_tokenizer." for other in others)
    return {key for key in state_of(name) if key.startswith(prefixes)}


def same_trees(given, expected):
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


# --- there and back


def test_every_recorded_model_is_here():
    assert set(MODELS) | set(WITH_GRADIENTS) | {"sft_max_mixup", "sft_max_train5"} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_there_and_back_is_the_identity(name):
    state = state_of(name)
    assert len(unused(name)) == (8 if name.startswith("unimodal") else 0)
    state = {key: value for key, value in state.items() if key not in unused(name)}
    back = convert_back(name, convert(name))
    assert set(back) == set(state)
    for key, value in state.items():
        if key == NOTHING:  # the reference never wrote to it: whatever memory held
            assert (back[key].shape, back[key].dtype) == (value.shape, value.dtype)
        else:
            np.testing.assert_array_equal(back[key], value, strict=True, err_msg=key)
    same_trees(convert(name, back), convert(name))


@pytest.mark.parametrize("name", MODELS)
def test_the_converted_tree_is_the_model_s_own(name):
    recording, params = recorded(name), convert(name)
    batch = recording.batch
    shapes = jax.eval_shape(
        recording.model.init, jax.random.key(0), batch["inputs"], batch["mask"]
    )["params"]
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    paths = jax.tree.leaves_with_path(params)
    for (path, leaf), shape in zip(paths, jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients_map_as_weights_do(name):
    grads, params = convert(name, state_of(name, "grad/")), convert(name)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    back = convert_back(name, grads)
    for key, value in state_of(name, "grad/").items():
        np.testing.assert_array_equal(back[key], value, strict=True, err_msg=key)
    # Every gradient lies on its own weight: the scalar product does not change.
    products = jax.tree.map(lambda p, g: float((p.astype(float) * g).sum()), params, grads)
    weights = state_of(name)
    expected = sum((weights[k].astype(float) * g).sum() for k, g in state_of(name, "grad/").items())
    assert sum(jax.tree.leaves(products)) == pytest.approx(expected, rel=1e-9)


def test_layouts_by_hand():
    """Width 20, 5 heads of 4: entry by entry where a weight must go."""
    state, params = state_of("sft_max"), convert("sft_max")
    attention = params["fusion"]["block"]["attention"]["attention"]
    packed = state["network.attns_fused.2.in_proj_weight"]
    assert packed.shape == (60, 20)
    for row, (part, head, entry) in {0: (0, 0, 0), 7: (0, 1, 3), 25: (1, 1, 1)}.items():
        np.testing.assert_array_equal(attention["qkv_kernel"][2][:, part, head, entry], packed[row])
        assert attention["qkv_bias"][2][part, head, entry] == pytest.approx(
            float(state["network.attns_fused.2.in_proj_bias"][row])
        )
    out = state["network.attns_fused.0.out_proj.weight"]
    np.testing.assert_array_equal(attention["out"]["kernel"][0][3, 2], out[:, 3 * 4 + 2])
    mlp = params["encoder_text"]["block_1"]["mlp"]
    np.testing.assert_array_equal(mlp["in"]["kernel"], state["network.mlps_text.1.1.weight"].T)
    np.testing.assert_array_equal(mlp["out"]["bias"], state["network.mlps_text.1.4.bias"])
    # The pooling blocks are numbered in the order of the modalities.
    own = params["encoder_spec"]["pooling"]["attention"]["attention"]["qkv_kernel"]
    key = state["network.sparse_attn.1.k_proj.weight"]
    np.testing.assert_array_equal(own[:, 1, 4, 0], key[16])


def packed(state, name):
    """`state` with query, key and value of one attention in one array."""
    state = dict(state)
    for kind in ("weight", "bias"):
        parts = [state.pop(f"{name}.{part}_proj.{kind}") for part in "qkv"]
        state[f"{name}.in_proj_{kind}"] = np.concatenate(parts)
    return state


def separate(state, name):
    state = dict(state)
    for kind in ("weight", "bias"):
        parts = np.split(state.pop(f"{name}.in_proj_{kind}"), 3)
        state |= {f"{name}.{p}_proj.{kind}": x for p, x in zip("qkv", parts, strict=True)}
    return state


def test_query_key_and_value_may_be_packed_or_not():
    state = state_of("sft_max")
    other = packed(state, "network.sparse_attn.1")
    for name in ("network.attns_rgb.0", "network.attns_fused.2"):
        other = separate(other, name)
    assert set(state) != set(other)
    same_trees(convert("sft_max", other), convert("sft_max"))
    # What comes back has the names of the reference's own attention classes.
    assert set(convert_back("sft_max", convert("sft_max", other))) == set(state)


def test_both_forms_at_once_are_refused():
    name = "network.attns_rgb.0"
    both = separate(state_of("sft_max"), name) | state_of("sft_max")
    with pytest.raises(DataError, match=rf"missing \[\], unexpected \['{name}.k_proj.bias'"):
        convert("sft_max", both)


def test_half_of_the_other_form_is_refused():
    state = separate(state_of("mbt"), "network.attns_spec.1")
    state.pop("network.attns_spec.1.k_proj.weight")
    with pytest.raises(DataError, match=r"missing \['network.attns_spec.1.k_proj.weight'\]"):
        convert("mbt", state)


# --- names and shapes that do not fit


@pytest.mark.parametrize("name", MODELS)
def test_every_missing_name_and_one_left_over_are_both_listed(name):
    whole = state_of(name)
    optional = unused(name) | {NOTHING}
    for missing in sorted(set(whole) - optional):
        state = {key: value for key, value in whole.items() if key != missing}
        with pytest.raises(DataError) as caught:
            convert(name, {**state, "network.extra": np.zeros(1)})
        words = (f"missing ['{missing}']", "unexpected ['network.extra']", "expected", "depths")
        assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["MulT", "unimodal_rgb", "unimodal_text"])
def test_what_a_model_does_not_read_may_be_absent(name):
    optional = unused(name) | {NOTHING}
    rest = {key: value for key, value in state_of(name).items() if key not in optional}
    assert len(rest) < len(state_of(name))
    same_trees(convert(name, rest), convert(name))


@pytest.mark.parametrize("setting", ["num_pre_layers", "num_post_layers"])
@pytest.mark.parametrize("name", MODELS)
def test_wrong_depths_are_found(name, setting):
    depth = getattr(recorded(name).config, setting)
    with pytest.raises(DataError, match=r"missing \['network.*unexpected \[\]"):
        convert(name, **{setting: depth + 1})
    with pytest.raises(DataError, match=r"missing \[\], unexpected \['network"):
        convert(name, **{setting: depth - 1})


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_head_count_is_found(name):
    with pytest.raises(DataError, match=r"network.* does not split into 3 heads; set num_heads"):
        convert(name, embed_dim=21, num_heads=3)


@pytest.mark.parametrize("name", ["concat", "latefuse", "mbt", "sft_max"])
def test_wrong_modalities_are_found(name):
    with pytest.raises(DataError) as caught:
        convert(name, modalities=["rgb", "spec", "flow"])
    message = str(caught.value)
    found, extra = re.search(r"missing (\[.*\]), unexpected (\[.*\]);", message).groups()
    assert "'flow_tokenizer.cls_token'" in found
    assert "'text_tokenizer.cls_token'" in extra
    assert "modalities ['rgb', 'spec', 'flow']" in message


def test_modalities_that_mult_and_unimodal_cannot_have():
    with pytest.raises(
        DataError, match=r"given \['rgb', 'spec'\], expected three .* text, audio and video"
    ):
        convert("MulT", modalities=["rgb", "spec"])
    with pytest.raises(DataError, match=r"missing \['flow_tokenizer.*unexpected \[.*'text_tok"):
        convert("MulT", modalities=["flow", "spec", "rgb"])
    options = dataclasses.replace(recorded("unimodal_rgb").config.options, modality="flow")
    with pytest.raises(DataError, match=r"missing \['flow_tokenizer.cls_token'"):
        convert("unimodal_rgb", options=options)


def test_a_model_without_fused_layers_converts():
    state = {k: v for k, v in state_of("sft_max").items() if "_fused." not in k}
    params = convert("sft_max", state, num_post_layers=0)
    assert set(params) == {"head", "encoder_rgb", "encoder_spec", "encoder_text"}
    assert set(convert_back("sft_max", params, num_post_layers=0)) == set(state)


# --- parameters of another model


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_another_model_are_refused(name):
    for other in MODELS:
        if other != name:
            with pytest.raises(DataError, match=r"params: .* expected the .*; c"):
                convert_back(name, convert(other))


@pytest.mark.parametrize("setting", ["num_pre_layers", "num_post_layers"])
@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_other_depths_are_refused(name, setting):
    """Not cut to the layers that are asked for: a state dict of half a model would load."""
    depth = getattr(recorded(name).config, setting)
    for other in (depth - 1, depth + 1):
        with pytest.raises(DataError, match=r"params: .*(has \d layers|not found|which the ref)"):
            convert_back(name, convert(name), **{setting: other})


def test_layers_are_counted():
    with pytest.raises(DataError, match=r"fusion/block/\S* has 3 layers, expected 2; set the de"):
        convert_back("sft_max", convert("sft_max"), num_post_layers=2)


def test_parameters_of_another_head_count_are_refused():
    with pytest.raises(DataError, match=r"qkv_kernel has 5 heads, expected 4; set num_heads"):
        convert_back("sft_max", convert("sft_max"), num_heads=4)


def test_parameters_that_the_reference_does_not_have_are_refused():
    params = convert("sft_max")
    norm = {"scale": np.ones((3, 20)), "bias": np.zeros((3, 20))}
    params["fusion"]["block"]["attention"]["norm"] = {"LayerNorm_0": norm}
    with pytest.raises(DataError) as caught:
        convert_back("sft_max", params)
    words = ("fusion/block/attention/norm/LayerNorm_0/scale", "does not have", "paper preset")
    assert [word for word in words if word not in str(caught.value)] == []


# --- files


def test_an_npz_may_have_its_names_as_recorded_or_bare(tmp_path):
    expected = convert("concat")
    same_trees(convert("concat", VECTORS / "concat.npz"), expected)
    same_trees(convert("concat", str(VECTORS / "concat.npz")), expected)
    np.savez(tmp_path / "bare.npz", **state_of("concat"))
    same_trees(convert("concat", tmp_path / "bare.npz"), expected)
    wrapped = {f"module.{name}": value for name, value in state_of("concat").items()}
    np.savez(tmp_path / "module.npz", **wrapped)
    same_trees(convert("concat", tmp_path / "module.npz"), expected)
    both = {f"param/{name}": value for name, value in wrapped.items()}
    np.savez_compressed(tmp_path / "both.npz", **both, label=np.arange(3))
    assert set(read_state(tmp_path / "both.npz")) == set(state_of("concat"))


def test_files_that_hold_no_state_dict_are_named(tmp_path):
    whole = (VECTORS / "concat.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    # One byte of an array is another.
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("not a zip")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    for name in ("cut", "flipped", "empty", "text", "single", "pickled"):
        path = tmp_path / f"{name}.npz"
        with pytest.raises(DataError, match=r"found no readable .npz .*expected arrays.*res"):
            read_state(path)
    with pytest.raises(DataError, match=r"none.npz: not found, expected a state dict as .npz"):
        read_state(tmp_path / "none.npz")
    (tmp_path / "weights.bin").write_bytes(whole)
    with pytest.raises(DataError, match=r"found ending '.bin', expected .npz, .pth or .pt"):
        read_state(tmp_path / "weights.bin")


@pytest.mark.parametrize("ending", [".pth", ".pt"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_a_checkpoint_may_keep_its_weights_under_a_key(tmp_path, wrap, ending):
    tensors = {f"module.{name}": value.astype(float) for name, value in state_of("concat").items()}
    content = {wrap: tensors, "epoch": 3} if wrap else tensors
    path = torch_writer.save(content, tmp_path / f"weights{ending}")
    same_trees(convert("concat", path), convert("concat"))
    assert {value.dtype for value in read_state(path).values()} == {np.dtype(np.float32)}


def test_weights_of_bfloat16_become_float32(tmp_path):
    path = torch_writer.save({"a": torch_writer.bfloat16([1.5, -2])}, tmp_path / "weights.pt")
    (array,) = read_state(path).values()
    assert (array.dtype, array.tolist()) == (np.float32, [1.5, -2])


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, {1: np.zeros(2)}, np.zeros(2)]
)
def test_a_checkpoint_without_weights_is_named(tmp_path, content):
    path = torch_writer.save(content, tmp_path / "weights.pth")
    with pytest.raises(DataError, match=r"weights.pth: found no mapping .* save model.state_dict"):
        read_state(path)


def test_a_checkpoint_of_torch_itself(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra 'torch' is optional and not installed")
    state = {name: torch.from_numpy(value) for name, value in state_of("mbt").items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights.pth")
    same_trees(convert("mbt", tmp_path / "weights.pth"), convert("mbt"))
    torch.save({"model": object()}, tmp_path / "code.pt")
    with pytest.raises(DataError, match=r"asks for \w+.object, .*nothing of it was run"):
        read_state(tmp_path / "code.pt")
