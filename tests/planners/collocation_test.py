from collections.abc import Iterator
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from mbrl_jax.envs.simulator import rk4
from mbrl_jax.planners import collocation, collocation_mesh, transcription
from mbrl_jax.planners.augmented_lagrangian import Constraints, augmented_lagrangian
from mbrl_jax.planners.collocation import Solution, Status, collocate
from mbrl_jax.planners.collocation_mesh import control, errors, refine, resample, state
from mbrl_jax.planners.ilqr import ilqr
from mbrl_jax.planners.transcription import (
    METHODS,
    CollocationProblem,
    Trajectory,
    straight_line,
)
from mbrl_jax.types import Array


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


BOTH = pytest.mark.parametrize("method", METHODS)


def solve(problem: CollocationProblem, guess: Trajectory, **options) -> Solution:
    return jax.jit(partial(collocate, problem, **options))(guess)


def effort(x: Array, u: Array, t: Array) -> Array:
    return (u**2).sum()


def reach(*goal: float):
    return lambda x: x - jnp.array(goal)


def straight(start, end, duration: float, num_intervals: int, num_controls: int = 1):
    start, end = np.array(start, float), np.array(end, float)
    return straight_line(start, end, duration, num_intervals, num_controls)


def cartpole(x: Array, u: Array, t: Array) -> Array:
    m, pole, length, g = 1.0, 0.3, 0.5, 9.81
    s, c, speed = jnp.sin(x[1]), jnp.cos(x[1]), x[3]
    push = u[0] + pole * length * s * speed**2
    cart = (push + pole * g * c * s) / (m + pole * s**2)
    turn = -(push * c + (m + pole) * g * s) / (length * (m + pole * s**2))
    return jnp.stack([x[2], x[3], cart, turn])


NO_LIMIT = [np.inf] * 3
SWING_UP = CollocationProblem(
    cartpole,
    effort,
    final_constraint=reach(1.0, np.pi, 0.0, 0.0),
    x_limits=(np.array([-2.0, *np.negative(NO_LIMIT)]), np.array([2.0, *NO_LIMIT])),
    u_limits=(np.array([-20.0]), np.array([20.0])),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "num_intervals", "cost"),
    [
        ("trapezoidal", 30, 59.6862),
        ("hermite_simpson", 25, 58.8054),
    ],
)
def test_swing_up_of_a_cartpole(method, num_intervals, cost):
    """The problem of Kelly, 2017, Sec. 6; costs of SciPy's SLSQP on dense matrices."""
    guess = straight([0, 0, 0, 0], [1, np.pi, 0, 0], 2.0, num_intervals)
    ours = solve(SWING_UP, guess, method=method)
    assert ours.status == Status.CONVERGED
    assert ours.violation < 1e-8
    np.testing.assert_allclose(ours.cost, cost, rtol=2e-6)
    np.testing.assert_allclose(ours.trajectory.x[0], 0)


def double_integrator(x: Array, u: Array, t: Array) -> Array:
    return jnp.stack([x[1], u[0]])


REST_TO_REST = CollocationProblem(
    double_integrator, effort, final_constraint=reach(1.0, 0.0)
)


def steered(
    start: Array,
    goal: Array,
    duration: Array,
    gravity: Array,
    damping: Array,
    limit: Array,
    num_iterations: int | Array = 500,
    method: str = METHODS[1],
) -> Solution:
    """Of a pendulum with a torque; without gravity and damping a double integrator."""

    def f(x: Array, u: Array, t: Array) -> Array:
        return jnp.stack([x[1], u[0] - gravity * jnp.sin(x[0]) - damping * x[1]])

    problem = CollocationProblem(
        f,
        effort,
        final_constraint=lambda x: x - goal,
        u_limits=(-limit[None], limit[None]),
    )
    guess = straight_line(start, goal, duration, N, 1)
    return collocate(problem, guess, method=method, num_iterations=num_iterations)


N = 50
compiled = jax.jit(steered)


def steer(start, goal, *constants: float, num_iterations: int = 500) -> Solution:
    """All by one program."""
    return compiled(start, goal, *map(np.float64, constants), np.int64(num_iterations))


REST, AHEAD = np.zeros(2), np.array([1.0, 0.0])
BATCH = (  # starts, goals, durations, gravities, dampings, limits
    np.array([[0.0, 0.0], [0.5, -1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
    np.array([[np.pi, 0.0]] * 3 + [[1.0, 0.0]] * 2),
    np.array([1.5, 1.5, 1.5, 1.0, 1.0]),
    np.array([9.81, 3.7, 1.6, 0.0, 0.0]),
    np.array([0.0, 0.0, 0.0, 0.0, 0.0]),
    np.array([np.inf, np.inf, np.inf, 20.0, 3.0]),  # to AHEAD in 1 s, 4 is the least
)


@cache
def batch(method: str) -> Solution:
    return jax.jit(jax.vmap(partial(steered, method=method)))(*BATCH)


@pytest.mark.slow
def test_least_effort_from_rest_to_rest_is_a_cubic():
    ours = steer(REST, AHEAD, 1.0, 0.0, 0.0, np.inf)
    t = np.linspace(0, 1, N + 1)
    x = np.stack([3 * t**2 - 2 * t**3, 6 * t - 6 * t**2], axis=1)
    assert ours.status == Status.CONVERGED
    np.testing.assert_allclose(ours.cost, 12, rtol=1e-7)
    np.testing.assert_allclose(ours.trajectory.x, x, atol=1e-7)
    np.testing.assert_allclose(ours.trajectory.u[:, 0], 6 - 12 * t, atol=1e-6)
    np.testing.assert_allclose(ours.prices.end, [-24, 12], rtol=1e-6)


def linear(x: Array, u: Array, t: Array) -> Array:
    return u - x


def quadratic(x: Array, u: Array, t: Array) -> Array:
    return (x**2 + u**2).sum()


def exact(t: np.ndarray) -> np.ndarray:
    """x of the best u for `linear` and `quadratic`, from x = 1, until t = 1."""
    rate = np.sqrt(2.0)
    part = lambda ahead: np.sinh(rate * ahead) + rate * np.cosh(rate * ahead)
    return part(1 - t) / part(1.0)


@cache
def approximated(method: str, num_intervals: int) -> tuple[Solution, np.ndarray]:
    """And its errors."""
    problem = CollocationProblem(linear, quadratic)

    def find(guess: Trajectory) -> tuple[Solution, Array]:
        ours = collocate(problem, guess, method=method, tolerance=1e-11)
        return ours, errors(problem, ours.trajectory)

    found = jax.jit(find)(straight([1.0], [1.0], 1.0, num_intervals))
    return jax.tree.map(np.asarray, found)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "ratio"), [(METHODS[0], 4), (METHODS[1], 16)])
def test_order_of_convergence(method, ratio):
    found = []
    for size in (16, 32):
        ours, _ = approximated(method, size)
        assert ours.status == Status.CONVERGED
        value = 1 / (1 + np.sqrt(2) / np.tanh(np.sqrt(2)))  # by the Riccati equation
        states = ours.trajectory.x[[size // 2, size], 0] - exact(np.array([0.5, 1.0]))
        found.append(np.abs([*states, ours.cost - value]))
    np.testing.assert_allclose(found[0] / found[1], ratio, rtol=0.06)


@pytest.mark.slow
def test_costs_and_dynamics_see_the_time():
    cost = lambda x, u, t: ((u - jnp.sin(t)) ** 2).sum() + ((x + jnp.cos(t)) ** 2).sum()
    ours = solve(
        CollocationProblem(lambda x, u, t: u, cost), straight([-1.0], [0.0], 3.0, 40)
    )
    t, x, u, u_mid = ours.trajectory
    np.testing.assert_allclose(x[:, 0], -np.cos(t), atol=1e-6)
    np.testing.assert_allclose(u[1:-1, 0], np.sin(t[1:-1]), atol=1e-4)
    np.testing.assert_allclose(u_mid[:, 0], np.sin((t[1:] + t[:-1]) / 2), atol=1e-4)
    assert ours.cost < 1e-8


def pendulum(x: Array, u: Array, t: Array) -> Array:
    return jnp.stack([x[1], u[0] - 9.81 * jnp.sin(x[0]) - 0.1 * x[1]])


UPRIGHT = CollocationProblem(
    pendulum,
    lambda x, u, t: (u**2).sum() + 0.1 * jnp.cos(x[0]),
    final_cost=lambda x: x[1] ** 2,
    final_constraint=lambda x: x[:1] - jnp.pi,  # at any speed
    constraints=lambda x, u, t: jnp.stack([u[0] + 0.2 * x[1] - 5.0]),
    u_limits=(np.array([-5.0]), np.array([np.inf])),
)


def unknowns(trajectory: Trajectory, method: str) -> np.ndarray:
    """All of them but x(0), in a row."""
    parts = [trajectory.x[1:].ravel(), trajectory.u.ravel()]
    if method == "hermite_simpson":
        parts.append(trajectory.u_mid.ravel())
    return np.concatenate(parts)


class Dense:
    """UPRIGHT as a nonlinear program, written anew, without structure."""

    def __init__(self, guess: Trajectory, method: str):
        self.start, self.method = guess.x[0], method
        self.num, self.h = len(guess.t) - 1, guess.t[1] - guess.t[0]

    def parts(self, unknown: Array) -> tuple[Array, Array, Array, Array]:
        """x, u; states and controls half-way, or none."""
        N = self.num
        x = jnp.concatenate([self.start[None], unknown[: 2 * N].reshape(N, 2)])
        u = unknown[2 * N : 3 * N + 1, None]
        if self.method == "trapezoidal":
            return x, u, x[:0], u[:0]
        f = self.f(x, u)
        middle = (x[:-1] + x[1:]) / 2 + self.h / 8 * (f[:-1] - f[1:])
        return x, u, middle, unknown[3 * N + 1 :, None]

    def f(self, x: Array, u: Array) -> Array:
        gravity = -9.81 * jnp.sin(x[:, 0]) - 0.1 * x[:, 1]
        return jnp.stack([x[:, 1], u[:, 0] + gravity], axis=1)

    def integral(self, nodes: Array, middle: Array) -> Array:
        """Of each interval."""
        both = nodes[:-1] + nodes[1:]
        if self.method == "trapezoidal":
            return self.h * both / 2
        return self.h * (both + 4 * middle) / 6

    def cost(self, unknown: Array) -> Array:
        x, u, *middle = self.parts(unknown)
        rate = lambda x, u: u[:, 0] ** 2 + 0.1 * jnp.cos(x[:, 0])
        return self.integral(rate(x, u), rate(*middle)).sum() + x[-1, 1] ** 2

    def equality(self, unknown: Array) -> Array:
        x, u, *middle = self.parts(unknown)
        defects = x[1:] - x[:-1] - self.integral(self.f(x, u), self.f(*middle))
        return jnp.append(defects.ravel(), x[-1, 0] - jnp.pi)

    def inequality(self, unknown: Array) -> Array:
        """At most 0; nodes, then half-way."""
        x, u, *middle = self.parts(unknown)
        each = lambda x, u: jnp.stack(
            [u[:, 0] + 0.2 * x[:, 1] - 5.0, -5.0 - u[:, 0]], axis=1
        )
        return jnp.concatenate([each(x, u), each(*middle)]).ravel()


GUESS = partial(straight, [0, 0], [np.pi, 0], 3.0, 8)


@cache
def upright(method: str) -> Solution:
    return jax.tree.map(np.asarray, solve(UPRIGHT, GUESS(), method=method))


@pytest.mark.slow
@BOTH
def test_a_small_problem_against_a_dense_solver(method):
    ours = upright(method)
    assert ours.status == Status.CONVERGED
    dense, found = Dense(GUESS(), method), unknowns(ours.trajectory, method)
    functions = (dense.cost, dense.equality, dense.inequality)
    compiled = jax.jit(lambda x: [(f(x), jax.jacfwd(f)(x)) for f in functions])
    at = cache(lambda row: jax.tree.map(np.asarray, compiled(np.frombuffer(row))))
    part = lambda i, j, sign=1: lambda x: sign * at(x.tobytes())[i][j]
    theirs = scipy.optimize.minimize(
        part(0, 0),
        found + np.random.default_rng(0).normal(size=found.shape) / 10,
        jac=part(0, 1),
        method="SLSQP",
        constraints=[
            {"type": kind, "fun": part(i, 0, sign), "jac": part(i, 1, sign)}
            for kind, i, sign in (("eq", 1, 1), ("ineq", 2, -1))
        ],
        options={"ftol": 1e-12, "maxiter": 300},
    )
    assert theirs.success
    np.testing.assert_allclose(ours.cost, theirs.fun, rtol=1e-6)
    np.testing.assert_allclose(found, theirs.x, atol=1e-4)
    check_optimum(dense.num, at(found.tobytes()), ours)


def check_optimum(num: int, found: list, ours: Solution) -> None:
    """The conditions of Karush, Kuhn and Tucker, with the prices that were found."""
    inequality, last, end = ours.prices
    finite = inequality.reshape(num, -1, 3)[:, :, :2]  # the third is no limit
    nodes = np.concatenate([finite[:, 0], last[None, :2]])
    limits = np.concatenate([nodes, *finite[:, 1:].transpose(1, 0, 2)]).ravel()
    equal = np.append(ours.costate.ravel(), end)
    (_, slope), (equality, of_equal), (inequality, of_limits) = found
    gradient = slope + equal @ of_equal + limits @ of_limits  # of the Lagrangian
    assert np.abs(gradient).max() < 1e-6
    assert np.abs(equality).max() < 1e-8
    assert inequality.max() < 1e-8
    assert np.abs(limits * inequality).max() < 1e-6
    assert limits.min() >= 0
    assert (limits > 1e-3).sum() >= 2  # they matter


@pytest.mark.parametrize("middle", [0, 2])
def test_a_step_against_a_dense_solver(middle):
    """[[W, D'], [D, 0]] step = -(g, d), in one matrix."""
    N, O, A, rng = 6, 3, 2, np.random.default_rng(middle)
    size, num_p = O + A, 2 * (O + A) + middle
    root = rng.normal(size=(N, num_p, num_p))
    expansion = collocation._Expansion(
        g=rng.normal(size=(N, num_p)),
        W=root @ root.transpose(0, 2, 1),
        d=rng.normal(size=(N, O)),
        D=rng.normal(size=(N, O, num_p)),
        last_g=rng.normal(size=size),
        last_W=np.eye(size),
    )
    expansion = jax.tree.map(jnp.asarray, expansion)
    task = transcription.Transcription(
        REST_TO_REST, bool(middle), jnp.zeros(N + 1), O, A
    )
    mu = 0.1
    ours, well = jax.jit(partial(collocation._solve, task))(expansion, jnp.asarray(mu))
    expansion = jax.tree.map(np.asarray, expansion)

    stride = size + middle
    total = N * stride + size
    matrix, right = np.zeros((total + N * O,) * 2), np.zeros(total + N * O)
    for i in range(N):
        at = slice(i * stride, i * stride + num_p)
        of = slice(total + i * O, total + (i + 1) * O)
        matrix[at, at] += expansion.W[i] + mu * np.eye(num_p)
        matrix[of, at], matrix[at, of] = expansion.D[i], expansion.D[i].T
        right[at] -= expansion.g[i]
        right[of] -= expansion.d[i]
    matrix[total - size : total, total - size : total] += (1 + mu) * np.eye(size)
    right[total - size : total] -= expansion.last_g
    free = np.arange(O, len(matrix))  # x(0) is given
    exact = np.zeros(len(matrix))
    exact[free] = np.linalg.solve(matrix[np.ix_(free, free)], right[free])
    rows = exact[: N * stride].reshape(N, stride)
    assert well
    np.testing.assert_allclose(ours.z[:-1], rows[:, :size], atol=1e-9)
    np.testing.assert_allclose(ours.v, rows[:, size:], atol=1e-9)
    np.testing.assert_allclose(ours.z[-1], exact[total - size : total], atol=1e-9)
    np.testing.assert_allclose(ours.costate.ravel(), exact[total:], atol=1e-8)


def test_a_step_without_a_minimum_is_said_to_be():
    """Of a concave cost; the least regularisation that makes it convex is 2."""
    N, task = 4, transcription.Transcription(REST_TO_REST, False, jnp.zeros(5), 1, 1)
    expansion = collocation._Expansion(
        g=np.ones((N, 4)),
        W=np.tile(-np.eye(4), (N, 1, 1)),
        d=np.zeros((N, 1)),
        D=np.tile([[-1.0, -0.5, 1.0, -0.5]], (N, 1, 1)),
        last_g=np.zeros(2),
        last_W=np.zeros((2, 2)),
    )
    step = jax.jit(partial(collocation._solve, task))
    assert not step(expansion, jnp.asarray(0.0))[1]
    assert not step(expansion, jnp.asarray(0.5))[1]
    assert step(expansion, jnp.asarray(2.0))[1]
    newton = jax.jit(partial(collocation._newton, task))
    _, mu, well = newton(expansion, jnp.asarray(0.0))
    assert well
    assert 0.5 < mu < 2 * collocation.SCALE


def sizes(jaxpr) -> Iterator[int]:
    """Of all arrays that are computed."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@BOTH
def test_work_is_proportional_to_the_number_of_intervals(method):
    """No array grows faster, as a dense matrix would."""
    largest = []
    for num_intervals in (100, 200):
        guess = straight([0, 0], [np.pi, 0], 1.5, num_intervals)
        jaxpr = jax.make_jaxpr(partial(collocate, UPRIGHT, method=method))(guess)
        largest.append(max(sizes(jaxpr.jaxpr)))
    assert largest[1] < 2.1 * largest[0]


def ball(x: Array, u: Array, t: Array) -> Array:
    return jnp.concatenate([x[2:], u])


AROUND = CollocationProblem(
    ball,
    effort,
    final_constraint=reach(2.0, 0.0, 0.0, 0.0),
    constraints=lambda x, u, t: (
        0.4**2 - ((x[:2] - jnp.array([1.0, 0.05])) ** 2).sum()[None]
    ),
)


@pytest.mark.slow
@BOTH
def test_a_guess_through_an_obstacle_comes_round_it(method):
    guess = straight([0, 0, 0, 0], [2, 0, 0, 0], 2.0, 30, 2)
    assert AROUND.constraints(guess.x[15], guess.u[15], 1.0) > 0.1
    ours = solve(AROUND, guess, method=method)
    assert ours.status == Status.CONVERGED
    gap = jax.vmap(AROUND.constraints)(*ours.trajectory[1:3], ours.trajectory.t)
    assert -1e-3 < gap.max() <= 1e-8
    assert ours.trajectory.x[:, 1].min() < -0.3  # on the shorter side
    assert ours.cost > 6  # that of the straight line


def test_limits_of_a_double_integrator():
    """The least time at |u| <= 4 is 1 s: least effort in little more is near to it."""
    T = 1.05
    ours = steer(REST, AHEAD, T, 0.0, 0.0, 4.0)
    u = np.asarray(ours.trajectory.u[:, 0])
    assert ours.status == Status.CONVERGED
    assert np.abs(u).max() <= 4 + 1e-8
    assert (u > 3.999).mean() > 0.2
    # u = 4 until s, then a line through 0 at T / 2: the way is 1
    way = lambda s: 4 * ((T / 2) ** 2 - (T / 2 - s) ** 2 / 3) - 1
    s = scipy.optimize.brentq(way, 0, T / 2)
    exact = 2 * 16 * (s + (T / 2 - s) / 3)
    np.testing.assert_allclose(ours.cost, exact, rtol=2e-3)


@pytest.mark.slow
@BOTH
def test_too_little_force(method):
    status, violation = batch(method).status[3:], batch(method).violation[3:]
    assert status[0] == Status.CONVERGED
    assert status[1] == Status.INFEASIBLE
    assert violation[0] < 1e-8
    assert 0.05 < violation[1] < 0.5


def test_what_cannot_be_moved_stays_infeasible():
    """And refining ends with a problem that is not solved."""
    stuck = CollocationProblem(
        lambda x, u, t: 0 * u, effort, final_constraint=reach(1.0)
    )
    rounds = refine(stuck, straight([0.0], [1.0], 1.0, 5))
    assert len(rounds) == 1
    ours = rounds[0].solution
    assert ours.status == Status.INFEASIBLE
    np.testing.assert_allclose(ours.violation, 1, rtol=1e-6)
    np.testing.assert_allclose(ours.trajectory.x, 0, atol=1e-6)


BROKEN = (
    lambda x, u, t: jnp.where(t > 0.5, jnp.nan, u),
    lambda x, u, t: u + jnp.sqrt(x),  # finite at 0, but no derivative
    lambda x, u, t: u + jnp.exp(1e3 + x),
)


@jax.jit
def broken(which: Array, guess: Trajectory) -> Solution:
    """The dynamics are one of BROKEN; the last are sound."""
    dynamics = lambda *now: jax.lax.switch(which, [*BROKEN, lambda x, u, t: u], *now)
    return collocate(CollocationProblem(dynamics, effort), guess)


def test_what_is_not_finite():
    guess = straight([0.0], [0.0], 1.0, 5)
    for which in range(len(BROKEN)):
        ours = broken(which, guess)
        assert ours.status == Status.NOT_FINITE
        assert ours.iterations == 1
    assert broken(len(BROKEN), guess).status == Status.CONVERGED


def test_too_few_iterations():
    ours = steer(REST, AHEAD, 1.0, 0.0, 0.0, np.inf, num_iterations=3)
    assert ours.status == Status.MAX_ITERATIONS
    assert ours.iterations == 3


def test_an_unknown_method():
    with pytest.raises(ValueError, match="method is 'euler', must be one of"):
        collocate(REST_TO_REST, straight([0, 0], [1, 0], 1.0, 5), method="euler")


def test_vmaps_over_starts_and_parameters():
    found = jax.tree.map(np.asarray, batch(METHODS[1]))
    assert (found.status[:3] == Status.CONVERGED).all()
    for i in range(3):
        alone = steer(*(x[i] for x in BATCH))
        assert alone.iterations == found.iterations[i]
        np.testing.assert_allclose(alone.trajectory.x, found.trajectory.x[i], atol=1e-7)


@pytest.mark.slow
@BOTH
def test_float32(method):
    single = jax.tree.map(lambda x: x.astype(jnp.float32), GUESS())
    rough = solve(UPRIGHT, single, method=method, tolerance=1e-3)
    fine = upright(method)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(rough[:-2]))
    assert rough.status in (Status.CONVERGED, Status.STALLED)
    np.testing.assert_allclose(rough.cost, fine.cost, rtol=1e-2)


def test_agrees_with_ilqr():
    """Steps of Runge and Kutta, and an augmented Lagrangian for the end."""
    H, T = 100, 1.5
    dt, start = T / H, np.zeros(2)
    step = lambda x, u, t: rk4(lambda x: pendulum(x, u, t), x, dt)
    inner = lambda l, last, u: ilqr(step, l, last, start, u, tolerance=1e-7)
    nothing = jnp.zeros(0)
    theirs = jax.jit(
        lambda u: augmented_lagrangian(
            inner,
            lambda x, u, t: dt * (u**2).sum(),
            lambda x: 0.0 * x[0],
            start,
            u,
            constraints=lambda x, u, t: Constraints(nothing, nothing),
            final_constraints=lambda x: Constraints(nothing, reach(np.pi, 0.0)(x)),
            penalty=100.0,
        )
    )(np.full((H, 1), 1.0))
    goal = np.array([np.pi, 0.0])
    ours = steer(start, goal, T, 9.81, 0.1, np.inf)
    assert theirs.violation < 1e-5
    assert ours.status == Status.CONVERGED
    np.testing.assert_allclose(ours.cost, theirs.solution.cost, rtol=1e-2)


def cubic() -> tuple[CollocationProblem, Trajectory]:
    """x = t^3 - t, u = 3 t^2 - 1 its derivative, on uneven nodes."""
    t = np.array([0.0, 0.3, 0.4, 1.0])
    speed = lambda t: (3 * t**2 - 1)[:, None]
    middle = (t[1:] + t[:-1]) / 2
    problem = CollocationProblem(lambda x, u, t: u, effort)
    found = Trajectory(t, (t**3 - t)[:, None], speed(t), speed(middle))
    return problem, jax.tree.map(jnp.asarray, found)


def test_interpolants_are_exact_for_cubics():
    problem, trajectory = cubic()
    t = np.linspace(0, 1, 23)

    @jax.jit
    def interpolated(trajectory: Trajectory, t: Array) -> tuple:
        x = jax.vmap(partial(state, problem, trajectory))(t)
        u = jax.vmap(partial(control, trajectory))(t)
        again = resample(problem, trajectory, t)
        again = resample(problem, again, trajectory.t)
        return x, u, errors(problem, trajectory), again

    x, u, off, again = interpolated(trajectory, t)
    np.testing.assert_allclose(x[:, 0], t**3 - t, atol=1e-14)
    np.testing.assert_allclose(u[:, 0], 3 * t**2 - 1, atol=1e-14)
    np.testing.assert_allclose(off, 0, atol=1e-14)
    np.testing.assert_allclose(again.x, trajectory.x, atol=1e-14)
    np.testing.assert_allclose(again.u_mid, trajectory.u_mid, atol=1e-13)


def test_error_of_an_interval_is_an_integral():
    problem, trajectory = cubic()
    off = problem._replace(dynamics=lambda x, u, t: u + x)
    x = lambda t: state(off, trajectory, t)[0]
    u = lambda t: control(trajectory, t)[0]
    t = np.linspace(0.4, 1.0, 20_001)  # the last interval
    values = jax.jit(jax.vmap(lambda t: (jax.grad(x)(t), x(t), u(t))))(t)
    rate, x, u = map(np.asarray, values)
    integral = np.trapezoid(np.abs(rate - x - u), t)
    scale = 1 + np.abs(rate).max()  # it is largest there
    found = jax.jit(partial(errors, off))(trajectory)
    np.testing.assert_allclose(found[2], integral / scale, rtol=0.05)


@pytest.mark.parametrize(("method", "factor"), [(METHODS[0], 8), (METHODS[1], 16)])
def test_errors_fall_as_they_should(method, factor):
    found = [approximated(method, size)[1].max() for size in (16, 32)]
    np.testing.assert_allclose(found[0] / found[1], factor, rtol=0.2)


def test_split():
    t, off = jnp.array([0.0, 1.0, 2.0, 4.0, 8.0]), jnp.array([1e-9, 1e-5, 9e-3, 1e9])
    nodes = collocation_mesh.split(t, off, 1e-3, "trapezoidal")
    np.testing.assert_allclose(nodes, [0, 1, 2, 2 + 2 / 3, 2 + 4 / 3, 4, 5, 6, 7, 8])
    nodes = collocation_mesh.split(t, off, 1e-3, "hermite_simpson")
    np.testing.assert_allclose(nodes, [0, 1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.slow
def test_refining_puts_nodes_where_they_are_needed():
    """x' = 20 (sin(t) - x) + u settles within a twentieth of a second."""
    f = lambda x, u, t: 20 * (jnp.sin(t) - x) + u
    problem = CollocationProblem(f, quadratic)
    rounds = refine(problem, straight([3.0], [0.0], 2.0, 6), tolerance=1e-4)
    assert len(rounds) > 1
    assert all(r.solution.status == Status.CONVERGED for r in rounds)
    assert rounds[0].errors.max() > 1e-3
    last = rounds[-1].solution.trajectory
    assert rounds[-1].errors.max() <= 1e-4
    steps = np.diff(last.t)
    assert steps[0] < 0.2 * steps[-1]
    # the true state under this control
    t = jnp.linspace(0, 2, 2001)

    def ahead(x: Array, now: Array) -> tuple[Array, Array]:
        derivative = lambda s: (f(s[0], control(last, s[1]), s[1]), jnp.ones(()))
        return rk4(derivative, (x, now), 1e-3)[0], x

    _, true = jax.jit(lambda x, t: jax.lax.scan(ahead, x, t))(last.x[0], t)
    ours = jax.jit(jax.vmap(partial(state, problem, last)))(t)
    np.testing.assert_allclose(true, ours, atol=1e-4 * 61)  # 1 + the largest |dx/dt|
