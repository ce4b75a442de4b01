"""The Fisher matrix three ways, steps along it, and what they do not depend on."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mbrl_jax import distributions
from mbrl_jax.distributions import Family
from mbrl_jax.ops import natural
from mbrl_jax.types import Array, Params

OBS = np.random.default_rng(0).normal(size=(5, 3))
SIZE = 0.01


pytestmark = pytest.mark.usefixtures("double")


class Case(NamedTuple):
    """A policy of some parameters, what it gains, and how far others are from it."""

    family: Family
    params: Params
    outputs: Callable[[Params], Array]  # -> [N, D] for OBS
    gain: Callable[[Params], Array]
    divergence: Callable[[Params], Array]
    quadrature: Callable[[Array], tuple[Array, Array]]
    # outputs [D] -> actions [K, ...], and weights [K] that make sums expectations


def make(kind: str) -> Case:
    """Linear in the observations; what is gained is some smooth function."""
    rng, size = np.random.default_rng(1), 3 if kind == "categorical" else 2
    params = {"weights": rng.normal(size=(3, size)), "bias": rng.normal(size=size)}
    if kind == "categorical":
        family = distributions.categorical(size)
        quadrature = lambda logits: (jnp.arange(size), jax.nn.softmax(logits))
    else:
        params["log_std"] = 0.3 * rng.normal(size=size)
        family = distributions.gaussian(size, 2.0)
        quadrature = gauss_hermite
    params = jax.tree.map(jnp.asarray, params)

    def outputs(params: Params) -> Array:
        found = OBS @ params["weights"] + params["bias"][None]
        if kind == "categorical":
            return found
        log_std = jnp.broadcast_to(params["log_std"], found.shape)
        return jnp.concatenate([found, log_std], axis=1)

    def divergence(new: Params) -> Array:
        return jax.vmap(family.divergence)(outputs(params), outputs(new)).mean()

    liked = rng.normal(size=outputs(params).shape)
    shown = jax.nn.softmax if kind == "categorical" else jnp.sin
    gain = lambda new: (liked * shown(outputs(new))).sum()  # of the policy alone
    return Case(family, params, outputs, gain, divergence, quadrature)


def gauss_hermite(outputs: Array) -> tuple[Array, Array]:
    """Of two independent normals, in units of 2; exact for polynomials of degree 9."""
    x, weights = np.polynomial.hermite_e.hermegauss(5)
    z = jnp.asarray(np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2))
    mean, log_std = jnp.split(outputs, 2)
    actions = 2.0 * (mean[None] + jnp.exp(log_std)[None] * z)
    return actions, jnp.asarray(np.outer(weights, weights).ravel() / weights.sum() ** 2)


@pytest.fixture(params=["categorical", "gaussian"])
def case(request: pytest.FixtureRequest) -> Case:
    return make(request.param)


def score_covariance(case: Case) -> np.ndarray:
    """[P, P]: the expectation over actions, the mean over observations."""
    flat, unravel = ravel_pytree(case.params)

    def of_one(i: Array) -> Array:
        outputs = lambda flat: case.outputs(unravel(flat))[i]
        actions, weights = case.quadrature(outputs(flat))
        score = jax.grad(lambda flat, a: case.family.log_prob(outputs(flat), a))
        scores = jax.vmap(score, (None, 0))(flat, actions)
        return jnp.einsum("k,kp,kq->pq", weights, scores, scores)

    return np.asarray(jax.jit(jax.vmap(of_one))(jnp.arange(len(OBS))).mean(axis=0))


def fisher_of(case: Case) -> np.ndarray:
    return np.asarray(
        jax.jit(lambda x: natural.fisher(case.divergence, x))(case.params)
    )


def differences(f: Callable[[np.ndarray], Array], x: np.ndarray) -> np.ndarray:
    """The Hessian by central differences, [P, P]."""
    step, eye = 1e-4, np.eye(len(x))
    directions = step * np.stack([eye[:, None] + eye, eye[:, None] - eye])
    points = x + np.stack([directions, -directions])  # [2, 2, P, P, P]
    values = jax.jit(jax.vmap(f))(points.reshape(-1, len(x))).reshape(points.shape[:-1])
    (same, across), (back, aback) = values
    return np.asarray(same + back - across - aback) / (4 * step**2)


def test_fisher_is_the_covariance_of_the_score_and_the_hessian_of_the_kl(case):
    fisher = fisher_of(case)
    np.testing.assert_allclose(fisher, score_covariance(case), atol=1e-12)
    flat, unravel = ravel_pytree(case.params)
    hessian = differences(lambda flat: case.divergence(unravel(flat)), np.array(flat))
    np.testing.assert_allclose(fisher, hessian, atol=1e-6)
    assert np.linalg.eigvalsh(fisher)[-1] > 0.1  # there is something to compare


def test_a_product_is_that_with_the_matrix(case):
    x = jax.tree.map(jnp.cos, case.params)
    fisher = fisher_of(case)
    product = jax.jit(
        lambda x: natural.fisher_product(case.divergence, case.params, x)
    )(x)
    expected = fisher @ ravel_pytree(x)[0]
    np.testing.assert_allclose(ravel_pytree(product)[0], expected, atol=1e-12)


def test_both_solvers_solve(case):
    gradient, damping = jax.grad(case.gain)(case.params), 0.1
    solvers = jax.jit(
        lambda: [
            solve(case.divergence, case.params, gradient, damping, number)
            for solve, number in (
                (natural.exact, 0),
                (natural.conjugate_gradient, 50),
                (natural.conjugate_gradient, 1),
            )
        ]
    )
    exact, full, (one, _) = solvers()
    flat = np.array(ravel_pytree(gradient)[0])
    matrix = score_covariance(case) + damping * np.eye(flat.size)
    expected = np.linalg.solve(matrix, flat)
    for (x, curvature), tolerance in ((exact, 1e-10), (full, 1e-4)):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ravel_pytree(x)[0], expected, atol=tolerance * scale)
        assert curvature == pytest.approx(expected @ flat, rel=tolerance)
    steepest = flat @ flat / (flat @ matrix @ flat) * flat  # the first of them
    np.testing.assert_allclose(ravel_pytree(one)[0], steepest, rtol=1e-9)


def step(
    case: Case, size: float = SIZE, solver: str = "exact", damping: float = 1e-10
) -> Params:
    return jax.jit(
        lambda params: natural.step(
            case.gain,
            case.divergence,
            params,
            size=size,
            solver=solver,
            damping=damping,
            num_iterations=100,
        )
    )(case.params)


@pytest.mark.parametrize("solver", natural.SOLVERS)
def test_a_step_goes_as_far_as_asked_to_second_order_and_up(case, solver):
    errors = []
    for size in (1e-2, 1e-4, 1e-6):
        new = jax.tree.map(jnp.add, case.params, step(case, size, solver))
        errors.append(abs(float(case.divergence(new)) / size - 1))
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.01
    assert case.gain(new) > case.gain(case.params)


def test_no_step_of_the_same_kl_gains_more(case):
    """To first order, g x; against many others on the same ellipsoid."""
    gradient, _ = ravel_pytree(jax.grad(case.gain)(case.params))
    change, _ = ravel_pytree(step(case))
    fisher = score_covariance(case)
    others = np.random.default_rng(0).normal(size=(5000, len(gradient)))
    lengths = np.einsum("np,pq,nq->n", others, fisher, others)
    others *= np.sqrt(2 * SIZE / lengths)[:, None]
    assert change @ fisher @ change == pytest.approx(2 * SIZE, rel=1e-6)
    assert (others @ gradient).max() <= gradient @ change


def in_other_units(case: Case, matrix: np.ndarray) -> Case:
    """The same policies by other parameters, [P], of which `matrix` makes the old."""
    flat, unravel = ravel_pytree(case.params)
    old = lambda new: unravel(matrix @ new)
    return case._replace(
        params=jnp.linalg.solve(matrix, flat),
        outputs=lambda new: case.outputs(old(new)),
        gain=lambda new: case.gain(old(new)),
        divergence=lambda new: case.divergence(old(new)),
    )


@pytest.mark.parametrize("units", ["millimetres", "mixed"])
def test_a_step_does_not_depend_on_the_units_of_the_parameters(units):
    """Weights of a position in metres or millimetres, or of sums of everything; a plain
    gradient step goes elsewhere.  (A categorical policy's parameters are redundant, so
    that there the matrix has no inverse.)"""
    case = make("gaussian")
    size = ravel_pytree(case.params)[0].size
    scales = {"bias": 1.0, "log_std": 1.0, "weights": np.array([[1.0], [1e3], [1.0]])}
    every = {x: scales[x] * np.ones_like(y) for x, y in case.params.items()}
    matrix = np.diag(ravel_pytree(every)[0])
    if units == "mixed":
        matrix = np.random.default_rng(2).normal(size=(size, size)) + np.eye(size)
    other = in_other_units(case, matrix)
    np.testing.assert_allclose(case.outputs(case.params), other.outputs(other.params))

    def after(case: Case, change: Params) -> Array:
        return case.outputs(jax.tree.map(jnp.add, case.params, change))

    undamped = lambda case: step(case, damping=0.0)
    same = after(case, undamped(case))
    np.testing.assert_allclose(after(other, undamped(other)), same, atol=1e-6)
    assert np.abs(same - case.outputs(case.params)).max() > 0.01

    def plain(case: Case) -> Params:
        return jax.tree.map(lambda x: 1e-3 * x, jax.grad(case.gain)(case.params))

    apart = np.abs(after(other, plain(other)) - after(case, plain(case)))
    moved = np.abs(after(case, plain(case)) - case.outputs(case.params))
    assert apart.max() > 0.5 * moved.max()


def test_plain_steps_of_the_same_kl_differ_too():
    """It is the direction that depends on the units, not only the length."""
    case = make("gaussian")
    scale = np.ones(ravel_pytree(case.params)[0].size)
    scale[-2:] = 1e3
    other = in_other_units(case, np.diag(scale))

    def direction(case: Case) -> Array:
        tangent = jax.grad(case.gain)(case.params)
        found = jax.jvp(case.outputs, (case.params,), (tangent,))[1].ravel()
        return found / jnp.linalg.norm(found)

    assert direction(case) @ direction(other) < 0.9


@pytest.mark.parametrize("solver", natural.SOLVERS)
@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_nowhere_to_go_is_no_step(case, solver, slope):
    flat = case._replace(gain=lambda params: slope * ravel_pytree(params)[0].sum())
    for leaf in jax.tree.leaves(step(flat, solver=solver)):
        assert (leaf == 0).all()


@pytest.mark.parametrize("solver", natural.SOLVERS)
def test_a_divergence_that_is_not_finite_is_no_step(case, solver):
    broken = case._replace(divergence=lambda params: jnp.nan * case.divergence(params))
    for leaf in jax.tree.leaves(step(broken, solver=solver)):
        assert (leaf == 0).all()
