import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import QUICK

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ConcatOptions, LateOptions, MbtOptions, UnimodalOptions
from sft_jax.config.run import Config, ModelConfig
from sft_jax.interop.vectors import recorded
from sft_jax.interop.vectors.recorded import (
    TOLERANCE,
    Difference,
    Recording,
    compare_folder,
    differences,
)
from sft_jax.interop.weights.reference_weights import to_reference
from sft_jax.models import registry
from sft_jax.models.mixup import Mixup

VECTORS = Path(__file__).parent.parent / "reference_vectors"
FILES = sorted(path.name for path in VECTORS.glob("*.npz"))


# --- the recorded files


@pytest.fixture(scope="module")
def compared():
    """Differences by file, computed once."""
    return functools.cache(lambda name: list(differences(VECTORS / name)))


@pytest.mark.parametrize("name", FILES)
def test_every_recorded_quantity_agrees(compared, name):
    found = compared(name)
    assert found
    for difference in found:
        assert difference.file == name
        assert difference.agrees, difference
        assert difference.largest <= TOLERANCE


SENTIMENT = ("mae", "corr", "acc7", "acc5", "f1", "acc2")
METRICS = {f"senti_expected/{m}" for m in ("top1", "top3", "mAP", "mAUC", "dprime", "f1", "acc2")}
METRICS |= {f"vgg_expected/{m}" for m in ("top1", "top5", "mAP", "mAUC", "dprime")}
METRICS |= {f"regression_expected_{x}_zero/{m}" for x in ("exclude", "include") for m in SENTIMENT}
OUTPUTS = {"logits", "loss", "pooled/rgb", "pooled/spec", "pooled/text", "130 gradients"}
QUANTITIES = {
    "metrics": METRICS,
    **{
        f"sft_{pool}": OUTPUTS
        for pool in ("attn", "attn_topk", "attn_wkmedoids", "avg", "max", "topk")
    },
    "sft_max_mixup": {f"layer{i}/{what}" for i in range(5) for what in ("logits", "loss")},
    "sft_max_train5": {"losses", "logits_after"},
    **{model: {"logits"} for model in ("MulT", "concat", "latefuse", "mbt")},
    **{f"unimodal_{modality}": {"logits"} for modality in ("rgb", "spec", "text")},
}


def test_nothing_that_is_recorded_is_left_out(compared):
    assert len(METRICS) == 24
    found = [(d.file, d.quantity) for name in FILES for d in compared(name)]
    assert len(found) == len(set(found)) == 79
    expected = {(f"{name}.npz", what) for name, whats in QUANTITIES.items() for what in whats}
    assert set(found) == expected
    # The shapes are those of the recordings: all five losses, every gradient, all three modalities.
    recording = read("sft_max")
    assert sum(1 for name in recording.arrays if name.startswith("grad/")) == 130
    assert read("sft_max_train5").arrays["losses"].shape == (5,)


def read(name):
    return Recording.of(VECTORS / f"{name}.npz", recorded.read_arrays(VECTORS / f"{name}.npz"))


def test_streamed_attention_agrees_with_the_recorded_gradients():
    recording = read("sft_attn")
    config = dataclasses.replace(recording.config, implementation="streamed")
    found = list(dataclasses.replace(recording, config=config).differences())
    assert {difference.quantity for difference in found} == OUTPUTS
    assert all(difference.agrees for difference in found), found


def test_the_tolerance_of_the_project_is_held_to():
    assert TOLERANCE == 2e-5
    assert Difference("a", "b", 2e-5).agrees
    assert not Difference("a", "b", 2.1e-5).agrees
    assert not Difference("a", "b", float("nan")).agrees


# --- recordings of other shapes

# Lengths, features, windows.
TWO = {"left": (9, 3, 2), "right_hand": (14, 2, 5)}
FOUR = {"d": (8, 2, 3), "c": (6, 5, 2), "b": (10, 1, 10), "a": (7, 3, 1)}
STREAMS = {"spec": (11, 4, 3), "rgb": (6, 2, 2), "text": (8, 3, 4)}


def size_of(pre, post, embed_dim=8, num_heads=2, num_classes=3):
    return {
        "num_pre_layers": pre,
        "num_post_layers": post,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "num_classes": num_classes,
    }


class Case:
    """A recording made by our own model, described twice: as a model, and as `meta`."""

    def __init__(self, kind, modalities, sizes, pool="max", pool_k=4, batch=2, **model):
        self.kind, self.batch_size = kind, batch
        counted = pool in ("attn_topk", "channel_topk", "attn_kmedoids")
        self.names = list(modalities)
        specs = [
            ModalitySpec(
                name=name,
                length=t,
                feature_dim=f,
                pool=pool,
                **({"k": min(pool_k, t)} if counted else {"window": window}),
            )
            for name, (t, f, window) in modalities.items()
        ]
        if kind == "MulT":  # as the reference joins its streams
            specs = [specs[self.names.index(name)] for name in ("text", "spec", "rgb")]
        self.specs = tuple(specs)
        self.config = ModelConfig(**sizes, **model)
        self.model = registry.build(Config(modalities=self.specs, model=self.config))
        lengths, features, windows = zip(*modalities.values(), strict=True)
        self.meta = {
            "batch": batch,
            "lengths": lengths,
            "feature_dims": features,
            "num_classes": sizes["num_classes"],
            "embed_dim": sizes["embed_dim"],
            "num_heads": sizes["num_heads"],
            "n_layers_pre_fusion": sizes["num_pre_layers"],
            "n_layers_post_fusion": sizes["num_post_layers"],
            "kernel": windows,
            "pool_k": pool_k,
            "model": kind,
        }
        self._draw(np.random.default_rng(len(kind)))

    def _draw(self, rng):
        b = self.batch_size
        shapes = {spec.name: (b, spec.length, spec.feature_dim) for spec in self.specs}
        self.inputs = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        self.mask = {k: jnp.ones(s[:2], bool) for k, s in shapes.items()}
        self.label = rng.integers(0, self.config.num_classes, b)
        tree = jax.eval_shape(self.model.init, jax.random.key(0), self.inputs, self.mask)["params"]
        self.params = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, jnp.float32), tree
        )

    def loss(self, params):
        out = self.model.apply({"params": params}, self.inputs, self.mask)
        picked = jax.nn.log_softmax(out.logits)[jnp.arange(self.batch_size), self.label]
        return -picked.mean(), out

    def named(self, tree, prefix):
        state = to_reference(tree, self.config, [spec.name for spec in self.specs])
        return {f"{prefix}{name}": np.asarray(value) for name, value in state.items()}

    def write(self, path, **results):
        np.savez(
            path,
            **self.named(self.params, "param/"),
            **{f"input/{name}": self.inputs[name] for name in self.names},
            label=self.label,
            meta=json.dumps(self.meta),
            **{name: np.asarray(value) for name, value in results.items()},
        )

    def outputs(self, pooled=True):
        loss, out = jax.jit(self.loss, compiler_options=QUICK)(self.params)
        results = {"logits": out.logits, "loss": loss}
        if pooled:
            results |= {f"pooled/{name}": x.tokens for name, x in out.pooled.items()}
        return results


@functools.cache
def case(name):
    late, mbt = LateOptions(duplicate_cls=True), MbtOptions()
    uni, joined = UnimodalOptions(modality="right_hand", window=2), ConcatOptions(window=3)
    return {
        # Without blocks before the pool; k is cut to the tokens there are.
        "sft_attn_topk": lambda: Case(
            "sft_attn_topk", TWO, size_of(0, 1, 12, 3, 5), pool="attn_topk", pool_k=11, batch=3
        ),
        "sft_attn": lambda: Case("sft_attn", FOUR, size_of(0, 4, 6, 1, 2), pool="attn_avg"),
        "sft_attn_wkmedoids": lambda: Case(
            "sft_attn_wkmedoids", TWO, size_of(3, 1), pool="attn_kmedoids", pool_k=3, batch=5
        ),
        "sft_topk": lambda: Case("sft_topk", TWO, size_of(0, 0), pool="channel_topk", pool_k=2),
        "unimodal_right_hand": lambda: Case(
            "unimodal_right_hand", TWO, size_of(3, 1), name="unimodal", options=uni
        ),
        "latefuse": lambda: Case(
            "latefuse", FOUR, size_of(0, 4, 4, 4, 7), name="late", options=late
        ),
        "concat": lambda: Case("concat", FOUR, size_of(1, 1), name="concat", options=joined),
        "mbt": lambda: Case("mbt", TWO, size_of(1, 4), name="mbt", options=mbt, batch=1),
        "MulT": lambda: Case("MulT", STREAMS, size_of(1, 1, 6, 3, 2), name="mult", batch=4),
    }[name]()


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder of recordings of all models, with gradients of one, and what was found in it."""
    folder = tmp_path_factory.mktemp("others")
    expected = {}
    names = ("sft_attn", "sft_attn_wkmedoids", "latefuse", "concat", "mbt", "MulT")
    for name in (*names, "unimodal_right_hand"):
        made, sft = case(name), name.startswith("sft_")
        results = made.outputs(pooled=sft)
        if not sft:
            del results["loss"]
        made.write(folder / f"{name}.npz", **results)
        expected[f"{name}.npz"] = set(results)
    return folder, expected, dict(compare_folder(folder))


def test_recordings_of_other_shapes_agree(others):
    _, expected, found = others
    assert {name: {d.quantity for d in outcome} for name, outcome in found.items()} == expected
    for outcome in found.values():
        assert all(difference.agrees for difference in outcome), outcome


def test_meta_is_read_as_the_model_that_made_the_recording(others):
    folder, expected, _ = others
    for name in expected:
        made = case(Path(name).stem)
        recording = Recording.of(folder / name, recorded.read_arrays(folder / name))
        assert recording.config == made.config
        assert recording.specs == made.specs or not name.startswith("sft_")
        assert [spec.name for spec in recording.specs] == [spec.name for spec in made.specs]
        jax.tree.map(np.testing.assert_array_equal, recording.params, made.params)


def test_a_recorded_training_of_another_length_agrees(tmp_path):
    made = Case("sft_avg_train3", TWO, size_of(0, 1), pool="avg")
    optimizer = optax.chain(optax.clip_by_global_norm(0.8), optax.adamw(1e-3, weight_decay=0.0))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        (loss, out), grads = jax.value_and_grad(made.loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, out.logits

    params, state, losses, logits = made.params, optimizer.init(made.params), [], None
    for _ in range(4):
        params, state, loss, logits = step(params, state)
        losses.append(loss)
    # The logits of the fourth step are those after three.
    made.write(tmp_path / "good.npz", losses=losses[:3], logits_after=logits)
    made.write(tmp_path / "wrong.npz", losses=losses[1:], logits_after=logits)
    found = dict(compare_folder(tmp_path))
    assert [(d.quantity, d.agrees) for d in found["good.npz"]] == [
        ("losses", True),
        ("logits_after", True),
    ]
    assert [(d.quantity, d.agrees) for d in found["wrong.npz"]] == [
        ("losses", False),
        ("logits_after", True),
    ]


def test_recorded_mixup_of_another_depth_agrees(tmp_path):
    made = Case("sft_max_mixup", TWO, size_of(1, 1), batch=3)
    rng = np.random.default_rng(0)
    lam, index = rng.uniform(size=(2, 3)).astype(np.float32), np.array([2, 0, 1])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(depth):
        mixup = Mixup(depth=depth, lam=jnp.asarray(lam), partner=jnp.asarray(index, jnp.int32))
        variables = {"params": made.params}
        return made.model.apply(variables, made.inputs, made.mask, None, mixup).logits

    results = {"lam": lam, "index": index}
    for depth in range(2):
        logits = np.asarray(run(jnp.int32(depth)), np.float64)
        losses = np.log(np.exp(logits).sum(axis=1, keepdims=True)) - logits
        own, other = losses[np.arange(3), made.label], losses[np.arange(3), made.label[index]]
        share = lam.mean(axis=0)
        results[f"layer{depth}/logits"] = logits
        results[f"layer{depth}/loss"] = (share * own + (1 - share) * other).mean()
    made.write(tmp_path / "sft_max_mixup.npz", **results)
    (found,) = dict(compare_folder(tmp_path)).values()
    expected = ["layer0/logits", "layer0/loss", "layer1/logits", "layer1/loss"]
    assert [difference.quantity for difference in found] == expected
    assert all(difference.agrees for difference in found), found


# --- what is disturbed is found


@pytest.fixture(scope="module")
def with_gradients():
    """A model with gradients, and all that can be recorded of it."""
    made = case("sft_attn_topk")
    step = jax.jit(jax.value_and_grad(made.loss, has_aux=True), compiler_options=QUICK)
    (loss, out), grads = step(made.params)
    results = {"logits": out.logits, "loss": loss}
    results |= {f"pooled/{name}": x.tokens for name, x in out.pooled.items()}
    return made, {k: np.array(v) for k, v in results.items()}, made.named(grads, "grad/")


def failing(folder):
    """`{file: quantities that disagree}`."""
    return {
        name: {difference.quantity for difference in outcome if not difference.agrees}
        for name, outcome in compare_folder(folder)
    }


def test_what_is_disturbed_is_what_fails(with_gradients, tmp_path):
    made, results, grads = with_gradients
    made.write(tmp_path / "whole.npz", **results, **grads)
    wrong = dict(grads)
    name = "grad/network.sparse_attn.1.k_proj.weight"
    wrong[name] = wrong[name].copy()
    wrong[name][3, 7] += 1e-4
    made.write(tmp_path / "gradient.npz", **results, **wrong)
    logits, pooled = results["logits"].copy(), results["pooled/right_hand"].copy()
    logits[1, 2] = np.nan
    pooled[0, 4, 1] += 1e-4
    made.write(tmp_path / "logits.npz", **{**results, "logits": logits})
    made.write(tmp_path / "pooled.npz", **{**results, "pooled/right_hand": pooled})
    made.write(tmp_path / "loss.npz", **{**results, "loss": results["loss"] + 1e-4})
    params = made.params
    bias = params["head"]["linear"]["bias"].at[0].add(1e-3)
    head = {**params["head"], "linear": {**params["head"]["linear"], "bias": bias}}
    made.params = {**params, "head": head}
    made.write(tmp_path / "weight.npz", **results)
    made.params = params
    gradients = f"{len(grads)} gradients"
    assert failing(tmp_path) == {
        "whole.npz": set(),
        "gradient.npz": {gradients},
        "logits.npz": {"logits"},
        "pooled.npz": {"pooled/right_hand"},
        "loss.npz": {"loss"},
        "weight.npz": {"logits", "loss"},
    }
    nan = next(d for d in differences(tmp_path / "logits.npz") if d.quantity == "logits")
    assert np.isnan(nan.largest)


def test_the_largest_difference_is_the_one_that_is_reported(tmp_path):
    made = case("sft_topk")
    results = made.outputs()
    logits = np.array(results["logits"])
    logits[0, 0] += 0.25
    logits[1, 1] -= 0.5
    made.write(tmp_path / "a.npz", **{**results, "logits": logits})
    found = {d.quantity: d.largest for d in differences(tmp_path / "a.npz")}
    assert found["logits"] == pytest.approx(0.5, abs=1e-5)
