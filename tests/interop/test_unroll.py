import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.interop.artefacts.unroll import unrolled


def operations(function, *args):
    return [eqn.primitive.name for eqn in jax.make_jaxpr(function)(*args).jaxpr.eqns]


def test_a_loop_over_layers_becomes_layers_with_weights_of_their_own(rng):
    weights = rng.normal(size=(3, 4, 4)).astype(np.float32)

    def layers(x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x, weights)

    x = rng.normal(size=(2, 4)).astype(np.float32)
    flat = unrolled(layers, x)
    found, (expected, sums) = flat(x), layers(x)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    np.testing.assert_allclose(found[1], sums, atol=1e-6)
    names = operations(flat, x)
    assert names.count("dot_general") == 3
    assert "scan" not in names
    # Weights are constants of the program, not cut out of the stack while it runs.
    assert not {"slice", "dynamic_slice", "squeeze"} & set(names)


def test_a_loop_from_behind_keeps_the_order_of_what_it_returns():
    def running(x):
        return jax.lax.scan(lambda s, row: (s + row, s * row), x, jnp.arange(4.0), reverse=True)

    # s: 1, 4, 6, 7, 7; row: 3, 2, 1, 0
    total, products = unrolled(running, 1.0)(1.0)
    assert total == 7
    np.testing.assert_array_equal(products, [0, 6, 8, 3])


def test_calls_are_taken_in():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (double(x), None), lambda _, g: (2 * g,))

    def function(x):
        return jax.checkpoint(jax.jit(lambda x: jax.nn.relu(double(x)) + 1))(x)

    flat = unrolled(function, 1.0)
    assert flat(3.0)[0] == 7
    assert flat(-3.0)[0] == 1
    assert set(operations(flat, 1.0)) <= {"mul", "max", "add"}


def test_what_depends_on_parameters_alone_is_computed_at_once(rng):
    kernel = rng.normal(size=(4, 3, 5)).astype(np.float32)
    flat = unrolled(lambda x: x + jnp.tanh(kernel[:, 1]).sum(axis=0), np.zeros(5, np.float32))
    assert operations(flat, np.zeros(5, np.float32)) == ["add"]
    np.testing.assert_allclose(flat(np.zeros(5)), [np.tanh(kernel[:, 1]).sum(axis=0)], atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("btd,dshe->btshe", ((2, 3, 4), (4, 3, 2, 5))),
        ("bqhe,hed->bqd", ((2, 3, 2, 5), (2, 5, 4))),
        ("bqhe,bkhe->bhqk", ((2, 3, 2, 5), (2, 4, 2, 5))),
        ("bhqk,bq->bk", ((2, 2, 3, 4), (2, 3))),
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
    ],
)
def test_products_become_products_of_matrices(rng, equation, shapes):
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def product(x, y):
        return jnp.einsum(equation, x, y)

    flat = unrolled(product, x, y)
    np.testing.assert_allclose(flat(x, y)[0], np.einsum(equation, x, y), atol=1e-5)
    jaxpr = jax.make_jaxpr(flat)(x, y).jaxpr
    (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    (x_contracted, y_contracted), (batch, _) = eqn.params["dimension_numbers"]
    assert x_contracted == (eqn.invars[0].aval.ndim - 1,)
    assert y_contracted == (len(batch),)
    assert eqn.invars[1].aval.ndim == len(batch) + 2


def test_padding_and_remainders_are_written_as_other_operations(rng):
    x = rng.integers(-9, 9, (2, 3)).astype(np.int32)

    def function(x):
        return jnp.pad(x, ((0, 0), (1, 2)), constant_values=7), jax.lax.rem(x, np.int32(4))

    flat = unrolled(function, x)
    for found, expected in zip(flat(x), function(x), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not {"pad", "rem"} & set(operations(flat, x))


def test_a_symbolic_batch_stays_one(rng):
    weights = rng.normal(size=(2, 4, 4)).astype(np.float32)
    (b,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((b, 4), np.float32)

    def function(x):
        y = jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]
        return jnp.pad(y, ((0, 0), (1, 0))) + jnp.ones_like(x[:, :1])

    flat = unrolled(function, spec)
    exported = jax.export.export(jax.jit(flat))(spec)
    for rows in (1, 3):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        np.testing.assert_allclose(exported.call(x)[0], function(x), atol=1e-5)
