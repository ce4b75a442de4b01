from typing import Any

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


def written(**changed: Any) -> Env:
    """Two numbers that the action moves, paid by the first; with parts `changed`."""
    parts: dict[str, Any] = {
        "initial": lambda key: jnp.zeros(2),
        "dynamics": lambda state, action: state + action[0],
        "observe": lambda state: state,
        "reward": lambda obs, action, next_obs: next_obs[0],
        "shapes": lambda state: [],
        "view": raster.LANES,
        "action_size": 1,
        "action_limit": 1.0,
        "episode_length": 5,
    }
    return simulator.make_env("mine", **{**parts, **changed})


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


def test_time_limit_keeps_what_an_environment_cuts_itself():
    env = counter(episode_length=9)

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = env.step(env_state, action)
        return after._replace(truncated=after.truncated | (after.time == 3))

    own = env._replace(step=step)
    for length, expected in ((4, [0, 0, 1, 1]), (20, [0, 0, 1, 0])):
        states = run(simulator.time_limit(own, length), [0.0] * 4)
        np.testing.assert_array_equal(states.truncated, expected)


def test_time_limit_is_not_longer_than_what_a_host_remembers():
    env = counter(episode_length=9)._replace(host=True)
    assert simulator.time_limit(env, 9).episode_length == 9
    with pytest.raises(ValueError, match="counter was made for episodes of 9 steps"):
        simulator.time_limit(env, 10)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_whole_observations_are_floats_and_rewards_stay_what_they_are(dtype: Any):
    env = written(
        observe=lambda state: (10 * state).astype(dtype),
        reward=lambda obs, action, next_obs: -0.1 - obs[0],
    )
    states = run(env, [1.0, 1.0])
    assert states.obs.dtype == states.reward.dtype == jnp.float32
    seen = np.array([10, 20]).astype(dtype)
    np.testing.assert_array_equal(states.obs[:, 0], seen)
    np.testing.assert_allclose(states.reward, [-0.1, -0.1 - float(seen[0])])
    assert env.reward is not None
    known = env.reward(states.obs[0], jnp.zeros(1), states.obs[1])
    np.testing.assert_allclose(known, states.reward[1])


@pytest.mark.parametrize("reward", [1, 1.0, True, np.float64(1)])
def test_pythons_numbers_are_rewards_and_terminations(reward: Any):
    env = written(
        initial=lambda key: (jnp.zeros(2), 0),
        dynamics=lambda state, action: (state[0] + action, state[1] + 1),
        observe=lambda state: state[0],
        reward=lambda obs, action, next_obs: reward,
        terminal=lambda obs, action, next_obs: False,
    )
    states = run(env, [0.5, 0.5])
    np.testing.assert_array_equal(states.reward, [1, 1])
    np.testing.assert_array_equal(states.terminal, [False, False])
    np.testing.assert_array_equal(states.sim.state[1], [1, 2])
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(states))


def test_a_state_is_wide_enough_for_what_becomes_of_it():
    """A count that starts at 0 and grows by a half was cut to 0 at each step."""
    env = written(
        initial=lambda key: {"half": 0, "small": jnp.zeros((), jnp.uint8)},
        dynamics=lambda state, action: {
            "half": state["half"] + 0.5,
            "small": state["small"] + jnp.int32(200),
        },
        observe=lambda state: jnp.stack([state["half"], state["small"]]),
    )
    states = run(env, [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(states.obs, [[0.5, 200], [1, 400], [1.5, 600]])


ROW = lambda obs, action, next_obs: next_obs[:1]
SOME = lambda obs, action, next_obs: jnp.float32(0.5)
FAULTS = [
    ({"reward": ROW}, r"mine: reward must return a number, not float32 of shape \(1,"),
    ({"reward": lambda *x: None}, "mine: reward: None is no array of numbers"),
    ({"reward": lambda *x: 1j}, "mine: reward must be real, not complex64"),
    ({"reward": lambda *x: x[9]}, "mine: reward fails: IndexError: tuple index out"),
    ({"terminal": SOME}, "mine: terminal must return True or False, not float32 of"),
    ({"terminal": lambda *x: 0}, "mine: terminal must return True or False, not int32"),
    ({"observe": lambda x: x[0]}, r"mine: observe must return a vector \[O\], not flo"),
    ({"observe": lambda x: x[None]}, r"vector \[O\], not float32 of shape \(1, 2\)"),
    (
        {"dynamics": lambda x, a: x[:1]},
        r"mine: dynamics makes the state \(1,\) of \(2,",
    ),
    ({"dynamics": lambda x, a: (x, a)}, "mine: dynamics must return a PyTreeDef"),
    ({"initial": lambda: 0}, "mine: initial fails: TypeError: .*positional argument"),
    ({"action_size": 0}, "either action_size and action_limit or num_actions must"),
    ({"num_actions": 3}, "either action_size and action_limit or num_actions must"),
]


@pytest.mark.parametrize(("changed", "words"), FAULTS)
def test_what_has_no_obvious_meaning_names_the_function(changed: Any, words: str):
    with pytest.raises(ValueError, match=words) as error:
        written(**changed)
    assert "\n" not in str(error.value)


def test_a_discrete_action_is_not_rounded():
    env = written(
        action_size=0,
        action_limit=0.0,
        num_actions=3,
        dynamics=lambda state, action: state + action,
    )
    start = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(env.step(start, np.int64(2)).obs, [2, 2])
    with pytest.raises(ValueError, match="actions of mine must be whole numbers, not"):
        env.step(start, jnp.float32(1.7))


def test_what_is_shown_of_an_observation_is_a_vector_too():
    with pytest.raises(ValueError, match=r"mine: show must return a vector \[O\]"):
        simulator.partly_observed(counter(), "mine", lambda obs: obs[0])


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
