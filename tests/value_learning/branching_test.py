"""Futures in a buffer, how long they are, and what batches are made of."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import point_mass
from mbrl_jax.models.outcomes import Outcome
from mbrl_jax.replay import Replay
from mbrl_jax.types import (
    Array,
    Env,
    Gaussian,
    Key,
    Learner,
    Metrics,
    Model,
    Policy,
    Transition,
)
from mbrl_jax.value_learning import branching, off_policy
from mbrl_jax.value_learning.branching import Config, ModelState, Setting
from mbrl_jax.value_learning.off_policy import OffPolicyHooks
from mbrl_jax.value_learning.parts import ValueLearner


def lengths(config: Config, *steps: int) -> list[int]:
    each = jax.jit(jax.vmap(partial(branching.length, config)))
    return each(np.array(steps, np.int32)).tolist()


def test_the_length_grows_as_in_mbpo():
    """Their [20, 150, 1, 15], epochs of 1000 steps, as for the hopper."""
    config = Config(
        first_length=1, last_length=15, grow_from=20_000, grow_until=150_000
    )
    assert lengths(config, 0, 19_000, 20_000, 29_000, 30_000) == [1, 1, 1, 1, 2]
    expected = []
    for epoch in range(0, 200, 7):
        share = min(max((epoch - 20) / 130, 0), 1)
        expected.append(int(1 + share * 14 + 1e-9))
    assert lengths(config, *range(0, 200_000, 7000)) == expected
    assert lengths(config, 149_999, 150_000, 10**6) == [14, 15, 15]


def test_a_length_may_be_constant_or_grow_at_once():
    assert lengths(Config(), 0, 1, 10**6) == [1, 1, 1]
    jump = Config(last_length=5, grow_from=10, grow_until=10)
    assert lengths(jump, 0, 10, 11) == [1, 1, 5]
    assert branching.length(jump, jnp.zeros((), jnp.int32)).dtype == jnp.int32


# --- Futures on a line: x' = x + action + member, all over beyond 4.

ENV: Env = point_mass.make()._replace(
    name="line", obs_size=1, action_size=1, action_limit=1.0, num_actions=0
)
NUM, RETAIN, BATCH = 6, 2, 20


def predict(member: Array, obs: Array, action: Array) -> Gaussian:
    return Gaussian(obs + action + member, jnp.zeros_like(obs))


def decode(obs: Array, action: Array, y: Array) -> Outcome:
    return Outcome(y, 100 * obs[0], y[0] > 4)


def setting(config: Config) -> Setting:
    """The model is a number that goes up by a hundredth at every fit; what explores
    takes 0.5, the greedy policy would take -0.5; an update counts."""
    model = Model(
        init=lambda key: jnp.zeros(1),
        fit=lambda key, state, data: (state + 0.01, {"model/size": data.size}),
        members=lambda state: state,
        predict=predict,
    )

    def always(action: float) -> Callable[[Any], Policy]:
        act = lambda key, obs, memory: (jnp.full(1, action), memory)
        return lambda state: Policy(lambda: (), act)

    unused: Any = None
    learner = ValueLearner(
        init=lambda key: jnp.zeros((), jnp.int32),
        act=unused,
        values=unused,
        next_value=unused,
        actor_objective=unused,
        update=unused,
        explore=always(0.5),
        policy=always(-0.5),
        discount=0.9,
    )
    return Setting(learner, model, decode, config, BATCH)


def real(size: int = 30) -> Replay:
    """Real transitions have actions of 9 and rewards of -1."""
    obs = np.zeros((40, 1), np.float32)
    obs[:size, 0] = np.linspace(0, 3.9, size)
    known = np.arange(40) < size
    action, reward = np.where(known, [[9.0], [-1.0]], 0).astype(np.float32)
    never, number = np.zeros(40, bool), np.int32(size)
    rows = Transition(obs, action[:, None], reward, obs, never, never)
    return Replay(rows, number, number, np.arange(1, 41, dtype=np.int32), number)


def kept(key: Key, learned: Array, model_state: ModelState, batch: Transition) -> tuple:
    """The batch and the key in place of the learner."""
    return (batch, jax.random.key_data(key)), {}


def method(config: Config, **changes: Any) -> OffPolicyHooks:
    """With all that is slow compiled."""
    parts = branching.make(ENV, setting(config), **{"learn": kept, **changes})
    init, prepare, update = map(jax.jit, (parts.init, parts.prepare, parts.update))
    return parts._replace(init=init, prepare=prepare, update=update)


GROWING = Config(NUM, 1, 4, grow_from=10, grow_until=40, retain=RETAIN)


def stored(buffer: Replay) -> Transition:
    """Oldest first."""
    index = np.arange(int(buffer.position - buffer.size), int(buffer.position))
    return jax.tree.map(lambda x: np.asarray(x)[index % buffer.capacity], buffer.data)


def test_the_length_grows_without_compiling_again():
    traces, parts = [], method(GROWING)
    learned, model_state = parts.init(jax.random.key(0))

    @jax.jit
    def prepare(model_state: ModelState, steps: Array) -> tuple[ModelState, Metrics]:
        traces.append(1)
        return parts.prepare(jax.random.key(1), learned, model_state, real(), steps)

    found = []
    for steps in (0, 10, 20, 30, 40, 99):
        model_state, metrics = prepare(model_state, jnp.array(steps, jnp.int32))
        found.append(int(metrics["imagined/length"]))
        assert metrics["imagined/length"] == model_state.length
        assert metrics["imagined/transitions"] == model_state.imagined.size
        assert metrics["model/size"] == 30
    assert found == [1, 1, 2, 3, 4, 4]
    assert len(traces) == 1
    assert model_state.imagined.capacity == RETAIN * 4 * NUM
    np.testing.assert_allclose(model_state.model, 0.06, rtol=1e-5)


def test_futures_are_kept_up_to_their_ends():
    """Each begins at a real state, takes the actions of what explores, and follows the
    model that has just been fitted; nothing comes after an end."""
    parts = method(Config(50, 4, 4))
    learned, model_state = parts.init(jax.random.key(0))
    model_state, _ = parts.prepare(
        jax.random.key(1), learned, model_state, real(), np.int32(0)
    )
    rows = stored(model_state.imagined)
    np.testing.assert_array_equal(rows.action, np.float32(0.5))
    np.testing.assert_allclose(rows.next_obs, rows.obs + 0.51, rtol=1e-5)
    np.testing.assert_allclose(rows.reward, 100 * rows.obs[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(rows.terminal, rows.next_obs[:, 0] > 4)
    assert not rows.truncated.any()
    starts = np.asarray(real().data.obs)[:30, 0]
    first = rows.obs[:50, 0]
    assert set(first) <= set(starts)
    expected = sum(min(4, int(np.ceil((4 - x) / 0.51 + 1e-6))) for x in first)
    assert len(rows.reward) == expected < 200
    assert (rows.obs[:, 0] <= 4).all()
    assert rows.terminal.any()


def test_what_was_imagined_long_ago_is_forgotten():
    """With futures of one length that do not end: those of the latest fits are left.
    Fits are told apart by the model's bias, which is 0.01 times their number."""
    config = Config(NUM, 2, 2, retain=RETAIN)
    parts = method(config, draw=lambda *_: (jnp.zeros((NUM, 1)), None))
    learned, model_state = parts.init(jax.random.key(0))
    for i in range(5):
        model_state, _ = parts.prepare(
            jax.random.key(i), learned, model_state, real(), np.int32(0)
        )
        rows = stored(model_state.imagined)
        bias = rows.next_obs - rows.obs - rows.action
        fits, counts = np.unique(np.round(100 * bias).astype(int), return_counts=True)
        np.testing.assert_array_equal(
            fits, np.arange(max(i - RETAIN + 1, 0), i + 1) + 1
        )
        np.testing.assert_array_equal(counts, 2 * NUM)


@pytest.mark.parametrize(("steps", "length"), [(0, 1), (20, 2)])
def test_while_futures_are_short_batches_are_of_the_latest_ones(
    steps: int, length: int
):
    """Though there is room for more: of one step, 12 rows of 48."""
    parts = method(GROWING, draw=lambda *_: (jnp.zeros((NUM, 1)), None))
    learned, model_state = parts.init(jax.random.key(0))
    for i in range(5):
        model_state, _ = parts.prepare(
            jax.random.key(i), learned, model_state, real(), np.int32(steps)
        )
    assert model_state.length == length
    assert model_state.imagined.size == min(5 * length, 8) * NUM
    fits = set()
    for i in range(20):
        (batch, _), _ = parts.update(jax.random.key(i), learned, model_state, real())
        batch = jax.tree.map(np.asarray, batch)
        imagined = batch.reward != -1
        bias = (batch.next_obs - batch.obs - batch.action)[imagined]
        fits |= set(np.round(100 * np.asarray(bias)).astype(int).ravel())
    assert fits == {4, 5}


@pytest.fixture(scope="module")
def prepared() -> tuple[Array, ModelState]:
    """Of futures of one step."""
    parts = method(Config(NUM))
    learned, model_state = parts.init(jax.random.key(0))
    args = jax.random.key(0), learned, model_state, real(), np.int32(0)
    return learned, parts.prepare(*args)[0]


@pytest.mark.parametrize(
    ("share", "number"), [(0.0, 0), (0.05, 1), (0.52, 10), (0.55, 11), (1.0, 20)]
)
def test_the_real_share_of_a_batch(
    prepared: tuple[Array, ModelState], share: float, number: int
):
    parts, (learned, model_state) = method(Config(NUM, real_share=share)), prepared
    (batch, _), _ = parts.update(jax.random.key(1), learned, model_state, real())
    assert batch.reward.shape == (BATCH,)
    np.testing.assert_array_equal(batch.reward == -1, np.arange(BATCH) < number)
    np.testing.assert_array_equal(batch.action[:, 0] == 9, np.arange(BATCH) < number)
    if number < BATCH:
        assert len(np.unique(batch.obs[number:])) > 1


def test_real_data_alone_are_those_of_a_method_without_a_model(
    prepared: tuple[Array, ModelState],
):
    """Bit for bit, with the same key for the learner."""
    parts, (learned, model_state) = method(Config(NUM, real_share=1.0)), prepared
    unused: Any = None
    keep = lambda key, state, batch: kept(key, state, unused, batch)
    plain = off_policy.model_free(
        Learner(lambda key: learned, keep, unused, unused), BATCH
    )
    found, _ = parts.update(jax.random.key(1), learned, model_state, real())
    expected, _ = jax.jit(plain.update)(jax.random.key(1), learned, (), real())
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_states_and_first_actions_may_be_drawn_otherwise():
    draw = lambda key, data, number, policy: (
        jnp.full((number, 1), -2.0),
        jnp.full((number, 1), 0.25),
    )
    parts = method(Config(NUM, 2, 2), draw=draw)
    learned, model_state = parts.init(jax.random.key(0))
    model_state, _ = parts.prepare(
        jax.random.key(0), learned, model_state, real(), np.int32(0)
    )
    rows = stored(model_state.imagined)
    np.testing.assert_array_equal(rows.obs[:NUM], -2)
    np.testing.assert_array_equal(rows.action[:NUM], 0.25)
    np.testing.assert_array_equal(rows.action[NUM:], 0.5)
    np.testing.assert_array_equal(rows.obs[NUM:], rows.next_obs[:NUM])


def test_the_watch_and_the_choice_come_before_the_fit():
    """And know the learner's state of an iteration ago."""
    watch = lambda key, learned, model_state, data: {
        "seen/model": model_state.model[0],
        "seen/before": model_state.before,
    }
    choose = lambda key, learned, model_state, data: (
        10 * model_state.model[0] + learned
    ).astype(jnp.int32)
    parts = method(Config(NUM), watch=watch, choose=choose)
    _, model_state = parts.init(jax.random.key(0))
    model_state = model_state._replace(model=jnp.full(1, 0.4))
    for i, learned in enumerate((7, 8)):
        model_state, metrics = parts.prepare(
            jax.random.key(i),
            jnp.array(learned, jnp.int32),
            model_state,
            real(),
            np.int32(0),
        )
        assert metrics["seen/model"] == pytest.approx(0.4 + 0.01 * i)
        assert metrics["seen/before"] == (0, 7)[i]
        assert model_state.horizon == learned + 4
    assert model_state.before == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rollouts": 0}, "num_rollouts is 0, must be at least 1"),
        ({"first_length": 0}, "first_length is 0, must be at least 1"),
        ({"first_length": 3}, "first_length is 3, more than the 1 of last_length"),
        ({"grow_from": 9}, "grow_from is 9, more than the 1 of grow_until"),
        ({"retain": 0}, "retain is 0, must be at least 1"),
        ({"real_share": 1.5}, r"real_share is 1\.5, must be from 0 to 1"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        method(Config(**change))
