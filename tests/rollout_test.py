from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import rollout
from mbrl_jax.envs import cartpole, linear_quadratic, simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, EnvState, Key, Policy, PyTree


def walk(episode_length: int = 5, last: float = jnp.inf) -> Env:
    """Starts anywhere in [0, 1), goes where it is told, ends beyond `last`.

    It is paid the position that it leaves.
    """
    return simulator.make_env(
        "walk",
        initial=lambda key: jax.random.uniform(key, (1,)),
        dynamics=lambda state, action: state + action,
        observe=lambda state: state,
        reward=lambda obs, action, next_obs: obs[0],
        terminal=lambda obs, action, next_obs: next_obs[0] > last,
        shapes=lambda state: raster.lanes(state, 1.0),
        view=raster.LANES,
        action_size=1,
        action_limit=9.0,
        episode_length=episode_length,
    )


def counting() -> Policy:
    """Goes 0, 1, 2, ... by its memory."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return memory[None].astype(float), memory + 1

    return Policy(lambda: jnp.zeros((), jnp.int32), act)


def noisy() -> Policy:
    draw = lambda key, obs, memory: (jax.random.uniform(key, (1,)), memory)
    return Policy(tuple, draw)


def assert_same(a: PyTree, b: PyTree) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), a, b)


@pytest.mark.parametrize(
    ("last", "length"), [(jnp.inf, 5), (4.0, 4), (2.0, 3), (0.0, 1)]
)
def test_an_episode_stops_at_its_end(last: float, length: int):
    """A walk of 0, 1, 3, 6, 10 from its start, cut by the clock or by the task."""
    done, valid = rollout.episode(jax.random.key(0), walk(last=last), counting())
    np.testing.assert_array_equal(valid, np.arange(5) < length)
    start = done.obs[0, 0]
    walked = np.array([0, 0, 1, 3, 6, 10])
    np.testing.assert_allclose(done.obs[:length, 0], start + walked[:length], rtol=1e-6)
    np.testing.assert_allclose(
        done.next_obs[:length, 0], start + walked[1 : length + 1], rtol=1e-6
    )
    np.testing.assert_array_equal(done.action[:length, 0], np.arange(length))
    np.testing.assert_array_equal(done.reward[:length], done.obs[:length, 0])
    end = np.arange(5) == length - 1
    np.testing.assert_array_equal(done.terminal, end & (length < 5))
    np.testing.assert_array_equal(done.truncated, end & (length == 5))
    assert not any(np.asarray(x)[length:].any() for x in done)


def test_an_episode_may_be_cut_by_the_caller():
    """It is neither terminal nor truncated then."""
    done, valid = rollout.episode(jax.random.key(0), walk(), counting(), num_steps=3)
    assert valid.shape == (3,)
    assert valid.all()
    assert not done.truncated.any()
    longer, valid = rollout.episode(jax.random.key(0), walk(), counting(), num_steps=9)
    np.testing.assert_array_equal(valid, np.arange(9) < 5)
    assert longer.truncated[4]


def test_rollouts_start_again_with_fresh_keys():
    """And never show the observation of a reset as the outcome of an action."""
    env, num = walk(last=5.5), 23
    policy = counting()
    running = rollout.start(jax.random.key(0), env, policy)
    running, done = jax.jit(rollout.rollout, static_argnums=(1, 2, 4))(
        jax.random.key(1), env, policy, running, num
    )
    np.testing.assert_allclose(done.next_obs, done.obs + done.action, rtol=1e-6)
    end = np.asarray(done.terminal | done.truncated)
    assert done.terminal.any()
    begin = np.append(True, end[:-1])
    np.testing.assert_array_equal(done.action[begin], 0)  # the policy, too
    np.testing.assert_array_equal(
        done.obs[1:][~end[:-1]], done.next_obs[:-1][~end[:-1]]
    )
    starts = np.asarray(done.obs)[begin, 0]
    assert len(np.unique(starts)) == begin.sum() >= 4
    assert (starts < 1).all()
    assert (np.asarray(done.next_obs)[end, 0] > 5.5).all()


def test_rollouts_go_on_where_they_were():
    """Four times 3 steps make two episodes of 5 and a part of the next."""
    env, policy = walk(), counting()
    go = jax.jit(rollout.rollout, static_argnums=(1, 2, 4))
    running = rollout.start(jax.random.key(0), env, policy)
    parts = []
    for i in range(4):
        running, part = go(jax.random.key(i), env, policy, running, 3)
        parts.append(part)
    done = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    np.testing.assert_array_equal(np.flatnonzero(done.truncated), [4, 9])
    np.testing.assert_array_equal(done.action[:, 0], np.arange(12) % 5)
    within = ~done.truncated[:-1]
    np.testing.assert_array_equal(done.obs[1:][within], done.next_obs[:-1][within])
    np.testing.assert_array_equal(running.env_state.obs, done.next_obs[-1])


@pytest.mark.parametrize("last", [jnp.inf, 3.5])
def test_a_trajectory_is_the_states_of_the_episode(last: float):
    env, key = walk(last=last), jax.random.key(3)
    done, valid = rollout.episode(key, env, noisy())
    states, shown = rollout.trajectory(key, env, noisy())
    np.testing.assert_array_equal(shown, np.append(True, valid))
    np.testing.assert_array_equal(states.obs[0], done.obs[0])
    np.testing.assert_array_equal(states.obs[1:], done.next_obs)
    np.testing.assert_array_equal(states.reward[1:], done.reward)
    np.testing.assert_array_equal(states.time, np.append(0, np.arange(1, 6) * valid))


def test_the_states_of_a_trajectory_may_hold_keys():
    env = linear_quadratic.make(episode_length=3)
    states, valid = rollout.trajectory(jax.random.key(0), env, noisy())
    assert states.sim.state.key.shape == (4,)
    assert valid.all()


@pytest.mark.parametrize("host", [False, True])
def test_evaluation_is_episode_after_episode(host: bool):
    """Side by side in jax; one at a time on the host."""
    env = walk(last=2.0)._replace(host=host)
    metrics, episodes = rollout.evaluate(jax.random.key(0), env, noisy(), 6)
    one = jax.jit(lambda key: rollout.episode(key, env, noisy()))
    alone = [one(key) for key in jax.random.split(jax.random.key(0), 6)]
    assert_same(episodes, jax.tree.map(lambda *x: jnp.stack(x), *alone))
    returns = np.array([x.transitions.reward.sum() for x in alone])
    lengths = np.array([x.valid.sum() for x in alone])
    assert len(set(lengths)) > 1
    expected = {
        "eval/return_mean": returns.mean(),
        "eval/return_std": returns.std(),
        "eval/return_min": returns.min(),
        "eval/return_max": returns.max(),
        "eval/length_mean": lengths.mean(),
    }
    assert_same(metrics, expected)


def test_an_episode_computes_nothing_after_its_end():
    """Steps on the host are counted."""
    env, calls = walk(last=2.0), []

    def step(env_state: EnvState, action: Array) -> EnvState:
        jax.debug.callback(lambda: calls.append(1))
        return env.step(env_state, action)

    done = rollout.episode(jax.random.key(0), env._replace(step=step), counting())
    jax.block_until_ready(done)
    jax.effects_barrier()
    assert len(calls) == done.valid.sum() == 3


# --- The true dynamics.


def test_the_simulated_return_of_the_optimal_actions():
    problem, env = linear_quadratic.TWO_MASSES, linear_quadratic.make()
    best = linear_quadratic.optimum(problem, 20)
    start = env.reset(jax.random.key(0))

    def act(x: Array, gain: Array) -> tuple[Array, Array]:
        u = -gain @ x
        return jnp.asarray(problem.A) @ x + jnp.asarray(problem.B) @ u, u

    actions = jax.lax.scan(act, start.obs, best.gains)[1]
    found = rollout.simulation(env, start)(actions)
    expected = linear_quadratic.optimal_return(best, start.obs)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_simulated_return_stops_at_the_end():
    """A pole that is pushed one way falls; every step before that pays 1."""
    env = cartpole.balance()
    start, push = env.reset(jax.random.key(0)), jnp.ones((50, 1))

    def step(state: EnvState, action: Array) -> tuple[EnvState, Array]:
        state = env.step(state, action)
        return state, state.terminal

    ended = np.asarray(jax.lax.scan(step, start, push)[1])
    length = int(np.argmax(ended)) + 1
    assert 2 < length < 50
    assert rollout.simulation(env, start)(push) == length
