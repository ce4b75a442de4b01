"""MBA: without imagination it is NAF, and what it imagines is what it should be."""

import dataclasses
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.algorithms import mba, naf
from mbrl_jax.envs import linear_quadratic, simulator
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.types import (
    Algorithm,
    Array,
    Key,
    Learner,
    Metrics,
    Policy,
    PyTree,
    Transition,
)
from mbrl_jax.value_learning import naf as naf_learner
from mbrl_jax.value_learning import off_policy

LEARN = naf_learner.Config(hidden_sizes=(8,), value_scale=1.0)
LIMIT = 8  # steps of an episode
NUM_ENVS, INTERVAL = 2, 24  # three episodes of each in an iteration
COLLECT = off_policy.Config(
    capacity=240,
    warmup=48,
    interval=INTERVAL,
    num_envs=NUM_ENVS,
    batch_size=16,
    updates_per_step=2,
)
CONFIG = mba.Config(
    collect=COLLECT,
    learn=LEARN,
    num_episodes=2,
    num_rollouts=20,
    rollout_length=LIMIT,
    retain=2,
    network=models.Config(
        ensemble=ensemble.Config(num_members=2, hidden_sizes=(8,), num_epochs=3)
    ),
)
NETWORK = pytest.param("network", marks=pytest.mark.slow)
MODELS = pytest.mark.parametrize("model", ["linear", NETWORK])
ENV = simulator.time_limit(linear_quadratic.make(action_limit=1.0), LIMIT)
A, B = (np.asarray(x) for x in linear_quadratic.TWO_MASSES[:2])


class Run(NamedTuple):
    """All states and metrics, [5, ...] in numpy; 0, 48, 96, 144 and 192 real steps were
    known at the beginning of the iterations."""

    state: off_policy.State
    metrics: Metrics


def of(make: Callable[..., Algorithm]) -> Callable[..., Run]:
    """The run of the algorithm `make(*args)` as a function of what may be traced."""

    @jax.jit
    def go(*args: Any) -> tuple[PyTree, Metrics]:
        algorithm, key = make(*args), jax.random.key(0)

        def step(state: PyTree, key: Key) -> tuple[PyTree, tuple]:
            state, metrics = algorithm.step(key, state)
            return state, (jax.tree.map(data, state), metrics)

        keys = jax.random.split(key, 5)
        return jax.lax.scan(step, algorithm.init(key), keys)[1]

    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = lambda x: jax.random.key_data(x) if is_key(x) else x
    return lambda *args: Run(*jax.device_get(go(*args)))


@cache
def of_model(model: str) -> Callable[..., Run]:
    """Of its share of real rows, the real steps after which nothing is imagined, and
    whether every step ends the episode as the model sees it."""

    def make(real_share: Array, until: Array, ends: Array) -> Algorithm:
        config: Any = {"real_share": real_share, "imagine_until": until}
        config = dataclasses.replace(CONFIG, model=model, **config)
        env = ENV._replace(terminal=lambda obs, action, next_obs: ends)
        return mba.make(env, config)

    return of(make)


@cache
def run(model: str, real_share: float = 0.5, until: int = 0, ends: bool = False) -> Run:
    return of_model(model)(real_share, until, ends)


@cache
def plain() -> Run:
    return of(lambda: naf.make(ENV, naf.Config(COLLECT, LEARN)))()


def assert_same(a: PyTree, b: PyTree) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def last_imagined(found: Run) -> Transition:
    """In the third iteration."""
    imagined = found.state.model_state.imagined
    before, after = imagined.position[1:3]
    assert before < after  # nothing was overwritten
    return jax.tree.map(lambda x: x[2, before:after], imagined.data)


def num_steps(rows: Transition) -> np.ndarray:
    """Of each imagined row since the start of its rollout, by what led to it."""
    at = {tuple(x): i for i, x in enumerate(rows.next_obs)}
    before = [at.get(tuple(x), -1) for x in rows.obs]
    steps = np.zeros(len(before), int)
    for i, j in enumerate(before):
        steps[i] = steps[j] + 1 if j >= 0 else 0
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("model", ["none", "linear", NETWORK])
def test_without_imagination_it_is_naf(model: str):
    """The same key, the same numbers."""
    if model == "none":
        found = of(lambda: mba.make(ENV, dataclasses.replace(CONFIG, model="none")))()
    else:
        found = run(model, real_share=1.0)
        assert (found.metrics["imagined/transitions"][1:] > 0).all()
    expected = plain()
    assert_same(found.state._replace(model_state=()), expected.state)
    assert_same({x: found.metrics[x] for x in expected.metrics}, expected.metrics)


@MODELS
def test_with_imagination_it_is_not(model: str):
    with pytest.raises(AssertionError):
        assert_same(run(model).state.learner, plain().state.learner)


def test_linear_models_imagine_what_would_be():
    """In an environment that is linear; with the reward of the environment.  Episodes
    of several environments put together wrongly would be wrong."""
    rows = last_imagined(run("linear"))
    assert len(rows.reward) > 60
    expected = rows.obs @ A.T + rows.action @ B.T
    np.testing.assert_allclose(rows.next_obs, expected, atol=0.02)
    assert ENV.reward is not None
    reward = jax.jit(jax.vmap(ENV.reward))(rows.obs, rows.action, rows.next_obs)
    np.testing.assert_allclose(rows.reward, reward, rtol=1e-5)
    assert not rows.terminal.any()
    assert not rows.truncated.any()


@MODELS
def test_rollouts_start_in_the_latest_episodes_and_go_on_to_the_end_of_the_clock(
    model: str,
):
    found = run(model)
    rows = last_imagined(found)
    # what was known at the beginning of the iteration, environments taking turns
    known = found.state.replay.data.obs[1, : 2 * INTERVAL * NUM_ENVS]
    time = {tuple(x): i // NUM_ENVS % LIMIT for i, x in enumerate(known)}
    latest = {tuple(x) for x in known[-2 * LIMIT * NUM_ENVS :]}
    starts = [tuple(x) for x in rows.obs[:20]]
    assert set(starts) <= latest
    assert not set(starts) <= {tuple(x) for x in known[-LIMIT * NUM_ENVS :]}
    assert len(set(starts)) > LIMIT
    counts = np.bincount(num_steps(rows))
    left = LIMIT - np.array([time[x] for x in starts])
    np.testing.assert_array_equal(counts, [(left > i).sum() for i in range(left.max())])


@MODELS
def test_rollouts_end_where_the_environment_does(model: str):
    """They are one step long, and of two iterations."""
    imagined = run(model, ends=True).state.model_state.imagined
    np.testing.assert_array_equal(imagined.size, [0, 20, 40, 60, 80])
    assert imagined.data.terminal[-1, :80].all()


@MODELS
def test_what_is_imagined_is_kept_for_some_iterations(model: str):
    assert run(model).state.model_state.imagined.data.reward.shape[1] == 2 * 20 * LIMIT


@MODELS
def test_imagination_ends(model: str):
    found = run(model, until=100)
    np.testing.assert_allclose(
        found.metrics["imagined/real_share"], [0, 0.5, 0.5, 1, 1]
    )
    sizes = found.metrics["imagined/transitions"]
    assert 0 == sizes[0] < sizes[1] < sizes[2] == sizes[3] == sizes[4]
    kept = found.state.model_state.model, found.state.model_state.imagined
    assert_same(*(jax.tree.map(itemgetter(i), kept) for i in (2, 4)))
    assert (run(model).metrics["imagined/real_share"][1:] == 0.5).all()


def test_rollouts_act_as_what_explores():
    """Not as the greedy policy; by a learner of two constants."""

    def always(action: float) -> Callable[[PyTree], Policy]:
        act = lambda key, obs, memory: (jnp.full(1, action), memory)
        return lambda state: Policy(lambda: (), act)

    unused: Any = lambda *_: ()
    learner = Learner(unused, unused, always(0.25), always(-0.25))
    method = mba._with_imagination(ENV, CONFIG, learner, mba._linear(ENV, CONFIG))
    assert (method.explore, method.policy) == (learner.explore, learner.policy)
    data = jax.tree.map(lambda x: jnp.asarray(x[-1]), run("linear").state.replay)
    key = jax.random.key(0)
    prepare = lambda x: method.prepare(key, (), x, data, jnp.array(192, jnp.int32))
    state, _ = jax.jit(prepare)(method.init(key)[1])
    assert state.imagined.size > 60
    rows = state.imagined.data.action[: int(state.imagined.size)]
    np.testing.assert_array_equal(rows, np.float32(0.25))


@cache
def seen_by_the_learner() -> Callable[[float], Metrics]:
    """Of one batch; real rewards are 1, imagined ones are 0."""

    def update(key: Key, state: PyTree, batch: Transition) -> tuple[PyTree, Metrics]:
        return state, {"real": batch.reward.sum(), "all": jnp.ones_like(batch.reward)}

    @jax.jit
    def go(share: Array) -> Metrics:
        config = dataclasses.replace(CONFIG, real_share=share)
        blank = lambda *args: ()
        learner: Any = Learner(blank, update, blank, blank)
        method = mba._with_imagination(ENV, config, learner, mba._linear(ENV, config))
        key = jax.random.key(0)
        _, model_state = method.init(key)
        model_state = model_state._replace(imagined=rows(0.0), real_share=share)
        return method.update(key, (), model_state, rows(1.0))[1]

    def rows(reward: float) -> replay.Replay:
        empty = replay.init(4, 1, 50)
        paid = empty.data._replace(reward=jnp.full(50, reward))
        return replay.insert(empty, paid, jnp.ones(50, bool))

    return go


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_a_batch_has_its_share_of_real_rows(share: float):
    seen = seen_by_the_learner()(share)
    assert seen["all"].size == COLLECT.batch_size
    assert seen["real"] == round(share * COLLECT.batch_size)


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
    message = "only the simulator of linear_quadratic knows its rewards"
    with pytest.raises(ValueError, match=message):
        mba.make(ENV._replace(**{unknown: None}), CONFIG)


@pytest.mark.parametrize("model", ["network", "none"])
def test_other_models_need_neither(model: str):
    env = ENV._replace(reward=None, terminal=None)
    algorithm = mba.make(env, dataclasses.replace(CONFIG, model=model))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    jax.eval_shape(algorithm.step, jax.random.key(0), state)
