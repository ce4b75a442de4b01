"""Gradients through dynamics: against closed forms, against each other, and broken.

The linear task: x' = A x + B a + w, a = K x + b + exp(log_std) e, with w, e normal, and
reward -(x'^T Q x' + a^T R a).  Mean and covariance of x are propagated exactly.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from experiments import gradient_problems
from mbrl_jax import closed_loop, envs, gradients
from mbrl_jax.closed_loop import Problem, System
from mbrl_jax.ops import estimate
from mbrl_jax.ops.estimate import Estimate
from mbrl_jax.types import Array, EnvState, Gaussian, Key, Model, Params

A = np.array([[1.0, 0.2], [-0.3, 0.9]])
B = np.array([[0.1], [0.4]])
Q, R = np.diag([1.0, 0.3]), np.array([[0.2]])
P = np.array([[2.0, 0.4], [0.4, 1.0]])  # value(x) = -x^T P x
START_MEAN, START_STD, NOISE_STD = np.array([1.0, -0.5]), 0.3, 0.1
DISCOUNT = 0.97
PARAMS = {"K": [[-0.2, -0.9]], "b": [0.6], "log_std": [-1.0]}
ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    "pathwise": gradients.pathwise,
    "likelihood_ratio": gradients.likelihood_ratio,
    "total_propagation": gradients.total_propagation,
    "finite_difference": gradients.finite_difference,
}
each = pytest.mark.parametrize("name", ESTIMATORS)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


class State(NamedTuple):
    x: Array  # [2]
    origin: Array  # [] the first entry of the first x, tells rollouts apart
    time: Array  # [] int


def params() -> Params:
    return {name: jnp.array(value, float) for name, value in PARAMS.items()}


def policy(params: Params, obs: Array) -> Gaussian:
    mean = params["K"] @ obs + params["b"]
    return Gaussian(mean, jnp.exp(params["log_std"]))


STOCHASTIC = closed_loop.gaussian(policy)
DETERMINISTIC = closed_loop.deterministic(lambda params, obs: policy(params, obs).mean)


def linear(noise_std: float = NOISE_STD, end: int | Array = 1000) -> System:
    """The linear task, which ends after `end` steps."""

    def reset(key: Key) -> State:
        x = jnp.asarray(START_MEAN) + START_STD * jax.random.normal(key, (2,))
        return State(x, x[0], jnp.zeros((), int))

    def mean(state: State, action: Array) -> Array:
        return jnp.asarray(A) @ state.x + jnp.asarray(B) @ action

    def step(key: Key, state: State, action: Array) -> State:
        x = mean(state, action) + noise_std * jax.random.normal(key, (2,))
        return State(x, state.origin, state.time + 1)

    def reward(state: State, action: Array, after: State) -> Array:
        return -(after.x @ jnp.asarray(Q) @ after.x + action @ jnp.asarray(R) @ action)

    def log_prob(state: State, action: Array, after: State) -> Array:
        each = jax.scipy.stats.norm.logpdf(after.x, mean(state, action), noise_std)
        return each.sum()

    return System(
        reset=reset,
        step=step,
        observe=lambda state: state.x,
        reward=reward,
        terminal=lambda state, action, after: after.time >= end,
        log_prob=log_prob if noise_std > 0 else None,
    )


def value(obs: Array) -> Array:
    return -(obs @ jnp.asarray(P) @ obs)


def expected_return(
    params: Params,
    horizon: int,
    *,
    action_noise: bool = True,
    noise_std: float = NOISE_STD,
    bootstrap: bool = False,
    window: int = 1000,
) -> Array:
    """Exactly; with windows, their sum, each a function of where it begins."""
    K, b = params["K"], params["b"]
    action_cov = jnp.diag(jnp.exp(2 * params["log_std"])) * action_noise
    mean, cov, total = jnp.asarray(START_MEAN), START_STD**2 * jnp.eye(2), 0.0
    for t in range(horizon):
        if t % window == 0:
            mean, cov = jax.lax.stop_gradient((mean, cov))
        act, act_cov = K @ mean + b, K @ cov @ K.T + action_cov
        total -= DISCOUNT**t * (act @ R @ act + jnp.trace(R @ act_cov))
        M = A + B @ K
        mean = A @ mean + B @ act
        cov = M @ cov @ M.T + B @ action_cov @ B.T + noise_std**2 * jnp.eye(2)
        total -= DISCOUNT**t * (mean @ Q @ mean + jnp.trace(Q @ cov))
        if bootstrap and ((t + 1) % window == 0 or t + 1 == horizon):
            worth = mean @ P @ mean + jnp.trace(P @ cov)
            total -= DISCOUNT ** (t + 1) * worth
    return total


def assert_unbiased(found: Estimate, truth: Params, tightness: float = 0.1) -> None:
    """Within three standard errors, which are small enough to tell."""
    error = estimate.standard_error(found)
    assert estimate.norm(error) < tightness * estimate.norm(truth)
    jax.tree.map(
        lambda x, y, e: np.testing.assert_array_less(np.abs(x - y), 3 * e + 1e-9),
        found.gradient,
        truth,
        error,
    )


@cache
def true_gradient(horizon: int, **how: Any) -> Params:
    function = jax.jit(jax.grad(partial(expected_return, horizon=horizon, **how)))
    return jax.tree.map(np.asarray, function(params()))


def run(
    name: str, problem: Problem, num_samples: int, seed: int = 0, **how: Any
) -> Estimate:
    estimator = partial(ESTIMATORS[name], num_samples=num_samples, **how)
    return jax.jit(lambda key, params: estimator(key, params, problem))(
        jax.random.key(seed), params()
    )


@each
def test_the_closed_form_at_three_horizons(name):
    """And that a rollout ends where its episode does: the horizon is always 20."""
    num_samples = 60_000 if name == "likelihood_ratio" else 10_000

    @jax.jit
    def find(key: Key, params: Params, end: int) -> Estimate:
        problem = Problem(linear(end=end), STOCHASTIC, 20, DISCOUNT, value)
        return ESTIMATORS[name](key, params, problem, num_samples)

    for horizon in (1, 5, 20):
        found = find(jax.random.key(horizon), params(), horizon)
        assert_unbiased(found, true_gradient(horizon))
        assert found.num_samples == num_samples
        assert found.num_non_finite == 0


CASES = {
    "noise in the policy": (STOCHASTIC, 0.0),
    "noise in the dynamics": (DETERMINISTIC, NOISE_STD),
    "dynamics without density": (STOCHASTIC, NOISE_STD),
}


@each
@pytest.mark.parametrize("case", CASES)
def test_wherever_the_noise_is(name, case):
    actor, noise_std = CASES[case]
    system = linear(noise_std)
    if case == "dynamics without density":
        system = system._replace(log_prob=None)
    found = run(name, Problem(system, actor, 5, DISCOUNT, value), 20_000)
    noisy = actor is STOCHASTIC
    how = {"noise_std": noise_std, "action_noise": noisy, "bootstrap": True}
    assert_unbiased(found, true_gradient(5, **how))


def test_the_mean_return_is_that_of_the_rewards_alone():
    found = [
        run(name, Problem(linear(), STOCHASTIC, 5, DISCOUNT, value), 20_000)
        for name in ESTIMATORS
    ]
    truth = expected_return(params(), 5)
    for one in found:
        np.testing.assert_allclose(one.mean_return, truth, rtol=0.02)


@pytest.mark.slow
def test_windows_take_the_state_they_begin_in_as_given():
    problem = Problem(linear(), STOCHASTIC, 12, DISCOUNT, value)
    short = run("pathwise", problem, 10_000, window=4)
    cut = run("pathwise", problem._replace(value=None), 10_000, window=4)
    long = run("pathwise", problem, 10_000, window=12)
    assert_unbiased(short, true_gradient(12, window=4, bootstrap=True))
    assert_unbiased(cut, true_gradient(12, window=4))
    assert_unbiased(long, true_gradient(12, bootstrap=True))
    assert estimate.bias(cut.gradient, long.gradient) > 0.1  # what the test would miss


def test_with_the_true_value_windows_have_no_bias():
    """The value of the policy itself, by the discounted Lyapunov equation."""
    closed, K = A + B @ np.array(PARAMS["K"]), np.array(PARAMS["K"])
    cost = closed.T @ Q @ closed + K.T @ R @ K
    worth = scipy.linalg.solve_discrete_lyapunov(np.sqrt(DISCOUNT) * closed.T, cost)
    worth = jnp.asarray(worth)
    problem = Problem(
        linear(0.0), DETERMINISTIC, 12, DISCOUNT, lambda obs: -(obs @ worth @ obs)
    )
    no_offset = params() | {"b": jnp.zeros(1)}
    gradient = lambda window: (
        gradients.pathwise(
            jax.random.key(0), no_offset, problem, 10, window=window
        ).gradient
    )
    one, several = jax.jit(lambda: (gradient(12), gradient(3)))()
    np.testing.assert_allclose(several["K"], one["K"], rtol=1e-9)


@pytest.mark.parametrize("name", ["pathwise", "likelihood_ratio", "total_propagation"])
def test_single_precision(name):
    num_samples = 60_000 if name == "likelihood_ratio" else 10_000
    with jax.enable_x64(False):
        found = run(name, Problem(linear(), STOCHASTIC, 5, DISCOUNT), num_samples)
    assert_unbiased(found, true_gradient(5))
    assert {x.dtype for x in jax.tree.leaves(found.gradient)} == {jnp.dtype("float32")}


MAX_HORIZON = 20
doubling = gradient_problems.doubling_map(MAX_HORIZON).problem
DOUBLING_STD = gradient_problems.DOUBLING_STD


def test_total_propagation_breaks_the_curse_of_chaos():
    """Closed-form variances: 2 pi^2 (2^H - 1)^2 pathwise, H / (2 s^2) by the score."""
    horizons = np.arange(2, MAX_HORIZON + 1)

    def variance(name: str) -> np.ndarray:
        @jax.jit
        def find(horizon: int) -> Array:
            found = ESTIMATORS[name](
                jax.random.key(0), jnp.array(0.3), doubling(horizon), 4000
            )
            return estimate.total_variance(found)

        return np.array([find(horizon) for horizon in horizons])

    names = ("pathwise", "likelihood_ratio", "total_propagation")
    pathwise, score, mixed = map(variance, names)
    truth = 2 * np.pi**2 * (2.0**horizons - 1) ** 2
    np.testing.assert_allclose(pathwise, truth, rtol=0.1)
    np.testing.assert_allclose(score, horizons / (2 * DOUBLING_STD**2), rtol=0.1)
    assert (mixed < 2 * np.minimum(pathwise, score)).all()
    assert (pathwise / mixed)[horizons == 16] > 1e5


@pytest.mark.slow
def test_total_propagation_on_a_double_pendulum():
    actor = closed_loop.gaussian(
        lambda params, obs: Gaussian(jnp.tanh(params @ obs), jnp.full(1, 0.3))
    )
    weights = jax.random.normal(jax.random.key(3), (1, 6))
    problem = Problem(closed_loop.from_env(envs.make("acrobot")), actor, 80)
    variance = {
        name: estimate.total_variance(
            jax.jit(partial(ESTIMATORS[name], problem=problem, num_samples=200))(
                jax.random.key(1), weights
            )
        )
        for name in ("pathwise", "likelihood_ratio", "total_propagation")
    }
    assert variance["total_propagation"] < 2 * variance["likelihood_ratio"]
    assert variance["total_propagation"] < 1e-3 * variance["pathwise"]


def test_overflow_leaves_total_propagation_with_the_score():
    """Pathwise messages beyond single precision; the score does not need them."""
    problem = doubling(200)._replace(horizon=200)
    with jax.enable_x64(False):
        pathwise, mixed = (
            jax.jit(partial(ESTIMATORS[name], problem=problem, num_samples=50))(
                jax.random.key(0), jnp.array(0.3)
            )
            for name in ("pathwise", "total_propagation")
        )
    assert pathwise.num_non_finite == 50
    assert pathwise.gradient == 0
    assert mixed.num_non_finite == 0
    assert 0 < estimate.total_variance(mixed) < 1e8


@pytest.mark.slow
@each
def test_a_rollout_that_breaks_is_left_out_and_counted(name):
    """The last of eight breaks: what is left is the estimate from the first seven."""
    key, system = jax.random.key(0), linear()
    starts, _ = gradients._starts(key, Problem(system, STOCHASTIC, 4), 8)

    def broken(fault: Array, bad: Array) -> System:
        def spoil(x: Array, state: State, here: int, time: int) -> Array:
            hit = (state.origin == starts.origin[-1]) & (state.time == time)
            return jnp.where(hit & (fault == here), bad, x)

        def reset(key: Key) -> State:
            state = system.reset(key)
            return state._replace(x=spoil(state.x, state, 0, 0))

        def step(key: Key, state: State, action: Array) -> State:
            after = system.step(key, state, action)
            return after._replace(x=spoil(after.x, after, 1, 2))

        def reward(state: State, action: Array, after: State) -> Array:
            return spoil(system.reward(state, action, after), after, 2, 3)

        return system._replace(reset=reset, step=step, reward=reward)

    @partial(jax.jit, static_argnums=2)
    def find(fault: int, bad: float, num_samples: int) -> Estimate:
        problem = Problem(broken(fault, bad), STOCHASTIC, 4, DISCOUNT)
        return ESTIMATORS[name](key, params(), problem, num_samples)

    clean = find(-1, 0.0, 7)
    assert (clean.num_samples, clean.num_non_finite) == (7, 0)
    assert find(-1, 0.0, 8).num_non_finite == 0
    expected = clean._replace(num_non_finite=1)
    for fault in range(3):
        for bad in (np.nan, np.inf, -np.inf):
            found = find(fault, bad, 8)
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=1e-9), found, expected
            )


def test_nothing_is_left_when_all_break():
    system = linear()._replace(reward=lambda state, action, after: jnp.nan)
    for name in ESTIMATORS:
        found = run(name, Problem(system, STOCHASTIC, 2), 3)
        assert (found.num_samples, found.num_non_finite) == (0, 3)
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), found.gradient)


@pytest.mark.slow
@each
def test_rematerialisation_changes_nothing(name):
    problem = Problem(linear(), STOCHASTIC, 12, DISCOUNT, value)
    plain = run(name, problem, 5)
    again = run(name, problem._replace(segment=4), 5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), plain, again)
    if name == "pathwise":
        plain = run(name, problem, 5, window=6)
        again = run(name, problem._replace(segment=3), 5, window=6)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), plain, again)


def padded(system: System) -> System:
    """With a state of 64 numbers more."""
    return System(
        reset=lambda key: (system.reset(key), jnp.ones(64)),
        step=lambda key, state, action: (
            system.step(key, state[0], action),
            jnp.sin(state[1]),
        ),
        observe=lambda state: system.observe(state[0]),
        reward=lambda state, action, after: system.reward(state[0], action, after[0]),
        terminal=lambda state, action, after: jnp.zeros((), bool),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pathwise", "likelihood_ratio", "total_propagation"])
def test_memory_grows_with_the_square_root_of_the_horizon(name):
    """All but the rewards, a few numbers per step."""
    keys = jax.random.split(jax.random.key(0))
    weights = [jax.random.normal(keys[0], (64, 2)), jax.random.normal(keys[1], (1, 64))]
    actor = closed_loop.gaussian(
        lambda params, obs: Gaussian(params[1] @ jnp.tanh(params[0] @ obs), jnp.ones(1))
    )

    def bytes_of(horizon: int, segment: int) -> int:
        problem = Problem(padded(linear()), actor, horizon, segment=segment)
        find = partial(ESTIMATORS[name], problem=problem, num_samples=100)
        compiled = jax.jit(find).lower(jax.random.key(0), weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain, small, large = bytes_of(1600, 0), bytes_of(400, 20), bytes_of(1600, 40)
    assert large < 3 * small
    assert large < plain / 5


@each
@pytest.mark.parametrize("segment", [5, -1])
def test_a_segment_that_does_not_fit(name, segment):
    problem = Problem(linear(), STOCHASTIC, 12, segment=segment)
    with pytest.raises(ValueError, match=f"segment {segment}"):
        run(name, problem, 2)


def test_a_window_that_does_not_fit():
    with pytest.raises(ValueError, match="window 5 does not divide horizon 12"):
        run("pathwise", Problem(linear(), STOCHASTIC, 12), 2, window=5)


@pytest.mark.parametrize("name", ["likelihood_ratio", "total_propagation"])
def test_a_likelihood_ratio_needs_a_density(name):
    with pytest.raises(ValueError, match="neither the actor nor the system has a"):
        run(name, Problem(linear(0.0), DETERMINISTIC, 2), 2)


def test_the_true_simulator_against_a_loop():
    env = envs.make("pendulum")
    actor = closed_loop.deterministic(lambda params, obs: jnp.tanh(params @ obs))
    weights = jnp.array([[0.3, -0.2, 0.5]])
    problem = Problem(closed_loop.from_env(env), actor, 8, 0.9)

    def total(weights: Array, state: Any) -> Array:
        result = 0.0
        for t in range(8):
            state = env.step(state, jnp.tanh(weights @ state.obs))
            result += 0.9**t * state.reward
        return result

    key, weights = jax.random.key(0), jnp.asarray(weights, float)
    starts, _ = gradients._starts(key, problem, 5)
    each_gradient = jax.vmap(jax.grad(total), (None, 0))
    expected = jax.jit(each_gradient)(weights, starts)
    found = gradients.pathwise(key, weights, problem, 5)
    check = gradients.finite_difference(key, weights, problem, 5)
    np.testing.assert_allclose(found.gradient, expected.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.variance, expected.var(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(check.gradient, found.gradient, rtol=1e-6)


def test_an_environment_on_the_host_has_no_gradient():
    env = envs.make("pendulum")._replace(host=True)
    with pytest.raises(ValueError, match="pendulum steps outside jax"):
        closed_loop.from_env(env)


class Read(NamedTuple):
    reward: Array
    terminal: Array


def read(obs: Array, action: Array, y: Array) -> Read:
    reward = -(y[:2] @ jnp.asarray(Q) @ y[:2] + action @ jnp.asarray(R) @ action)
    return Read(reward, y[2] > 0)


def linear_model(shift: float) -> System:
    """Two members, `shift` apart, that also predict the logit of an ending."""

    def predict(member: Array, obs: Array, action: Array) -> Gaussian:
        mean = jnp.asarray(A) @ obs + jnp.asarray(B) @ action + member * shift
        std = jnp.array([NOISE_STD, NOISE_STD, 0.0])
        return Gaussian(jnp.concatenate([mean, -jnp.ones(1)]), std)

    no = lambda *_: None
    model = Model(no, no, lambda state: state, predict)
    normals = np.random.default_rng(0).normal(size=(100_000, 2))
    starts = jnp.asarray(START_MEAN + START_STD * normals)
    return closed_loop.from_model(model, jnp.arange(2.0), read, starts, action_size=1)


@pytest.mark.parametrize("name", ["pathwise", "likelihood_ratio", "total_propagation"])
@pytest.mark.parametrize("actor", [STOCHASTIC, DETERMINISTIC], ids=["noisy", "quiet"])
def test_a_model_of_the_linear_task(name, actor):
    found = run(name, Problem(linear_model(0.0), actor, 5, DISCOUNT), 20_000)
    assert_unbiased(found, true_gradient(5, action_noise=actor is STOCHASTIC))


def test_the_density_of_a_model_is_the_mixture_of_its_members():
    system = linear_model(0.3)
    y, action = jnp.array([0.5, -0.2, 0.0]), jnp.array([0.7])
    states = jax.vmap(lambda key: system.step(key, y, action))(
        jax.random.split(jax.random.key(0), 2000)
    )
    log_prob = jax.vmap(lambda after: system.log_prob(y, action, after))(states)
    mean = A @ y[:2] + B @ action
    each_member = [
        scipy.stats.norm.pdf(states[:, :2], mean + shift, NOISE_STD).prod(axis=1)
        for shift in (0.0, 0.3)
    ]
    np.testing.assert_allclose(
        np.exp(log_prob), np.mean(each_member, axis=0), rtol=1e-9
    )
    above = (np.asarray(states[:, :2]) > np.asarray(mean) + 0.15).mean()
    assert 0.45 < above < 0.55  # both members are asked


def test_growth_of_errors_in_a_linear_loop():
    """Also that it neither overflows nor underflows."""
    closed = A + B @ np.array(PARAMS["K"])
    system = linear()._replace(
        reset=lambda key: linear().reset(key)._replace(origin=jnp.zeros((), int))
    )
    problem = Problem(system, STOCHASTIC, 6)
    growth = gradients.log_growth(jax.random.key(0), params(), problem)
    chaos = doubling(9999)._replace(horizon=3000)
    far = gradients.log_growth(jax.random.key(0), jnp.array(0.3), chaos)
    power = [np.linalg.matrix_power(closed, t) for t in range(1, 7)]
    expected = [np.log(np.linalg.norm(x, ord=2)) for x in power]
    np.testing.assert_allclose(growth, expected, rtol=1e-9)
    np.testing.assert_allclose(far, np.log(2) * np.arange(1, 3001), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pathwise", "likelihood_ratio", "total_propagation"])
def test_a_batch_of_problems_equals_single_ones(name):
    """Under vmap over what the functions close over; keys among the state."""
    system = closed_loop.from_env(envs.make("linear_quadratic"))
    actor = closed_loop.gaussian(
        lambda params, obs: Gaussian(params @ obs, jnp.full(1, 0.1))
    )
    weights = jnp.full((1, 4), -0.1)

    def find(scale: Array) -> Estimate:
        value = lambda obs: -scale * (obs @ obs)
        problem = Problem(system, actor, 3, value=value, discount=scale)
        return ESTIMATORS[name](jax.random.key(0), weights, problem, 4)

    scales = jnp.array([0.9, 0.5])
    batch = jax.jit(jax.vmap(find))(scales)
    single = jax.jit(find)(scales[1])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-9), batch, single
    )


# --- The mean for training.


@pytest.mark.parametrize("segment", [0, 2])
def test_the_mean_is_that_of_the_samples(segment):
    problem = Problem(linear(), STOCHASTIC, 6, DISCOUNT, value, segment)
    expected = run("pathwise", problem, 5)
    starts, _ = gradients._starts(jax.random.key(0), problem, 5)
    key = jax.random.split(jax.random.key(0))[1]
    found, samples, valid = jax.jit(
        lambda params: gradients.pathwise_mean(key, params, problem, starts)
    )(params())
    check = partial(np.testing.assert_allclose, rtol=1e-9)
    jax.tree.map(check, found, expected.gradient)
    check(samples.steps.weighted.sum(axis=1).mean(), expected.mean_return)
    assert valid.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["start", "reward", "gradient"])
def test_a_broken_sample_does_not_touch_the_mean(bad, where):
    system = linear()
    problem = Problem(system, STOCHASTIC, 4)
    starts, _ = gradients._starts(jax.random.key(0), problem, 5)
    hit = lambda state: state.origin == starts.origin[2]

    def reward(state: State, action: Array, after: State) -> Array:
        good = system.reward(state, action, after)
        if where == "reward":
            return jnp.where(hit(after), bad, good)
        if where == "gradient":  # of a root at 0, it is infinite
            good += jnp.sqrt(jnp.where(hit(after), 0 * after.x[0], 1.0)) - 1
        return good

    broken = problem._replace(system=system._replace(reward=reward))
    if where == "start":
        x = starts.x.at[2, 0].set(bad)
        spoiled = starts._replace(x=x)
    find = lambda problem, starts: gradients.pathwise_mean(
        jax.random.key(1), params(), problem, starts
    )
    found, _, valid = find(broken, spoiled if where == "start" else starts)
    assert valid.tolist() == [True, True, False, True, True]
    still = problem._replace(
        system=system._replace(
            reward=lambda state, action, after: jnp.where(
                hit(after), 0.0, system.reward(state, action, after)
            )
        )
    )
    without, _, _ = find(still, starts)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y * 5 / 4, rtol=1e-9), found, without
    )


# --- Where there is no gradient.


@pytest.mark.parametrize("name", ["probe1", "probe2", "probe3"])
def test_a_gradient_that_is_0_is_an_error(name):
    with pytest.raises(ValueError, match=f"return of {name} is exactly 0: its reward"):
        gradients.check(envs.make(name))


@pytest.mark.parametrize(
    "name", ["probe4", "probe5", "pendulum", "linear_quadratic", "reacher"]
)
def test_a_gradient_is_found(name):
    gradients.check(envs.make(name))


def test_a_step_that_loops_until_it_has_converged_is_an_error():
    env = envs.make("pendulum")

    def step(env_state: EnvState, action: Array) -> EnvState:
        halve = lambda x: jax.lax.while_loop(lambda x: jnp.abs(x[0]) > 1, _half, x)
        return env.step(env_state, halve(action))

    with pytest.raises(ValueError, match="pendulum cannot be differentiated in rev"):
        gradients.check(env._replace(step=step))


def _half(x: Array) -> Array:
    return x / 2


def test_a_simulator_on_the_host_is_an_error():
    with pytest.raises(ValueError, match="pendulum steps outside jax"):
        gradients.check(envs.make("pendulum")._replace(host=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("brax/inverted_pendulum", "is exactly 0: its reward"),
        ("brax/hopper/mjx", "cannot be differentiated in reverse.*solver_iterations"),
        ("brax/reacher", ""),
    ],
)
def test_what_brax_has(name, fault):
    env = envs.make(name)
    if not fault:
        gradients.check(env)
        return
    with pytest.raises(ValueError, match=fault):
        gradients.check(env)
