"""Windows and episodes of a counter."""

from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import gathering
from mbrl_jax.gathering import Gathered
from mbrl_jax.types import Array, Env, EnvState, Key
from tests.counter import acting, counter

NUM_ENVS, NUM_STEPS = 3, 7


def windows(env: Env, number: int) -> list[Gathered]:
    """One after the other, each [3, 7]."""
    gatherer, policy = gathering.window_gatherer(env, NUM_ENVS, NUM_STEPS), acting()
    running, found = gatherer.init(jax.random.key(0), policy), []
    gather = jax.jit(lambda key, running: gatherer.gather(key, policy, running))
    for i in range(number):
        found.append(gather(jax.random.key(i + 1), running))
        running = found[-1].parallel
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
    gatherer = gathering.episode_gatherer(counter(), 20)
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


@pytest.mark.slow
def test_outside_jax_there_is_one_environment_and_it_is_not_reset_in_between():
    resets = []

    def reset(key: Key) -> EnvState:
        jax.experimental.io_callback(lambda: resets.append(1), None)
        return counter().reset(key)

    host = counter()._replace(reset=reset, host=True)
    with pytest.raises(ValueError, match=r"counter steps outside jax.*num_envs is 2"):
        gathering.window_gatherer(host, 2, 4)
    gatherer, policy = gathering.window_gatherer(host, 1, 2), acting()
    running = gatherer.init(jax.random.key(0), policy)
    num_ended = 0
    for i in range(6):
        gathered = gatherer.gather(jax.random.key(i), policy, running)
        running, num_ended = gathered.parallel, num_ended + int(gathered.ended.sum())
    jax.effects_barrier()
    assert 3 <= num_ended == len(resets) - 1
