"""CMA-ES: another implementation's evaluations, its equations again, invariances."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cma_es import ellipsoid, rastrigin, rosenbrock, sphere
from mbrl_jax.planners import cma_es
from mbrl_jax.types import Array, Key


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("objective", "spread", "std", "evaluations"),
    [
        (sphere, 3.0, 1.0, 1543),
        (ellipsoid, 3.0, 1.0, 5747),
        (rosenbrock, 0.0, 0.1, 5747),
    ],
)
def test_evaluations_to_1e_9(
    objective: Callable[[Array], Array], spread: float, std: float, evaluations: int
):
    """Ten dimensions, 15 seeds; `evaluations` are those of pycma 4, not active."""

    def run(key: Key) -> cma_es.Result:
        start_key, search_key = jax.random.split(key)
        mean = spread * jax.random.uniform(start_key, (10,), minval=-1)
        return cma_es.minimise(search_key, objective, mean, std, target=1e-9)

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 15))
    assert (found.status == cma_es.REACHED).sum() >= 14
    assert jnp.median(found.num_evaluations) <= 1.1 * evaluations
    np.testing.assert_allclose(found.value, jax.vmap(objective)(found.x))


@pytest.mark.slow
def test_restarts_find_the_best_of_many_minima():
    start = lambda key: jax.random.uniform(key, (5,), minval=-5, maxval=5)
    find = lambda key: cma_es.restarted(key, rastrigin, start, 2.0, target=1e-9)
    found = jax.jit(jax.vmap(find))(jax.random.split(jax.random.key(0), 4))
    assert (found.status == cma_es.REACHED).all()
    assert (found.num_evaluations > 5000).any()  # a single run takes 2000
    np.testing.assert_allclose(found.x, 0, atol=1e-5)


def test_one_update_against_the_equations_sample_by_sample():
    """From a state with paths and a turned covariance."""
    size, num_samples, rng = 3, 8, np.random.default_rng(0)
    root = rng.normal(size=(size, size))
    cov = root @ root.T + np.eye(size)
    values, vectors = np.linalg.eigh(cov)
    path, step_path = rng.normal(size=(2, size))
    state = cma_es.State(
        *map(jnp.asarray, (rng.normal(size=size), 0.7, cov, vectors, values**0.5)),
        *map(jnp.asarray, (path, step_path, np.int32(5))),
    )
    samples = rng.normal(size=(num_samples, size))
    worth = rng.normal(size=num_samples)
    new = cma_es.tell(state, jnp.asarray(samples), jnp.asarray(worth))

    rates = cma_es._rates(size, num_samples)
    w = rates.weights
    assert w[:4].sum() == pytest.approx(1)
    assert rates.mu_eff == pytest.approx(1 / (w[:4] ** 2).sum())
    y = (samples[np.argsort(worth)] - np.asarray(state.mean)) / 0.7
    step = sum(w[i] * y[i] for i in range(4))
    np.testing.assert_allclose(new.mean, state.mean + 0.7 * step)
    white = vectors @ np.diag(values**-0.5) @ vectors.T
    c = rates.step_path
    s = (1 - c) * step_path + np.sqrt(c * (2 - c) * rates.mu_eff) * white @ step
    np.testing.assert_allclose(new.step_path, s)
    grown = np.exp(c / rates.damping * (np.linalg.norm(s) / rates.norm - 1))
    np.testing.assert_allclose(new.step_size, 0.7 * grown)
    calm = np.linalg.norm(s) / np.sqrt(1 - (1 - c) ** 12) < (1.4 + 0.5) * rates.norm
    c = rates.path
    p = (1 - c) * path + calm * np.sqrt(c * (2 - c) * rates.mu_eff) * step
    np.testing.assert_allclose(new.path, p)
    again = (1 + rates.rank_one * (1 - calm) * c * (2 - c)) * cov
    again += rates.rank_one * (np.outer(p, p) - cov)
    for weight, row in zip(w, y, strict=True):
        share = weight if weight > 0 else weight * size / (white @ row @ white @ row)
        again += rates.rank_mu * (share * np.outer(row, row) - weight * cov)
    np.testing.assert_allclose(new.cov, again)
    np.testing.assert_allclose(
        new.basis @ jnp.diag(new.axes**2) @ new.basis.T, new.cov, rtol=1e-9
    )


def test_only_the_order_of_the_values_counts_and_no_place_does():
    key = jax.random.key(0)
    run = lambda objective, mean: cma_es.minimise(
        key, objective, mean, 1.0, max_evaluations=300, tolerance=0.0
    )
    mean = jnp.array([1.0, -2.0, 0.5])
    plain = run(ellipsoid, mean)
    bent = run(lambda x: jnp.log1p(ellipsoid(x)), mean)
    np.testing.assert_allclose(bent.x, plain.x)
    moved = run(lambda x: sphere(x - 100), mean + 100)
    np.testing.assert_allclose(moved.x - 100, run(sphere, mean).x, atol=1e-9)


def test_the_covariance_becomes_the_inverse_hessian():
    found = cma_es.minimise(jax.random.key(1), ellipsoid, jnp.ones(4), 1.0, target=1e-9)
    scales = 1e6 ** (jnp.arange(4) / 3)
    relative = found.state.cov * jnp.sqrt(jnp.outer(scales, scales))
    relative = relative / jnp.trace(relative) * 4
    np.testing.assert_allclose(relative, jnp.eye(4), atol=0.6)


@pytest.mark.parametrize(
    ("objective", "status"),
    [
        (lambda x: jnp.ones(()), cma_es.FLAT),
        (lambda x: jnp.nan * x[0], cma_es.BROKEN),
        (lambda x: x[0] ** 2 + 1.0, cma_es.FLAT),
        (lambda x: x[0] ** 2, cma_es.REACHED),
        (lambda x: -x[0] + 0 * x[1], cma_es.BUDGET),
    ],
)
def test_why_it_stops(objective: Callable[[Array], Array], status: int):
    found = cma_es.minimise(
        jax.random.key(0),
        objective,
        jnp.ones(2),
        0.5,
        target=1e-9 if status != cma_es.BUDGET else -1e9,
        max_evaluations=2000 if status != cma_es.BUDGET else 60,
    )
    assert found.status == status


def test_values_that_are_not_finite_lose():
    """Half of the space is forbidden, the minimum lies at its border."""
    objective = lambda x: jnp.where(x[0] > 0, sphere(x), jnp.nan)
    found = cma_es.minimise(
        jax.random.key(0), objective, jnp.full(4, 2.0), 1.0, target=1e-6
    )
    assert found.status == cma_es.REACHED
    assert found.x[0] > 0


def test_bounds():
    """The minimum of a slope is in the corner, and mirroring changes nothing inside."""
    low, high = jnp.array([-1.0, 0.5]), jnp.array([2.0, 0.75])
    objective = lambda x: cma_es.mirrored(x, low, high).sum()
    found = cma_es.minimise(jax.random.key(0), objective, jnp.full(2, 0.6), 0.3)
    np.testing.assert_allclose(cma_es.mirrored(found.x, low, high), low, atol=1e-6)
    x = jnp.array([[0.3, 0.6], [-1.5, 0.8], [2.25, 1.01]])
    expected = np.array([[0.3, 0.6], [-0.5, 0.7], [1.75, 0.51]])
    np.testing.assert_allclose(
        jax.vmap(cma_es.mirrored, (0, None, None))(x, low, high), expected, atol=1e-12
    )


def test_too_few_samples():
    with pytest.raises(ValueError, match="num_samples is 3"):
        cma_es.minimise(jax.random.key(0), sphere, jnp.ones(2), 1.0, num_samples=3)
