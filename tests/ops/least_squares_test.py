import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from mbrl_jax.ops import least_squares
from mbrl_jax.types import Array


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


minimise = jax.jit(
    least_squares.minimise,
    static_argnames=("residual", "num_iterations", "max_step"),
)


def bends(shared: Array, own: Array, data: tuple[Array, Array]) -> Array:
    """Decays at rates `shared` of heights `own`, at times and with noise in `data`."""
    times, noisy = data
    decays = jnp.exp(-jnp.outer(times, shared))
    return noisy - (decays * own[None]).sum(axis=1)


def decays(noise: float) -> tuple[np.ndarray, np.ndarray, tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    rates, heights = np.array([0.5, 2.0]), rng.uniform(1, 3, (6, 2))
    times = np.tile(np.linspace(0, 3, 15), (6, 1))
    clean = (np.exp(-times[..., None] * rates) * heights[:, None]).sum(axis=-1)
    noisy = clean + noise * rng.normal(size=clean.shape)
    return rates, heights, (jnp.array(times), jnp.array(noisy))


def test_equals_scipys_with_all_unknowns_alike():
    _, _, data = decays(noise=0.01)
    start, own = np.array([0.3, 3.0]), np.ones((6, 2))
    ours = minimise(bends, jnp.array(start), jnp.array(own), data, 60)

    def stacked(x: np.ndarray) -> np.ndarray:
        every = jax.vmap(bends, (None, 0, 0))(x[:2], x[2:].reshape(6, 2), data)
        return np.asarray(every).ravel()

    theirs = scipy.optimize.least_squares(
        stacked, np.concatenate([start, own.ravel()]), xtol=1e-14, ftol=1e-14
    )
    np.testing.assert_allclose(ours.shared, theirs.x[:2], rtol=1e-5)
    np.testing.assert_allclose(ours.own.ravel(), theirs.x[2:], rtol=1e-5)
    np.testing.assert_allclose(ours.losses[-1], 2 * theirs.cost, rtol=1e-9)
    covariance = np.linalg.inv(theirs.jac.T @ theirs.jac)[:2, :2]
    np.testing.assert_allclose(ours.inverse, covariance, rtol=1e-4)
    assert not ours.lost.any()


def test_finds_the_truth_where_there_is_no_noise():
    rates, heights, data = decays(noise=0.0)
    start = (jnp.array([0.3, 3.0]), jnp.ones((6, 2)))
    found = minimise(bends, *start, data, 60)
    np.testing.assert_allclose(found.shared, rates, rtol=1e-6)
    np.testing.assert_allclose(found.own, heights, rtol=1e-5)
    assert (np.diff(found.losses) <= 0).all()


def test_steps_are_cut():
    _, _, data = decays(noise=0.01)
    start = (jnp.array([0.3, 3.0]), jnp.ones((6, 2)))
    found = minimise(bends, *start, data, 3, max_step=0.01)
    moved = np.abs(found.shared - start[0])
    assert 0.01 < moved.max() <= 0.03 + 1e-12


def test_what_has_no_effect_or_only_in_a_sum_is_lost_and_the_rest_is_not():
    """Residual x0 - 3, x1 + x2 + own - data with own seen, and nothing of x3."""
    rng = np.random.default_rng(0)
    data = jnp.array(rng.normal(size=(5, 4)))

    def residual(shared: Array, own: Array, data: Array) -> Array:
        first = shared[0] - 3 + data[0]
        total = shared[1] + shared[2] + own[0]
        return jnp.stack([first, total - data[1], own[0] - data[2], 0 * shared[3]])

    start = jnp.array([1.0, 1.0, 1.0, 7.0])
    found = minimise(residual, start, jnp.zeros((5, 2)), data, 40)
    np.testing.assert_array_equal(found.lost, [False, True, True, True])
    assert found.shared[0] == pytest.approx(3 - float(data[:, 0].mean()), abs=1e-6)
    expected = float((data[:, 1] - data[:, 2]).mean())
    assert found.shared[1] + found.shared[2] == pytest.approx(expected, abs=1e-6)
    assert found.shared[3] == 7
    assert found.inverse[0, 0] == pytest.approx(1 / 5)
    assert jnp.isfinite(found.inverse).all()
    assert (jnp.diag(found.inverse)[1:] > 1e3).all()
    np.testing.assert_array_equal(found.own[:, 1], 0)


def test_a_step_into_nan_is_not_taken():
    data = jnp.linspace(1.0, 2.0, 4)[:, None]

    def residual(shared: Array, own: Array, data: Array) -> Array:
        return jnp.log(shared) - jnp.log(1e-3 * data) + 0 * own.sum()

    start = (jnp.ones(1), jnp.zeros((4, 0)))
    found = minimise(residual, *start, data, 40, max_step=5.0)
    expected = 1e-3 * jnp.exp(jnp.log(data).mean())
    np.testing.assert_allclose(found.shared[0], expected, rtol=1e-6)
