"""Local linear models against the true dynamics and the formulas in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.envs import linear_quadratic, pendulum
from mbrl_jax.models import gaussian_mixture, linear_gaussian
from mbrl_jax.models.linear_gaussian import NIW, Dynamics, Episodes
from mbrl_jax.types import Array, Gaussian, Transition

PRECISIONS = pytest.mark.parametrize("x64", [False, True])
insert, fit = jax.jit(replay.insert), jax.jit(linear_gaussian.fit)
latest = jax.jit(linear_gaussian.latest, static_argnums=(1, 2, 3))


@pytest.fixture(autouse=True)
def default_precision():
    with jax.enable_x64(True):
        yield


def episodes(
    number: int, num_times: int, noise_std: float = 0.0, seed: int = 0
) -> Episodes:
    """Random actions in linear_quadratic, in float64."""
    problem, rng = linear_quadratic.TWO_MASSES, np.random.default_rng(seed)
    A, B = np.asarray(problem.A), np.asarray(problem.B)
    obs, action = (
        np.empty((num_times + 1, number, 4)),
        rng.normal(size=(num_times, number, 1)),
    )
    obs[0] = rng.uniform(-1, 1, size=(number, 4))
    for t in range(num_times):
        noise = noise_std * rng.normal(size=(number, 4))
        obs[t + 1] = obs[t] @ A.T + action[t] @ B.T + noise
    along = lambda x: np.moveaxis(x, 0, 1)
    valid = np.ones((number, num_times), bool)
    return Episodes(along(obs[:-1]), along(action), along(obs[1:]), valid)


def several(number: int, num_times: int, seed: int = 0) -> Episodes:
    """Rows that obey no law, of a scale and an offset of their own in each column."""
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.normal(
        rng.normal(size=size), rng.uniform(0.5, 2, size), (number, num_times, size)
    )
    return Episodes(
        draw(3), draw(2), draw(3), rng.uniform(size=(number, num_times)) < 0.7
    )


def by_numpy(data: Episodes, strength: float) -> Dynamics:
    """Step by step, by the formulas of the normal-inverse-Wishart distribution."""
    found = []
    whole = np.concatenate([data.obs, data.action, data.next_obs], axis=2)
    every = whole[data.valid]
    mu_0, size, I = (
        every.mean(axis=0),
        whole.shape[2],
        data.obs.shape[2] + data.action.shape[2],
    )
    nu_0 = strength + size + 1  # the mean of the prior is psi_0 / (nu_0 - D - 1)
    psi_0 = strength * np.cov(every.T, bias=True)
    for t in range(whole.shape[1]):
        rows = whole[data.valid[:, t], t]
        n = len(rows)
        mean = rows.mean(axis=0) if n else mu_0
        mu = (strength * mu_0 + n * mean) / (strength + n)
        psi = psi_0 + sum(np.outer(x - mean, x - mean) for x in rows)
        gap = mean - mu_0
        psi = psi + strength * n / (strength + n) * np.outer(gap, gap)
        sigma = psi / (nu_0 + n - size - 1)
        F = np.linalg.solve(sigma[:I, :I], sigma[:I, I:]).T
        cov = sigma[I:, I:] - F @ sigma[:I, I:]
        found.append((F, mu[I:] - F @ mu[:I], cov))
    return Dynamics(*(np.stack(x) for x in zip(*found, strict=True)))


def assert_close(a: Dynamics, b: Dynamics, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


@pytest.mark.parametrize("number", [2, 3, 30])
@pytest.mark.parametrize("strength", [0.3, 5.0])
def test_it_is_the_posterior_of_the_textbook(number: int, strength: float):
    data = several(number, 6)
    assert_close(fit(data, strength), by_numpy(data, strength), rtol=1e-9, atol=1e-10)


@PRECISIONS
@pytest.mark.parametrize("number", [2, 20])
def test_linear_dynamics_are_recovered(x64: bool, number: int):
    """From fewer episodes than variables too: the others are the prior."""
    with jax.enable_x64(x64):
        found = fit(episodes(number, 20), 1.0)
    problem = linear_quadratic.TWO_MASSES
    F = np.concatenate([problem.A, problem.B], axis=1)
    tolerance = 1e-10 if x64 else 1e-3
    np.testing.assert_allclose(found.F, np.stack([F] * 20), atol=tolerance)
    np.testing.assert_allclose(found.f, 0, atol=tolerance)
    np.testing.assert_allclose(found.cov, 0, atol=tolerance)


def test_the_noise_is_found():
    found = fit(episodes(2000, 5, noise_std=0.1), 1.0)
    np.testing.assert_allclose(found.cov, np.stack([0.01 * np.eye(4)] * 5), atol=1e-3)


def test_each_time_step_has_dynamics_of_its_own():
    """x' = t x + u, found where there is data enough, blurred by the prior else."""
    rng, times = np.random.default_rng(0), np.arange(4.0)[None, :, None]
    obs, action = rng.normal(size=(2, 50, 4, 1))
    data = Episodes(obs, action, times * obs + action, np.ones((50, 4), bool))
    exact = np.stack([np.array([[t, 1.0]]) for t in range(4)])
    np.testing.assert_allclose(fit(data, 1e-6).F, exact, atol=1e-5)
    blurred = fit(data, 1e6).F
    np.testing.assert_allclose(blurred, blurred[:1] + np.zeros((4, 1, 2)), atol=1e-3)


@PRECISIONS
def test_the_prior_decides_where_one_episode_says_little(x64: bool):
    """It is the regression on all time steps at once."""
    data = several(1, 40)._replace(valid=np.ones((1, 40), bool))
    with jax.enable_x64(x64):
        found = fit(data, 1e5).F
    inputs = np.concatenate([data.obs, data.action, np.ones((1, 40, 1))], axis=2)[0]
    pooled = np.linalg.lstsq(inputs, data.next_obs[0], rcond=None)[0].T[:, :5]
    np.testing.assert_allclose(found, np.stack([pooled] * 40), atol=1e-3)


def test_a_step_without_rows_is_the_prior():
    data = several(8, 5)
    data.valid[:, 3] = False
    found, prior = fit(data, 1.0), fit(data, 1e9)
    assert_close(
        jax.tree.map(lambda x: x[3], found),
        jax.tree.map(lambda x: x[0], prior),
        atol=1e-6,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_rows_that_are_not_valid_do_not_count(bad: float):
    data = several(6, 5)
    spoiled = np.where(data.valid[..., None], data.next_obs, bad)
    found = fit(data._replace(next_obs=spoiled), 1.0)
    assert_close(found, fit(data, 1.0), rtol=0)


def test_a_row_that_is_not_finite_does_not_count():
    data = several(6, 5)
    spoiled, valid = np.array(data.action), np.array(data.valid)
    spoiled[2, 3], valid[2, 3] = np.nan, False
    data.valid[2, 3] = True
    found = fit(data._replace(action=spoiled), 1.0)
    assert_close(found, fit(data._replace(valid=valid), 1.0), rtol=0)


def test_without_any_row_it_stays_finite():
    data = several(3, 4)
    found = fit(data._replace(valid=np.zeros((3, 4), bool)), 1.0)
    assert all(np.isfinite(x).all() for x in found)


@PRECISIONS
@pytest.mark.parametrize("number", [1, 2, 10])
def test_all_variances_are_positive(x64: bool, number: int):
    with jax.enable_x64(x64):
        exact = fit(episodes(number, 20), 1.0).cov
        loose = fit(several(number, 20), 1.0).cov
    for cov in map(np.asarray, (exact, loose)):
        np.testing.assert_array_equal(cov, cov.swapaxes(1, 2))
        assert np.linalg.eigvalsh(cov.astype(np.float64)).min() > 0


def test_it_predicts_a_pendulum_better_than_one_line_for_all_times():
    """Thirty swings from about the same place, one step ahead, on other swings."""

    def swings(seed: int) -> Episodes:
        rng = np.random.default_rng(seed)
        state = jnp.asarray(np.array([np.pi, 0.0]) + 0.05 * rng.normal(size=(30, 2)))
        action = jnp.asarray(1 + 0.5 * rng.normal(size=(60, 30, 1)))

        def step(state, action):
            new = jax.vmap(pendulum.dynamics)(state, action)
            see = jax.vmap(pendulum.observe)
            return new, (see(state), action, see(new))

        rows = jax.lax.scan(step, state, action)[1]
        rows = [np.moveaxis(np.asarray(x), 0, 1) for x in rows]
        return Episodes(*rows, np.ones((30, 60), bool))

    train, test = swings(0), swings(1)

    def error(strength: float) -> float:
        each = jax.vmap(linear_gaussian.predict, in_axes=(None, 0, 0, 0))
        every = jax.vmap(each, in_axes=(None, None, 0, 0))
        found = every(fit(train, strength), jnp.arange(60), test.obs, test.action)
        assert (found.std >= 0).all()
        return float(np.square(found.mean - test.next_obs).mean())

    assert error(1.0) < 0.2 * error(1e9)


LENGTHS = ((3, 5, 2, 4), (5, 5, 1, 3))  # of the episodes of two environments


def record(lengths: tuple[int, ...], num_steps: int) -> list[tuple[float, ...]]:
    """(episode, time step, is it the last) of each of the steps."""
    rows = [(e, t, t == n - 1) for e, n in enumerate(lengths) for t in range(n)]
    return rows[:num_steps]


@pytest.mark.parametrize("num_steps", [2, 10, 13, 14])
@pytest.mark.parametrize(("capacity", "number"), [(11, 2), (20, 1), (40, 4)])
def test_the_latest_episodes_are_told_apart(num_steps: int, capacity: int, number: int):
    """Those that are surely seen from their beginning on."""
    data = replay.init(3, 1, capacity)
    rows = np.array([record(lengths, num_steps) for lengths in LENGTHS], float)
    for t in range(num_steps):
        obs = np.column_stack([[0.0, 1.0], rows[:, t, :2]])
        action, last = 10 + rows[:, t, 1:2], rows[:, t, 2] > 0
        ended = last & (np.arange(2) == t % 2), last & (np.arange(2) != t % 2)
        step = Transition(obs, action, np.zeros(2), obs + 0.5, *ended)
        data = insert(data, step, np.ones(2, bool))
    found = latest(data, 2, number, 5)
    kept = min(num_steps, capacity // 2, 5 * (number + 1))
    all_kept = kept == num_steps and 2 * num_steps < capacity
    expected = np.zeros((2, number, 5), bool)
    for i, lengths in enumerate(LENGTHS):
        episodes = [e for e, t, _ in record(lengths, num_steps)]
        for at, (e, t, _) in enumerate(record(lengths, num_steps)):
            slot = episodes[-1] - e
            whole = all_kept or num_steps - kept < episodes.index(e)
            if at >= num_steps - kept and slot < number and whole:
                expected[i, slot, t] = True
                np.testing.assert_array_equal(
                    found.obs[i * number + slot, t], [i, e, t]
                )
    np.testing.assert_array_equal(found.valid, expected.reshape(-1, 5))
    mask = found.valid[..., None]
    np.testing.assert_array_equal(found.next_obs, np.where(mask, found.obs + 0.5, 0))
    np.testing.assert_array_equal(
        found.action, np.where(mask, 10 + found.obs[..., 2:], 0)
    )


def test_what_was_left_out_hides_the_rest_of_its_episode_alone():
    """Of two environments, each goes on for itself; a lost end of an episode hides the
    next one."""
    data = replay.init(1, 1, 40)
    for t in range(15):  # episodes of five steps
        obs = np.array([[t], [100 + t]], float)
        last, lost = np.full(2, t % 5 == 4), [[t == 7], [t == 4]]
        after = np.where(lost, np.nan, obs + 0.5)
        step = Transition(obs, obs, np.zeros(2), after, np.zeros(2, bool), last)
        data = insert(data, step, np.ones(2, bool))
    found = latest(data, 2, 3, 5)
    seen = np.where(found.valid, found.obs[..., 0], -1).reshape(2, 3, 5)
    np.testing.assert_array_equal(  # the newest first
        seen,
        [
            [[10, 11, 12, 13, 14], [5, 6, -1, -1, -1], [0, 1, 2, 3, 4]],
            [[110, 111, 112, 113, 114], [100, 101, 102, 103, -1], [-1] * 5],
        ],
    )


def test_the_unit_of_the_actions_makes_no_difference():
    data = several(20, 1)
    plain, small = fit(data, 1.0), fit(data._replace(action=1e-9 * data.action), 1.0)
    size = data.obs.shape[-1]
    np.testing.assert_allclose(
        1e-9 * small.F[..., size:], plain.F[..., size:], rtol=1e-4
    )
    np.testing.assert_allclose(small.F[..., :size], plain.F[..., :size], rtol=1e-4)
    with pytest.raises(TypeError, match=r"linear_gaussian\.fit takes real numbers"):
        linear_gaussian.fit(data._replace(obs=1j * data.obs))


def test_without_a_prior_it_is_fit():
    data = several(30, 3)
    found = fit(data)
    for t in range(3):
        valid = data.valid[:, t]
        ones = np.ones((valid.sum(), 1))
        inputs = np.column_stack([data.obs[valid, t], data.action[valid, t], ones])
        gains, *_ = np.linalg.lstsq(inputs, data.next_obs[valid, t], rcond=None)
        rest = data.next_obs[valid, t] - inputs @ gains
        both = np.column_stack([found.F[t], found.f[t]])
        np.testing.assert_allclose(both, gains.T, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.cov[t], rest.T @ rest / len(rest), rtol=1e-8)


@PRECISIONS
@pytest.mark.parametrize("number", [0, 1, 2])
def test_too_few_rows_are_no_reason_for_singular_covariances(x64: bool, number: int):
    """They are explained as far as they go."""
    data = several(4, 5)
    data.valid[:] = np.arange(4)[:, None] < number
    with jax.enable_x64(x64):
        found = jax.tree.map(np.asarray, fit(data))
    assert all(np.isfinite(x).all() for x in found)
    assert np.linalg.eigvalsh(found.cov.astype(float)).min() > 0
    inputs = np.concatenate([data.obs, data.action], axis=2)
    predicted = np.einsum("toi,nti->nto", found.F, inputs) + found.f[None]
    gap = (predicted - data.next_obs)[data.valid]
    np.testing.assert_allclose(gap, 0, atol=1e-8 if x64 else 1e-2)


@pytest.mark.slow
def test_conditions_are_a_batch_axis():
    data = [several(8, 4, seed) for seed in range(2)]
    both = jax.vmap(linear_gaussian.fit)(
        Episodes(*map(np.stack, zip(*data, strict=True)))
    )
    alone = linear_gaussian.fit(data[1])
    assert_close(jax.tree.map(lambda x: x[1], both), alone, rtol=1e-8, atol=1e-10)


def test_any_function_of_the_rows_is_a_prior():
    """The formula of Levine and Abbeel, of x' in place of its change."""
    data, seen = several(6, 1), []
    data.valid[:] = True
    root = np.random.default_rng(3).normal(size=(8, 8))
    mean, cov, strength = root[0], root @ root.T, 2.5
    change = np.eye(8)
    change[5:, :3] = -np.eye(3)  # [x; u; x'] -> [x; u; x' - x]

    def prior(rows: Array, valid: Array) -> NIW:
        seen.append(rows.shape)
        scatter = strength * change @ cov @ change.T
        return NIW(
            jnp.asarray(change @ mean), jnp.asarray(scatter), jnp.array(strength)
        )

    found = linear_gaussian.fit(data, prior)
    assert seen == [(6, 8)]
    rows = np.concatenate([data.obs, data.action, data.next_obs], axis=2)[:, 0]
    gap = rows.mean(axis=0) - mean
    sigma = 6 * np.cov(rows.T, bias=True) + strength * cov
    sigma = (sigma + 6 * strength / (6 + strength) * np.outer(gap, gap)) / (
        6 + strength
    )
    mu = (6 * rows.mean(axis=0) + strength * mean) / (6 + strength)
    F = np.linalg.solve(sigma[:5, :5], sigma[:5, 5:]).T
    rest = sigma[5:, 5:] - F @ sigma[:5, 5:]
    expected = Dynamics(F[None], (mu[5:] - F @ mu[:5])[None], rest[None])
    assert_close(found, expected, rtol=1e-8, atol=1e-10)


def bent(number: int, seed: int) -> Episodes:
    """x' = |x| + u / 2, with x on the left at the first step, then on the right."""
    rng = np.random.default_rng(seed)
    obs = rng.uniform(0.5, 1.5, (number, 2, 1)) * np.array([-1.0, 1.0])[None, :, None]
    action = rng.normal(size=(number, 2, 1))
    valid = np.ones((number, 2), bool)
    return Episodes(obs, action, np.abs(obs) + action / 2, valid)


@pytest.mark.slow
def test_a_mixture_knows_what_one_gaussian_does_not():
    """Two rows are too few for three numbers; the cluster that they are of knows."""
    many, few = bent(200, 0), bent(2, 1)
    rows, valid = linear_gaussian.rows_of(many)
    mixture = gaussian_mixture.fit(
        jax.random.key(0), rows.reshape(-1, 3), valid.ravel(), num_clusters=2
    )
    exact = np.array([[[-1.0, 0.5]], [[1.0, 0.5]]])
    found = linear_gaussian.fit(few, linear_gaussian.mixed(mixture, 1.0))
    np.testing.assert_allclose(found.F, exact, atol=0.05)
    np.testing.assert_allclose(found.f, 0, atol=0.05)
    assert np.abs(fit(few, 1.0).F - exact).max() > 0.3


@pytest.mark.slow
def test_a_model_is_a_prior_where_the_rows_are():
    """Of strength 1e9 it is all that counts."""
    model = lambda obs, action: Gaussian(jnp.abs(obs) + action / 2, jnp.full(1, 0.3))
    cov = np.array([[0.2, 0.05], [0.05, 0.4]])
    found = linear_gaussian.fit(bent(3, 0), linear_gaussian.linearised(model, cov, 1e9))
    np.testing.assert_allclose(found.F, [[[-1.0, 0.5]], [[1.0, 0.5]]], atol=1e-6)
    np.testing.assert_allclose(found.f, 0, atol=1e-6)
    np.testing.assert_allclose(found.cov, 0.09, rtol=1e-6)
