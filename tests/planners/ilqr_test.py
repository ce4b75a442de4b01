from functools import cache, partial
from unittest import mock

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


def swing_up(
    x: Array,
    u: Array,
    num_iterations: int | Array = 100,
    tolerance: float | Array = 1e-6,
    price: float | Array = 0.0,
    **options,
) -> ilqr_module.Solution:
    """A torque costs `price` more."""
    cost = lambda x, u, t: swing_cost(x, u, t) + price * u[0] ** 2
    return ilqr(
        swing, cost, upright, x, u, num_iterations=num_iterations, tolerance=tolerance,
        **options,
    )  # fmt: skip


ilqr_of_swing, ddp_of_swing, short_of_swing = (
    jax.jit(partial(swing_up, **options))
    for options in ({}, {"second_order": True}, {"final_gains": False})
)


def run(program, x, u, num_iterations: int = 100, tolerance=1e-6, price=0.0):
    """Whatever the numbers, without compiling once more."""
    numbers = np.array(tolerance, x.dtype), np.array(price, x.dtype)
    return program(x, u, np.int64(num_iterations), *numbers)


PUSH = np.full((60, 1), 0.1)


def total(f, l, last, x: Array, u: Array) -> Array:
    """The cost of u [H, A]."""
    step = lambda x, now: (f(x, *now), l(x, *now))
    end, costs = jax.lax.scan(step, jnp.asarray(x), (u, jnp.arange(len(u))))
    return costs.sum() + last(end)


@jax.jit
def cost_of_swing(x: Array, u: Array) -> tuple[Array, Array]:
    """And its gradient by u."""
    objective = partial(total, swing, swing_cost, upright)
    return jax.value_and_grad(objective, argnums=1)(x, u)


def linear_quadratic(p: lqr.LQRProblem):
    """A problem as functions."""
    of_x = lambda x, t: x @ p.Q[t] @ x / 2 + p.q[t] @ x + p.constant[t]
    of_u = lambda x, u, t: u @ (p.R[t] @ u / 2 + p.S[t] @ x + p.r[t])
    f = lambda x, u, t: p.A[t] @ x + p.B[t] @ u + p.c[t]
    return f, lambda x, u, t: of_x(x, t) + of_u(x, u, t), lambda x: of_x(x, -1)


START = np.array([1.0, -1.0, 2.0])


@cache
def solved_linear_quadratic(random_problem, second_order: bool, project: bool):
    f, l, last = linear_quadratic(random_problem(0, 7))
    options = {"second_order": second_order, "project": project, "tolerance": 1e-8}
    solve = jax.jit(partial(ilqr, f, l, last, **options))
    return jax.tree.map(np.asarray, solve(START, np.ones((7, 2))))


@ORDERS
def test_a_linear_quadratic_problem_takes_one_iteration(second_order, random_problem):
    problem = random_problem(0, 7)
    best = jax.tree.map(np.asarray, jax.jit(lqr.solve)(problem))
    ours = solved_linear_quadratic(random_problem, second_order, False)
    assert ours.status == Status.CONVERGED
    assert ours.iterations == 1
    value = START @ best.V[0] @ START / 2 + best.v[0] @ START + best.constant[0]
    np.testing.assert_allclose(ours.cost, value, rtol=1e-10)
    np.testing.assert_allclose(ours.K, best.K, rtol=1e-9, atol=1e-11)
    controls = np.einsum("tao,to->ta", best.K, ours.x[:-1]) + best.k
    np.testing.assert_allclose(ours.u, controls, rtol=1e-9, atol=1e-9)


@ORDERS
def test_projection_leaves_convex_costs_alone(second_order, random_problem):
    plain, projected = (
        solved_linear_quadratic(random_problem, second_order, project)
        for project in (False, True)
    )
    assert projected.iterations == 1
    np.testing.assert_allclose(projected.u, plain.u, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(projected.K, plain.K, rtol=1e-9, atol=1e-9)


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
        for second_order, program in ((False, ilqr_of_swing), (True, ddp_of_swing)):
            results = [run(program, HANGING, PUSH, num, 1e-12) for num in range(60)]
            assert results[-1].status == Status.CONVERGED
            count = int(results[-1].iterations)
            found = [float(result.residual) for result in results[: count + 1]]
            every[second_order] = np.array(found)
            every["cost", second_order] = float(results[-1].cost)
        return every


@pytest.mark.slow
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
    ours = jax.tree.map(np.asarray, ours)
    cost, gradient = map(np.asarray, cost_of_swing(HANGING, ours.u))
    np.testing.assert_allclose(ours.cost, cost, rtol=1e-12)
    low, high = ours.u == -TORQUE, ours.u == TORQUE
    assert low.sum() > 3
    assert high.sum() > 3
    assert (gradient[low] > 0).all()
    assert (gradient[high] < 0).all()
    assert np.abs(gradient[~low & ~high]).max() < 1e-8
    assert (ours.K[(low | high)[:, 0]] == 0).all()
    assert (ours.K[~(low | high)[:, 0]] != 0).any()


@pytest.mark.slow
def test_limits_of_a_linear_quadratic_problem_equal_scipys(random_problem):
    f, l, last = linear_quadratic(random_problem(0, 5))
    x = jnp.array([1.0, -1.0, 2.0])
    limits = (jnp.array([-0.3, -0.1]), jnp.array([0.2, 0.4]))
    solve = partial(ilqr, f, l, last, limits=limits, tolerance=1e-8)
    ours = jax.jit(solve)(x, jnp.ones((5, 2)))  # starts out of the limits
    assert ours.status == Status.CONVERGED
    objective = lambda u: total(f, l, last, x, u.reshape(5, 2))
    # 1/2 u'Hu + g'u = 1/2 |root u + root^-T g|^2
    H, g = jax.jit(lambda u: (jax.hessian(objective)(u), jax.grad(objective)(u)))(
        np.zeros(10)
    )
    root = np.linalg.cholesky(H).T
    bounds = tuple(np.tile(limit, 5) for limit in limits)
    right = -np.linalg.solve(root.T, g)
    exact = scipy.optimize.lsq_linear(root, right, bounds, tol=1e-14).x
    np.testing.assert_allclose(ours.u.ravel(), exact, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_what_a_limit_holds_back_is_known_to_the_steps_before(seed: int):
    """Of a linear-quadratic problem few iterations are needed, one for each time that
    the set of those at a limit changes: the value says what the held ones cost."""
    rng = np.random.default_rng(seed)
    A, B = 0.5 * rng.normal(size=(3, 3)) + 0.6 * np.eye(3), rng.normal(size=(3, 2))
    drift = 0.3 * rng.normal(size=3)
    solve = partial(
        ilqr,
        lambda x, u, t: A @ x + B @ u + drift,
        lambda x, u, t: 0.5 * x @ x + 0.15 * u @ u,
        lambda x: 0.5 * x @ x,
        limits=(jnp.array([-0.3, -0.2]), jnp.array([0.2, 0.4])),
        tolerance=1e-9,
    )
    found = jax.jit(solve)(jnp.array([1.0, -1.0, 2.0]), jnp.zeros((12, 2)))
    assert found.status == Status.CONVERGED
    assert (np.isin(found.u[:, 0], [-0.3, 0.2])).any()
    assert found.iterations <= 4


def test_vmaps_over_starts_and_problems():
    rng = np.random.default_rng(0)
    starts = rng.normal(size=(3, 2))
    prices = np.array([0.05, 0.1, 0.5])
    solve = lambda x, price: swing_up(x, PUSH, 100, 1e-8, price)
    batch = jax.jit(jax.vmap(solve))(starts, prices)
    assert (batch.status == Status.CONVERGED).all()
    for i in range(3):
        alone = run(ilqr_of_swing, starts[i], PUSH, 100, 1e-8, prices[i])
        assert alone.iterations == batch.iterations[i]
        np.testing.assert_allclose(alone.u, batch.u[i], atol=1e-9)


def test_float32():
    x, u = HANGING.astype(np.float32), PUSH.astype(np.float32)
    single = run(ilqr_of_swing, x, u)
    double = run(ilqr_of_swing, HANGING, PUSH)
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


def wells(x: Array, u: Array, t: Array) -> Array:
    """Curves downwards at small u."""
    return (x**2 + x * u + u**4 / 4 - u**2 / 2).sum()


CASES = (
    # dynamics, cost, x and u at the start, status
    (plain, square, 1.0, 0.0, Status.CONVERGED),
    (ruins, square, 1.0, 0.0, Status.NOT_FINITE),
    (explodes, square, 1.0, 0.0, Status.NOT_FINITE),
    (roots, square, 0.0, 0.0, Status.NOT_FINITE),
    (ignores, concave, 1.0, 0.0, Status.REGULARISATION_EXHAUSTED),
    (ignores, flat, 1.0, 0.0, Status.REGULARISATION_EXHAUSTED),
    # No regularisation through the dynamics would help: they ignore u.
    (ignores, wells, 0.3, 0.1, Status.REGULARISATION_EXHAUSTED),
)


@partial(jax.jit, static_argnums=0)
def solve_case(second_order: bool, case: Array, x: Array, u: Array):
    """One program for all cases, of which only the chosen one is computed."""
    fs, ls, *_ = zip(*CASES, strict=True)
    return ilqr(
        lambda x, u, t: jax.lax.switch(case, fs, x, u, t),
        lambda x, u, t: jax.lax.switch(case, ls, x, u, t),
        lambda x: (x**2).sum(),
        x,
        u,
        second_order=second_order,
    )


@ORDERS
@pytest.mark.parametrize("case", range(len(CASES)))
def test_status(case, second_order):
    *_, x, u, status = CASES[case]
    result = solve_case(
        second_order, np.int64(case), np.full(1, x), np.full((10, 1), u)
    )
    assert result.status == status
    assert result.iterations <= 100


def test_too_few_iterations_are_said_to_be():
    result = run(ilqr_of_swing, HANGING, PUSH, 3)
    assert result.status == Status.MAX_ITERATIONS
    assert result.iterations == 3
    _, gradient = cost_of_swing(HANGING, result.u)
    np.testing.assert_allclose(result.residual, jnp.abs(gradient).max(), rtol=1e-9)


def pushed(x: Array, u: Array, t: Array) -> Array:
    return x + 0.5 * u


def crossed(x: Array, u: Array, t: Array) -> Array:
    """Convex in x and in u, but not in both where they are small."""
    return (0.1 * x**2 + 0.1 * u**2 + x * u + x**4 / 4 + u**4 / 4).sum()


def small(x: Array) -> Array:
    return 0.1 * (x**2).sum()


@partial(jax.jit, static_argnums=0)
def projected(second_order: bool, case: int | Array, x: Array, tolerance: Array):
    """Of `crossed` and of `wells`, from a start near 0; without regularisation."""
    with mock.patch.object(ilqr_module, "MOST", 0.0):
        return ilqr(
            lambda x, u, t: jax.lax.switch(case, (pushed, ignores), x, u, t),
            lambda x, u, t: jax.lax.switch(case, (crossed, wells), x, u, t),
            small,
            x,
            jnp.full((10, 1), 0.1),
            second_order=second_order,
            project=True,
            tolerance=tolerance,
        )


@jax.jit
def derivatives_of_crossed(x: Array, u: Array) -> tuple[Array, ...]:
    """Of one step by (x, u), twice, and of the whole by u, once and twice."""
    joint = jax.hessian(lambda z: crossed(z[:1], z[1:], 0))(jnp.append(x, u[0]))
    objective = lambda u: total(pushed, crossed, small, x, u)
    return joint, jax.grad(objective)(u), jax.hessian(objective)(u)


@ORDERS
def test_projected_with_the_cross_term_no_regularisation_is_needed(second_order):
    """To project the second derivatives by x and by u alone would change nothing."""
    x, u = np.full(1, 0.3), np.full((10, 1), 0.1)
    joint, *_ = derivatives_of_crossed(x, u)
    assert (np.diag(joint) > 0).all()
    assert np.linalg.eigvalsh(joint)[0] < 0
    solve = partial(ilqr, pushed, crossed, small, second_order=second_order)
    with mock.patch.object(ilqr_module, "MOST", 0.0):
        assert jax.jit(solve)(x, u).status == Status.REGULARISATION_EXHAUSTED
    ours = projected(second_order, np.int64(0), x, np.float64(1e-9))
    assert ours.status == Status.CONVERGED
    _, gradient, curvature = derivatives_of_crossed(x, ours.u)
    assert np.abs(gradient).max() < 1e-8
    # a minimum
    assert np.linalg.eigvalsh(np.asarray(curvature).reshape(10, 10))[0] > 0


@ORDERS
def test_projected_where_the_controls_curve_downwards(second_order):
    """Where it is not projected, the last case of `test_status`, it does not end so."""
    ours = projected(second_order, np.int64(1), np.full(1, 0.3), np.float64(1e-9))
    assert ours.status == Status.CONVERGED
    # each step is by itself, and at a minimum
    u, states = np.asarray(ours.u[:, 0]), 0.3 * 0.5 ** np.arange(10)
    np.testing.assert_allclose(u**3 - u + states, 0, atol=1e-8)
    assert (3 * u**2 - 1 > 0).all()


@ORDERS
def test_projection_vmaps(second_order):
    starts = np.linspace(0.2, 0.5, 4)[:, None]
    solve = lambda x: projected(second_order, np.int64(0), x, np.float64(1e-6))
    batch = jax.jit(jax.vmap(solve))(starts)
    assert (batch.status == Status.CONVERGED).all()
    np.testing.assert_allclose(batch.cost[2], solve(starts[2]).cost, rtol=1e-9)


@pytest.mark.parametrize("num_iterations", [0, 1, 3])
def test_without_final_gains(num_iterations):
    """The same trajectory, and the gains that led there."""
    ours = run(short_of_swing, HANGING, PUSH, num_iterations)
    full, earlier = (
        run(ilqr_of_swing, HANGING, PUSH, num)
        for num in (num_iterations, max(num_iterations - 1, 0))
    )
    assert ours.status == Status.MAX_ITERATIONS
    assert ours.iterations == num_iterations
    for name in ("x", "u", "cost"):
        np.testing.assert_allclose(getattr(ours, name), getattr(full, name), rtol=1e-9)
    for name in ("K", "k", "residual"):
        led = getattr(earlier, name)
        np.testing.assert_allclose(getattr(ours, name), led, rtol=1e-9, atol=1e-12)


def test_replanning_from_a_shifted_plan_in_a_batch():
    """One iteration each, from the plan before without its first step."""
    first = jax.tree.map(np.asarray, run(ilqr_of_swing, HANGING, PUSH))
    shifted = np.concatenate([first.u[1:], np.zeros((1, 1))])
    starts = first.x[1] + 1e-3 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]])

    @jax.jit
    @jax.vmap
    def replan(x: Array):
        unchanged = total(swing, swing_cost, upright, x, jnp.asarray(shifted))
        return swing_up(x, shifted, 1, final_gains=False), unchanged

    ours, unchanged = replan(starts)
    assert (ours.iterations == 1).all()
    assert (ours.cost < unchanged).all()
    alone = run(short_of_swing, starts[1], shifted, 1)
    np.testing.assert_allclose(ours.u[1], alone.u, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.K[1], alone.K, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", [0.1, 0.5])
def test_units_make_no_difference(start):
    """The swing-up with torques in 1e6 of their unit, speeds in 1e-5, costs of 1e-8."""
    unit = np.array([1.0, 1e-5])
    u = np.full((60, 1), start)
    plain = run(ilqr_of_swing, HANGING, u, 100, 1e-7)
    other = scaled_swing(HANGING / unit, u * 1e6, unit, np.float64(1e-8))
    assert plain.status == other.status == Status.CONVERGED
    assert plain.iterations == other.iterations
    np.testing.assert_allclose(other.u / 1e6, plain.u, atol=1e-6)
    np.testing.assert_allclose(other.cost / 1e-8, plain.cost, rtol=1e-9)


@jax.jit
def scaled_swing(x: Array, u: Array, unit: Array, price: Array):
    return ilqr(
        lambda x, u, t: swing(x * unit, u / 1e6, t) / unit,
        lambda x, u, t: price * swing_cost(x * unit, u / 1e6, t),
        lambda x: price * upright(x * unit),
        x,
        u,
        tolerance=1e-7,
    )


@pytest.mark.slow
def test_derivatives_of_the_optimum():
    """In both modes, by a price, a limit and the start; limits hold some controls."""

    def optimum(price: Array, limit: Array, speed: Array) -> tuple[Array, Array]:
        best = ilqr(
            swing,
            lambda x, u, t: swing_cost(x, u, t) + price * u[0] ** 2,
            upright,
            jnp.array([0.15, 0.0]).at[1].set(speed),
            jnp.zeros((15, 1)),
            limits=(-limit, limit),
            tolerance=1e-10,
        )
        return best.cost, (best.u[:, 0] * jnp.cos(jnp.arange(15.0))).sum()

    at, h = np.array([0.1, 1.8, 0.3]), 1e-5
    starts = np.concatenate([at + h * np.eye(3), at - h * np.eye(3)])
    solve = lambda at: jnp.stack(optimum(*at))
    many = jax.jit(jax.vmap(solve))(starts)
    right = ((many[:3] - many[3:]) / (2 * h)).T
    assert (np.abs(right) > 1e-2).all()
    for derivative in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(derivative(solve))(at), right, rtol=1e-5)


def test_integers_and_limits_the_wrong_way_round():
    f, l = lambda x, u, t: x + u, lambda x, u, t: (x**2).sum() + (u**2).sum()
    of = lambda x, u, **options: jax.eval_shape(
        lambda: ilqr(f, l, lambda x: 0, x, u, **options)
    )
    assert of(np.array([1]), np.zeros((3, 1), int)).u.dtype == jnp.float64
    x, u = np.ones(1, np.float32), np.zeros((3, 1))
    with pytest.raises(ValueError, match=r"ilqr: limits are 1\.0 and -1\.0"):
        of(x, u, limits=(1.0, -1.0))
    with pytest.raises(ValueError, match=r"cost gives shape \(1,\), must be \(\)"):
        ilqr(f, lambda x, u, t: x, lambda x: 0.0, x, u)
