from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.planners.augmented_lagrangian import (
    Constrained,
    Constraints,
    Status,
    augmented_lagrangian,
)
from mbrl_jax.planners.ilqr import Status as SolverStatus
from mbrl_jax.planners.ilqr import ilqr
from mbrl_jax.types import Array


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


ORIGIN = np.zeros(4)
CENTRE, RADIUS = np.array([1.0, 0.05]), 0.4  # of an obstacle


def constrained(f, l, last, x, u, *, second_order=False, **constraints) -> Constrained:
    solve = lambda l, last, u: ilqr(
        f, l, last, x, u, second_order=second_order, tolerance=1e-9
    )
    return augmented_lagrangian(solve, l, last, x, u, **constraints)


def point(x: Array, u: Array, t: Array) -> Array:
    """Position and velocity in a plane, accelerated by u for 0.1 s."""
    return jnp.concatenate([x[:2] + 0.1 * x[2:] + 0.005 * u, x[2:] + 0.1 * u])


def effort(x: Array, u: Array, t: Array) -> Array:
    return 0.5 * (u**2).sum()


def nothing(x: Array) -> Array:
    return 0.0 * x.sum()


def outside(x: Array, radius: float | Array = RADIUS) -> Array:
    """At most 0 outside of the obstacle."""
    return radius**2 - ((x[:2] - CENTRE) ** 2).sum()


def at_goal(x: Array) -> Constraints:
    return Constraints(jnp.zeros(0), x - jnp.array([2.0, 0.0, 0.0, 0.0]))


def go_round(
    x: Array,
    radius: Array,
    tolerance: float | Array = 1e-6,
    second_order: bool = False,
) -> Constrained:
    """From `x` [4] to the goal in 3 s; with a radius of 0 nothing is in the way."""
    return constrained(
        point,
        effort,
        nothing,
        x,
        jnp.zeros((30, 2)),
        second_order=second_order,
        constraints=lambda x, u, t: Constraints(outside(x, radius)[None], jnp.zeros(0)),
        final_constraints=at_goal,
        tolerance=tolerance,
    )


compiled = jax.jit(go_round)


def first_order(x: np.ndarray, radius: float, tolerance: float = 1e-6) -> Constrained:
    """All by one program."""
    return compiled(x, *map(np.float64, (radius, tolerance)))


def test_least_effort_to_a_goal_is_that_of_the_least_norm():
    """x_H = x_free + G u; the shortest such u and its price are known."""
    ours = first_order(ORIGIN, 0.0, 1e-9)
    unit = np.eye(60).reshape(60, 30, 2)
    G = np.zeros((4, 60))
    for t in range(30):
        G[:2] += 0.1 * G[2:] + 0.005 * unit[:, t].T
        G[2:] += 0.1 * unit[:, t].T
    price = -np.linalg.solve(G @ G.T, np.array([2.0, 0, 0, 0]))
    assert ours.status == Status.MET
    np.testing.assert_allclose(ours.solution.u.ravel(), -G.T @ price, atol=1e-7)
    np.testing.assert_allclose(ours.last_multipliers.equality, price, atol=1e-6)


def lagrangian(f, l, last, constraints, final, x, ours: Constrained, u: Array) -> Array:
    """Of any u [H, A], with the multipliers found."""
    due = lambda price, value: (
        price.inequality @ value.inequality + price.equality @ value.equality
    )

    def step(x: Array, now: tuple) -> tuple[Array, Array]:
        u, t, price = now
        return f(x, u, t), l(x, u, t) + due(price, constraints(x, u, t))

    steps = (u, jnp.arange(len(u)), ours.multipliers)
    end, costs = jax.lax.scan(step, x, steps)
    return costs.sum() + last(end) + due(ours.last_multipliers, final(end))


def check_optimum(f, l, last, constraints, final, x, ours: Constrained) -> None:
    """The conditions of Karush, Kuhn and Tucker."""
    assert ours.status == Status.MET
    assert ours.violation <= 1e-6

    @jax.jit
    def at(ours: Constrained, u: Array) -> tuple[Constraints, Array]:
        of_steps = jax.vmap(constraints)(ours.solution.x[:-1], u, jnp.arange(len(u)))
        of_u = partial(lagrangian, f, l, last, constraints, final, jnp.asarray(x), ours)
        return of_steps, jax.grad(of_u)(u)

    steps, gradient = jax.tree.map(np.asarray, at(ours, ours.solution.u))
    prices = np.asarray(ours.multipliers.inequality)
    assert steps.inequality.max() <= 1e-6
    assert (prices >= 0).all()
    assert np.abs(prices * steps.inequality).max() < 1e-4
    assert prices.max() > 1e-2  # they matter
    if steps.equality.size:
        assert np.abs(steps.equality).max() <= 1e-6
    assert np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize("second_order", [False, True])
def test_a_point_goes_round_an_obstacle(second_order):
    solve = jax.jit(partial(go_round, second_order=True))
    ours = (solve if second_order else first_order)(ORIGIN, RADIUS)
    constraints = lambda x, u, t: Constraints(outside(x)[None], jnp.zeros(0))
    check_optimum(point, effort, nothing, constraints, at_goal, ORIGIN, ours)
    end = np.asarray(ours.solution.x[-1])
    assert np.abs(end - np.array([2.0, 0, 0, 0])).max() < 1e-6


def car(x: Array, u: Array, t: Array) -> Array:
    """(x, y, heading, speed); u is (acceleration, curvature)."""
    ahead = x[3] * jnp.stack([jnp.cos(x[2]), jnp.sin(x[2]), u[1]])
    return x + 0.1 * jnp.append(ahead, u[0])


def test_a_car_goes_round_an_obstacle_and_keeps_to_its_limits():
    def constraints(x: Array, u: Array, t: Array) -> Constraints:
        gentle = jnp.stack([jnp.abs(u[0]) - 1.5, x[3] - 1.2])
        return Constraints(jnp.append(gentle, outside(x)), jnp.zeros(0))

    cost = lambda x, u, t: 0.05 * (u**2).sum()
    goal = np.array([2.0, 0.0, 0.0, 0.0])
    last = lambda x: 10 * ((x - goal) ** 2).sum()
    final = lambda x: Constraints(jnp.zeros(0), jnp.zeros(0))
    x, u = np.array([0.0, 0.0, 0.0, 0.5]), np.tile([0.1, -0.1], (40, 1))
    ours = jax.jit(partial(constrained, car, cost, last, constraints=constraints))(x, u)
    check_optimum(car, cost, last, constraints, final, x, ours)


def test_what_cannot_be_met_is_said_to_be():
    @jax.jit
    def run(unit: Array) -> Constrained:
        def contrary(x: Array, u: Array, t: Array) -> Constraints:
            return Constraints(unit * jnp.stack([u[0] + 1, 1 - u[0]]), jnp.zeros(0))

        return constrained(
            point, effort, nothing, ORIGIN, jnp.zeros((5, 2)), constraints=contrary
        )

    ours = run(np.float64(1.0))
    assert ours.status == Status.VIOLATED
    assert ours.iterations == 30
    assert ours.violation > 0.5
    nan = run(np.float64(np.nan))
    assert nan.status == Status.NOT_FINITE
    assert nan.iterations <= 2


def test_vmaps_over_starts():
    starts = np.array([[0.0, 0, 0, 0], [0.0, 0.2, 0, 0]])
    batch = jax.jit(jax.vmap(go_round, (0, None)))(starts, RADIUS)
    assert (batch.status == Status.MET).all()
    assert (batch.solution.status == SolverStatus.CONVERGED).all()
    alone = first_order(starts[1], RADIUS)
    np.testing.assert_allclose(alone.solution.u, batch.solution.u[1], atol=1e-6)
