import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import ModelConfig
from sft_jax.interop.reference_weights import sft_from_reference
from sft_jax.models.sft import SparseFusionTransformer
from sft_jax.types import DataError, ModalitySpec

VECTORS = Path(__file__).parent.parent / "reference_vectors"
MODALITIES = ("rgb", "spec", "text")
POOLS = ("attn_topk", "max", "avg")
TOLERANCE = 2e-5
# Compiling takes most of the time here, so what only makes the result faster is left out.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def recorded(pool):
    with np.load(VECTORS / f"sft_{pool}.npz") as arrays:
        return dict(arrays)


def part(pool, prefix):
    """Arrays of one part of a recording, by the reference's names."""
    arrays = recorded(pool)
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def depths(meta):
    return {
        "num_heads": meta["num_heads"],
        "num_pre_layers": meta["n_layers_pre_fusion"],
        "num_post_layers": meta["n_layers_post_fusion"],
    }


def convert(pool, prefix="param/"):
    return sft_from_reference(
        part(pool, prefix), MODALITIES, **depths(json.loads(str(recorded(pool)["meta"])))
    )


def build(pool, implementation):
    meta = json.loads(str(recorded(pool)["meta"]))
    specs = tuple(
        ModalitySpec(
            name=name,
            length=meta["lengths"][i],
            feature_dim=meta["feature_dims"][i],
            pool=pool,
            **({"k": meta["pool_k"]} if pool == "attn_topk" else {"window": meta["kernel"][i]}),
        )
        for i, name in enumerate(MODALITIES)
    )
    config = ModelConfig(
        preset="paper",
        num_classes=meta["num_classes"],
        embed_dim=meta["embed_dim"],
        implementation=implementation,
        **depths(meta),
    )
    return SparseFusionTransformer(specs, config)


def close(given, expected, what):
    difference = np.abs(np.asarray(given) - expected).max()
    assert difference <= TOLERANCE, f"{what}: off by {difference}"


@pytest.mark.parametrize("implementation", ["xla", "streamed"])
@pytest.mark.parametrize("pool", POOLS)
def test_recorded_numbers(pool, implementation):
    arrays, model = recorded(pool), build(pool, implementation)
    inputs = {name: jnp.asarray(arrays[f"input/{name}"]) for name in MODALITIES}
    mask = {name: jnp.ones(x.shape[:2], bool) for name, x in inputs.items()}
    label = jnp.asarray(arrays["label"], jnp.int32)
    params = jax.tree.map(jnp.asarray, convert(pool))

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(params):
        out = model.apply({"params": params}, inputs, mask)
        log_probability = jax.nn.log_softmax(out.logits)
        return -jnp.take_along_axis(log_probability, label[:, None], axis=1).mean(), out

    (loss, out), grads = step(params)
    close(out.logits, arrays["logits"], "logits")
    close(loss, arrays["loss"], "loss")
    for name in MODALITIES:
        assert out.pooled[name].mask.all()
        close(out.pooled[name].tokens, arrays[f"pooled/{name}"], name)
    expected = convert(pool, "grad/")
    paths = jax.tree.leaves_with_path(expected)
    # Every recorded gradient, and no weight without one.
    assert jax.tree.structure(expected) == jax.tree.structure(grads)
    assert sum(leaf.size for _, leaf in paths) == sum(
        leaf.size for leaf in part(pool, "grad/").values()
    )
    for (path, leaf), grad in zip(paths, jax.tree.leaves(grads), strict=True):
        assert grad.shape == leaf.shape
        close(grad, leaf, jax.tree_util.keystr(path))
    # The recording can tell: gradients are not all tiny.
    assert max(np.abs(leaf).max() for _, leaf in paths) > 100 * TOLERANCE


def test_the_converted_tree_is_the_model_s_own():
    model = build("max", "xla")
    arrays = recorded("max")
    inputs = {name: jnp.asarray(arrays[f"input/{name}"]) for name in MODALITIES}
    mask = {name: jnp.ones(x.shape[:2], bool) for name, x in inputs.items()}
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs, mask)["params"]
    converted = convert("max")
    assert jax.tree.structure(converted) == jax.tree.structure(shapes)
    for leaf, shape in zip(jax.tree.leaves(converted), jax.tree.leaves(shapes), strict=True):
        assert leaf.shape == shape.shape


def convert_changed(remove=(), add=(), **changes):
    state = part("max", "param/")
    state = {k: v for k, v in state.items() if k not in remove}
    state |= {name: np.zeros(1, np.float32) for name in add}
    meta = depths(json.loads(str(recorded("max")["meta"])))
    return sft_from_reference(state, MODALITIES, **{**meta, **changes})


@pytest.mark.parametrize(
    "missing",
    [
        "rgb_tokenizer.cls_token",
        "spec_tokenizer.proj.weight",
        "network.attns_text.1.out_proj.bias",
        "network.attns_text.0.in_proj_bias",
        "network.attns_fused.1.in_proj_bias",
        "network.attns_fused.2.out_proj.weight",
        "network.mlps_fused.1.0.weight",
        "network.sparse_attn.1.k_proj.weight",
        "network.sparse_attn.2.q_proj.bias",
        "network.classifier.1.weight",
    ],
)
def test_a_missing_name_and_one_left_over_are_both_listed(missing):
    with pytest.raises(DataError) as caught:
        convert_changed(remove=(missing,), add=("network.extra",))
    words = (f"missing ['{missing}']", "left over ['network.extra']", "expected", "depths")
    assert [word for word in words if word not in str(caught.value)] == []


def test_wrong_depths_are_found():
    with pytest.raises(DataError, match=r"missing \[\], left over \['network.attns_fused.2."):
        convert_changed(num_post_layers=2)
    with pytest.raises(DataError, match=r"missing \['network.attns_fused.3.*left over \[\]"):
        convert_changed(num_post_layers=4)
    with pytest.raises(DataError, match=r"missing \['network.attns_rgb.2."):
        convert_changed(num_pre_layers=3)


def test_a_model_without_fused_layers_converts():
    fused = [name for name in part("max", "param/") if "_fused." in name]
    assert fused
    params = convert_changed(remove=fused, num_post_layers=0)
    assert set(params) == {"head", *(f"encoder_{name}" for name in MODALITIES)}
