import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, EnvState


def counter(episode_length: int = 3, last: float = jnp.inf) -> Env:
    """Adds the action to its state, ends beyond `last`, is paid what it sees."""
    return simulator.make_env(
        "counter",
        initial=lambda key: {"sum": jnp.full(1, 0.5), "steps": jnp.zeros((), int)},
        dynamics=lambda state, action: {
            # The types are those of a sloppy author.
            "sum": state["sum"] + np.float64(1.0) * action,
            "steps": state["steps"] + 1.0,
        },
        observe=lambda state: state["sum"],
        reward=lambda obs, action, next_obs: (
            obs[0] + 10 * action[0] + 100 * next_obs[0]
        ),
        terminal=lambda obs, action, next_obs: next_obs[0] > last,
        shapes=lambda state: raster.lanes(state["sum"], 1.0),
        view=raster.LANES,
        action_size=1,
        action_limit=2.0,
        episode_length=episode_length,
    )


def run(env: Env, actions: list[float]) -> EnvState:
    def step(env_state: EnvState, action: Array) -> tuple[EnvState, EnvState]:
        env_state = env.step(env_state, action[None])
        return env_state, env_state

    return jax.lax.scan(step, env.reset(jax.random.key(0)), jnp.array(actions))[1]


def test_actions_are_clipped_for_dynamics_reward_and_picture():
    env = counter()
    states = run(env, [1.0, 5.0, -5.0])
    np.testing.assert_array_equal(states.obs[:, 0], [1.5, 3.5, 1.5])
    np.testing.assert_array_equal(states.reward, [160.5, 371.5, 133.5])
    np.testing.assert_array_equal(states.sim.action[:, 0], [1.0, 2.0, -2.0])
    obs, action = jnp.array([1.5]), jnp.array([5.0])
    assert env.reward is not None
    assert env.reward(obs, action, jnp.array([3.5])) == 371.5


def test_discrete_actions_are_numbers_and_not_drawn():
    env = simulator.make_env(
        "counter",
        initial=lambda key: jnp.zeros(1),
        dynamics=lambda state, action: state + jnp.array([0.0, 0.25, -0.5])[action],
        observe=lambda state: state,
        reward=lambda obs, action, next_obs: jnp.where(action == 2, 1.0, 0.0),
        shapes=lambda state: raster.lanes(0 * state, 1.0),
        view=raster.LANES,
        num_actions=3,
        episode_length=4,
    )
    assert (env.num_actions, env.action_size, env.action_limit) == (3, 0, 0)

    def step(env_state: EnvState, action: Array) -> tuple[EnvState, EnvState]:
        env_state = env.step(env_state, action)
        return env_state, env_state

    start = env.reset(jax.random.key(0))
    assert start.sim.action.shape == ()
    assert start.sim.action.dtype == jnp.int32
    _, states = jax.lax.scan(step, start, jnp.array([1, 1, 2, 0]))
    np.testing.assert_array_equal(states.obs[:, 0], [0.25, 0.5, 0, 0])
    np.testing.assert_array_equal(states.reward, [0, 0, 1, 0])
    np.testing.assert_array_equal(states.sim.action, [1, 1, 2, 0])
    frames = env.render(states)
    assert (frames == frames[:1]).all()


def test_the_clock_truncates_and_the_task_terminates():
    states = run(counter(episode_length=2), [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(states.truncated, [False, True, True])
    np.testing.assert_array_equal(states.terminal, [False, False, False])
    states = run(counter(episode_length=2, last=2.0), [1.0, 1.0, -1.0])
    np.testing.assert_array_equal(states.truncated, [False, False, True])
    np.testing.assert_array_equal(states.terminal, [False, True, False])


def test_one_compilation_is_enough():
    env, traces = counter(), []

    @jax.jit
    def step(env_state: EnvState, action: Array) -> EnvState:
        traces.append(1)
        return env.step(env_state, action)

    env_state = jax.jit(env.reset)(jax.random.key(0))
    for _ in range(3):
        env_state = step(env_state, jnp.zeros(1))
    assert len(traces) == 1


@pytest.mark.parametrize("length", [1, 5])
def test_time_limit_replaces_the_old_one(length: int):
    env = simulator.time_limit(counter(episode_length=3), length)
    assert env.episode_length == length
    states = run(env, [0.0] * 6)
    np.testing.assert_array_equal(states.truncated, np.arange(1, 7) >= length)


def test_an_episode_has_a_step():
    with pytest.raises(ValueError, match="episode_length must be at least 1, not 0"):
        counter(episode_length=0)
    with pytest.raises(ValueError, match="episode_length must be at least 1, not -1"):
        simulator.time_limit(counter(), -1)


def test_rk4_is_of_fourth_order():
    def error(num_steps: int) -> float:
        spring = lambda state: jnp.stack([state[1], -state[0]])
        end = simulator.rk4(spring, jnp.array([1.0, 0.0]), 1 / num_steps, num_steps)
        return float(jnp.linalg.norm(end - jnp.array([jnp.cos(1), -jnp.sin(1)])))

    with jax.enable_x64(True):
        assert error(10) < 1e-6
        assert error(5) / error(10) == pytest.approx(2**4, rel=0.05)
