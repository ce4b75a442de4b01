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


def free(x: Array, u: Array, t: Array) -> Constraints:
    return Constraints(jnp.zeros(0), jnp.zeros(0))


def outside(x: Array, u: Array, t: Array) -> Constraints:
    clearance = ((x[:2] - CENTRE) ** 2).sum() - RADIUS**2
    return Constraints(-clearance[None], jnp.zeros(0))


def at_goal(x: Array) -> Constraints:
    return Constraints(jnp.zeros(0), x - jnp.array([2.0, 0.0, 0.0, 0.0]))


def test_least_effort_to_a_goal_is_that_of_the_least_norm():
    """x_H = x_free + G u; the shortest such u and its price are known."""
    x, H = np.zeros(4), 20
    ours = jax.jit(
        partial(constrained, point, effort, nothing, constraints=free,
                final_constraints=at_goal, tolerance=1e-9)
    )(x, np.zeros((H, 2)))  # fmt: skip

    def end(u: Array) -> Array:
        now = jnp.asarray(x)
        for t in range(H):
            now = point(now, u[t], t)
        return now

    G = np.asarray(jax.jacobian(end)(jnp.zeros((H, 2)))).reshape(4, -1)
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
    steps = jax.vmap(constraints)(
        ours.solution.x[:-1], ours.solution.u, jnp.arange(len(ours.solution.u))
    )
    prices = ours.multipliers.inequality
    assert steps.inequality.max() <= 1e-6
    assert (prices >= 0).all()
    assert jnp.abs(prices * steps.inequality).max() < 1e-4
    assert prices.max() > 1e-2  # they matter
    if steps.equality.size:
        assert jnp.abs(steps.equality).max() <= 1e-6
    of_u = partial(lagrangian, f, l, last, constraints, final, jnp.asarray(x), ours)
    gradient = jax.jit(jax.grad(of_u))(ours.solution.u)
    assert jnp.abs(gradient).max() < 1e-6


@pytest.mark.parametrize("second_order", [False, True])
def test_a_point_goes_round_an_obstacle(second_order):
    x, u = np.zeros(4), np.zeros((30, 2))
    ours = jax.jit(
        partial(constrained, point, effort, nothing, constraints=outside,
                final_constraints=at_goal, second_order=second_order)
    )(x, u)  # fmt: skip
    check_optimum(point, effort, nothing, outside, at_goal, x, ours)
    assert jnp.abs(ours.solution.x[-1] - jnp.array([2.0, 0, 0, 0])).max() < 1e-6


def car(x: Array, u: Array, t: Array) -> Array:
    """(x, y, heading, speed); u is (acceleration, curvature)."""
    ahead = x[3] * jnp.stack([jnp.cos(x[2]), jnp.sin(x[2]), u[1]])
    return x + 0.1 * jnp.append(ahead, u[0])


def test_a_car_goes_round_an_obstacle_and_keeps_to_its_limits():
    def constraints(x: Array, u: Array, t: Array) -> Constraints:
        gentle = jnp.stack([jnp.abs(u[0]) - 1.5, x[3] - 1.2])
        return Constraints(
            jnp.concatenate([outside(x, u, t).inequality, gentle]), jnp.zeros(0)
        )

    cost = lambda x, u, t: 0.05 * (u**2).sum()
    goal = np.array([2.0, 0.0, 0.0, 0.0])
    last = lambda x: 10 * ((x - goal) ** 2).sum()
    final = lambda x: Constraints(jnp.zeros(0), jnp.zeros(0))
    x, u = np.array([0.0, 0.0, 0.0, 0.5]), np.tile([0.1, -0.1], (40, 1))
    ours = jax.jit(partial(constrained, car, cost, last, constraints=constraints))(x, u)
    check_optimum(car, cost, last, constraints, final, x, ours)


def test_what_cannot_be_met_is_said_to_be():
    def contrary(x: Array, u: Array, t: Array) -> Constraints:
        return Constraints(jnp.stack([u[0] + 1, 1 - u[0]]), jnp.zeros(0))

    run = lambda constraints: jax.jit(
        partial(constrained, point, effort, nothing, constraints=constraints)
    )(np.zeros(4), np.zeros((5, 2)))
    ours = run(contrary)
    assert ours.status == Status.VIOLATED
    assert ours.iterations == 30
    assert ours.violation > 0.5
    nan = run(lambda x, u, t: Constraints((u[0] * jnp.nan)[None], jnp.zeros(0)))
    assert nan.status == Status.NOT_FINITE
    assert nan.iterations <= 2


def test_vmaps_over_starts():
    starts = np.array([[0.0, 0, 0, 0], [0.0, 0.2, 0, 0]])
    solve = lambda x: constrained(
        point, effort, nothing, x, jnp.zeros((20, 2)), constraints=outside,
        final_constraints=at_goal,
    )  # fmt: skip
    batch = jax.jit(jax.vmap(solve))(starts)
    assert (batch.status == Status.MET).all()
    assert (batch.solution.status == SolverStatus.CONVERGED).all()
    alone = jax.jit(solve)(starts[1])
    np.testing.assert_allclose(alone.solution.u, batch.solution.u[1], atol=1e-6)
