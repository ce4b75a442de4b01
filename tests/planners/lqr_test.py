import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from mbrl_jax.ops.definite import Status
from mbrl_jax.planners import lqr
from mbrl_jax.planners.lqr import LQRProblem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


solve = jax.jit(lqr.solve)
solve_parallel = jax.jit(lqr.solve_parallel)
stationary = jax.jit(lqr.stationary)
rollout = jax.jit(lqr.rollout)
METHODS = pytest.mark.parametrize("method", [solve, solve_parallel])


def stacked_optimum(problem: LQRProblem, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Controls [H, A] and cost, by the dense KKT system of all x and u together."""
    p = jax.tree.map(np.asarray, problem)
    H, O, A = p.B.shape
    num_x = (H + 1) * O
    hessian, gradient = np.zeros((num_x + H * A,) * 2), np.zeros(num_x + H * A)
    equations, right = np.zeros((num_x, num_x + H * A)), np.zeros(num_x)
    equations[:O, :O], right[:O] = np.eye(O), x
    for t in range(H + 1):
        xs = slice(t * O, (t + 1) * O)
        hessian[xs, xs], gradient[xs] = p.Q[t], p.q[t]
        if t == H:
            break
        us, after = (
            slice(num_x + t * A, num_x + (t + 1) * A),
            slice(xs.stop, xs.stop + O),
        )
        hessian[us, us], gradient[us] = p.R[t], p.r[t]
        hessian[us, xs], hessian[xs, us] = p.S[t], p.S[t].T
        equations[after, after], right[after] = np.eye(O), p.c[t]
        equations[after, xs], equations[after, us] = -p.A[t], -p.B[t]
    kkt = np.block([[hessian, equations.T], [equations, np.zeros((num_x, num_x))]])
    z = np.linalg.solve(kkt, np.concatenate([-gradient, right]))[: len(gradient)]
    cost = z @ hessian @ z / 2 + gradient @ z + p.constant.sum()
    return z[num_x:].reshape(H, A), cost


@METHODS
@pytest.mark.parametrize("horizon", [1, 7])
def test_equals_the_stacked_quadratic_programme(method, horizon, random_problem):
    problem = random_problem(horizon, horizon)
    start = np.array([1.0, -2.0, 0.5])
    controls, cost = stacked_optimum(problem, start)
    solution = method(problem)
    assert solution.status == Status.SOLVED
    x = start
    for t in range(horizon):
        u = solution.K[t] @ x + solution.k[t]
        np.testing.assert_allclose(u, controls[t], rtol=1e-9, atol=1e-9)
        x = problem.A[t] @ x + problem.B[t] @ u + problem.c[t]
    value = start @ solution.V[0] @ start / 2 + solution.v[0] @ start
    np.testing.assert_allclose(value + solution.constant[0], cost, rtol=1e-10)


@pytest.mark.parametrize("horizon", [1, 21])
def test_in_parallel_equals_in_sequence(horizon, random_problem):
    problem = random_problem(horizon, horizon)
    for a, b in zip(solve(problem), solve_parallel(problem), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)


@METHODS
def test_vmaps_and_keeps_float32(method, random_problem):
    problems = [random_problem(seed, 4) for seed in range(3)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *problems)
    batch = jax.jit(jax.vmap(method))(stack)
    for i, problem in enumerate(problems):
        np.testing.assert_allclose(batch.K[i], method(problem).K, rtol=1e-9, atol=1e-12)
    single = method(jax.tree.map(lambda x: x.astype(jnp.float32), problems[0]))
    assert all(x.dtype == jnp.float32 for x in single[:-1])
    np.testing.assert_allclose(single.K, batch.K[0], rtol=1e-3, atol=1e-4)


@METHODS
def test_a_problem_without_optimum_has_a_status(method, random_problem):
    problem = random_problem(7, 7)  # of the same shapes as above, compiled already
    no_minimum = problem._replace(R=problem.R.at[3].set(-50 * jnp.eye(2)))
    assert method(no_minimum).status == Status.INDEFINITE
    nan = problem._replace(A=problem.A.at[3, 0, 0].set(jnp.nan))
    assert method(nan).status == Status.NOT_FINITE


def random_systems(num: int, O: int, A: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(num, O + A, O + A))
    costs = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(O + A)
    dynamics = 1.2 * rng.normal(size=(num, O, O)) / np.sqrt(O)  # most are unstable
    B = rng.normal(size=(num, O, A))
    return dynamics, B, costs[:, :O, :O], costs[:, O:, O:], costs[:, O:, :O]


@pytest.mark.parametrize("size", [(4, 2), (10, 3)])
def test_stationary_equals_scipys_on_100_random_systems(size):
    systems = random_systems(100, *size)
    ours = jax.jit(jax.vmap(lqr.stationary))(*systems)
    assert (ours.status == Status.SOLVED).all()
    assert ours.iterations.max() < 20
    for i, (A, B, Q, R, S) in enumerate(zip(*systems, strict=True)):
        V = scipy.linalg.solve_discrete_are(A, B, Q, R, s=S.T)
        K = -np.linalg.solve(R + B.T @ V @ B, B.T @ V @ A + S)
        scale = np.abs(V).max()
        np.testing.assert_allclose(ours.V[i], V, rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(ours.K[i], K, rtol=0, atol=1e-9 * np.abs(K).max())


def test_a_long_horizon_approaches_the_stationary_one():
    """Double integrator; the figures are those of scipy's solution."""
    A, B = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([[0.005], [0.1]])
    Q, R = jnp.eye(2), 0.1 * jnp.eye(1)
    endless = stationary(A, B, Q, R)
    np.testing.assert_allclose(-endless.K[0], [2.5857009, 3.44343592], atol=1e-8)
    problem = lqr.time_invariant(A, B, Q, R, horizon=200)
    np.testing.assert_allclose(solve(problem).K[0], endless.K, atol=1e-12)
    assert jnp.abs(solve(problem).K[150] - endless.K).max() > 1e-5


@pytest.mark.parametrize(
    ("A", "B", "Q", "R", "status"),
    [
        (2.0, 1.0, 1.0, 1.0, Status.SOLVED),
        (2.0, 0.0, 1.0, 1.0, Status.NOT_CONVERGED),  # nothing steers it
        (2.0, 1.0, 0.0, 1.0, Status.NOT_CONVERGED),  # nothing sees it
        (1.0, 0.0, 1.0, 1.0, Status.NOT_CONVERGED),  # the cost grows for ever
        (0.5, 1.0, 1.0, -1.0, Status.INDEFINITE),
        (0.5, 1.0, 1.0, 0.0, Status.SOLVED),  # R + B'VB is definite
        (np.nan, 1.0, 1.0, 1.0, Status.NOT_FINITE),
        (0.5, 1.0, np.inf, 1.0, Status.NOT_FINITE),
    ],
)
def test_status_of_a_scalar_system(A, B, Q, R, status):
    scalar = lambda x: jnp.full((1, 1), x)
    solution = stationary(scalar(A), scalar(B), scalar(Q), scalar(R))
    assert solution.status == status
    assert solution.iterations <= 50


def test_rollout_costs_what_the_value_says(random_problem):
    problem, x = random_problem(6, 6), jnp.array([1.0, -1.0, 2.0])
    best = solve(problem)
    value = x @ best.V[0] @ x / 2 + best.v[0] @ x + best.constant[0]
    played = rollout(problem, best.K, best.k, x)
    np.testing.assert_allclose(played.cost, value, rtol=1e-10)
    assert played.x.shape == (7, 3)
    worse = rollout(problem, best.K, best.k + 1e-3, x)
    assert played.cost < worse.cost < played.cost + 0.1


def test_tracking_costs_the_squared_distances(random_problem):
    rng = np.random.default_rng(0)
    problem = random_problem(6, 6)
    plain = problem._replace(q=0 * problem.q, r=0 * problem.r, constant=jnp.zeros(7))
    x_wanted, u_wanted = rng.normal(size=(7, 3)), rng.normal(size=(6, 2))
    track = lqr.tracking(plain, jnp.array(x_wanted), jnp.array(u_wanted))
    best = solve(track)
    x, u, cost = rollout(track, best.K, best.k, jnp.ones(3))
    x, u = x - x_wanted, u - u_wanted
    distances = sum(x[t] @ plain.Q[t] @ x[t] / 2 for t in range(7)) + sum(
        u[t] @ plain.R[t] @ u[t] / 2 + u[t] @ plain.S[t] @ x[t] for t in range(6)
    )
    np.testing.assert_allclose(cost, distances, rtol=1e-10)


def test_tracking_of_what_the_system_does_costs_nothing():
    A, B = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([[0.0], [0.1]])
    problem = lqr.time_invariant(A, B, jnp.eye(2), jnp.eye(1), horizon=20)
    u = jnp.sin(jnp.arange(20.0))[:, None]
    x = rollout(problem, jnp.zeros((20, 1, 2)), u, jnp.ones(2)).x
    track = lqr.tracking(problem, x, u)
    best = solve(track)
    followed = rollout(track, best.K, best.k, jnp.ones(2))
    np.testing.assert_allclose(followed.u, u, atol=1e-12)
    np.testing.assert_allclose(followed.cost, 0, atol=1e-12)


def test_rendezvous():
    """Two vehicles in a plane; 23370.7742612 is published with anassinator/ilqr."""
    dt, friction, one = 0.1, 0.1, jnp.eye(4)
    A = jnp.block([[one, dt * one], [0 * one, (1 + dt * (1 - friction * dt)) * one]])
    B = jnp.concatenate([0 * one, dt**2 * one])
    apart = jnp.eye(8).at[jnp.array([0, 1, 2, 3]), jnp.array([2, 3, 0, 1])].set(-1)
    problem = lqr.time_invariant(A, B, 2 * apart, 0.2 * one, horizon=200)
    best = solve(problem)
    x = jnp.array([0.0, 0, 10, 10, 0, -5, 5, 0])
    played = rollout(problem, best.K, best.k, x)
    np.testing.assert_allclose(played.cost, 23370.774261158345, rtol=1e-12)


def test_the_price_of_controls_may_be_singular():
    """QuantEcon's cases of Riccati equations, where the optimum exists all the same."""
    r = 0.5
    for A, B, Q, R in (
        ([[0, -1], [0, 2]], [[1, 0], [1, 1]], [[1, 0], [0, 0]], [[4, 2], [2, 1]]),
        ([[r**2, 0], [0, 0.0]], np.eye(2), [[1, 0], [0, 0.0]], [[1, r], [r, r * r]]),
        ([[1, 1], [0, 1.0]], [[1, 0.0], [1, 1.0]], np.eye(2), np.zeros((2, 2))),
        # what is paid for does not see the control before the next step
        ([[1, 1], [0, 1.0]], [[0, 0.0], [1, 0.0]], [[1, 0], [0, 0.0]], np.diag([0, 1])),
    ):  # fmt: skip
        matrices = [np.array(x, float) for x in (A, B, Q, R)]
        V = scipy.linalg.solve_discrete_are(*matrices)
        np.testing.assert_allclose(stationary(*matrices).V, V, atol=1e-8)


def test_units_make_no_difference():
    """States in 1e-6 and in 1e5 of their unit, controls in 1e4, costs of 1e-8."""
    A, B, Q, R, S = (np.asarray(x[0], np.float32) for x in random_systems(1, 3, 2))
    x, u, cost = np.array([1.0, 1e-6, 1e5]), np.array([1e4, 1.0]), 1e-8
    plain = jax.jit(lqr.stationary)(A, B, Q, R, S)
    change = (
        A / x * x[:, None], B / u * x[:, None], cost * Q / x / x[:, None],
        cost * R / u / u[:, None], cost * S / x / u[:, None],
    )  # fmt: skip
    other = jax.jit(lqr.stationary)(*(y.astype(np.float32) for y in change))
    assert plain.status == other.status == Status.SOLVED
    K, V = np.array(other.K) * x / u[:, None], np.array(other.V) * x * x[:, None] / cost
    np.testing.assert_allclose(K, plain.K, rtol=0, atol=1e-4 * np.abs(plain.K).max())
    np.testing.assert_allclose(V, plain.V, rtol=0, atol=1e-4 * np.abs(plain.V).max())


def test_integers_count_as_floats_and_complex_numbers_do_not():
    A, B, Q, R = np.array([[1, 1], [0, 1]]), np.array([[0], [1]]), np.eye(2), [[1]]
    of = lambda A: lqr.time_invariant(A, B, Q, R, horizon=7)  # 7 is compiled already
    np.testing.assert_array_equal(of(A).A, of(1.0 * A).A)
    assert of(A).A.dtype == jnp.float64
    raw = of(A)._replace(A=np.tile(A, (7, 1, 1)))
    np.testing.assert_array_equal(solve(raw).K, solve(of(1.0 * A)).K)
    exact = stationary(1.0 * A, 1.0 * B, Q, np.eye(1))
    np.testing.assert_allclose(stationary(A, B, Q, np.eye(1, dtype=int)).K, exact.K)
    with pytest.raises(TypeError, match=r"lqr.stationary takes real .* complex128"):
        lqr.stationary(1j * A, B, Q, np.eye(1))


@pytest.mark.slow
def test_derivatives_of_the_stationary_solution():
    """First ones in both modes, and second ones, against central differences."""
    A, B = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([[0.0], [0.1]])

    def f(a: jax.Array) -> jax.Array:
        found = lqr.stationary(A.at[1, 0].set(a), B, jnp.eye(2), 0.1 * jnp.eye(1))
        return found.V[0, 0] + found.K[0, 1] ** 2

    h, at = 1e-5, jnp.array([0.1, 0.2])
    of = jax.jit(jax.vmap(lambda a: (f(a), jax.grad(f)(a))))
    (high, slope_high), (low, slope_low) = of(at + h), of(at - h)
    second = jax.jit(jax.vmap(jax.jacfwd(jax.grad(f))))(at)
    np.testing.assert_allclose(of(at)[1], (high - low) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(second, (slope_high - slope_low) / (2 * h), rtol=1e-5)
