"""MBA: without imagination it is NAF, and what it imagines is what it should be."""

import dataclasses
from functools import cache, partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import off_policy, replay, simulator
from mbrl_jax.algorithms import mba, naf
from mbrl_jax.envs import linear_quadratic
from mbrl_jax.learners import naf as naf_learner
from mbrl_jax.models import ensemble
from mbrl_jax.types import Env, Key, Learner, Metrics, PyTree, Transition

LEARN = naf_learner.Config(hidden_sizes=(8,), value_scale=1.0)
COLLECT = off_policy.Config(
    capacity=200, warmup=40, interval=40, batch_size=16, updates_per_step=2
)
CONFIG = mba.Config(
    collect=COLLECT,
    learn=LEARN,
    num_episodes=2,
    num_rollouts=20,
    rollout_length=3,
    retain=2,
    network=ensemble.Config(num_members=2, hidden_sizes=(8,), num_epochs=3),
)
MODELS = pytest.mark.parametrize("model", ["linear", "network"])
LIMIT = 8  # steps of an episode
ENV = simulator.time_limit(linear_quadratic.make(action_limit=1.0), LIMIT)


@cache
def run(module: Any, config: Any, num_steps: int = 3, env: Env = ENV) -> tuple:
    """All states, [num_steps, ...], and metrics."""
    algorithm = module.make(env, config)

    @jax.jit
    def go(key: Key) -> tuple[PyTree, Metrics]:
        def step(state: PyTree, key: Key) -> tuple[PyTree, tuple]:
            state, metrics = algorithm.step(key, state)
            return state, (state, metrics)

        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(step, algorithm.init(key), keys)[1]

    return go(jax.random.key(0))


def assert_same(a: PyTree, b: PyTree) -> None:
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = lambda x: jax.random.key_data(x) if is_key(x) else x
    a, b = (jax.tree.map(data, x) for x in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "none"},
        {"model": "linear", "real_share": 1.0},
        {"model": "network", "real_share": 1.0},
    ],
    ids=str,
)
def test_without_imagination_it_is_naf(change: dict[str, Any]):
    """The same key, the same numbers."""
    plain, plain_metrics = run(naf, naf.Config(COLLECT, LEARN))
    state, metrics = run(mba, dataclasses.replace(CONFIG, **change))
    assert_same(state._replace(world=()), plain)
    assert_same({name: metrics[name] for name in plain_metrics}, plain_metrics)


@pytest.mark.slow
@MODELS
def test_with_imagination_it_is_not(model: str):
    plain, _ = run(naf, naf.Config(COLLECT, LEARN))
    state, _ = run(mba, dataclasses.replace(CONFIG, model=model))
    with pytest.raises(AssertionError):
        assert_same(state.learner, plain.learner)


def imagined(state: off_policy.State) -> Transition:
    """In the last state."""
    world = jax.tree.map(lambda x: x[-1], state.world)
    return jax.tree.map(lambda x: x[: world.imagined.size], world.imagined.data)


def test_linear_models_imagine_what_would_be():
    """In an environment that is linear; with the reward of the environment."""
    data = imagined(run(mba, CONFIG)[0])
    A, B = map(np.asarray, linear_quadratic.TWO_MASSES[:2])
    assert len(data.reward) > 60
    np.testing.assert_allclose(
        data.next_obs, data.obs @ A.T + data.action @ B.T, atol=0.02
    )
    assert ENV.reward is not None
    reward = jax.vmap(ENV.reward)(data.obs, data.action, data.next_obs)
    np.testing.assert_allclose(data.reward, reward, rtol=1e-5)
    assert not data.terminal.any()
    assert not data.truncated.any()


@pytest.mark.slow
@MODELS
def test_rollouts_start_in_the_latest_episodes(model: str):
    config = dataclasses.replace(
        CONFIG, model=model, num_episodes=1, rollout_length=1, retain=1
    )
    state, _ = run(mba, config)
    # at the beginning of the last step 80 transitions were known, ten episodes
    before = jax.tree.map(lambda x: np.asarray(x[1]), state.replay)
    found = {tuple(x) for x in np.asarray(imagined(state).obs)}
    assert found <= {tuple(x) for x in before.data.obs[80 - LIMIT : 80]}
    assert len(found) > LIMIT // 2


@pytest.mark.slow
@MODELS
def test_rollouts_go_on_from_where_they_are_to_the_end_of_the_clock(model: str):
    config = dataclasses.replace(
        CONFIG, model=model, num_episodes=1, rollout_length=LIMIT, retain=1
    )
    data = imagined(run(mba, config, num_steps=2)[0])
    at = {tuple(x): i for i, x in enumerate(np.asarray(data.next_obs))}
    before = np.array([at.get(tuple(x), -1) for x in np.asarray(data.obs)])
    steps = np.zeros(len(before), int)  # since the start of the rollout
    for i in range(len(before)):
        steps[i] = steps[before[i]] + 1 if before[i] >= 0 else 0
    counts = np.bincount(steps)
    assert counts[0] == 20
    assert (np.diff(counts) <= 0).all()
    assert counts.sum() < 20 * LIMIT  # starts at t go on for LIMIT - t steps
    assert len(counts) <= LIMIT


def test_rollouts_end_where_the_environment_does():
    env = ENV._replace(terminal=lambda obs, action, next_obs: jnp.ones((), bool))
    data = imagined(run(mba, CONFIG, env=env)[0])
    assert len(data.reward) == 2 * 20  # of the one step in two iterations
    assert data.terminal.all()


@pytest.mark.slow
@MODELS
def test_imagination_ends(model: str):
    config = dataclasses.replace(CONFIG, model=model, imagine_until=100)
    state, metrics = run(mba, config, num_steps=5)  # 0, 40, 80, 120, 160 steps known
    np.testing.assert_allclose(metrics["imagined/real_share"], [0, 0.5, 0.5, 1, 1])
    sizes = np.asarray(metrics["imagined/transitions"])
    assert 0 == sizes[0] < sizes[1] < sizes[2] == sizes[3] == sizes[4]
    kept = state.world.model, state.world.imagined
    assert_same(*(jax.tree.map(itemgetter(i), kept) for i in (2, 4)))
    _, metrics = run(mba, dataclasses.replace(CONFIG, model=model))
    assert (metrics["imagined/real_share"][1:] == 0.5).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_a_batch_has_its_share_of_real_rows(share: float):
    """Real rewards are 1, imagined ones are 0."""

    def update(key: Key, state: PyTree, batch: Transition) -> tuple[PyTree, Metrics]:
        return state, {"real": batch.reward.sum(), "all": jnp.ones_like(batch.reward)}

    config = dataclasses.replace(CONFIG, real_share=share)
    blank = lambda *args: ()
    learner: Any = Learner(blank, update, blank, blank)
    method = mba._with_imagination(ENV, config, learner, mba._linear(ENV, config))
    key = jax.random.key(0)
    _, world = method.init(key)
    rows = lambda reward: replay.insert(
        replay.init(4, 1, 50),
        jax.tree.map(jnp.asarray, _rows(reward)),
        jnp.ones(50, bool),
    )
    world = world._replace(imagined=rows(0.0), real_share=jnp.array(share))
    seen = method.update(key, (), world, rows(1.0))[1]
    assert seen["all"].size == COLLECT.batch_size
    assert seen["real"] == round(share * COLLECT.batch_size)


def _rows(reward: float) -> Transition:
    obs, flag = np.zeros((50, 4)), np.zeros(50, bool)
    return Transition(obs, np.zeros((50, 1)), np.full(50, reward), obs, flag, flag)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gp"}, "model is 'gp', must be one of: linear, network, none"),
        ({"real_share": 1.5}, "real_share is 1.5, must be from 0 to 1"),
        ({"rollout_length": 0}, "rollout_length is 0, must be at least 1"),
        ({"strength": 0.0}, "strength is 0.0, must be positive"),
        (
            {"collect": dataclasses.replace(COLLECT, capacity=7, warmup=7)},
            "capacity is 7, less than the 8 steps of an episode of linear_quadratic",
        ),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        mba.make(ENV, dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize("unknown", ["reward", "terminal"])
def test_linear_models_need_rewards_and_terminations(unknown: str):
    env = ENV._replace(**{unknown: None})
    message = "only the simulator of linear_quadratic knows its rewards"
    with pytest.raises(ValueError, match=message):
        mba.make(env, CONFIG)
    for model in ("network", "none"):
        algorithm = mba.make(env, dataclasses.replace(CONFIG, model=model))
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        jax.eval_shape(partial(algorithm.step, jax.random.key(0)), state)


@pytest.mark.slow
def test_several_environments_are_told_apart():
    """Linear models of episodes put together wrongly would be wrong."""
    collect = dataclasses.replace(COLLECT, num_envs=3, interval=20)
    config = dataclasses.replace(CONFIG, collect=collect, rollout_length=1)

    data = imagined(run(mba, config)[0])
    A, B = map(np.asarray, linear_quadratic.TWO_MASSES[:2])
    expected = data.obs @ A.T + data.action @ B.T
    np.testing.assert_allclose(data.next_obs, expected, atol=0.02)
