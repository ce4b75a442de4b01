import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import normalize
from mbrl_jax.types import Gaussian

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(50, 3)) * [1.0, 200.0, 1e-3] + [0.0, 50.0, 3e-3]).astype("f4")
VALID = RNG.random(50) < 0.6


@pytest.mark.parametrize("garbage", [0.0, 1e9, np.nan, np.inf])
def test_statistics_are_those_of_the_valid_rows(garbage: float):
    x = jnp.where(VALID[:, None], X, garbage)
    mean, std = normalize.statistics(x, jnp.asarray(VALID))
    np.testing.assert_allclose(mean, X[VALID].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, X[VALID].std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 853, 8530])
def test_a_constant_column_keeps_the_scale_1(num_rows: int):
    """However many equal numbers are summed, one after the other as under vmap.

    The rounding errors of 8530 sums are up to 3e-5, which must not look like data.
    """
    values = jnp.concatenate([jnp.linspace(-3.3, 1000.1, 40), jnp.array([0.0, 1e-9])])
    x = jnp.broadcast_to(values[:, None, None], (42, 10_000, 1))
    valid = jnp.arange(10_000) < num_rows
    mean, std = jax.jit(jax.vmap(normalize.statistics, (0, None)))(x, valid)
    np.testing.assert_allclose(mean[:, 0], values, rtol=1e-6)
    np.testing.assert_array_equal(std, 1)


def test_a_column_constant_up_to_rounding_keeps_the_scale_1():
    steps = jnp.array([0.0, 1.0, -1.0, 0.0])[:, None]
    noise = 1000.0 * (1 + 1e-7 * steps)
    x = jnp.concatenate([noise, steps, 1e-4 * steps], axis=1)
    std = normalize.statistics(x, jnp.ones(4, bool)).std
    np.testing.assert_allclose(std, [1.0, 0.5**0.5, 1e-4 * 0.5**0.5], rtol=1e-6)


def test_a_constant_column_may_have_no_scale():
    x = jnp.array([[2.0, 1.0], [2.0, 3.0]])
    stats = normalize.statistics(x, jnp.ones(2, bool), 0.0)
    np.testing.assert_array_equal(stats.std, [0.0, 1.0])
    back = normalize.denormalise(stats, Gaussian(jnp.ones(2), jnp.ones(2)))
    np.testing.assert_array_equal(back.mean, [2.0, 3.0])
    np.testing.assert_array_equal(back.std, [0.0, 1.0])


def test_no_row_at_all():
    mean, std = normalize.statistics(jnp.full((4, 2), jnp.nan), jnp.zeros(4, bool))
    np.testing.assert_array_equal(mean, [0.0, 0.0])
    np.testing.assert_array_equal(std, [1.0, 1.0])


def test_there_and_back():
    stats = normalize.statistics(jnp.asarray(X), jnp.asarray(VALID))
    z = jax.vmap(normalize.normalise, (None, 0))(stats, jnp.asarray(X))
    np.testing.assert_allclose(z[VALID].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z[VALID].std(axis=0), 1, rtol=1e-5)
    back = jax.vmap(normalize.denormalise, (None, 0))(stats, Gaussian(z, 2 + 0 * z))
    np.testing.assert_allclose(back.mean, X, rtol=1e-4, atol=1e-6)
    scale = np.broadcast_to(2 * X[VALID].std(axis=0), X.shape)
    np.testing.assert_allclose(back.std, scale, rtol=1e-5)


def test_the_identity():
    x = jnp.array([3.0, -4.0])
    np.testing.assert_array_equal(normalize.normalise(normalize.identity(2), x), x)


def test_running_statistics_are_those_of_all_valid_rows():
    running = normalize.running_stats(3)
    jax.tree.map(
        np.testing.assert_array_equal,
        normalize.so_far(running),
        normalize.identity(3),
    )
    parts = [slice(0, 7), slice(7, 7), slice(7, 30), slice(30, 50)]
    for part in parts:
        x = jnp.where(VALID[part, None], X[part], jnp.nan)
        running = normalize.update(running, x, jnp.asarray(VALID[part]))
    mean, std = normalize.so_far(running)
    assert running.number == VALID.sum()
    np.testing.assert_allclose(mean, X[VALID].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, X[VALID].std(axis=0), rtol=1e-5)


def test_running_statistics_keep_the_scale_1_of_a_constant_column():
    running = normalize.running_stats(2)
    for value in (3.3, 3.3):
        x = jnp.stack([jnp.full(5, value), jnp.arange(5.0)], axis=1)
        running = normalize.update(running, x, jnp.ones(5, bool))
    np.testing.assert_allclose(normalize.so_far(running).std, [1, 2**0.5], rtol=1e-6)


def test_a_network_in_other_units_is_the_same_function():
    """Two linear layers, the inputs and the outputs normalised."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    layer = lambda *shape: {"kernel": draw(*shape), "bias": draw(shape[1])}
    units = lambda size: normalize.Statistics(draw(size), jnp.exp(draw(size)))
    net = {"first": layer(3, 4), "last": {"deep": layer(4, 2)}}
    old, new, out, new_out = units(3), units(3), units(2), units(2)

    def of(net, stats, out_stats, x):
        x = (
            normalize.normalise(stats, x) @ net["first"]["kernel"]
            + net["first"]["bias"]
        )
        last = net["last"]["deep"]
        x = jnp.tanh(x) @ last["kernel"] + last["bias"]
        return x * out_stats.std + out_stats.mean

    x = draw(3)
    folded = normalize.folded(net, [("first",)], old, new)
    folded = normalize.outputs_folded(folded, ("last", "deep"), out, new_out)
    expected = of(net, old, out, x)
    np.testing.assert_allclose(of(folded, new, new_out, x), expected, rtol=1e-4)
    assert jax.tree.structure(folded) == jax.tree.structure(net)


@pytest.mark.parametrize("unit", [1e-25, 1e-9, 1e9, 1e25])
def test_a_small_unit_is_not_taken_for_constant(unit: float):
    x = jnp.asarray(X * unit)
    std = normalize.statistics(x, jnp.asarray(VALID)).std
    np.testing.assert_allclose(std / unit, X[VALID].std(axis=0), rtol=1e-5)
    if 1e-12 < unit < 1e12:  # running squares are of that unit squared
        running = normalize.update(normalize.running_stats(3), x, jnp.asarray(VALID))
        np.testing.assert_allclose(normalize.so_far(running).std, std, rtol=1e-5)
