"""Windows and episodes of a counter, and what the loop reports of them."""

from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import on_policy
from mbrl_jax.on_policy import Gathered
from mbrl_jax.types import Array, Env, EnvState, Key, Learner, Policy

NUM_ENVS, NUM_STEPS = 3, 7


def counter(breaks_at: int = -1) -> Env:
    """obs: a number that the reset draws, and the steps since; the reward is an action
    of noise.  An end comes after 3 to 5 steps, as the number says, a time limit after
    4.  From step `breaks_at` on, all is NaN."""

    def reset(key: Key) -> EnvState:
        drawn = jax.random.uniform(key)
        obs = jnp.stack([drawn, jnp.zeros(())])
        return EnvState(
            obs,
            jnp.zeros(()),
            jnp.zeros((), bool),
            jnp.zeros((), bool),
            jnp.zeros((), jnp.int32),
            (),
        )

    def step(state: EnvState, action: Array) -> EnvState:
        time, ends = state.time + 1, 3 + jnp.floor(3 * state.obs[0])
        broken = (time >= breaks_at) & (breaks_at >= 0)
        obs = jnp.where(broken, jnp.nan, state.obs.at[1].add(1))
        reward = jnp.where(broken, jnp.nan, action[0])
        terminal = time >= ends
        return EnvState(obs, reward, terminal, (time >= 4) & ~terminal, time, ())

    return Env("counter", reset, step, 2, 1, 1.0, episode_length=4)


def acting() -> Policy:
    """Noise; its memory counts the steps of an episode."""

    def act(key: Key, obs: Array, memory: Array) -> tuple[Array, Array]:
        return jax.random.normal(key, (1,)), memory + 1

    return Policy(lambda: jnp.zeros((), jnp.int32), act)


def windows(env: Env, number: int) -> list[Gathered]:
    """One after the other, each [3, 7]."""
    gatherer, policy = on_policy.of_windows(env, NUM_ENVS, NUM_STEPS), acting()
    running, found = gatherer.init(jax.random.key(0), policy), []
    gather = jax.jit(lambda key, running: gatherer.gather(key, policy, running))
    for i in range(number):
        found.append(gather(jax.random.key(i + 1), running))
        running = found[-1].running
    return [jax.tree.map(np.asarray, x) for x in found]


def joined(found: list[Gathered], what: Any) -> np.ndarray:
    return np.concatenate([what(x) for x in found], axis=1)


def test_windows_go_on_and_episodes_start_afresh():
    found = windows(counter(), 3)
    obs, next_obs, action = (
        joined(found, lambda x, name=name: getattr(x.windows.transitions, name))
        for name in ("obs", "next_obs", "action")
    )
    ended = joined(found, lambda x: x.ended)
    terminal = joined(found, lambda x: x.windows.transitions.terminal)
    assert terminal.any()
    assert (ended & ~terminal).any()
    assert all(x.windows.valid.all() for x in found)
    starts = []
    for n in range(NUM_ENVS):
        for t in range(1, 3 * NUM_STEPS):
            if ended[n, t - 1]:
                assert obs[n, t, 1] == 0
                starts.append(obs[n, t, 0])
            else:
                np.testing.assert_array_equal(obs[n, t], next_obs[n, t - 1])
    assert len(set(starts)) == len(starts) > 10  # keys of their own
    assert len(set(action.ravel())) == action.size


def test_a_window_begins_with_the_memory_that_the_policy_had():
    for found in windows(counter(), 3):
        steps = found.windows.transitions.obs[:, 0, 1]
        np.testing.assert_array_equal(found.windows.memory, steps)


def test_returns_are_those_of_a_loop():
    """Of episodes that may have begun in an earlier window."""
    found = windows(counter(), 3)
    reward = joined(found, lambda x: x.windows.transitions.reward)
    ended, returns = (joined(found, lambda x, i=i: x[i]) for i in (2, 3))
    for n in range(NUM_ENVS):
        total = 0.0
        for t in range(3 * NUM_STEPS):
            total += reward[n, t]
            assert returns[n, t] == pytest.approx(total, abs=1e-5)
            total = 0.0 if ended[n, t] else total


def test_whole_episodes_are_masked_after_their_ends():
    gatherer = on_policy.of_episodes(counter(), 20)
    gather = jax.jit(lambda key: gatherer.gather(key, acting(), ()))
    found = jax.tree.map(np.asarray, gather(jax.random.key(0)))
    data, valid = found.windows.transitions, found.windows.valid
    lengths = np.minimum(3 + np.floor(3 * data.obs[:, 0, 0]), 4)
    assert set(lengths) == {3, 4}
    np.testing.assert_array_equal(valid.sum(axis=1), lengths)
    np.testing.assert_array_equal(found.ended.argmax(axis=1) + 1, lengths)
    assert (found.ended.sum(axis=1) == 1).all()
    ended = data.terminal | data.truncated
    np.testing.assert_array_equal(found.ended, ended & valid)
    rewards = np.where(valid, data.reward, 0)
    np.testing.assert_allclose(
        found.returns[found.ended], rewards.sum(axis=1), atol=1e-5
    )
    np.testing.assert_array_equal(found.windows.memory, 0)


def learner() -> Learner:
    """Counts its updates."""
    return Learner(
        init=lambda key: jnp.zeros((), jnp.int32),
        update=lambda key, state, windows: (state + 1, {"test/updates": state + 1}),
        explore=lambda state: acting(),
        policy=lambda state: acting(),
    )


@pytest.mark.parametrize("num_updates", [1, 3])
def test_steps_and_episodes_are_counted(num_updates: int):
    """Against the windows that the same keys give."""
    env = counter()
    gatherer = on_policy.of_windows(env, NUM_ENVS, NUM_STEPS)
    algorithm = on_policy.make(learner(), gatherer, num_updates)
    seen: list[Gathered] = []

    def kept(key: Key, policy: Policy, running: Any) -> Gathered:
        found = gatherer.gather(key, policy, running)
        jax.debug.callback(lambda x: seen.append(x), found, ordered=True)
        return found

    spying = on_policy.make(learner(), gatherer._replace(gather=kept), num_updates)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step, num_ended = jax.jit(spying.step), 0
    for i in range(2):
        state, metrics = step(jax.random.key(i), state)
        jax.effects_barrier()
        steps = (i + 1) * num_updates * NUM_ENVS * NUM_STEPS
        assert metrics["env_steps"] == steps
        assert metrics["test/updates"] == state.learner == (i + 1) * num_updates
        num_ended = sum(int(x.ended.sum()) for x in seen)
        assert metrics["episode/num_finished"] == num_ended > 0
        last = seen[-1]
        mean = np.asarray(last.returns)[np.asarray(last.ended)].mean()
        assert metrics["episode/return"] == pytest.approx(mean, abs=1e-5)
        assert metrics["episode/non_finite"] == 0


def test_episodes_are_counted_by_their_valid_steps():
    gatherer = on_policy.of_episodes(counter(), 5)
    algorithm = on_policy.make(learner(), gatherer)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    _, metrics = jax.jit(algorithm.step)(jax.random.key(0), state)
    act_key, _ = jax.random.split(jax.random.split(jax.random.key(0), 1)[0])
    found = jax.jit(lambda key: gatherer.gather(key, acting(), ()))(act_key)
    assert metrics["env_steps"] == found.windows.valid.sum() < 5 * 4
    assert metrics["episode/num_finished"] == 5
    mean = found.returns[found.ended].mean()
    assert metrics["episode/return"] == pytest.approx(float(mean), abs=1e-5)


def test_before_any_episode_ends_the_return_is_that_so_far():
    """And afterwards that of those that ended last, if none ends in a window."""
    env = counter()
    gatherer = on_policy.of_windows(env, NUM_ENVS, 2)  # no episode is as short
    algorithm = on_policy.make(learner(), gatherer)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    state, metrics = step(jax.random.key(1), state)
    assert metrics["episode/num_finished"] == 0
    mean = state.running.returns.mean()
    assert metrics["episode/return"] == pytest.approx(float(mean), abs=1e-6) != 0
    before = metrics
    for i in range(2, 12):
        state, metrics = step(jax.random.key(i), state)
        if metrics["episode/num_finished"] == before["episode/num_finished"] > 0:
            assert metrics["episode/return"] == before["episode/return"]
            return
        before = metrics
    raise AssertionError("an episode ended in every window")


def test_an_environment_that_breaks_starts_anew():
    """From the next window on; until then its steps are counted, not learned from."""
    found = windows(counter(breaks_at=2), 3)
    for gathered in found:
        data = gathered.windows.transitions
        good = np.isfinite(data.next_obs).all(axis=2) & np.isfinite(data.obs).all(
            axis=2
        )
        assert not good.all()
        assert np.isfinite(gathered.returns).all()
        np.testing.assert_array_equal(data.obs[:, 0, 1] <= 1, True)
        assert np.isfinite(data.obs[:, 0]).all()
    gatherer = on_policy.of_windows(counter(breaks_at=2), NUM_ENVS, NUM_STEPS)
    algorithm = on_policy.make(learner(), gatherer)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    state, metrics = jax.jit(algorithm.step)(jax.random.key(1), state)
    assert 0 < metrics["episode/non_finite"] <= NUM_ENVS * NUM_STEPS
    assert np.isfinite(metrics["episode/return"])


def test_one_that_breaks_leaves_the_others_alone():
    """The same windows as without, in every environment that is whole."""

    def half(breaks: bool) -> Env:
        env = counter()

        def step(state: EnvState, action: Array) -> EnvState:
            after = env.step(state, action)
            lost = breaks & (state.obs[0] < 0.5)
            reward = jnp.where(lost, jnp.nan, after.reward)
            return after._replace(reward=reward)

        return env._replace(step=step)

    whole, broken = (windows(half(x), 1)[0] for x in (False, True))
    first = whole.windows.transitions.obs[:, :, 0] < 0.5
    assert first.any()
    assert not first.all()
    rewards = broken.windows.transitions.reward
    np.testing.assert_array_equal(np.isnan(rewards), first)
    np.testing.assert_array_equal(
        rewards[~first], whole.windows.transitions.reward[~first]
    )


def test_outside_jax_there_is_one_environment_and_it_is_not_reset_in_between():
    resets = []

    def reset(key: Key) -> EnvState:
        jax.experimental.io_callback(lambda: resets.append(1), None)
        return counter().reset(key)

    host = counter()._replace(reset=reset, host=True)
    with pytest.raises(ValueError, match=r"counter steps outside jax.*num_envs is 2"):
        on_policy.of_windows(host, 2, 4)
    gatherer, policy = on_policy.of_windows(host, 1, 2), acting()
    running = gatherer.init(jax.random.key(0), policy)
    num_ended = 0
    for i in range(6):
        gathered = gatherer.gather(jax.random.key(i), policy, running)
        running, num_ended = gathered.running, num_ended + int(gathered.ended.sum())
    jax.effects_barrier()
    assert 3 <= num_ended == len(resets) - 1
