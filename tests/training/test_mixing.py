import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from sft_jax.config.run import Duration, MixupConfig
from sft_jax.training import sharding
from sft_jax.training.mixing import MixupPlan, draw_mixup
from sft_jax.types import ConfigError

ANY = MixupConfig(mode="any", alpha=0.4, warmup=Duration(2.0, "epochs"), groups=8)
PLAN = MixupPlan(
    mode="any",
    alpha=0.3,
    warmup_steps=3,
    group_size=4,
    num_modalities=3,
    num_pre_layers=2,
    num_post_layers=3,
)
ROWS = 32


# --- the plan


def test_without_mixup_there_is_no_plan(tiny):
    config = tiny.config(mixup=MixupConfig(mode="none", groups=5), batch_size=32)
    assert MixupPlan.of(config, 10, 3) is None


def test_a_plan_is_the_configuration_s(tiny):
    plan = MixupPlan.of(tiny.config(mixup=ANY, batch_size=32), 10, 4)
    assert plan == MixupPlan(
        mode="any",
        alpha=0.4,
        warmup_steps=20,
        group_size=4,
        num_modalities=2,
        num_pre_layers=1,
        num_post_layers=1,
    )


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (2, 1), (8, 1), (4, 2), (1, 8)])
def test_the_plan_is_the_same_on_any_devices(tiny, devices, accumulate):
    config = tiny.config(mixup=ANY, batch_size=32, accumulate=accumulate)
    alone = MixupPlan.of(tiny.config(mixup=ANY, batch_size=32), 7, 1)
    assert MixupPlan.of(config, 7, devices) == alone


@pytest.mark.parametrize(("devices", "accumulate"), [(3, 1), (16, 1), (8, 2), (2, 8)])
def test_a_device_that_would_hold_part_of_a_group_is_refused(tiny, devices, accumulate):
    config = tiny.config(mixup=ANY, batch_size=32, accumulate=accumulate)
    with pytest.raises(ConfigError) as caught:
        MixupPlan.of(config, 10, devices)
    words = (
        f"mixup.groups: given 8 for {devices} devices and accumulate {accumulate}",
        "multiple of their product",
        "divides the batch size",
    )
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("devices", [1, 5, 7, 16])
def test_a_run_with_mixup_can_be_evaluated_on_any_devices(tiny, monkeypatch, devices):
    """Its batch is rounded up to them, and no group of rows need fit that one."""
    stored = tiny.config(mixup=ANY, batch_size=24, accumulate=2)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    config = sharding.for_these_devices(stored)
    assert config.train.batch_size % devices == 0
    assert 24 <= config.train.batch_size < 24 + devices
    assert (config.mixup.mode, config.model) == ("none", stored.model)


# --- the draw


jitted = jax.jit(draw_mixup, static_argnums=(0, 1), compiler_options=QUICK)


def draw(plan=PLAN, seed=0, step=5, positions=range(ROWS), weight=None):
    weight = np.ones(len(positions)) if weight is None else weight
    return jax.device_get(
        jitted(
            plan,
            seed,
            jnp.int32(step),
            jnp.asarray(positions, jnp.int32),
            jnp.asarray(weight, jnp.float32),
        )
    )


@pytest.mark.parametrize("slices", [2, 4, 8])
@pytest.mark.parametrize("padding", [0, 5])
def test_a_draw_does_not_depend_on_how_the_batch_is_cut(slices, padding):
    weight = np.arange(ROWS) < ROWS - padding
    whole, size = draw(weight=weight), ROWS // slices
    for i in range(slices):
        rows = slice(i * size, (i + 1) * size)
        part = draw(positions=np.arange(ROWS)[rows], weight=weight[rows])
        assert part.depth == whole.depth
        np.testing.assert_array_equal(part.lam, whole.lam[:, rows])
        # A device counts its own rows from zero.
        np.testing.assert_array_equal(part.partner + i * size, whole.partner[rows])


def test_a_draw_of_groups_that_are_not_neighbours():
    """As micro-batches take them: every second group of rows."""
    whole = draw()
    positions = np.arange(ROWS).reshape(8, 4)[1::2].reshape(-1)
    part = draw(positions=positions)
    np.testing.assert_array_equal(part.lam, whole.lam[:, positions])
    np.testing.assert_array_equal(positions[part.partner], whole.partner[positions])


def test_a_draw_has_the_shapes_and_types_of_a_mixup():
    made = draw()
    assert (made.depth.shape, made.depth.dtype) == ((), np.int32)
    assert (made.lam.shape, made.lam.dtype) == ((3, ROWS), np.float32)
    assert (made.partner.shape, made.partner.dtype) == ((ROWS,), np.int32)
    np.testing.assert_array_equal(made.partner // 4, np.arange(ROWS) // 4)
    np.testing.assert_array_equal(np.sort(made.partner), np.arange(ROWS))


def test_the_warm_up_blends_nowhere_and_then_somewhere():
    assert [draw(step=step).depth for step in range(3)] == [-1] * 3
    depths = {int(draw(step=step).depth) for step in range(3, 43)}
    assert depths == set(range(5))
    plan = dataclasses.replace(PLAN, warmup_steps=0)
    assert draw(plan, step=0).depth >= 0


@pytest.mark.parametrize(("mode", "expected"), [("within", {0, 1}), ("fused", {2, 3, 4})])
def test_a_mode_says_where(mode, expected):
    plan = dataclasses.replace(PLAN, mode=mode)
    assert {int(draw(plan, step=step).depth) for step in range(3, 33)} == expected


def test_steps_and_seeds_draw_apart_and_alike_when_repeated():
    first, again, later, other = draw(), draw(), draw(step=6), draw(seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for different in (later, other):
        assert (different.lam == first.lam).mean() < 0.1  # shares close to 1 may round alike
        assert (different.partner != first.partner).any()
    assert len(np.unique(first.lam)) > 0.9 * first.lam.size


def test_alpha_is_the_plan_s():
    wide = draw(dataclasses.replace(PLAN, alpha=50.0))
    assert np.abs(wide.lam - 0.5).max() < 0.25
    assert np.abs(draw().lam - 0.5).max() > 0.45


def test_padding_rows_are_nobody_s_partner():
    weight = np.ones(ROWS)
    weight[[3, 8, 9, 28, 29, 30, 31]] = 0
    seen = False
    for step in range(6):
        free, made = draw(step=step), draw(step=step, weight=weight)
        drawn = weight[free.partner] == 0
        np.testing.assert_array_equal(made.partner[~drawn], free.partner[~drawn])
        np.testing.assert_array_equal(made.partner[drawn], np.arange(ROWS)[drawn])
        np.testing.assert_array_equal(made.lam, free.lam)
        seen |= bool((drawn & (weight > 0)).any())
    assert seen  # some real sample had drawn a padding row
