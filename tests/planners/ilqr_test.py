from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from mbrl_jax.envs import pendulum
from mbrl_jax.planners import ilqr as ilqr_module
from mbrl_jax.planners import lqr
from mbrl_jax.planners.ilqr import Status, ilqr
from mbrl_jax.types import Array


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


ORDERS = pytest.mark.parametrize("second_order", [False, True])
HANGING = np.array([np.pi, 0.0])
TORQUE = 2.0


def swing(x: Array, u: Array, t: Array) -> Array:
    return pendulum.dynamics(x, u)


def swing_cost(x: Array, u: Array, t: Array) -> Array:
    return 1 - jnp.cos(x[0]) + 0.05 * x[1] ** 2 + 0.05 * u[0] ** 2


def upright(x: Array) -> Array:
    return 20 * (1 - jnp.cos(x[0])) + x[1] ** 2


swing_up = partial(ilqr, swing, swing_cost, upright)
PUSH = np.full((60, 1), 0.1)


def total(f, l, last, x: Array, u: Array) -> Array:
    """The cost of u [H, A]."""
    step = lambda x, now: (f(x, *now), l(x, *now))
    end, costs = jax.lax.scan(step, jnp.asarray(x), (u, jnp.arange(len(u))))
    return costs.sum() + last(end)


def linear_quadratic(p: lqr.Problem):
    """A problem as functions."""
    of_x = lambda x, t: x @ p.Q[t] @ x / 2 + p.q[t] @ x + p.constant[t]
    of_u = lambda x, u, t: u @ (p.R[t] @ u / 2 + p.S[t] @ x + p.r[t])
    f = lambda x, u, t: p.A[t] @ x + p.B[t] @ u + p.c[t]
    return f, lambda x, u, t: of_x(x, t) + of_u(x, u, t), lambda x: of_x(x, -1)


@ORDERS
def test_a_linear_quadratic_problem_takes_one_iteration(second_order, random_problem):
    problem = random_problem(0, 7)
    f, l, last = linear_quadratic(problem)
    best = lqr.solve(problem)
    x = jnp.array([1.0, -1.0, 2.0])
    solve = partial(ilqr, f, l, last, second_order=second_order, tolerance=1e-8)
    ours = jax.jit(solve)(x, jnp.ones((7, 2)))
    assert ours.status == Status.CONVERGED
    assert ours.iterations == 1
    value = x @ best.V[0] @ x / 2 + best.v[0] @ x + best.constant[0]
    np.testing.assert_allclose(ours.cost, value, rtol=1e-10)
    np.testing.assert_allclose(ours.K, best.K, rtol=1e-9, atol=1e-11)
    controls = jnp.einsum("tao,to->ta", best.K, ours.x[:-1]) + best.k
    np.testing.assert_allclose(ours.u, controls, rtol=1e-9, atol=1e-9)


def test_rendezvous():
    """Two vehicles in a plane; 23370.7742612 is published with anassinator/ilqr."""
    dt, friction = 0.1, 0.1

    def f(x: Array, u: Array, t: Array) -> Array:
        faster = x[4:] + dt * ((1 - friction * dt) * x[4:] + dt * u)
        return jnp.concatenate([x[:4] + dt * x[4:], faster])

    apart = lambda x: ((x[:2] - x[2:4]) ** 2).sum() + (x[4:] ** 2).sum()
    x = jnp.array([0.0, 0, 10, 10, 0, -5, 5, 0])
    u = np.random.default_rng(0).uniform(-1, 1, (200, 4))
    cost = lambda x, u, t: apart(x) + 0.1 * (u**2).sum()
    ours = jax.jit(partial(ilqr, f, cost, apart))(x, u)
    # the first step is computed from costs of 1e15
    assert ours.iterations <= 4
    assert ours.status in (Status.CONVERGED, Status.STALLED)
    np.testing.assert_allclose(ours.cost, 23370.774261158345, rtol=1e-12)


@pytest.fixture(scope="module")
def residuals():
    """After 0, 1, 2, ... iterations on the swing-up, of iLQR and of DDP."""
    with jax.enable_x64(True):
        every = {}
        for second_order in (False, True):
            solve = lambda num, second_order=second_order: swing_up(
                HANGING,
                PUSH,
                second_order=second_order,
                num_iterations=num,
                tolerance=1e-12,
            )
            result = jax.jit(jax.vmap(solve))(jnp.arange(60))
            assert result.status[-1] == Status.CONVERGED
            count = int(result.iterations[-1])
            every[second_order] = np.asarray(result.residual[: count + 1])
            every["cost", second_order] = float(result.cost[-1])
        return every


def test_ilqr_and_ddp_find_the_same_swing_up(residuals):
    assert residuals[False][-1] < 1e-8
    assert residuals[True][-1] < 1e-8
    np.testing.assert_allclose(
        residuals["cost", False], residuals["cost", True], rtol=1e-12
    )


def test_ilqr_converges_linearly_and_ddp_quadratically(residuals):
    linear = residuals[False][residuals[False] > 1e-11]
    rates = linear[-10:] / linear[-11:-1]
    assert rates.min() > 0.1
    assert rates.max() / rates.min() < 1.1  # one rate
    assert rates.max() < 0.5
    quadratic = residuals[True]
    assert quadratic[-2] > 1e-10  # not yet rounding
    orders = np.log(quadratic[-2:]) / np.log(quadratic[-3:-1])
    assert (orders > 1.8).all()
    assert len(quadratic) < len(residuals[False])


@ORDERS
def test_limits_of_the_torque(second_order):
    limits = (np.full(1, -TORQUE), np.full(1, TORQUE))
    solve = partial(swing_up, limits=limits, second_order=second_order, tolerance=1e-9)
    ours = jax.jit(solve)(HANGING, PUSH)
    assert ours.status == Status.CONVERGED
    cost = jax.jit(lambda u: total(swing, swing_cost, upright, HANGING, u))
    np.testing.assert_allclose(ours.cost, cost(ours.u), rtol=1e-12)
    gradient = jax.jit(jax.grad(cost))(ours.u)
    low, high = ours.u == -TORQUE, ours.u == TORQUE
    assert low.sum() > 3
    assert high.sum() > 3
    assert (gradient[low] > 0).all()
    assert (gradient[high] < 0).all()
    assert jnp.abs(gradient[~low & ~high]).max() < 1e-8
    assert (ours.K[(low | high)[:, 0]] == 0).all()
    assert (ours.K[~(low | high)[:, 0]] != 0).any()


def test_limits_of_a_linear_quadratic_problem_equal_scipys(random_problem):
    f, l, last = linear_quadratic(random_problem(0, 5))
    x = jnp.array([1.0, -1.0, 2.0])
    limits = (jnp.array([-0.3, -0.1]), jnp.array([0.2, 0.4]))
    solve = partial(ilqr, f, l, last, limits=limits, tolerance=1e-8)
    ours = jax.jit(solve)(x, jnp.ones((5, 2)))  # starts out of the limits
    assert ours.status == Status.CONVERGED
    objective = lambda u: total(f, l, last, x, u.reshape(5, 2))
    # 1/2 u'Hu + g'u = 1/2 |root u + root^-T g|^2
    H, g = jax.hessian(objective)(jnp.zeros(10)), jax.grad(objective)(jnp.zeros(10))
    root = np.linalg.cholesky(H).T
    bounds = tuple(np.tile(limit, 5) for limit in limits)
    right = -np.linalg.solve(root.T, g)
    exact = scipy.optimize.lsq_linear(root, right, bounds, tol=1e-14).x
    np.testing.assert_allclose(ours.u.ravel(), exact, atol=1e-6)


def test_vmaps_over_starts_and_problems():
    rng = np.random.default_rng(0)
    starts = jnp.asarray(rng.normal(size=(3, 2)))
    prices = jnp.array([0.05, 0.1, 0.5])

    def solve(x: Array, price: Array):
        cost = lambda x, u, t: swing_cost(x, u, t) + price * u[0] ** 2
        return ilqr(swing, cost, upright, x, PUSH[:20], tolerance=1e-8)

    batch = jax.jit(jax.vmap(solve))(starts, prices)
    assert (batch.status == Status.CONVERGED).all()
    single = jax.jit(solve)
    for i in range(3):
        alone = single(starts[i], prices[i])
        assert alone.iterations == batch.iterations[i]
        np.testing.assert_allclose(alone.u, batch.u[i], atol=1e-9)


def test_float32():
    single = jax.jit(swing_up)(HANGING.astype(np.float32), PUSH.astype(np.float32))
    double = jax.jit(swing_up)(HANGING, PUSH)
    assert all(x.dtype == jnp.float32 for x in single[:6])
    assert single.status in (Status.CONVERGED, Status.STALLED)
    np.testing.assert_allclose(single.cost, double.cost, rtol=1e-5)


def ruins(x: Array, u: Array, t: Array) -> Array:
    return jnp.where(t == 3, jnp.nan, x + u)


def explodes(x: Array, u: Array, t: Array) -> Array:
    return x + u + 1e200 * x**3


def roots(x: Array, u: Array, t: Array) -> Array:
    """Finite at 0, but no derivative."""
    return x + u + jnp.sqrt(x)


def plain(x: Array, u: Array, t: Array) -> Array:
    return x + u


def ignores(x: Array, u: Array, t: Array) -> Array:
    return 0.5 * x


square = lambda x, u, t: (x**2).sum() + (u**2).sum()
concave = lambda x, u, t: (x**2).sum() - (u**2).sum()
flat = lambda x, u, t: jnp.cos(u).sum() + x.sum()


@ORDERS
@pytest.mark.parametrize(
    ("f", "l", "x", "statuses"),
    [
        (plain, square, 1.0, {Status.CONVERGED}),
        (ruins, square, 1.0, {Status.NOT_FINITE}),
        (explodes, square, 1.0, {Status.NOT_FINITE}),
        (roots, square, 0.0, {Status.NOT_FINITE}),
        (ignores, concave, 1.0, {Status.REGULARISATION_EXHAUSTED}),
        (ignores, flat, 1.0, {Status.REGULARISATION_EXHAUSTED}),
    ],
)
def test_status(f, l, x, statuses, second_order):
    solve = partial(ilqr, f, l, lambda x: (x**2).sum(), second_order=second_order)
    result = jax.jit(solve)(jnp.full(1, x), jnp.zeros((10, 1)))
    assert Status(int(result.status)) in statuses
    assert result.iterations <= 100


def test_too_few_iterations_are_said_to_be():
    result = jax.jit(partial(swing_up, num_iterations=3))(HANGING, PUSH)
    assert result.status == Status.MAX_ITERATIONS
    assert result.iterations == 3
    gradient = jax.jit(
        jax.grad(lambda u: total(swing, swing_cost, upright, HANGING, u))
    )(result.u)
    np.testing.assert_allclose(result.residual, jnp.abs(gradient).max(), rtol=1e-9)


def pushed(x: Array, u: Array, t: Array) -> Array:
    return x + 0.5 * u


def crossed(x: Array, u: Array, t: Array) -> Array:
    """Convex in x and in u, but not in both where they are small."""
    return (0.1 * x**2 + 0.1 * u**2 + x * u + x**4 / 4 + u**4 / 4).sum()


def small(x: Array) -> Array:
    return 0.1 * (x**2).sum()


@ORDERS
def test_projected_with_the_cross_term_no_regularisation_is_needed(
    second_order, monkeypatch
):
    """To project the second derivatives by x and by u alone would change nothing."""
    x, u = jnp.full(1, 0.3), jnp.full((10, 1), 0.1)
    z = jnp.concatenate([x, u[0]])
    joint = jax.hessian(lambda z: crossed(z[:1], z[1:], 0))(z)
    assert (jnp.diag(joint) > 0).all()
    assert jnp.linalg.eigvalsh(joint)[0] < 0
    monkeypatch.setattr(ilqr_module, "MOST", 0.0)
    solve = partial(ilqr, pushed, crossed, small, x, u, second_order=second_order)
    assert jax.jit(solve)().status == Status.REGULARISATION_EXHAUSTED
    ours = jax.jit(partial(solve, project=True, tolerance=1e-9))()
    assert ours.status == Status.CONVERGED
    objective = lambda u: total(pushed, crossed, small, x, u)
    gradient, curvature = jax.jit(
        lambda u: (jax.grad(objective)(u), jax.hessian(objective)(u))
    )(ours.u)
    assert jnp.abs(gradient).max() < 1e-8
    assert jnp.linalg.eigvalsh(curvature.reshape(10, 10))[0] > 0  # a minimum


@ORDERS
def test_projected_where_the_controls_curve_downwards(second_order):
    """No regularisation through the dynamics would help: they ignore u."""
    cost = lambda x, u, t: (x**2 + x * u + u**4 / 4 - u**2 / 2).sum()
    x, u = jnp.full(1, 0.3), jnp.full((10, 1), 0.1)
    solve = partial(ilqr, ignores, cost, small, x, u, second_order=second_order)
    assert jax.jit(solve)().status == Status.REGULARISATION_EXHAUSTED
    ours = jax.jit(partial(solve, project=True, tolerance=1e-9))()
    assert ours.status == Status.CONVERGED
    # each step is by itself, and at a minimum
    u, states = ours.u[:, 0], 0.3 * 0.5 ** np.arange(10)
    np.testing.assert_allclose(u**3 - u + states, 0, atol=1e-8)
    assert (3 * u**2 - 1 > 0).all()


@ORDERS
def test_projection_leaves_convex_costs_alone(second_order, random_problem):
    f, l, last = linear_quadratic(random_problem(0, 7))
    x, u = jnp.array([1.0, -1.0, 2.0]), jnp.ones((7, 2))
    solve = partial(ilqr, f, l, last, x, u, second_order=second_order)
    plain, projected = jax.jit(solve)(), jax.jit(partial(solve, project=True))()
    assert projected.iterations == 1
    np.testing.assert_allclose(projected.u, plain.u, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(projected.K, plain.K, rtol=1e-9, atol=1e-9)


@ORDERS
def test_projection_vmaps(second_order):
    starts = jnp.linspace(0.2, 0.5, 4)[:, None]
    solve = jax.jit(
        lambda x: ilqr(
            pushed, crossed, small, x, jnp.full((10, 1), 0.1),
            second_order=second_order, project=True,
        )
    )  # fmt: skip
    batch = jax.jit(jax.vmap(solve))(starts)
    assert (batch.status == Status.CONVERGED).all()
    np.testing.assert_allclose(batch.cost[2], solve(starts[2]).cost, rtol=1e-9)


@pytest.mark.parametrize("num_iterations", [0, 1, 3])
def test_without_final_gains(num_iterations):
    """The same trajectory, and the gains that led there."""
    solve = jax.jit(partial(swing_up, HANGING, PUSH, num_iterations=num_iterations))
    before = jax.jit(
        partial(swing_up, HANGING, PUSH, num_iterations=max(num_iterations - 1, 0))
    )
    short = jax.jit(
        partial(
            swing_up, HANGING, PUSH, num_iterations=num_iterations, final_gains=False
        )
    )
    ours, full, earlier = short(), solve(), before()
    assert ours.status == Status.MAX_ITERATIONS
    assert ours.iterations == num_iterations
    for name in ("x", "u", "cost"):
        np.testing.assert_allclose(getattr(ours, name), getattr(full, name), rtol=1e-9)
    for name in ("K", "k", "residual"):
        led = getattr(earlier, name)
        np.testing.assert_allclose(getattr(ours, name), led, rtol=1e-9, atol=1e-12)


def test_replanning_from_a_shifted_plan_in_a_batch():
    """One iteration each, from the plan before without its first step."""
    first = jax.jit(swing_up)(HANGING, PUSH)
    shifted = jnp.concatenate([first.u[1:], jnp.zeros((1, 1))])
    starts = first.x[1][None] + 1e-3 * jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    replan = jax.jit(
        jax.vmap(lambda x: swing_up(x, shifted, num_iterations=1, final_gains=False))
    )
    ours = replan(starts)
    assert (ours.iterations == 1).all()
    unchanged = jax.vmap(lambda x: total(swing, swing_cost, upright, x, shifted))
    assert (ours.cost < unchanged(starts)).all()
    alone = swing_up(starts[1], shifted, num_iterations=1, final_gains=False)
    np.testing.assert_allclose(ours.u[1], alone.u, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.K[1], alone.K, rtol=1e-9, atol=1e-12)
