"""The loop with a method that writes down what it is given."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.replay import Replay
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    EnvState,
    Key,
    Learner,
    Metrics,
    Policy,
    PyTree,
    Transition,
)
from mbrl_jax.value_learning import off_policy
from mbrl_jax.value_learning.off_policy import Config, OffPolicyHooks

ROOM = 200  # for what is written down
OWN = 5.0  # first action of an episode by the method's policy; the random ones are in
# [-1, 1]


class Seen(NamedTuple):
    """What the method saw at each of its updates, [ROOM]."""

    number: Array  # [] updates so far
    sizes: Array  # of the replay
    worlds: Array
    draws: Array  # a number by the key of the update


def counter(breaks_at: int = -1) -> Env:
    """obs: a number that the reset draws, and the steps since; reward: the action.
    An end comes after 3 to 5 steps, as the number says, a time limit after 4.  The step
    `breaks_at` of each episode pays NaN."""

    def show(obs: Array, reward: Array) -> EnvState:
        time = obs[1].astype(jnp.int32)
        terminal = (time > 0) & (time >= 3 + jnp.floor(3 * obs[0]))
        return EnvState(obs, reward, terminal, (time >= 4) & ~terminal, time, ())

    def reset(key: Key) -> EnvState:
        return show(jnp.stack([jax.random.uniform(key), jnp.zeros(())]), jnp.zeros(()))

    def step(state: EnvState, action: Array) -> EnvState:
        reward = jnp.where(state.time + 1 == breaks_at, jnp.nan, action[0])
        return show(state.obs.at[1].add(1), reward)

    return Env("counter", reset, step, 2, 1, 1.0, episode_length=4)


def spy() -> OffPolicyHooks:
    """Its model state counts how often it was prepared; it acts from 5 upwards."""

    def init(key: Key) -> tuple[Seen, Array]:
        blank, zero = jnp.zeros(ROOM, jnp.int32), jnp.zeros((), jnp.int32)
        return Seen(zero, blank, blank, jnp.zeros(ROOM)), zero

    def prepare(
        key: Key, state: Seen, model_state: Array, data: Replay, env_steps: Array
    ) -> tuple[Array, Metrics]:
        return model_state + 1, {
            "test/prepared": model_state + 1,
            "test/known": env_steps,
        }

    def update(
        key: Key, state: Seen, model_state: Array, data: Replay
    ) -> tuple[Seen, Metrics]:
        i = state.number
        new = Seen(
            i + 1,
            state.sizes.at[i].set(data.size),
            state.worlds.at[i].set(model_state),
            state.draws.at[i].set(jax.random.uniform(key)),
        )
        return new, {"test/number": 1.0 * i, "test/two": jnp.full((), 2.0)}

    def act(key: Key, obs: Array, memory: Array) -> tuple[Array, Array]:
        return OWN + memory[None], memory + 1

    policy = lambda state: Policy(lambda: jnp.zeros(()), act)
    return OffPolicyHooks(init, prepare, update, policy, policy)


class Told(NamedTuple):
    states: list[off_policy.State]
    metrics: list[dict]
    rows: Transition  # all that is in the replay, oldest first


def told(config: Config, num_steps: int, env: Env | None = None) -> Told:
    algorithm = off_policy.make(env or counter(), spy(), config)
    states, metrics = [jax.jit(algorithm.init)(jax.random.key(0))], []
    step = jax.jit(algorithm.step)
    for i in range(num_steps):
        state, metric = step(jax.random.key(i + 1), states[-1])
        states.append(state)
        metrics.append(jax.tree.map(np.asarray, metric))
    data = states[-1].replay
    assert data.size == data.position < data.capacity  # nothing was overwritten
    rows = jax.tree.map(lambda x: np.asarray(x)[: int(data.size)], data.data)
    return Told(states, metrics, rows)


ONE = Config(capacity=100, warmup=8, interval=5, updates_per_step=2, batch_size=4)


@pytest.fixture(scope="module")
def one() -> Told:
    return told(ONE, 4)


@pytest.fixture(scope="module")
def many() -> Told:
    """In three environments at once."""
    return told(Config(150, 8, 12, 3, 1, 4), 4)


def test_until_the_warmup_is_over_actions_are_random_and_nothing_is_learned(one: Told):
    """For whole iterations: after one there are 5 steps, after two 10, of the 8."""
    warm = one.rows.action[:10, 0]
    assert (np.abs(warm) <= 1).all()
    assert len(set(warm)) == 10
    assert [int(state.learner.number) for state in one.states] == [0, 0, 0, 10, 20]
    later = one.rows.action[10:, 0]
    assert (later >= OWN).all()


def test_each_step_is_followed_by_its_updates(one: Told):
    """They know all that is remembered so far, and draw by keys of their own."""
    seen = one.states[-1].learner
    expected = np.repeat(np.arange(11, 21), 2)
    np.testing.assert_array_equal(seen.sizes[:20], expected)
    np.testing.assert_array_equal(seen.sizes[20:], 0)
    assert len(set(np.asarray(seen.draws[:20]))) == 20


def test_the_world_is_prepared_once_an_iteration(one: Told):
    assert [int(state.model_state) for state in one.states] == [0, 0, 0, 1, 2]
    np.testing.assert_array_equal(
        one.states[-1].learner.worlds[:20], np.repeat([1, 2], 10)
    )
    assert [int(x["test/prepared"]) for x in one.metrics] == [0, 0, 1, 2]
    assert [int(x["test/known"]) for x in one.metrics] == [0, 0, 10, 15]


def test_metrics_are_means_over_the_updates(one: Told):
    found = [float(x["test/number"]) for x in one.metrics]
    np.testing.assert_allclose(found, [0, 0, 4.5, 14.5])
    assert [float(x["test/two"]) for x in one.metrics] == [0, 0, 2, 2]
    assert [int(x["env_steps"]) for x in one.metrics] == [5, 10, 15, 20]


def lanes(rows: Transition, num_envs: int) -> list[Transition]:
    """What happened in each environment."""
    return [jax.tree.map(lambda x, n=n: x[n::num_envs], rows) for n in range(num_envs)]


def ended(rows: Transition) -> np.ndarray:
    return rows.terminal | rows.truncated


def check_episodes(rows: Transition) -> list[float]:
    """Against the environment, step by step; the first obs of each episode."""
    env, starts, state = counter(), [], None
    step = jax.jit(env.step)
    for i in range(len(rows.reward)):
        if state is None:
            assert rows.obs[i, 1] == 0
            zero, false = jnp.zeros(()), jnp.zeros((), bool)
            time = jnp.zeros((), jnp.int32)
            state = EnvState(jnp.asarray(rows.obs[i]), zero, false, false, time, ())
            starts.append(float(rows.obs[i, 0]))
        np.testing.assert_array_equal(rows.obs[i], state.obs)
        state = step(state, jnp.asarray(rows.action[i]))
        np.testing.assert_array_equal(rows.next_obs[i], state.obs)
        assert rows.reward[i] == state.reward
        assert rows.terminal[i] == state.terminal
        assert rows.truncated[i] == state.truncated
        state = None if ended(rows)[i] else state
    return starts


def test_what_is_remembered_is_what_happened(one: Told):
    starts = check_episodes(one.rows)
    assert len(one.rows.reward) == 20
    assert len(set(starts)) == len(starts) > 4


def test_several_environments_act_side_by_side(many: Told):
    """Each with episodes of its own; their steps are all counted, and updates come
    after a step of all of them."""
    starts = [x for rows in lanes(many.rows, 3) for x in check_episodes(rows)]
    assert len(set(starts)) == len(starts) > 12
    assert [int(x["env_steps"]) for x in many.metrics] == [36, 72, 108, 144]
    assert [int(state.learner.number) for state in many.states] == [0, 0, 12, 24, 36]
    np.testing.assert_array_equal(
        many.states[-1].learner.sizes[:36], np.arange(39, 145, 3)
    )
    assert ended(many.rows).any()
    assert many.rows.truncated.any()


@pytest.mark.parametrize(("name", "num_envs"), [("one", 1), ("many", 3)])
def test_episodes_and_returns_are_counted(
    name: str, num_envs: int, request: pytest.FixtureRequest
):
    run: Told = request.getfixturevalue(name)
    running, num_ended, last, expected = np.zeros(num_envs), 0, None, []
    for i in range(0, len(run.rows.reward), num_envs):
        running += run.rows.reward[i : i + num_envs]
        over = ended(run.rows)[i : i + num_envs]
        if over.any():
            num_ended, last = num_ended + over.sum(), running[over].mean()
        expected.append((num_ended, last))
        running[over] = 0
    interval = len(expected) // 4
    for metrics, (number, mean) in zip(
        run.metrics, expected[interval - 1 :: interval], strict=True
    ):
        assert metrics["episode/num_finished"] == number > 0
        assert metrics["episode/return"] == pytest.approx(mean, abs=1e-5)
        assert metrics["episode/non_finite"] == 0
    np.testing.assert_allclose(run.states[-1].parallel.returns, running, atol=1e-5)


def test_memories_are_those_of_the_episode(one: Told, many: Told):
    """The policy that takes over in the middle of one begins as it would at first."""
    for run, num_envs, warm in ((one, 1, 10), (many, 3, 12)):
        for rows in lanes(run.rows, num_envs):
            memory = 0
            for i in range(warm, len(rows.reward)):
                assert rows.action[i, 0] == OWN + memory
                memory = 0 if ended(rows)[i] else memory + 1


def test_what_is_not_finite_is_counted_and_not_remembered():
    """The environment starts anew after it, so that no episode comes to an end."""
    run = told(ONE, 4, counter(breaks_at=3))
    assert np.isfinite(run.rows.reward).all()
    assert not ended(run.rows).any()
    metrics = run.metrics[-1]
    assert metrics["env_steps"] == 20
    assert metrics["episode/non_finite"] == 6  # every third step
    assert len(run.rows.reward) == 14
    assert set(run.rows.obs[:, 1]) == {0, 1}
    assert np.isfinite(metrics["episode/return"])


def test_a_model_free_method_learns_from_a_batch_of_what_is_remembered():
    """Uniformly, and with a key that is not that of its own draws."""

    def update(key: Key, state: Array, batch: Transition) -> tuple[PyTree, Metrics]:
        assert batch.obs.shape == (500, 2)
        counts = jnp.zeros(20).at[batch.action[:, 0].astype(jnp.int32)].add(1)
        return state + counts, {"test/draw": jax.random.uniform(key)}

    still = lambda state: Policy(lambda: (), lambda key, obs, memory: (obs, memory))
    learner = Learner(lambda key: jnp.zeros(20), update, still, still)
    method = off_policy.model_free(learner, 500)
    rows = jnp.arange(20.0)
    flag = jnp.zeros(20, bool)
    obs = jnp.zeros((20, 2))
    data = Transition(obs, rows[:, None], rows, obs, flag, flag)
    size = jnp.full((), 12, jnp.int32)
    counts, _ = method.update(
        jax.random.key(0),
        jnp.zeros(20),
        (),
        Replay(data, size, size, jnp.arange(1, 21), size),
    )
    np.testing.assert_array_equal(counts[12:], 0)
    np.testing.assert_allclose(counts[:12], 500 / 12, atol=5 * (500 / 12) ** 0.5)
    learned, model_state = method.init(jax.random.key(0))
    assert model_state == ()
    assert method.prepare(jax.random.key(0), learned, (), None, None) == ((), {})
    assert method.predict is None


def made(change: dict, env: Env | None = None) -> Callable[[], Algorithm]:
    config: Any = {**vars(ONE), **change}
    return lambda: off_policy.make(env or counter(), spy(), Config(**config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 5}, "warmup is 8, more than the 5 of capacity"),
        ({"warmup": 0}, "warmup is 0, must be at least 1"),
        ({"interval": 0}, "interval is 0, must be at least 1"),
        ({"updates_per_step": 0}, "updates_per_step is 0, must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0, must be at least 1"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        made(change)()


def test_outside_jax_there_is_one_environment():
    with pytest.raises(ValueError, match=r"counter steps outside jax.*num_envs is 2"):
        made({"num_envs": 2}, counter()._replace(host=True))()
