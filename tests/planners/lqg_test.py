import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax.ops.definite import Status
from mbrl_jax.planners import lqg, lqr
from mbrl_jax.planners.lqr import LQRProblem

O, A, Y = 3, 2, 2  # sizes of x, u, y


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


solve = jax.jit(lqr.solve)
kalman_gains = jax.jit(lqg.kalman_gains)
kalman_filter = jax.jit(lqg.kalman_filter)
smoother = jax.jit(lqg.smoother)
expected_cost = jax.jit(lqg.expected_cost)


def random_plant(problem: LQRProblem) -> tuple[lqg.Plant, lqg.Belief]:
    horizon = len(problem.A)
    rng = np.random.default_rng(horizon + 1)
    cov = lambda n, d: (r := rng.normal(size=(n, d, d))) @ r.transpose(0, 2, 1) / d
    plant = lqg.Plant(
        A=problem.A,
        B=problem.B,
        c=problem.c,
        W=cov(horizon, O),
        C=rng.normal(size=(horizon + 1, Y, O)),
        N=cov(horizon + 1, Y) + 0.1 * np.eye(Y),
    )
    prior = lqg.Belief(rng.normal(size=O), cov(1, O)[0])
    return jax.tree.map(jnp.asarray, (plant, prior))


def joint_of_x_and_y(plant: lqg.Plant, prior: lqg.Belief, u):
    """Mean and cov of all x, then all y, as one dense normal distribution."""
    H = len(plant.A)
    sizes = ((H + 1) * O, (H + 1) * Y)
    mean, cov = np.zeros(sum(sizes)), np.zeros((sum(sizes),) * 2)
    xs = lambda t: slice(t * O, (t + 1) * O)
    mean[:O], cov[:O, :O] = prior.mean, prior.cov
    for t in range(H):
        now, then = xs(t), xs(t + 1)
        mean[then] = plant.A[t] @ mean[now] + plant.B[t] @ u[t] + plant.c[t]
        cov[then, : then.start] = plant.A[t] @ cov[now, : then.start]
        cov[: then.start, then] = cov[then, : then.start].T
        cov[then, then] = plant.A[t] @ cov[now, now] @ plant.A[t].T + plant.W[t]
    C, N = np.zeros(sizes[::-1]), np.zeros((sizes[1],) * 2)
    for t in range(H + 1):
        ys = slice(t * Y, (t + 1) * Y)
        C[ys, xs(t)], N[ys, ys] = plant.C[t], plant.N[t]
    x, y = slice(0, sizes[0]), slice(sizes[0], None)
    mean[y] = C @ mean[x]
    cov[y, x], cov[x, y] = C @ cov[x, x], cov[x, x] @ C.T
    cov[y, y] = C @ cov[x, x] @ C.T + N
    return mean, cov


def test_filter_and_smoother_equal_dense_conditioning(random_problem):
    H = 5
    problem = random_problem(H, H)
    plant, prior = random_plant(problem)
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=(H, A)), rng.normal(size=(H + 1, Y))
    mean, cov = joint_of_x_and_y(plant, prior, u)
    filtered = kalman_filter(plant, prior, jnp.array(u), jnp.array(y))
    smooth, status = smoother(problem.A, filtered)
    assert filtered.status == status == Status.SOLVED
    start = (H + 1) * O

    def conditioned(t: int, num_y: int) -> tuple[np.ndarray, np.ndarray]:
        xs, ys = slice(t * O, (t + 1) * O), slice(start, start + num_y * Y)
        gain = np.linalg.solve(cov[ys, ys], cov[ys, xs]).T
        error = y.ravel()[: num_y * Y] - mean[ys]
        return mean[xs] + gain @ error, cov[xs, xs] - gain @ cov[ys, xs]

    for t in range(H + 1):
        for beliefs, num_y in (
            (filtered.predicted, t),
            (filtered.belief, t + 1),
            (smooth, H + 1),
        ):
            exact = conditioned(t, num_y)
            np.testing.assert_allclose(beliefs.mean[t], exact[0], atol=1e-9)
            np.testing.assert_allclose(beliefs.cov[t], exact[1], atol=1e-9)
    error = y.ravel() - mean[start:]
    whole = cov[start:, start:]
    density = error @ np.linalg.solve(whole, error) + len(error) * np.log(2 * np.pi)
    density = -(density + np.linalg.slogdet(whole)[1]) / 2
    np.testing.assert_allclose(filtered.log_likelihood, density, rtol=1e-9)


def test_filter_and_smoother_have_a_status(random_problem):
    problem = random_problem(5, 5)
    plant, prior = random_plant(problem)
    u, y = jnp.zeros((5, A)), jnp.zeros((6, Y))
    run = lambda plant, y: kalman_filter(plant, prior, u, y)
    negative = plant._replace(N=plant.N.at[2].set(-100 * jnp.eye(Y)))
    assert run(negative, y).status == Status.INDEFINITE
    lost = run(plant, y.at[2].set(jnp.inf))
    assert lost.status == Status.NOT_FINITE
    assert smoother(problem.A, lost)[1] == Status.NOT_FINITE


def test_what_is_missing_is_a_step_without_a_correction(random_problem):
    """A whole row, and one entry of another: as if they were never looked for."""
    problem = random_problem(5, 5)
    plant, prior = random_plant(problem)
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=(5, A)), rng.normal(size=(6, Y))
    y[2], y[4, 0] = np.nan, np.nan
    mean, cov = prior
    log_likelihood = 0.0
    for t in range(6):
        seen = ~np.isnan(y[t])
        C, N = plant.C[t][seen], plant.N[t][seen][:, seen]
        error, spread = y[t][seen] - C @ mean, C @ cov @ C.T + N
        gain = np.linalg.solve(spread, C @ cov).T
        if seen.any():
            density = scipy.stats.multivariate_normal(np.zeros(seen.sum()), spread)
            log_likelihood += density.logpdf(error)
        last, cov = mean + gain @ error, cov - gain @ C @ cov
        if t < 5:
            mean = plant.A[t] @ last + plant.B[t] @ u[t] + plant.c[t]
            cov = plant.A[t] @ cov @ plant.A[t].T + plant.W[t]
    filtered = kalman_filter(plant, prior, jnp.array(u), jnp.array(y))
    status = smoother(problem.A, filtered)[1]
    assert filtered.status == status == Status.SOLVED
    np.testing.assert_allclose(filtered.belief.mean[-1], last, rtol=1e-9)
    np.testing.assert_allclose(filtered.belief.cov[-1], cov, rtol=1e-8)
    np.testing.assert_allclose(filtered.log_likelihood, log_likelihood, rtol=1e-9)
    blind = lqg.lqg(
        plant, jnp.ones((1, A, O)), jnp.ones((1, A)), jnp.ones((1, O, Y)), mean
    )
    act = jax.jit(blind.act)(jax.random.key(0), jnp.full(Y, jnp.nan), blind.init())
    np.testing.assert_allclose(act[0], np.full(A, mean.sum() + 1), rtol=1e-9)


def test_a_smoother_in_float32_keeps_small_variances():
    """Position to 1 cm at 100 Hz after a prior of 1e3: what is known grows 1e7-fold."""
    dt, H = 0.01, 200
    move = np.array([[1, dt, dt**2 / 2], [0, 1, dt], [0, 0, 1]])
    push = np.array([[dt**3 / 6], [dt**2 / 2], [dt]])
    many = lambda x, n: np.broadcast_to(x, (n, *np.shape(x)))
    plant = lqg.Plant(
        many(move, H), np.zeros((H, 3, 2)), np.zeros((H, 3)),
        many(1e-2 * push @ push.T + 1e-10 * np.eye(3), H),
        many(np.array([[1.0, 0, 0]]), H + 1), many(np.array([[1e-4]]), H + 1),
    )  # fmt: skip

    def smoothed(dtype):
        given = plant, lqg.Belief(np.zeros(3), 1e3 * np.eye(3)), np.zeros((H, 2))
        given = jax.tree.map(
            lambda x: jnp.asarray(x, dtype), (*given, np.ones((H + 1, 1)))
        )
        found, status = smoother(given[0].A, kalman_filter(*given))
        assert status == Status.SOLVED
        return np.asarray(found.cov, float)

    found, exact = smoothed(jnp.float32), smoothed(jnp.float64)
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(found).min() > 0
    diagonal = lambda cov: np.diagonal(cov, axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal(found), diagonal(exact), rtol=0.01)


def exact_cost(problem: LQRProblem, plant: lqg.Plant, prior, best, gains) -> float:
    """By the moments of (x, mean of the belief), step by step."""
    z = np.concatenate([prior.mean, prior.mean])
    P = np.zeros((2 * O, 2 * O))
    P[:O, :O] = prior.cov
    total = 0.0
    H = len(problem.A)
    for t in range(H):
        L, C, K = gains.L[t], plant.C[t], best.K[t]
        see = np.block([[np.eye(O), np.zeros((O, O))], [L @ C, np.eye(O) - L @ C]])
        P = see @ P @ see.T
        P[O:, O:] += L @ plant.N[t] @ L.T
        to_xu = np.block([[np.eye(O), np.zeros((O, O))], [np.zeros((A, O)), K]])
        hessian = np.block(
            [[problem.Q[t], problem.S[t].T], [problem.S[t], problem.R[t]]]
        )
        xu = to_xu @ z + np.concatenate([np.zeros(O), best.k[t]])
        total += xu @ hessian @ xu / 2 + np.trace(hessian @ to_xu @ P @ to_xu.T) / 2
        total += np.concatenate([problem.q[t], problem.r[t]]) @ xu + problem.constant[t]
        A_t, B_t = problem.A[t], problem.B[t]
        move = np.block([[A_t, B_t @ K], [np.zeros((O, O)), A_t + B_t @ K]])
        z = move @ z + np.tile(B_t @ best.k[t] + problem.c[t], 2)
        P = move @ P @ move.T
        P[:O, :O] += plant.W[t]
    x, cov = z[:O], P[:O, :O]
    total += x @ problem.Q[H] @ x / 2 + np.trace(problem.Q[H] @ cov) / 2
    return float(total + problem.q[H] @ x + problem.constant[H])


def test_lqg_costs_what_its_moments_say(random_problem):
    problem = random_problem(5, 5)
    plant, prior = random_plant(problem)
    best = solve(problem)
    gains = kalman_gains(plant, prior.cov)
    cost = expected_cost(plant, prior, problem.R, best.K, best.V, best.v, best.constant)
    exact = exact_cost(problem, plant, prior, best, gains)
    np.testing.assert_allclose(cost, exact, rtol=1e-10)
    other = best._replace(K=best.K + 0.01)
    assert exact_cost(problem, plant, prior, other, gains) > exact
    other = gains._replace(L=gains.L + 0.01)
    assert exact_cost(problem, plant, prior, best, other) > exact


def test_the_policy_of_lqg_costs_as_expected_on_average(random_problem):
    H, num_runs = 5, 20_000
    problem = random_problem(H, H)
    plant, prior = random_plant(problem)
    best = solve(problem)
    gains = kalman_gains(plant, prior.cov)
    policy = lqg.lqg(plant, best.K, best.k, gains.L, prior.mean)
    normal = jax.random.multivariate_normal

    def run(key: jax.Array) -> jax.Array:
        start_key, key = jax.random.split(key)
        x, memory, cost = normal(start_key, prior.mean, prior.cov), policy.init(), 0.0
        for t in range(H):
            y_key, w_key, key = jax.random.split(key, 3)
            y = normal(y_key, plant.C[t] @ x, plant.N[t])
            u, memory = policy.act(key, y, memory)
            cost += x @ problem.Q[t] @ x / 2 + u @ (problem.R[t] @ u / 2 + problem.r[t])
            cost += u @ problem.S[t] @ x + problem.q[t] @ x + problem.constant[t]
            x = problem.A[t] @ x + problem.B[t] @ u + problem.c[t]
            x = normal(w_key, x, plant.W[t])
        return cost + x @ problem.Q[H] @ x / 2 + problem.q[H] @ x + problem.constant[H]

    costs = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), num_runs))
    error = costs.std() / np.sqrt(num_runs)
    assert error < 0.02 * costs.mean()
    assert (
        abs(
            costs.mean()
            - expected_cost(
                plant, prior, problem.R, best.K, best.V, best.v, best.constant
            )
        )
        < 4 * error
    )


def test_the_dual_of_control_is_the_filter_of_a_long_time(random_problem):
    plant, _ = random_plant(random_problem(1, 1))
    C, W, N = plant.C[0], plant.W[0], plant.N[0]
    A_ = jnp.array([[1.2, 0.5, 0.0], [0.0, 1.2, -0.5], [0.0, 0.0, 1.2]])
    dual = jax.jit(lqr.stationary)(A_.T, C.T, W, N)
    assert dual.status == Status.SOLVED
    L, cov, well = lqg.correct(dual.V, C, N)
    assert well
    many = lambda x, n: jnp.broadcast_to(x, (n, *x.shape))
    long = lqg.Plant(
        many(A_, 200), many(plant.B[0], 200), many(plant.c[0], 200), many(W, 200),
        many(C, 201), many(N, 201),
    )  # fmt: skip
    gains = kalman_gains(long, jnp.zeros((O, O)))
    np.testing.assert_allclose(gains.L[-1], L, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(gains.cov[-1], cov, rtol=1e-8, atol=1e-10)
    blind = jax.jit(lqr.stationary)(A_.T, jnp.zeros_like(C.T), W, N)
    assert blind.status != Status.SOLVED


def test_the_stationary_policy_is_one_of_length_1():
    A_, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.0], [0.1]])
    C, W, N = np.array([[1.0, 0.0]]), 0.01 * np.eye(2), np.eye(1)
    plant = lqg.Plant(*(jnp.array([x]) for x in (A_, B, np.zeros(2), W, C, N)))
    K, L = np.array([[-1.0, -2.0]]), np.array([[0.3], [0.2]])
    policy = lqg.lqg(
        plant, jnp.array([K]), jnp.ones((1, 1)), jnp.array([L]), np.zeros(2)
    )
    memory, mean = policy.init(), np.zeros(2)
    act = jax.jit(policy.act)
    for t, y in enumerate(np.sin(np.arange(5.0))):
        u, memory = act(jax.random.key(t), jnp.array([y]), memory)
        mean = mean + L[:, 0] * (y - mean[0])
        np.testing.assert_allclose(u, K @ mean + 1, rtol=1e-12)
        mean = A_ @ mean + B @ (K @ mean + 1)


@pytest.mark.slow
def test_keeps_float32(random_problem):
    plant, prior = jax.tree.map(
        lambda x: x.astype(jnp.float32), random_plant(random_problem(5, 5))
    )
    u, y = jnp.ones((5, A), jnp.float32), jnp.ones((6, Y), jnp.float32)
    filtered = kalman_filter(plant, prior, u, y)
    smooth, _ = smoother(plant.A, filtered)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((filtered[:3], smooth)))
    exact = kalman_filter(
        *random_plant(random_problem(5, 5)), jnp.ones((5, A)), jnp.ones((6, Y))
    )
    np.testing.assert_allclose(filtered.belief.mean, exact.belief.mean, rtol=1e-3)
