"""Fitted dynamics and expanded costs against the functions themselves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.local_policies import controllers, local_system
from mbrl_jax.models.linear_gaussian import Dynamics
from mbrl_jax.types import Array

pytestmark = pytest.mark.usefixtures("double")


def cost(x: Array, u: Array, after: Array) -> Array:
    return jnp.exp(x[0] / 3) + x[1] * u[0] + (u**2).sum() + jnp.cos(after).sum()


@partial(jax.jit, static_argnums=2)
def made(
    system: controllers.System, controller: controllers.Controller, convex: bool = False
):
    problem = system.problem
    F = jnp.concatenate([problem.A, problem.B], axis=2)
    dynamics = Dynamics(F, problem.c, system.noise)
    return local_system.make(dynamics, cost, system.start, controller, convex=convex)


def test_the_expansion_is_the_cost_near_the_mean_of_x_and_u(random_system):
    """To third order: for a way ten times nearer the error is a thousandth."""
    system, controller = random_system(0, 4)
    found = made(system, controller)
    np.testing.assert_allclose(found.problem.A, system.problem.A)
    np.testing.assert_allclose(found.noise, system.noise)
    z = np.asarray(controllers.marginals(system, controller).mean)
    second, first = map(np.asarray, controllers.cost_terms(found.problem))
    away = np.random.default_rng(1).normal(size=z.shape)

    def error(size: float) -> float:
        gaps = []
        for t in range(4):
            at = z[t] + size * away[t]
            x, u = at[:3], at[3:]
            F = np.concatenate([system.problem.A[t], system.problem.B[t]], axis=1)
            exact = cost(jnp.array(x), jnp.array(u), F @ at + system.problem.c[t])
            near = at @ second[t] @ at / 2 + first[t] @ at + found.problem.constant[t]
            gaps.append(abs(float(exact) - near))
        return max(gaps)

    assert error(0.0) < 1e-12
    assert 1e-11 < error(1e-3) < 2e-3 * error(1e-2)
    assert not found.problem.Q[-1].any()
    assert found.problem.constant[-1] == 0


def test_what_bends_down_may_be_taken_for_straight(random_system):
    """The same value and slope at the mean; curvatures that are not negative stay."""
    system, controller = random_system(0, 4)
    plain, convex = made(system, controller).problem, made(system, controller, True)
    z = np.asarray(controllers.marginals(system, controller).mean)
    (second, first), (straight, slope) = (
        map(np.asarray, controllers.cost_terms(x)) for x in (plain, convex.problem)
    )
    values, vectors = np.linalg.eigh(second)
    assert values.min() < -0.1
    kept = np.einsum("tij,tj,tkj->tik", vectors, np.maximum(values, 0), vectors)
    np.testing.assert_allclose(straight, kept, atol=1e-10)
    at = lambda H, g: np.einsum("tij,tj->ti", H, z) + g
    np.testing.assert_allclose(at(straight, slope), at(second, first), atol=1e-10)
    cost_of = lambda H, g: np.einsum("ti,tij,tj->t", z, H, z) / 2 + (g * z).sum(axis=1)
    gap = cost_of(second, first) - cost_of(straight, slope)
    constants = convex.problem.constant - plain.constant
    np.testing.assert_allclose(constants[:-1], gap, atol=1e-10)
