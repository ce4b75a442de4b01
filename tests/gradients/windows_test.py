"""Environments side by side: what goes on, what starts anew, what is left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import pendulum, probes, simulator
from mbrl_jax.gradients import closed_loop, windows
from mbrl_jax.types import Array, Env, EnvState

N, H = 4, 3
ENV = simulator.time_limit(pendulum.make(), 7)
ACTOR = closed_loop.deterministic(lambda params, obs: jnp.tanh(params @ obs))
PARAMS = jnp.array([[0.3, -0.2, 0.5]])


def run(env: Env, state: windows.Parallel, seed: int = 0, params: Array = PARAMS):
    problem = closed_loop.ExpectedReturn(closed_loop.from_env(env), ACTOR, H)
    window = jax.jit(partial(windows.window, env=env, problem=problem))
    return window(jax.random.key(seed), params, parallel=state)


def test_a_window_goes_on_where_the_last_one_ended_and_episodes_end():
    state = windows.init(jax.random.key(0), ENV, N)
    first, total = state.states, jnp.zeros(N)
    for number in range(3):
        assert int(windows.metrics(state)["env_steps"]) == N * H * number
        np.testing.assert_array_equal(state.states.time, H * number)
        _, samples, valid, state = run(ENV, state, number)
        total += samples.steps.reward.sum(axis=1)
        assert valid.all()
        if number < 2:
            expected = samples.final._replace(sim=state.states.sim)
            jax.tree.map(np.testing.assert_array_equal, state.states, expected)
            np.testing.assert_allclose(state.returns, total, rtol=1e-6)
            assert windows.metrics(state)["episode/return"] == state.returns.mean()
    # 9 steps: beyond the limit of 7, at which the third window began
    np.testing.assert_array_equal(state.states.time, 0)
    np.testing.assert_array_equal(state.num_finished, 1)
    np.testing.assert_allclose(state.finished, total, rtol=1e-6)
    np.testing.assert_array_equal(state.returns, 0)
    assert (state.states.obs != first.obs).any(axis=1).all()  # with fresh keys
    assert len(np.unique(state.states.obs[:, 2])) == N
    np.testing.assert_allclose(
        windows.metrics(state)["episode/return"], total.mean(), rtol=1e-6
    )


def test_steps_after_an_end_do_not_count():
    env = probes.probe5()  # of one step
    state = windows.init(jax.random.key(0), env, N)
    _, samples, _, state = run(env, state, params=jnp.array([[0.4]]))
    np.testing.assert_array_equal(samples.steps.alive, [[True, False, False]] * N)
    assert state.env_steps == N
    assert state.obs.number == N
    np.testing.assert_allclose(state.finished, samples.steps.reward[:, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["state", "reward"])
def test_a_fault_in_one_environment_is_counted_and_changes_nothing_else(bad, where):
    state = windows.init(jax.random.key(0), ENV, N)

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = ENV.step(env_state, action)
        hit = (after.time == 2) & (env_state.sim.action.sum() == marks[2])
        reward = jnp.where(hit & (where == "reward"), bad, after.reward)
        spoil = lambda x: jnp.where(hit & (where == "state"), bad, x)
        sim = after.sim._replace(state=spoil(after.sim.state))
        return after._replace(reward=reward, obs=spoil(after.obs), sim=sim)

    # the actions of the first step tell the environments apart
    act = jax.vmap(
        lambda env_state: ENV.step(env_state, jnp.tanh(PARAMS @ env_state.obs))
    )
    marks = act(state.states).sim.action[:, 0]
    clean_gradient, clean_samples, _, clean = run(ENV, state)
    gradient, samples, valid, after = run(ENV._replace(step=step), state)
    assert valid.tolist() == [True, True, False, True]
    assert (clean.num_broken, after.num_broken) == (0, 1)
    assert after.env_steps == (N - 1) * H
    others = np.array([0, 1, 3])
    pick = lambda tree: jax.tree.map(lambda x: x[others], tree)
    # two programs, hence to rounding
    same = partial(
        jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    )
    same(pick(after.states), pick(clean.states))
    same(pick(samples.steps), pick(clean_samples.steps))
    leaves = [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, float)]
    assert all(np.isfinite(x).all() for x in [*leaves, gradient])
    assert after.states.time[2] == 0  # it starts anew
    assert not np.allclose(gradient, clean_gradient)
    assert int(windows.metrics(after)["gradient/num_non_finite"]) == 1


@pytest.mark.parametrize("bad", [np.nan, 1e30])
def test_a_fault_shown_last_leaves_the_window_out(bad):
    """Neither the return nor the gradient of this window saw it; the next one would."""
    state = windows.init(jax.random.key(0), ENV, N)
    hit = np.array([False, True, False, False])

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = ENV.step(env_state, action)
        late = (after.time == H) & marked(after)
        return after._replace(obs=jnp.where(late, bad, after.obs))

    ends = run(ENV, state)[1].final.obs
    marked = lambda after: jnp.allclose(after.obs, ends[1], rtol=1e-4)
    _, _, valid, after = run(ENV._replace(step=step), state)
    np.testing.assert_array_equal(valid, ~hit)
    assert after.num_broken == 1
    assert after.env_steps == (N - 1) * H
    assert jnp.isfinite(after.states.obs).all()
    assert jnp.abs(after.obs.mean).max() < 100
    np.testing.assert_array_equal(after.states.time == 0, hit)
