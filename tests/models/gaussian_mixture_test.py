"""The mixture against its formulas in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax.models import gaussian_mixture
from mbrl_jax.models.gaussian_mixture import Mixture

pytestmark = pytest.mark.usefixtures("double")

KEY = jax.random.key(0)
MEANS = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, -8.0]])
COVS = np.array([[[1.0, 0.5], [0.5, 1.0]], np.eye(2) / 4, [[2.0, -0.6], [-0.6, 0.5]]])
SHARES = np.array([0.5, 0.3, 0.2])
fit = jax.jit(
    gaussian_mixture.fit,
    static_argnames=("num_clusters", "rows_per_cluster", "num_iterations"),
)


def truth() -> Mixture:
    return Mixture(*map(jnp.asarray, (np.log(SHARES), MEANS, COVS)))


def draw(number: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    which = rng.choice(3, number, p=SHARES)
    return np.stack([rng.multivariate_normal(MEANS[k], COVS[k]) for k in which])


def densities(rows: np.ndarray) -> np.ndarray:
    """[N, K], each cluster's share included."""
    density = scipy.stats.multivariate_normal.pdf
    every = [
        s * density(rows, m, c) for s, m, c in zip(SHARES, MEANS, COVS, strict=True)
    ]
    return np.stack(every, axis=1)


def test_clusters_are_found_again():
    found = fit(KEY, draw(3000), np.ones(3000, bool), num_clusters=3)
    order = [np.abs(found.mean - mean[None]).sum(axis=1).argmin() for mean in MEANS]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(np.exp(found.log_weight)[order], SHARES, atol=0.03)
    np.testing.assert_allclose(found.mean[jnp.array(order)], MEANS, atol=0.15)
    np.testing.assert_allclose(found.cov[jnp.array(order)], COVS, atol=0.2)


def test_densities_are_scipys():
    rows, expected = draw(50), densities(draw(50))
    found = gaussian_mixture.log_density(truth(), jnp.asarray(rows))
    np.testing.assert_allclose(found, np.log(expected.sum(axis=1)), rtol=1e-9)
    shares = gaussian_mixture.responsibilities(truth(), jnp.asarray(rows))
    np.testing.assert_allclose(shares, expected / expected.sum(1)[:, None], atol=1e-9)


@pytest.mark.parametrize("kept", [0, 2])
def test_moments_are_those_of_draws_from_the_clusters(kept: int):
    """That the rows belong to, in their shares."""
    rows, valid = np.array([[3.9, 0.0], [0.1, -4.1], [1e3, 1e3]]), np.arange(3) < kept
    every = densities(rows[:kept])
    share = (every / every.sum(axis=1)[:, None]).mean(axis=0) if kept else SHARES
    rng = np.random.default_rng(1)
    each = [
        rng.multivariate_normal(m, c, 40_000) for m, c in zip(MEANS, COVS, strict=True)
    ]
    weights = np.repeat(share, 40_000)
    mean, cov = gaussian_mixture.moments(truth(), jnp.asarray(rows), jnp.asarray(valid))
    draws = np.concatenate(each)
    np.testing.assert_allclose(
        mean, np.average(draws, axis=0, weights=weights), atol=0.03
    )
    np.testing.assert_allclose(cov, np.cov(draws.T, aweights=weights), atol=0.15)


def test_the_likelihood_never_falls():
    rows = draw(200)
    average = lambda n: gaussian_mixture.log_density(
        fit(KEY, rows, np.ones(200, bool), num_clusters=3, num_iterations=n),
        jnp.asarray(rows),
    ).mean()
    found = [float(average(n)) for n in (0, 1, 3, 9)]
    assert all(np.diff(found) > 0)


def test_rows_that_are_not_valid_and_units_make_no_difference():
    rows, valid = draw(200), np.arange(200) < 150
    spoiled = np.where(valid[:, None], rows, 1e6)
    plain = fit(KEY, rows, valid, num_clusters=3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        plain,
        fit(KEY, spoiled, valid, num_clusters=3),
    )
    one, alone = (
        fit(KEY, *x, num_clusters=1) for x in ((rows, valid), (rows[:150], valid[:150]))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, alone)
    scale = np.array([1e-9, 1e6])
    scaled = fit(KEY, scale * rows, valid, num_clusters=3)
    np.testing.assert_allclose(scaled.mean / scale[None], plain.mean, rtol=1e-5)
    np.testing.assert_allclose(scaled.log_weight, plain.log_weight, rtol=1e-5)


@pytest.mark.parametrize(("number", "used"), [(0, 1), (7, 1), (20, 2), (200, 3)])
def test_as_many_clusters_are_used_as_there_are_rows_for(number: int, used: int):
    rows, valid = draw(200), np.arange(200) < number
    found = fit(KEY, rows, valid, num_clusters=3, rows_per_cluster=10)
    assert np.isfinite(found.log_weight).sum() == used
    assert np.isfinite(found.mean).all()
    assert (np.linalg.eigvalsh(found.cov) > 0).all()


def test_rows_that_are_all_the_same_are_no_trouble():
    rows = np.full((40, 3), 5.0)
    found = fit(KEY, rows, np.ones(40, bool), num_clusters=4, rows_per_cluster=2)
    np.testing.assert_allclose(found.mean[np.isfinite(found.log_weight)], 5.0)
    assert (np.linalg.eigvalsh(found.cov) > 0).all()
