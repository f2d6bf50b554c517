import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.config.run import AugmentConfig
from sft_jax.training.augment import augment, hide, random_rotation


def make_inputs(rows=6, steps=30, seed=0):
    rng = np.random.default_rng(seed)
    inputs = {
        "acc": jnp.asarray(rng.normal(size=(rows, steps, 3)), jnp.float32),
        "gyro": jnp.asarray(rng.normal(size=(rows, steps, 3)), jnp.float32),
        "ecg": jnp.asarray(rng.normal(size=(rows, steps + 2, 1)), jnp.float32),
        "words": jnp.asarray(rng.integers(0, 50, (rows, 4)), jnp.int32),
    }
    mask = {name: jnp.asarray(rng.random(x.shape[:2]) < 0.7) for name, x in inputs.items()}
    return inputs, mask


def keys_of(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def masked(inputs, mask, name):
    return np.where(np.asarray(mask[name])[..., None], inputs[name], 0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), degrees=st.floats(0, 180))
def test_rotations_are_proper_and_no_wider_than_asked(seed, degrees):
    rotation = np.asarray(random_rotation(jax.random.key(seed), degrees), np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
    # The trace of a rotation by an angle a is 1 + 2 cos a.
    assert np.trace(rotation) >= 1 + 2 * np.cos(np.deg2rad(degrees)) - 1e-5


def test_rotations_reach_the_whole_range():
    rotations = jax.vmap(random_rotation, (0, None))(keys_of(500), 90.0)
    cosine = (np.trace(np.asarray(rotations), axis1=1, axis2=2) - 1) / 2
    angle = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    # Uniform in [0, 90]: mean 45 with a standard error of 1.2.
    assert angle.mean() == pytest.approx(45, abs=5)
    assert angle.max() > 80
    mean = np.asarray(rotations).mean(axis=0)
    assert np.abs(mean - mean.T).max() < 0.15  # no preferred sense of turning


def test_one_rotation_turns_all_sensors_of_a_sample():
    inputs, mask = make_inputs()
    config = AugmentConfig(rotate=("acc", "gyro"), rotation_degrees=180.0)
    result = augment(inputs, mask, keys_of(6), config)
    turned = []
    for row in range(6):
        rotations = []
        for name in ("acc", "gyro"):
            before = masked(inputs, mask, name)[row]
            rotation, *_ = np.linalg.lstsq(before, np.asarray(result[name])[row], rcond=None)
            rotations.append(rotation.T)
        np.testing.assert_allclose(rotations[0], rotations[1], atol=1e-4)
        np.testing.assert_allclose(rotations[0] @ rotations[0].T, np.eye(3), atol=1e-4)
        turned.append(rotations[0])
    for name in ("acc", "gyro"):
        norms = np.linalg.norm(masked(inputs, mask, name), axis=-1)
        np.testing.assert_allclose(np.linalg.norm(result[name], axis=-1), norms, rtol=1e-4)
    assert all(np.abs(turned[0] - other).max() > 0.1 for other in turned[1:])
    # Not asked to turn: as it was, but for masked steps.
    np.testing.assert_array_equal(result["ecg"], masked(inputs, mask, "ecg"))


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(rotate=("acc",), rotation_degrees=90.0),
        AugmentConfig(jitter=0.5),
        AugmentConfig(scale=0.5),
        AugmentConfig(rotate=("gyro",), rotation_degrees=20.0, jitter=0.5, scale=0.5),
    ],
)
def test_masked_steps_stay_zero_and_integers_untouched(config):
    inputs, mask = make_inputs()
    result = augment(inputs, mask, keys_of(6), config)
    assert result.keys() == inputs.keys()
    for name in ("acc", "gyro", "ecg"):
        assert result[name].dtype == jnp.float32
        assert (np.asarray(result[name])[~np.asarray(mask[name])] == 0).all()
    assert result["words"].dtype == jnp.int32
    np.testing.assert_array_equal(result["words"], inputs["words"])


def test_a_sample_is_augmented_alike_wherever_it_stands():
    inputs, mask = make_inputs()
    config = AugmentConfig(rotate=("acc",), rotation_degrees=90.0, jitter=0.5, scale=0.5)
    keys, order = keys_of(6), jnp.array([3, 0, 5])
    whole = augment(inputs, mask, keys, config)
    part = augment(*jax.tree.map(lambda x: x[order], (inputs, mask, keys)), config)
    for name in inputs:
        np.testing.assert_allclose(part[name], whole[name][order], rtol=1e-6, atol=1e-7)


def test_scale_is_one_factor_a_sample_and_modality():
    inputs, _ = make_inputs()
    mask = {name: jnp.ones(x.shape[:2], bool) for name, x in inputs.items()}
    result = augment(inputs, mask, keys_of(6), AugmentConfig(scale=0.2))
    factors = {}
    for name in ("acc", "gyro", "ecg"):
        ratio = np.asarray(result[name] / inputs[name])
        factors[name] = ratio[:, 0, 0]
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-4)
    assert len(np.unique(np.concatenate(list(factors.values())).round(5))) == 18


def test_strengths_are_standard_deviations():
    rows = 400
    inputs = {"m": jnp.ones((rows, 25, 2))}
    mask = {"m": jnp.ones((rows, 25), bool)}
    jitter = np.asarray(augment(inputs, mask, keys_of(rows), AugmentConfig(jitter=0.3))["m"]) - 1
    assert jitter.std() == pytest.approx(0.3, rel=0.03)
    assert abs(jitter.mean()) < 0.01
    scale = np.asarray(augment(inputs, mask, keys_of(rows), AugmentConfig(scale=0.3))["m"])[:, 0, 0]
    assert scale.std() == pytest.approx(0.3, rel=0.15)
    assert scale.mean() == pytest.approx(1, abs=0.06)


def test_without_strength_the_very_inputs_come_back():
    inputs, mask = make_inputs()
    result = augment(inputs, mask, keys_of(6), AugmentConfig())
    assert all(result[name] is inputs[name] for name in inputs)
    assert hide(inputs, mask, keys_of(6), AugmentConfig()) == (inputs, mask)


def test_a_mirror_turns_polar_and_axial_vectors_of_half_of_the_samples():
    rows = 200
    inputs = {name: jnp.ones((rows, 4, 3)) for name in ("acc", "gyro", "ecg")}
    mask = {name: jnp.ones((rows, 4), bool) for name in inputs}
    config = AugmentConfig(mirror_polar=("acc",), mirror_axial=("gyro",))
    result = jax.tree.map(np.asarray, augment(inputs, mask, keys_of(rows), config))
    mirrored = result["acc"][:, 0, 0] < 0
    assert 70 < mirrored.sum() < 130
    for name, signs in (("acc", [-1, 1, 1]), ("gyro", [1, -1, -1]), ("ecg", [1, 1, 1])):
        expected = np.where(mirrored[:, None], signs, 1)[:, None] * np.ones((1, 4, 1))
        np.testing.assert_array_equal(result[name], expected)


def test_a_mirrored_motion_is_that_of_the_mirrored_body():
    """What a rotation does to a vector, its mirror image does to the mirrored vector."""
    rate, vector = np.array([0.3, -0.7, 0.2]), np.array([1.0, 2.0, -1.0])
    inputs = {"v": jnp.asarray(vector)[None, None], "w": jnp.asarray(rate)[None, None]}
    inputs["wv"] = jnp.asarray(np.cross(rate, vector))[None, None]  # a polar vector, too
    mask = {name: jnp.ones((1, 1), bool) for name in inputs}
    config = AugmentConfig(mirror_polar=("v", "wv"), mirror_axial=("w",))
    for key in range(5):
        out = augment(inputs, mask, keys_of(1, key), config)
        turned = np.cross(out["w"][0, 0], out["v"][0, 0])
        np.testing.assert_allclose(turned, out["wv"][0, 0], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_hiding_leaves_something_to_see(seed):
    inputs, mask = make_inputs(seed=seed % 1000)
    mask["acc"] = mask["acc"].at[0].set(False)
    config = AugmentConfig(hide=0.7, gap=1.0)
    hidden, left = jax.tree.map(np.asarray, hide(inputs, mask, keys_of(6, seed), config))
    for row in range(6):
        had = [name for name in mask if np.asarray(mask[name])[row].any()]
        assert not had or any(left[name][row].any() for name in had)
        for name in mask:
            before, after = np.asarray(mask[name])[row], left[name][row]
            assert not (after & ~before).any()
            taken = np.flatnonzero((before & ~after)[before])
            if after.any() and taken.size:  # one stretch
                assert taken[-1] - taken[0] + 1 == taken.size
            values = np.asarray(inputs[name])[row]
            np.testing.assert_array_equal(hidden[name][row][after], values[after])
            assert not hidden[name][row][~after].any()


def test_hiding_is_as_frequent_and_as_long_as_asked():
    rows, steps = 2000, 40
    inputs = {name: jnp.ones((rows, steps, 1)) for name in ("x", "y")}
    mask = {name: jnp.ones((rows, steps), bool) for name in inputs}
    _, left = hide(inputs, mask, keys_of(rows), AugmentConfig(hide=0.3))
    gone = {name: 1 - np.asarray(real.any(axis=1)).mean() for name, real in left.items()}
    # Each with 0.3, but never both: of the 0.09 where both would go, one stays.
    assert gone == pytest.approx({"x": 0.3 - 0.045, "y": 0.3 - 0.045}, abs=0.035)
    _, left = hide(inputs, mask, keys_of(rows), AugmentConfig(gap=0.5))
    lengths = steps - np.asarray(left["x"].sum(axis=1))
    assert 18 <= lengths.max() <= 20
    assert lengths.mean() == pytest.approx(9.75, abs=0.5)  # uniform on 0 to 20, rounded down
