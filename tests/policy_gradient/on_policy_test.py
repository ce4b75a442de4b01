"""What the loop reports of the windows and episodes of a counter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import gathering
from mbrl_jax.gathering import Gathered
from mbrl_jax.policy_gradient import on_policy
from mbrl_jax.types import Key, Learner, Policy
from tests.counter import acting, counter

NUM_ENVS, NUM_STEPS = 3, 7


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
    gatherer = gathering.window_gatherer(env, NUM_ENVS, NUM_STEPS)
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
    gatherer = gathering.episode_gatherer(counter(), 5)
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
    gatherer = gathering.window_gatherer(env, NUM_ENVS, 2)  # no episode is as short
    algorithm = on_policy.make(learner(), gatherer)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    state, metrics = step(jax.random.key(1), state)
    assert metrics["episode/num_finished"] == 0
    mean = state.parallel.returns.mean()
    assert metrics["episode/return"] == pytest.approx(float(mean), abs=1e-6) != 0
    before = metrics
    for i in range(2, 12):
        state, metrics = step(jax.random.key(i), state)
        if metrics["episode/num_finished"] == before["episode/num_finished"] > 0:
            assert metrics["episode/return"] == before["episode/return"]
            return
        before = metrics
    raise AssertionError("an episode ended in every window")


def test_what_is_not_finite_is_counted():
    gatherer = gathering.window_gatherer(counter(breaks_at=2), NUM_ENVS, NUM_STEPS)
    algorithm = on_policy.make(learner(), gatherer)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    state, metrics = jax.jit(algorithm.step)(jax.random.key(1), state)
    assert 0 < metrics["episode/non_finite"] <= NUM_ENVS * NUM_STEPS
    assert np.isfinite(metrics["episode/return"])
