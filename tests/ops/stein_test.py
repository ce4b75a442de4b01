"""Stein's direction against loops in numpy, by hand, and on a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import stein

direction = jax.jit(stein.direction)


def in_loops(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Liu and Wang (2016), Eq. (8)."""
    number = len(x)
    pairs = [(i, j) for i in range(number) for j in range(i)]
    middle = np.median([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
    h = middle**2 / np.log(number)
    phi = np.zeros_like(x)
    for i in range(number):
        for j in range(number):
            k = np.exp(-((x[i] - x[j]) ** 2).sum() / h)
            gradient = 2 / h * (x[i] - x[j]) * k  # of k, by x[j]
            phi[i] += (k * scores[j] + gradient) / number
    return phi


@pytest.mark.parametrize(("number", "size"), [(2, 1), (3, 2), (7, 4)])
def test_the_direction_is_that_of_the_paper(number: int, size: int):
    rng = np.random.default_rng(number)
    x, scores = rng.normal(size=(2, number, size))
    found = direction(jnp.asarray(x), jnp.asarray(scores))
    np.testing.assert_allclose(found, in_loops(x, scores), rtol=1e-4, atol=1e-5)


def test_two_particles_by_hand():
    """At a distance of 1, h = 1 / log 2, so that the kernel is 1 / 2."""
    found = direction(jnp.array([[0.0], [1.0]]), jnp.array([[3.0], [5.0]]))
    push = 2 * np.log(2) * 0.5
    expected = [[(3 + 5 / 2 - push) / 2], [(5 + 3 / 2 + push) / 2]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_one_particle_climbs():
    score = jnp.array([[1.0, -2.0]])
    np.testing.assert_array_equal(direction(jnp.ones((1, 2)), score), score)


def test_particles_in_one_place_climb_together():
    scores = jnp.array([[1.0], [3.0]])
    found = direction(jnp.ones((2, 1)), scores)
    np.testing.assert_allclose(found, [[2.0], [2.0]])


def test_particles_come_to_stand_for_a_gaussian():
    mean, std = 3.0, 0.5
    start = jax.random.normal(jax.random.key(0), (40, 1))

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x + 0.05 * direction(x, (mean - x) / std**2), None

    x, _ = jax.lax.scan(step, start, length=500)
    np.testing.assert_allclose(x.mean(), mean, atol=0.02)
    np.testing.assert_allclose(x.std(), std, rtol=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["particle", "score"])
def test_what_is_not_finite_does_not_spread(bad: float, where: str):
    rng = np.random.default_rng(0)
    x, scores = rng.normal(size=(2, 4, 2))
    (x if where == "particle" else scores)[1, 0] = bad
    found = np.asarray(direction(jnp.asarray(x), jnp.asarray(scores)))
    others = np.array([0, 2, 3])
    assert np.isnan(found[1]).all()
    alone = direction(jnp.asarray(x[others]), jnp.asarray(scores[others]))
    np.testing.assert_allclose(found[others], alone, rtol=1e-4, atol=1e-6)
