from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from mbrl_jax.ops import definite
from mbrl_jax.types import Array


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


minimise_in_box = jax.jit(definite.minimise_in_box)


def test_solve():
    root = np.random.default_rng(0).normal(size=(6, 6))
    matrix, right = root @ root.T, np.arange(12.0).reshape(6, 2)
    solved, well = jax.jit(definite.solve)(matrix, right)
    assert well
    np.testing.assert_allclose(solved, np.linalg.solve(matrix, right), rtol=1e-8)
    for bad in (np.diag([1.0, -1.0]), np.ones((2, 2)), np.zeros((2, 2))):
        solved, well = definite.solve(jnp.asarray(bad), jnp.ones(2))
        assert not well
        assert (solved == 0).all()
    solved, well = definite.solve(jnp.full((2, 2), jnp.nan), jnp.ones(2))
    assert not well
    assert jnp.isnan(solved).all()


def test_units_make_no_difference():
    """Of the variables and of the cost, in float32; rounding apart, which the powers of
    two have none of."""
    rng = np.random.default_rng(0)
    root, g = rng.normal(size=(5, 4)), rng.normal(size=4)
    H, high = (root.T @ root).astype(np.float32), np.full(4, 0.3, np.float32)
    g, units = g.astype(np.float32), np.ldexp(np.float32(1), [-12, 0, 11, 30])
    plain, free = minimise_in_box(H, g, -high, high)
    assert 0 < free.sum() < 4
    x, well = definite.solve(jnp.asarray(H), jnp.asarray(g))
    for cost in np.ldexp(np.float32(1), [-40, 0, 40]):
        scaled = cost * H * units * units[:, None], cost * g * units
        y, well = definite.solve(*map(jnp.asarray, scaled))
        assert well
        np.testing.assert_array_equal(y * units, x)
        k, same = minimise_in_box(*scaled, -high / units, high / units)
        np.testing.assert_array_equal(same, free)
        np.testing.assert_allclose(k * units, plain, rtol=1e-5)
    assert not definite.solve(jnp.asarray(scaled[0]).at[2, 2].mul(0.01), y)[1]


def test_project_is_nearest_and_leaves_convex_costs_alone():
    rng = np.random.default_rng(0)
    joint = rng.normal(size=(5, 5))
    joint = joint + joint.T
    assert np.linalg.eigvalsh(joint)[0] < -1
    project = jax.jit(partial(definite.project, floor=1e-3))
    Q, S, R = project(joint[:3, :3], joint[3:, :3], joint[3:, 3:])
    nearest = np.block([[Q, S.T], [S, R]])
    # Nearest: what was removed is negative, and orthogonal to what is left.
    removed = joint - nearest
    assert np.linalg.eigvalsh(nearest)[0] > -1e-12
    assert np.linalg.eigvalsh(removed)[-1] < 1e-12
    np.testing.assert_allclose(removed @ nearest, 0, atol=1e-12)
    for once, twice in zip((Q, S, R), project(Q, S, R), strict=True):
        np.testing.assert_allclose(once, twice, atol=1e-12)


def test_project_makes_what_u_costs_positive():
    Q, S, R = definite.project(jnp.eye(2), jnp.ones((1, 2)), -jnp.eye(1), floor=1e-3)
    assert R[0, 0] >= 1e-3 * (1 - 1e-9)
    assert jnp.linalg.eigvalsh(jnp.block([[Q, S.T], [S, R]]))[0] > -1e-12


@pytest.mark.parametrize("size", [1, 2, 4])
def test_minimise_in_box_equals_scipys_bounded_least_squares(size):
    """1/2 |M k - b|^2 is g'k + 1/2 k'Hk, up to a constant."""
    rng = np.random.default_rng(0)
    num_held = set()
    for _ in range(100):
        M, b = rng.normal(size=(6, size)), 2 * rng.normal(size=6)
        low, high = -rng.uniform(0, 1, size), rng.uniform(0, 1, size)
        k, free = minimise_in_box(M.T @ M, -M.T @ b, low, high)
        exact = scipy.optimize.lsq_linear(M, b, (low, high), tol=1e-14).x
        np.testing.assert_allclose(k, exact, atol=1e-6)
        gradient = M.T @ (M @ np.asarray(k) - b)
        np.testing.assert_allclose(gradient[free], 0, atol=1e-12)
        assert (gradient[~free & (k == low)] > 0).all()
        assert (gradient[~free & (k == high)] < 0).all()
        assert (free | (k == low) | (k == high)).all()
        num_held.add(int((~free).sum()))
    assert num_held == set(range(size + 1))


def test_solve_free():
    H, right = (
        jnp.array([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]]),
        jnp.eye(3),
    )
    free = jnp.array([True, False, True])
    solved, well = definite.solve_free(H, free, right)
    assert well
    np.testing.assert_allclose(solved, np.diag([0.5, 0.0, 0.25]))


def test_what_has_no_minimum_ends():
    for H in (-jnp.eye(2), jnp.full((2, 2), jnp.nan), -jnp.eye(1)):
        one = jnp.ones(len(H))
        k, free = minimise_in_box(H, one, -one, one)
        assert not definite.solve_free(H, free, one)[1] or not free.any()
        assert jnp.isfinite(k).all()


def test_status():
    yes, no, one = jnp.ones(2, bool), jnp.array([True, False]), jnp.ones(2)
    assert definite.status(yes, one, one) == definite.Status.SOLVED
    assert definite.status(no, one) == definite.Status.INDEFINITE
    assert definite.status(no, one, one * jnp.inf) == definite.Status.NOT_FINITE


def test_inverse() -> None:
    """With its determinant and both slopes as LAPACK has them; NaN if there is none."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    matrix, weights = (
        jnp.array(root @ root.T + 0.1 * np.eye(5)),
        rng.normal(size=(5, 5)),
    )
    found, log_det = definite.inverse(matrix)
    np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-10)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], rtol=1e-10)

    def ours(matrix: Array) -> Array:
        inverse, log_det = definite.inverse(matrix)
        return (weights * inverse).sum() + log_det**2

    def theirs(matrix: Array) -> Array:
        determinant = jnp.linalg.slogdet(matrix)[1]
        return (weights * jnp.linalg.inv(matrix)).sum() + determinant**2

    slopes = jax.grad(ours)(matrix), jax.grad(theirs)(matrix)
    np.testing.assert_allclose(*slopes, rtol=1e-8)
    for bad in (-matrix, jnp.full((2, 2), jnp.nan)):
        assert jnp.isnan(definite.inverse(bad)[1])


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_positive_part_has_no_negative_eigenvalues(size: int, unit: float):
    rng = np.random.default_rng(size)
    half = rng.normal(size=(20, size, size)) * unit
    both = half + half.transpose(0, 2, 1)
    both[0] = 0
    values, vectors = np.linalg.eigh(both)
    expected = (vectors * np.maximum(values, 0)[:, None]) @ vectors.transpose(0, 2, 1)
    found = jax.jit(jax.vmap(definite.positive_part))(jnp.array(both, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * unit)


def test_the_positive_part_of_what_has_none_in_most_directions():
    """Of low rank, in mixed units: rounding must not grow where there is nothing."""
    rng = np.random.default_rng(0)
    units = 10 ** rng.uniform(-2, 1, size=(100, 1, 18))
    half = rng.normal(size=(100, 3, 18)) * units
    low = np.swapaxes(half, 1, 2) @ half
    scale = np.abs(low).max(axis=(1, 2), keepdims=True)
    found = jax.jit(jax.vmap(definite.positive_part))(jnp.array(low, jnp.float32))
    np.testing.assert_allclose(found / scale, low / scale, atol=1e-5)
