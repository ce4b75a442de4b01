"""The mean for training, and simulators through which there is no gradient."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.gradients import closed_loop, estimators, pathwise
from mbrl_jax.gradients.closed_loop import DynamicalSystem, ExpectedReturn
from mbrl_jax.types import Array, EnvState, Gaussian, Key, Params

pytestmark = pytest.mark.usefixtures("double")
PARAMS = {"K": np.array([[-0.2, -0.9]]), "log_std": np.array([-1.0])}


class State(NamedTuple):
    x: Array  # [2]
    origin: Array  # [] the first entry of the first x, tells samples apart


def reset(key: Key) -> State:
    x = jax.random.normal(key, (2,))
    return State(x, x[0])


def step(key: Key, state: State, action: Array) -> State:
    turned = jnp.stack([state.x[0] + 0.2 * state.x[1], 0.9 * state.x[1]])
    x = turned + 0.4 * action + 0.1 * jax.random.normal(key, (2,))
    return State(x, state.origin)


def reward(state: State, action: Array, after: State) -> Array:
    return -(after.x @ after.x) - 0.2 * (action @ action)


def policy(params: Params, obs: Array) -> Gaussian:
    return Gaussian(params["K"] @ obs, jnp.exp(params["log_std"]))


SYSTEM = DynamicalSystem(
    reset=reset,
    step=step,
    observe=lambda state: state.x,
    reward=reward,
    terminal=lambda state, action, after: jnp.zeros((), bool),
)
PROBLEM = ExpectedReturn(
    SYSTEM, closed_loop.gaussian(policy), 6, 0.97, lambda obs: -2 * (obs @ obs)
)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def samples():
    """Estimated from 5 samples one by one, and where they start."""
    with jax.enable_x64(True):
        return jax.jit(
            lambda: (
                estimators.pathwise(KEY, PARAMS, PROBLEM, 5),
                estimators._starts(KEY, PROBLEM, 5)[0],
            )
        )()


@pytest.mark.parametrize("segment", [0, 2])
def test_the_mean_is_that_of_the_samples(segment, samples):
    expected, starts = samples
    problem, key = PROBLEM._replace(segment=segment), jax.random.split(KEY)[1]
    mean = jax.jit(lambda x: pathwise.pathwise_mean(key, x, problem, starts))
    found, rollouts, valid = mean(PARAMS)
    check = partial(np.testing.assert_allclose, rtol=1e-9)
    jax.tree.map(check, found, expected.gradient)
    returns = np.asarray(rollouts.steps.weighted).sum(axis=1)
    check(returns.mean(), expected.mean_return)
    assert valid.all()


WHERE = ("start", "reward", "gradient", "nowhere")


@jax.jit
def mean_of_broken(where: Array, bad: Array, starts: State, origin: Array):
    """Where the sample from `origin` breaks; its rewards are 0 if it does `nowhere`."""
    at = lambda name: where == WHERE.index(name)

    def broken(state: State, action: Array, after: State) -> Array:
        good, hit = reward(state, action, after), after.origin == origin
        good = jnp.where(hit & at("nowhere"), 0.0, good)
        # of a root at 0 the gradient is infinite
        good += jnp.sqrt(jnp.where(hit & at("gradient"), 0 * after.x[0], 1.0)) - 1
        return jnp.where(hit & at("reward"), bad, good)

    system = SYSTEM._replace(reward=broken)
    problem = ExpectedReturn(system, closed_loop.gaussian(policy), 4)
    spoiled = jnp.where(at("start") & (starts.origin == origin), bad, starts.x[:, 0])
    starts = starts._replace(x=starts.x.at[:, 0].set(spoiled))
    return pathwise.pathwise_mean(KEY, PARAMS, problem, starts)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["start", "reward", "gradient"])
def test_a_broken_sample_does_not_touch_the_mean(bad, where, samples):
    _, starts = samples
    find = lambda where: mean_of_broken(
        np.int64(WHERE.index(where)), np.float64(bad), starts, starts.origin[2]
    )
    found, _, valid = find(where)
    assert valid.tolist() == [True, True, False, True, True]
    without, _, valid = find("nowhere")
    assert valid.all()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, np.asarray(y) * 5 / 4, rtol=1e-9),
        found,
        without,
    )


# --- Where there is no gradient.


@pytest.mark.parametrize("name", ["probe1", "probe2", "probe3"])
def test_a_gradient_that_is_0_is_an_error(name):
    with pytest.raises(ValueError, match=f"return of {name} is exactly 0: its reward"):
        pathwise.check(envs.make(name))


@pytest.mark.parametrize(
    "name", ["probe4", "probe5", "pendulum", "linear_quadratic", "reacher"]
)
def test_a_gradient_is_found(name):
    pathwise.check(envs.make(name))


def test_a_step_that_loops_until_it_has_converged_is_an_error():
    env = envs.make("pendulum")

    def step(env_state: EnvState, action: Array) -> EnvState:
        halve = lambda x: jax.lax.while_loop(lambda x: jnp.abs(x[0]) > 1, _half, x)
        return env.step(env_state, halve(action))

    with pytest.raises(ValueError, match="pendulum cannot be differentiated in rev"):
        pathwise.check(env._replace(step=step))


def _half(x: Array) -> Array:
    return x / 2


def test_a_simulator_on_the_host_is_an_error():
    with pytest.raises(ValueError, match="pendulum steps outside jax"):
        pathwise.check(envs.make("pendulum")._replace(host=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("brax/inverted_pendulum", "is exactly 0: its reward"),
        ("brax/reacher/mjx", "cannot be differentiated in reverse.*solver_iterations"),
        ("brax/reacher", ""),
    ],
)
def test_what_brax_has(name, fault):
    env = envs.make(name)
    if not fault:
        pathwise.check(env)
        return
    with pytest.raises(ValueError, match=fault):
        pathwise.check(env)
