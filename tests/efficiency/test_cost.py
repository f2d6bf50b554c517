from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from slow import corners

from sft_jax.config.io import load
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import OPTIONS
from sft_jax.config.run import Config, ModelConfig, TrainConfig
from sft_jax.efficiency import benchmarks
from sft_jax.efficiency import model_costs as models
from sft_jax.efficiency.flops import matmul_flops
from sft_jax.efficiency.variants import variant
from sft_jax.types import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = [*sorted(path.stem for path in CONFIGS.glob("vgg*.py")), "mosei"]
POD = "av_base"


def test_products_are_counted_as_often_as_they_run():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    one = 2 * 3 * 4 * 5
    assert matmul_flops(jnp.matmul, a, b) == one
    assert matmul_flops(jax.jit(jnp.matmul), a, b) == one
    assert matmul_flops(jax.vmap(jnp.matmul), jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))) == 7 * one
    assert matmul_flops(lambda a: jnp.einsum("ij,kj->ik", a, a) + a.sum(), a) == 2 * 3 * 4 * 3

    def repeated(a, b):
        return jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, length=6)[0]

    assert matmul_flops(repeated, a, b) == 6 * one

    def dearest(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: (a @ b @ b.T).sum(), lambda: (a @ b).sum())

    assert matmul_flops(dearest, a, b) == one + 2 * 3 * 5 * 4


def test_a_loop_of_unknown_length_is_refused():
    def loop(a):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, a)

    with pytest.raises(ValueError, match="whose trip count is in the program"):
        matmul_flops(loop, jnp.ones((3, 3)))


def tiny(length=6, **changes):
    spec = ModalitySpec(name="a", length=length, feature_dim=3, pool="max", window=2)
    model = {"num_classes": 4, "embed_dim": 8, "num_heads": 2, "num_post_layers": 2}
    return Config(
        modalities=(spec,),
        model=ModelConfig(**{**model, **changes}),
        train=TrainConfig(batch_size=jax.device_count()),
    )


@pytest.mark.parametrize("implementation", ["xla", "streamed"])
def test_a_forward_pass_by_hand(implementation):
    d, t, n, c = 8, 7, 4, 4  # seven tokens with CLS, four after the pool

    def attention(tokens):  # projections, output, scores, mix
        return 4 * tokens * d * d + 2 * tokens * tokens * d

    def block(tokens):
        return attention(tokens) + 2 * tokens * d * d

    products = 6 * 3 * d + block(t) + attention(t) + 2 * block(n) + d * c
    config = tiny(implementation=implementation)
    assert models.forward_gflop(config) == pytest.approx(2 * products / 1e9, rel=1e-12)


def wide(name="sft", pool="max", attention="dense", depth=1, **options):
    """Every loop runs once, and one wide head leaves little to anything but products."""
    size = {"max": {"window": 4}, "none": {}}.get(pool, {"k": 4})
    specs = tuple(
        ModalitySpec(name=m, length=t, feature_dim=96, pool=pool, **size)
        for m, t in (("a", 24), ("b", 16))
    )
    fixed = {"stride": 8, "expressivity": 4} if attention == "fixed" else {}
    model = ModelConfig(
        name=name,
        num_classes=8,
        embed_dim=384,
        num_heads=1,
        num_pre_layers=depth,
        num_post_layers=1,
        implementation="xla",
        attention=attention,
        options=OPTIONS[name](**options),
        **fixed,
    )
    return Config(modalities=specs, model=model)


@pytest.mark.parametrize("train", corners([False, True], True))
@pytest.mark.parametrize(
    "config",
    [
        wide(),
        wide(pool="none"),
        wide(pool="attn_topk"),
        wide(pool="cls_topk"),
        wide(pool="merge"),
        wide(pool="attn_kmedoids"),
        wide("unimodal", modality="a"),
        wide("late"),
        wide("concat"),
        wide("mbt", fuse_at=1),
        wide("mult"),
        wide(attention="fixed", pool="attn_topk", depth=0),
        wide(attention="fixed", pool="cls_topk", depth=0),
    ],
    ids=lambda config: f"{config.model.name} {config.model.attention} {config.modalities[0].pool}",
)
def test_products_are_what_xla_counts(config, train):
    """Within 2.5 % of its count for the compiled program, which has the element-wise work too."""
    logits, shapes = models.output_sum(config)
    function = jax.grad(logits) if train else logits
    counted = jax.jit(function).lower(shapes).compile().cost_analysis()["flops"]
    assert matmul_flops(function, shapes) == pytest.approx(counted, rel=0.025)


def test_a_row_for_each_configuration():
    one, two = tiny(length=200), tiny(length=200, name="late")
    (rows,) = benchmarks.compare_models({"one": one, "two": two}, 1, 1).tables.values()
    assert [row["model"] for row in rows] == ["one", "two"]
    assert rows[0]["parameters"] == models.num_parameters(one)
    assert rows[0]["parameters"] != rows[1]["parameters"]
    assert all(row[f"{kind} samples/s"] > 0 for row in rows for kind in ("train", "inference"))
    assert all(row["train temporary MB"] > 0 for row in rows)


def test_what_the_data_would_decide_must_be_set():
    for config in (Config(), tiny(num_classes=0)):
        with pytest.raises(ConfigError, match="no data is read here"):
            models.num_parameters(config)


@pytest.mark.parametrize("name", [*PAPER, POD])
def test_configurations_say_what_they_cost(name):
    path = CONFIGS / f"{name}.py"
    config = load(path)
    words = " ".join(path.read_text().split('"""')[1].split())
    assert f"{models.num_parameters(config):,} parameters" in words
    assert f"{models.forward_gflop(config):.3f} GFLOP" in words


@pytest.mark.parametrize(
    ("name", "gflop"),
    [("vggsound10", 0.527), ("vggsound10_mbt", 3.107), ("vggsound10_concat", 0.314)],
)
def test_the_field_s_figures_are_reproduced(name, gflop):
    """As counted for the PyTorch models of the same widths."""
    assert models.forward_gflop(load(CONFIGS / f"{name}.py")) == pytest.approx(gflop, abs=5e-4)


def test_block_sparse_attention_that_chooses_by_cls_takes_a_twentieth_of_the_best_baseline():
    """Forward, at the paper's widths."""
    config = load(CONFIGS / "vggsound10.py")
    sparse, mbt = (variant(config, name) for name in ("fixed_cls_topk", "mbt"))
    assert models.forward_gflop(mbt) > 20 * models.forward_gflop(sparse)


def test_the_model_for_a_pod_beside_dense_fusion_and_bottlenecks():
    """Every attention and MLP of ViT-Base by hand; more than 2.8 times fewer operations."""
    d, lengths, fused = 768, (401, 1569), 247

    def block(tokens, context):
        return 2 * tokens * d * (12 * d + 2 * context)

    def pooling(t, k):  # keys and values of all, queries and outputs of CLS and the kept
        return 4 * t * d * d + (k + 1) * (4 * d * d + 4 * t * d)

    projections = 2 * d * (400 * 256 + 1568 * 1536)
    head = 2 * 10 * d
    sft = projections + head + sum(3 * block(t, t) for t in lengths) + 9 * block(fused, fused)
    sft += pooling(401, 50) + pooling(1569, 196) + sum(2 * t for t in lengths)  # saliency
    config = load(CONFIGS / f"{POD}.py")
    found = {name: models.forward_gflop(variant(config, name)) for name in ("sft", "dense", "mbt")}
    assert found["sft"] == pytest.approx(sft / 1e9, rel=1e-9)
    dense = projections + head + sum(3 * block(t, t) + pooling(t, t - 1) for t in lengths)
    dense += 9 * block(1969, 1969)
    assert found["dense"] == pytest.approx(dense / 1e9, rel=1e-9)
    own = sum(4 * block(t, t) + 8 * block(t + 4, t + 4) for t in lengths)
    assert found["mbt"] == pytest.approx((projections + 2 * head + own) / 1e9, rel=1e-9)
    assert found["mbt"] / found["sft"] > 2.8
    assert found["dense"] / found["sft"] > 3.2
    words = " ".join((CONFIGS / f"{POD}.py").read_text().split('"""')[1].split())
    for name, rival in (("dense", "dense fusion"), ("mbt", "MBT-B")):
        assert f"{found[name]:.3f} for {rival}" in words
