"""How PILCO is wired, on the pendulum."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, moment_policies, replay
from mbrl_jax.algorithms import pilco
from mbrl_jax.envs import simulator
from mbrl_jax.gradients import beliefs
from mbrl_jax.models import gaussian_process, policy_search
from mbrl_jax.ops import bfgs
from mbrl_jax.ops.moments import Kernels, Normal
from mbrl_jax.types import Array, Model, Params, PyTree
from tests import mass

pytestmark = pytest.mark.usefixtures("double")

ENV = simulator.time_limit(envs.make("pendulum_pilco"), 6)
BELIEF = ENV.belief
assert BELIEF is not None
MODEL = gaussian_process.Config(max_exact=20, num_restarts=1, max_evaluations=20)
CONFIG = pilco.Config(capacity=20, num_basis=4, max_evaluations=10, model=MODEL)
NUM_SAMPLES = 200_000


def process() -> Kernels:
    """Of two outputs, over (th_dot, sin th, cos th, action)."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(12, 4))
    lengths, signal = np.array([[2.0, 1, 1, 4], [1, 2, 1.5, 3]]), np.array([0.3, 0.5])
    scaled = inputs[None] / lengths[:, None]
    away = ((scaled[:, :, None] - scaled[:, None]) ** 2).sum(axis=-1)
    cov = signal[:, None, None] * np.exp(-away / 2) + 0.05 * np.eye(12)
    precision = np.linalg.inv(cov)
    weights = np.einsum("eij,ej->ei", precision, 0.4 * rng.normal(size=(2, 12)))
    return Kernels(*map(jnp.array, (inputs, weights, lengths, signal, precision)))


def policy_of(kind: str) -> tuple[moment_policies.MomentPolicy, Params]:
    made = moment_policies.make(ENV, BELIEF, kind, num_basis=6)
    params = made.init(jax.random.key(1))
    nudge = np.random.default_rng(1)  # so that it does something
    return made, jax.tree.map(lambda x: x + 0.3 * nudge.normal(size=x.shape), params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_a_step_of_the_belief_against_samples(kind: str) -> None:
    """State, angle, policy, squashing, process: all of a small step is nearly linear,
    so that what is between may be taken for Gaussian."""
    f, (made, params) = process(), policy_of(kind)
    system, actor = beliefs.expected_return(BELIEF, f, made, 3, 0)[:2]
    mean = jnp.array([2.0, -0.5])
    x = Normal(mean, jnp.array([[0.01, 0.004], [0.004, 0.02]]))
    inputs = actor.sample(made.prepare(params), jax.random.key(0), x)
    found = system.step(jax.random.key(0), x, inputs)
    rng = np.random.default_rng(2)
    samples = rng.multivariate_normal(np.array(mean), np.array(x.cov), NUM_SAMPLES)
    act = partial(made.action, made.prepare(params))
    actions = jax.vmap(act)(jnp.array(samples))
    see = partial(gaussian_process.inputs_of, BELIEF.angles)
    seen = jax.vmap(see)(jnp.array(samples), actions)
    change, var = jax.vmap(
        lambda z: gaussian_process.posterior("squared_exponential", f, z)
    )(seen)
    noise = rng.normal(size=change.shape) * np.sqrt(np.array(var))
    moved = samples + np.array(change) + noise
    std = moved.std(axis=0)
    assert np.abs((found.mean - moved.mean(axis=0)) / std).max() < 1e-2
    assert np.abs((found.cov - np.cov(moved.T)) / np.outer(std, std)).max() < 2e-2
    both = np.cov(np.concatenate([samples, np.array(seen)], axis=1).T)[:2, 2:]
    scale = np.sqrt(np.diag(x.cov))[:, None] * np.array(seen).std(axis=0)[None]
    assert np.abs((x.cov @ inputs.gain - both) / scale).max() < 2e-2


@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_an_action_is_what_is_believed_of_a_known_state(kind: str) -> None:
    made, params = policy_of(kind)
    ready = made.prepare(params)
    for obs in (jnp.array([0.3, -1.0]), jnp.array([4.0, 2.0])):
        believed = made.inputs(ready, Normal(obs, jnp.zeros((2, 2)))).mean[-1]
        found = made.action(ready, obs)
        assert found.shape == (1,)
        assert float(found[0]) == pytest.approx(float(believed), rel=1e-9)


def imagined(
    params: Params, f: Kernels, kind: str, horizon: int, segment: int = 0
) -> Array:
    made, _ = policy_of(kind)
    return beliefs.rollout(BELIEF, f, made, params, horizon, segment)[0]


def test_the_return_is_that_of_the_beliefs_after_the_first() -> None:
    """From where episodes start, a reward for each of `horizon` steps."""
    f, (made, params) = process(), policy_of("rbf")
    system, actor = beliefs.expected_return(BELIEF, f, made, 3, 0)[:2]
    x, key = Normal(jnp.array(BELIEF.mean), jnp.diag(jnp.array([0.01, 0.01]))), None
    total, on_the_way = 0.0, []
    for _ in range(3):
        on_the_way.append(x)
        x = system.step(key, x, actor.sample(made.prepare(params), key, x))
        total += BELIEF.reward(*x)
    found, rollout = beliefs.rollout(BELIEF, f, made, params, 3)
    np.testing.assert_allclose(found, total, rtol=1e-10)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *on_the_way)
    jax.tree.map(np.testing.assert_allclose, rollout.steps.obs, expected)
    jax.tree.map(np.testing.assert_allclose, rollout.final, x)
    again = imagined(params, f, "rbf", 3, segment=1)
    np.testing.assert_allclose(again, total, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_the_gradient_against_finite_differences(kind: str) -> None:
    f, (_, params) = process(), policy_of(kind)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    value = jax.jit(lambda flat: imagined(unravel(flat), f, kind, 4))
    gradient = jax.jit(jax.grad(value))(flat)
    for i in range(len(flat)):
        nudge = jnp.zeros_like(flat).at[i].set(1e-5)
        slope = (value(flat + nudge) - value(flat - nudge)) / 2e-5
        assert abs(slope - gradient[i]) < 1e-5 * max(1, abs(slope))


def minimise(loss: Any, start: Any, max_evaluations: int) -> bfgs.Minimum:
    """In place of the search: a policy is the better the farther its centres are."""
    assert max_evaluations == CONFIG.max_evaluations
    score = -jnp.abs(start.centres).sum()
    return bfgs.Minimum(start, score, jnp.zeros((), jnp.int32), jnp.zeros(()))


def without_fitting(model: Model) -> Model:
    return model._replace(fit=lambda key, state, data: (state, {}))


def test_a_search_starts_from_the_last_policy_and_from_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = gaussian_process.make
    monkeypatch.setattr(bfgs, "minimise", minimise)
    monkeypatch.setattr(
        gaussian_process, "make", lambda *args: without_fitting(make(*args))
    )
    one = pilco.make(ENV, CONFIG)
    state = one.init(jax.random.key(0))
    after, metrics = jax.jit(one.step)(jax.random.key(1), state)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert metrics["env_steps"] == 6
    several = pilco.make(ENV, dataclasses.replace(CONFIG, num_restarts=3))
    low = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    after, metrics = jax.jit(several.step)(jax.random.key(1), low)
    assert jnp.abs(after.params.centres).sum() > 0  # the best of the new ones
    high = jax.tree.map(lambda x: 100 + x, state.params)
    after, _ = jax.jit(several.step)(jax.random.key(1), state._replace(params=high))
    jax.tree.map(np.testing.assert_array_equal, after.params, high)


def test_the_first_episodes_are_random_and_teach_no_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def improve(key: Any, model: PyTree, params: Params) -> tuple[Params, dict]:
        return params + 1, {"imagined/return": params}

    blank = gaussian_process.make(2, 1, MODEL)
    loop = policy_search.make(
        ENV,
        pilco.Config(capacity=20, num_random_episodes=2),
        blank._replace(fit=lambda key, state, data: (state + 1, {})),
        moment_policies.MomentPolicy(
            lambda key: jnp.zeros(()),
            lambda p: p,
            lambda p, obs: p[None] / 10,
            None,
        ),
        improve,
    )
    state, actions, params = loop.init(jax.random.key(0)), [], []
    state = state._replace(model=jnp.zeros(()))
    for key in jax.random.split(jax.random.key(0), 4):
        state, metrics = jax.jit(loop.step)(key, state)
        actions.append(np.array(state.replay.data.action[:, 0]))
        params.append(float(state.params))
    assert params == [0, 1, 2, 3]
    assert state.model == 4
    at_random = np.concatenate([actions[0][:6], actions[1][6:12]])
    assert len(np.unique(at_random)) == 12
    np.testing.assert_allclose(actions[2][12:18], 0.1)
    np.testing.assert_allclose(actions[3][18:], 0.2)
    np.testing.assert_allclose(actions[3][:4], 0.2)
    assert metrics["imagined/return"] == 2


@pytest.mark.slow
def test_it_learns_in_two_trials_and_knows_what_it_will_earn() -> None:
    model = gaussian_process.Config(max_exact=64, num_restarts=1, max_evaluations=50)
    config = pilco.Config(capacity=64, policy="linear", max_evaluations=40, model=model)
    algorithm = pilco.make(mass.make(), config)
    step, state = jax.jit(algorithm.step), algorithm.init(jax.random.key(0))
    told, earned = [], []
    for key in jax.random.split(jax.random.key(1), 4):
        state, metrics = step(key, state)
        told.append(float(metrics["imagined/return"]))
        earned.append(float(metrics["episode/return"]))
    idle = 15 * float(jnp.expm1(-2.0))  # -13; the best possible is some -5
    assert max(earned[2:]) < 0
    assert min(earned[2:]) > idle + 5
    np.testing.assert_allclose(earned[2:], told[1:3], atol=1.0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"pendulum has no `belief`.*pilco needs"):
        pilco.make(envs.make("pendulum"), dataclasses.replace(CONFIG, capacity=300))
    kernel = dataclasses.replace(MODEL, kernel="matern52")
    with pytest.raises(ValueError, match=r"matern52.*no moments"):
        pilco.make(ENV, dataclasses.replace(CONFIG, model=kernel))
    for field, value in (("angles", (0,)), ("learn_reward", True)):
        model = dataclasses.replace(MODEL, **{field: value})
        with pytest.raises(ValueError, match=f"model.{field} is .* for pilco, but"):
            pilco.make(ENV, dataclasses.replace(CONFIG, model=model))
    with pytest.raises(ValueError, match="policy is 'tree', must be one of"):
        pilco.make(ENV, dataclasses.replace(CONFIG, policy="tree"))
    with pytest.raises(ValueError, match="capacity is 3, less than the 6 steps"):
        pilco.make(ENV, dataclasses.replace(CONFIG, capacity=3))
    with jax.enable_x64(False), pytest.raises(ValueError, match="needs float64"):
        pilco.make(ENV, CONFIG)


def test_rows_of_a_replay_are_the_first_rows_of_the_process() -> None:
    """So that blocks after the last one need not be looked at."""
    data = replay.init(2, 1, 20)
    model = gaussian_process.make(2, 1, MODEL)
    state, _ = model.fit(jax.random.key(0), model.init(jax.random.key(0)), data)
    assert state.kernels.num_rows == 0
