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

from experiments.runs import gradient_problems
from mbrl_jax import envs
from mbrl_jax.gradients import closed_loop, estimators
from mbrl_jax.gradients.closed_loop import DynamicalSystem, ExpectedReturn
from mbrl_jax.ops import estimate
from mbrl_jax.ops.estimate import Estimate
from mbrl_jax.types import Array, Gaussian, Key, Model, Params
from tests import compiling

A = np.array([[1.0, 0.2], [-0.3, 0.9]])
B = np.array([[0.1], [0.4]])
Q, R = np.diag([1.0, 0.3]), np.array([[0.2]])
P = np.array([[2.0, 0.4], [0.4, 1.0]])  # value(x) = -x^T P x
START_MEAN, START_STD, NOISE_STD = np.array([1.0, -0.5]), 0.3, 0.1
DISCOUNT = 0.97
PARAMS = {"K": [[-0.2, -0.9]], "b": [0.6], "log_std": [-1.0]}
ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    "pathwise": estimators.pathwise,
    "likelihood_ratio": estimators.likelihood_ratio,
    "total_propagation": estimators.total_propagation,
    "finite_difference": estimators.finite_difference,
}
each = pytest.mark.parametrize("name", ESTIMATORS)
KEY = jax.random.key(0)


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


def linear(
    noise_std: float | Array = NOISE_STD,
    end: int | Array = 1000,
    has_density: bool = True,
) -> DynamicalSystem:
    """The linear task, which ends after `end` steps."""

    def reset(key: Key) -> State:
        x = jnp.asarray(START_MEAN, float) + START_STD * jax.random.normal(key, (2,))
        return State(x, x[0], jnp.zeros((), int))

    def mean(state: State, action: Array) -> Array:
        return jnp.asarray(A, float) @ state.x + jnp.asarray(B, float) @ action

    def step(key: Key, state: State, action: Array) -> State:
        x = mean(state, action) + noise_std * jax.random.normal(key, (2,))
        return State(x, state.origin, state.time + 1)

    def reward(state: State, action: Array, after: State) -> Array:
        return -(
            after.x @ jnp.asarray(Q, float) @ after.x
            + action @ jnp.asarray(R, float) @ action
        )

    def log_prob(state: State, action: Array, after: State) -> Array:
        each = jax.scipy.stats.norm.logpdf(after.x, mean(state, action), noise_std)
        return each.sum()

    return DynamicalSystem(
        reset=reset,
        step=step,
        observe=lambda state: state.x,
        reward=reward,
        terminal=lambda state, action, after: after.time >= end,
        log_prob=log_prob if has_density else None,
    )


def value(obs: Array) -> Array:
    return -(obs @ jnp.asarray(P, float) @ obs)


class How(NamedTuple):
    """What the expected return depends on."""

    horizon: int
    action_noise: float = 1.0  # 0: none
    noise_std: float = NOISE_STD
    bootstrap: float = 0.0  # 1: with the value at the end
    window: int = 1000


def expected_return(params: Params, how: How) -> Array:
    """Exactly; with windows, their sum, each a function of where it begins."""
    K, b = params["K"], params["b"]
    M = A + B @ K
    action_cov = jnp.diag(jnp.exp(2 * params["log_std"])) * how.action_noise
    noise_cov = B @ action_cov @ B.T + how.noise_std**2 * jnp.eye(2)

    def step(moments: tuple[Array, Array], t: Array) -> tuple[tuple, Array]:
        given = jax.lax.stop_gradient(moments)
        begins, ends = t % how.window == 0, (t + 1) % how.window == 0
        ends |= t + 1 == how.horizon
        mean, cov = jax.tree.map(partial(jnp.where, begins), given, moments)
        act, act_cov = K @ mean + b, K @ cov @ K.T + action_cov
        cost = act @ R @ act + jnp.trace(R @ act_cov)
        mean, cov = A @ mean + B @ act, M @ cov @ M.T + noise_cov
        cost += mean @ Q @ mean + jnp.trace(Q @ cov)
        worth = DISCOUNT * (mean @ P @ mean + jnp.trace(P @ cov))
        cost += jnp.where(ends, how.bootstrap * worth, 0)
        return (mean, cov), jnp.where(t < how.horizon, -(DISCOUNT**t) * cost, 0)

    start = jnp.asarray(START_MEAN, float), START_STD**2 * jnp.eye(2)
    return jax.lax.scan(step, start, jnp.arange(float(HORIZON)))[1].sum()


truth = jax.jit(jax.value_and_grad(expected_return))


def true(*args: Any, **how: Any) -> tuple[float, Params]:
    """The expected return, and its gradient."""
    how = How(*args, **how)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, truth(params(), How(*map(np.float64, how))))


def norm(tree: Params) -> float:
    return np.linalg.norm(np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]))


def assert_unbiased(found: Estimate, truth: Params, tightness: float = 0.1) -> None:
    """Within three standard errors, which are small enough to tell."""
    found = jax.tree.map(np.asarray, found)
    error = jax.tree.map(lambda x: np.sqrt(x / found.num_samples), found.variance)
    assert norm(error) < tightness * norm(truth)
    jax.tree.map(
        lambda x, y, e: np.testing.assert_array_less(np.abs(x - y), 3 * e + 1e-9),
        found.gradient,
        truth,
        error,
    )


def run(
    name: str, problem: ExpectedReturn, num_samples: int, seed: int = 0, **how: Any
) -> Estimate:
    estimator = partial(ESTIMATORS[name], num_samples=num_samples, **how)
    return jax.jit(lambda key, params: estimator(key, params, problem))(
        jax.random.key(seed), params()
    )


HORIZON = 12
SAMPLES = {  # as many as `assert_unbiased` takes, so that the programs do not run long
    "pathwise": 10_000,
    "likelihood_ratio": 60_000,
    "total_propagation": 3_000,
    "finite_difference": 3_000,
}


@cache
def finder(name: str, few: bool = False, **how: int) -> Callable[..., Estimate]:
    """Of the linear task with noise everywhere, by one program for each `how`."""
    num_samples = 20 if few else SAMPLES[name]
    options = compiling.WELL if num_samples == 60_000 else None
    segment = how.pop("segment", 0)

    def find(end: Array, worth: Array) -> Estimate:
        problem = ExpectedReturn(
            linear(end=end), STOCHASTIC, HORIZON, DISCOUNT,
            lambda obs: worth * value(obs), segment,
        )  # fmt: skip
        return ESTIMATORS[name](
            jax.random.key(0), params(), problem, num_samples, **how
        )

    return jax.jit(find, compiler_options=options)


def find(name: str, end: int = 1000, worth: float = 1.0, **how: int) -> Estimate:
    return finder(name, **how)(np.int64(end), np.float64(worth))


@pytest.mark.slow
@each
def test_the_closed_form_at_three_horizons(name):
    """And that a rollout ends where its episode does: the horizon is always 12."""
    for horizon in (1, 5, 12):
        found = find(name, horizon)
        assert_unbiased(found, true(horizon)[1])
        assert found.num_samples == SAMPLES[name]
        assert found.num_non_finite == 0


@pytest.mark.slow
@each
def test_rematerialisation_changes_nothing(name):
    close = partial(np.testing.assert_allclose, rtol=1e-9)
    few = SAMPLES[name] == 60_000  # then another program is quicker than a long run
    jax.tree.map(close, find(name, few=few), find(name, few=few, segment=4))
    if name == "pathwise":
        plain = find(name, window=4)
        jax.tree.map(close, plain, find(name, window=4, segment=2))


def test_windows_take_the_state_they_begin_in_as_given():
    short = find("pathwise", window=4)
    cut = find("pathwise", window=4, worth=0.0)
    long = find("pathwise")
    assert_unbiased(short, true(12, window=4, bootstrap=1.0)[1])
    assert_unbiased(cut, true(12, window=4)[1])
    assert_unbiased(long, true(12, bootstrap=1.0)[1])
    assert estimate.bias(cut.gradient, long.gradient) > 0.1  # what the test would miss


FEWER = dict.fromkeys(ESTIMATORS, 5_000) | {"likelihood_ratio": 20_000}  # five steps


@cache
def five_steps(name: str, noisy: bool) -> Callable[[Array], Estimate]:
    """By the standard deviation of the dynamics, whose density is known if the policy
    has none."""

    def find(noise_std: Array) -> Estimate:
        system = linear(noise_std, has_density=not noisy)
        actor = STOCHASTIC if noisy else DETERMINISTIC
        problem = ExpectedReturn(system, actor, 5, DISCOUNT, value)
        return ESTIMATORS[name](jax.random.key(0), params(), problem, FEWER[name])

    return jax.jit(find)


CASES = {
    "noise in the policy": (True, 0.0),
    "noise in the dynamics": (False, NOISE_STD),
    "dynamics without density": (True, NOISE_STD),
}


@each
@pytest.mark.parametrize("case", CASES)
def test_wherever_the_noise_is(name, case):
    """And that the mean return is that of the rewards alone."""
    noisy, noise_std = CASES[case]
    found = five_steps(name, noisy)(np.float64(noise_std))
    how = {"noise_std": noise_std, "action_noise": float(noisy)}
    assert_unbiased(found, true(5, bootstrap=1.0, **how)[1])
    np.testing.assert_allclose(found.mean_return, true(5, **how)[0], rtol=0.02)


@pytest.mark.parametrize("name", ["pathwise", "likelihood_ratio", "total_propagation"])
def test_single_precision(name):
    problem = ExpectedReturn(linear(), STOCHASTIC, 5, DISCOUNT)
    with jax.enable_x64(False):
        found = run(name, problem, FEWER[name])
    assert_unbiased(found, true(5)[1])
    assert {x.dtype for x in jax.tree.leaves(found.gradient)} == {jnp.dtype("float32")}


MAX_HORIZON = 20
doubling = gradient_problems.doubling_map(MAX_HORIZON).problem
DOUBLING_STD = gradient_problems.DOUBLING_STD


def noisy_linear(horizon: int) -> ExpectedReturn:
    """By a policy without noise, in a system with much of it, and an early end."""
    return ExpectedReturn(
        linear(noise_std=0.3, end=3), DETERMINISTIC, horizon, DISCOUNT, value
    )


@pytest.mark.slow
def test_batch_importance_is_unbiased_and_varies_less():
    problem, num_samples = noisy_linear(3), 100
    problem = problem._replace(system=linear(noise_std=0.3))
    how = How(3, action_noise=0.0, noise_std=0.3, bootstrap=1.0)
    exact = jax.grad(lambda p: expected_return(p, how))(params())

    def spread(estimator):
        estimates = jax.jit(jax.vmap(lambda key: estimator(key)))(keys)
        return jax.tree.map(lambda x: (x.mean(axis=0), x.std(axis=0)), estimates)

    keys = jax.random.split(KEY, 400)
    whole = lambda key: estimators.batch_importance(key, params(), problem, num_samples)
    score = lambda key: estimators.likelihood_ratio(key, params(), problem, num_samples)
    batch = spread(lambda key: whole(key)[0])
    single = spread(lambda key: score(key).gradient)
    for name in ("K", "b"):
        (mean, std), scale = batch[name], np.abs(exact[name]).max()
        assert np.abs(mean - exact[name]).max() < 4 * std.max() / 20 + 0.02 * scale
    # of a shift b that moves all of them alike, nothing is gained
    assert batch["K"][1].sum() < 0.92 * single["K"][1].sum()
    returns = jax.vmap(lambda key: (whole(key)[1], score(key).mean_return))(keys[:3])
    np.testing.assert_allclose(*returns, rtol=1e-10)


def test_batch_importance_against_loops():
    """Two samples that end after three of four steps, three terms for each."""
    problem, num_samples = noisy_linear(4), 3
    found, _ = estimators.batch_importance(KEY, params(), problem, num_samples)
    starts, keys = estimators._starts(KEY, problem, num_samples)
    run = lambda start, key: closed_loop.rollout(key, params(), problem, start)[1]
    steps = jax.vmap(run)(starts, keys).steps
    to_go = np.cumsum(steps.weighted[:, ::-1], axis=1)[:, ::-1]

    def surrogate(params):
        total = 0.0
        for t in range(3):
            now = steps.obs[:, t]
            means = now @ A.T + (now @ params["K"].T + params["b"][None]) @ B.T
            for j in range(num_samples):
                after = steps.obs[j, t + 1]
                away = jnp.square(after[None] - means).sum(axis=1) / (2 * 0.3**2)
                others = np.delete(to_go[:, t], j).mean()
                score = jnp.log(jnp.exp(-away).sum())
                total += (to_go[j, t] - others) * score
                action = params["K"] @ now[j] + params["b"]
                total -= DISCOUNT**t * action @ R @ action
        return total / num_samples

    expected = jax.grad(surrogate)(params())
    for name in ("K", "b"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-8)


def test_batch_importance_needs_the_density_of_the_system():
    noisy = ExpectedReturn(linear(), STOCHASTIC, 3)
    silent = ExpectedReturn(linear(has_density=False), DETERMINISTIC, 3)
    for problem in (noisy, silent):
        with pytest.raises(ValueError, match="batch importance weights need"):
            estimators.batch_importance(KEY, params(), problem, 4)


@pytest.mark.slow
def test_total_propagation_breaks_the_curse_of_chaos():
    """Closed-form variances: 2 pi^2 (2^H - 1)^2 pathwise, H / (2 s^2) by the score."""
    horizons = np.array([2, 5, 16, MAX_HORIZON])

    def variance(name: str) -> np.ndarray:
        @jax.jit
        def find(horizon: int) -> Array:
            found = ESTIMATORS[name](
                jax.random.key(0), jnp.array(0.3), doubling(horizon), 4000
            )
            return estimate.total_variance(found)

        return np.array([find(horizon) for horizon in horizons])

    names = ("pathwise", "likelihood_ratio", "total_propagation")
    through, score, mixed = map(variance, names)
    truth = 2 * np.pi**2 * (2.0**horizons - 1) ** 2
    np.testing.assert_allclose(through, truth, rtol=0.1)
    np.testing.assert_allclose(score, horizons / (2 * DOUBLING_STD**2), rtol=0.1)
    assert (mixed < 2 * np.minimum(through, score)).all()
    assert (through / mixed)[horizons == 16] > 1e5


@pytest.mark.slow
def test_total_propagation_on_a_double_pendulum():
    actor = closed_loop.gaussian(
        lambda params, obs: Gaussian(jnp.tanh(params @ obs), jnp.full(1, 0.3))
    )
    weights = jax.random.normal(jax.random.key(3), (1, 6))
    problem = ExpectedReturn(closed_loop.from_env(envs.make("acrobot")), actor, 80)
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
        through, mixed = (
            jax.jit(partial(ESTIMATORS[name], problem=problem, num_samples=50))(
                jax.random.key(0), jnp.array(0.3)
            )
            for name in ("pathwise", "total_propagation")
        )
    assert through.num_non_finite == 50
    assert through.gradient == 0
    assert mixed.num_non_finite == 0
    assert 0 < estimate.total_variance(mixed) < 1e8


@pytest.mark.slow
@each
def test_a_rollout_that_breaks_is_left_out_and_counted(name):
    """The last of eight breaks: what is left is the estimate from the first seven.

    Nothing is left when all do.
    """
    key, system = jax.random.key(0), linear()
    starts, _ = estimators._starts(key, ExpectedReturn(system, STOCHASTIC, 4), 8)

    def broken(fault: Array, bad: Array) -> DynamicalSystem:
        def spoil(x: Array, state: State, here: int, time: int) -> Array:
            hit = (state.origin == starts.origin[-1]) & (state.time == time)
            return jnp.where(hit & (fault == here) | (fault == 3), bad, x)

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
        problem = ExpectedReturn(broken(fault, bad), STOCHASTIC, 4, DISCOUNT)
        return ESTIMATORS[name](key, params(), problem, num_samples)

    none = find(3, np.nan, 8)
    assert (none.num_samples, none.num_non_finite) == (0, 8)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), none.gradient)
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


def padded(system: DynamicalSystem) -> DynamicalSystem:
    """With a state of 64 numbers more."""
    return DynamicalSystem(
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
        problem = ExpectedReturn(padded(linear()), actor, horizon, segment=segment)
        find = partial(ESTIMATORS[name], problem=problem, num_samples=100)
        compiled = jax.jit(find).lower(jax.random.key(0), weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = bytes_of(400, 20), bytes_of(1600, 40)
    assert large < 3 * small
    plain = 1600 * 100 * 64 * 8  # the states that would be kept without segments
    assert large < plain / 5


@each
@pytest.mark.parametrize("segment", [5, -1])
def test_a_segment_that_does_not_fit(name, segment):
    problem = ExpectedReturn(linear(), STOCHASTIC, 12, segment=segment)
    with pytest.raises(ValueError, match=f"segment {segment}"):
        run(name, problem, 2)


def test_a_window_that_does_not_fit():
    with pytest.raises(ValueError, match="window 5 does not divide horizon 12"):
        run("pathwise", ExpectedReturn(linear(), STOCHASTIC, 12), 2, window=5)


@pytest.mark.parametrize("name", ["likelihood_ratio", "total_propagation"])
def test_a_likelihood_ratio_needs_a_density(name):
    with pytest.raises(ValueError, match="neither the actor nor the system has a"):
        run(name, ExpectedReturn(linear(0.0, has_density=False), DETERMINISTIC, 2), 2)


@pytest.mark.slow
def test_the_true_simulator_against_a_loop():
    env = envs.make("pendulum")
    actor = closed_loop.deterministic(lambda params, obs: jnp.tanh(params @ obs))
    weights = jnp.array([[0.3, -0.2, 0.5]])
    problem = ExpectedReturn(closed_loop.from_env(env), actor, 8, 0.9)

    def total(weights: Array, state: Any) -> Array:
        result = 0.0
        for t in range(8):
            state = env.step(state, jnp.tanh(weights @ state.obs))
            result += 0.9**t * state.reward
        return result

    key, weights = jax.random.key(0), jnp.asarray(weights, float)

    @jax.jit
    def compare(weights: Array) -> tuple[Array, Estimate, Estimate]:
        starts, _ = estimators._starts(key, problem, 5)
        expected = jax.vmap(jax.grad(total), (None, 0))(weights, starts)
        both = (estimators.pathwise, estimators.finite_difference)
        return expected, *(find(key, weights, problem, 5) for find in both)

    expected, found, check = compare(weights)
    np.testing.assert_allclose(found.gradient, expected.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.variance, expected.var(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(check.gradient, found.gradient, rtol=1e-6)


class Read(NamedTuple):
    reward: Array
    terminal: Array


def decode(obs: Array, action: Array, y: Array) -> Read:
    reward = -(
        y[:2] @ jnp.asarray(Q, float) @ y[:2] + action @ jnp.asarray(R, float) @ action
    )
    return Read(reward, y[2] > 0)


def linear_model(shift: float) -> DynamicalSystem:
    """Two members, `shift` apart, that also predict the logit of an ending."""

    def predict(member: Array, obs: Array, action: Array) -> Gaussian:
        mean = (
            jnp.asarray(A, float) @ obs
            + jnp.asarray(B, float) @ action
            + member * shift
        )
        std = jnp.array([NOISE_STD, NOISE_STD, 0.0])
        return Gaussian(jnp.concatenate([mean, -jnp.ones(1)]), std)

    no = lambda *_: None
    model = Model(no, no, lambda state: state, predict)
    normals = np.random.default_rng(0).normal(size=(100_000, 2))
    starts = jnp.asarray(START_MEAN + START_STD * normals)
    return closed_loop.from_model(model, jnp.arange(2.0), decode, starts, action_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pathwise", "likelihood_ratio", "total_propagation"])
@pytest.mark.parametrize("actor", [STOCHASTIC, DETERMINISTIC], ids=["noisy", "quiet"])
def test_a_model_of_the_linear_task(name, actor):
    problem = ExpectedReturn(linear_model(0.0), actor, 5, DISCOUNT)
    found = run(name, problem, FEWER[name])
    noisy = float(actor is STOCHASTIC)
    assert_unbiased(found, true(5, action_noise=noisy)[1])


def test_growth_of_errors_in_a_linear_loop():
    """Also that it neither overflows nor underflows."""
    closed = A + B @ np.array(PARAMS["K"])
    system = linear()._replace(
        reset=lambda key: linear().reset(key)._replace(origin=jnp.zeros((), int))
    )
    problem = ExpectedReturn(system, STOCHASTIC, 6)
    growth = jax.jit(lambda x: estimators.log_growth(KEY, x, problem))(params())
    chaos = doubling(9999)._replace(horizon=3000)
    far = jax.jit(lambda x: estimators.log_growth(KEY, x, chaos))(jnp.array(0.3))
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
        problem = ExpectedReturn(system, actor, 3, value=value, discount=scale)
        return ESTIMATORS[name](jax.random.key(0), weights, problem, 4)

    scales = jnp.array([0.9, 0.5])
    batch = jax.jit(jax.vmap(find))(scales)
    single = jax.jit(find)(scales[1])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-9), batch, single
    )
