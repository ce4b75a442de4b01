import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, policies, rollout
from mbrl_jax.envs import grid, multi_task, pendulum, point_mass, simulator
from mbrl_jax.types import Env, EnvState

HALL = grid.make("hall", grid.parse("S.G"), episode_length=4)
YARD = grid.make("yard", grid.parse("S.\n.P", step_reward=-0.1), episode_length=3)
BOTH = multi_task.make([HALL, YARD])


def play(env: Env, task: int, actions: list[int]) -> EnvState:
    """The states of an episode, [T + 1, ...]."""

    def step(state: EnvState, action: jax.Array) -> tuple[EnvState, EnvState]:
        state = env.step(state, action)
        return state, state

    first = multi_task.at(env, task).reset(jax.random.key(0))
    _, states = jax.lax.scan(step, first, jnp.array(actions, jnp.int32))
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, states)


def test_it_is_each_of_its_tasks():
    """With zeros behind what is seen there, and its number as a one-hot."""
    assert (BOTH.name, BOTH.obs_size, BOTH.num_actions) == ("hall+yard", 4 + 2, 4)
    assert BOTH.episode_length == 4
    hall, yard = play(BOTH, 0, [3, 0, 3]), play(BOTH, 1, [3, 0, 1])
    np.testing.assert_array_equal(
        hall.obs,
        [
            [1, 0, 0, 0, 1, 0],
            [0, 1, 0, 0, 1, 0],
            [0, 1, 0, 0, 1, 0],
            [0, 0, 1, 0, 1, 0],
        ],
    )
    np.testing.assert_array_equal(yard.obs[2], [0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(hall.reward, [0, 0, 0, 1])
    np.testing.assert_allclose(yard.reward, [0, -0.1, -0.1, -1.1])
    assert hall.terminal.tolist() == yard.terminal.tolist() == [False] * 3 + [True]
    assert jax.vmap(lambda obs: multi_task.which(BOTH, obs))(yard.obs).tolist() == [
        1,
        1,
        1,
        1,
    ]


def test_each_keeps_its_clock():
    assert play(BOTH, 0, [0] * 4).truncated.tolist() == [False] * 4 + [True]
    assert play(BOTH, 1, [0] * 3).truncated.tolist() == [False] * 3 + [True]
    shorter = simulator.time_limit(BOTH, 2)
    assert play(shorter, 0, [0] * 2).truncated.tolist() == [False, False, True]


def test_an_episode_is_of_any_task():
    keys = jax.random.split(jax.random.key(0), 200)
    tasks = jax.jit(jax.vmap(lambda key: BOTH.reset(key).sim.task))(keys)
    assert set(tasks.tolist()) == {0, 1}
    assert 70 < tasks.sum() < 130


def test_tasks_side_by_side_are_tasks_alone():
    """As algorithms take them: the number of the task is traced."""

    def run(task: jax.Array) -> rollout.Episode:
        env = multi_task.at(BOTH, task)
        return rollout.episode(jax.random.key(1), env, policies.constant(env))

    together = jax.jit(jax.vmap(run))(jnp.arange(2))
    np.testing.assert_array_equal(together.valid.sum(axis=1), [4, 3])
    np.testing.assert_allclose(
        together.transitions.reward.sum(axis=1), [0, -0.3], rtol=1e-6
    )


def test_the_picture_is_that_of_the_task():
    for task, env in enumerate((HALL, YARD)):
        states = play(BOTH, task, [3])
        first = env.reset(jax.random.key(0))
        expected = env.render(jax.tree.map(lambda x: x[None], first))
        np.testing.assert_array_equal(BOTH.render(states)[:1], expected)


def test_continuous_tasks_and_names():
    env = envs.make("pendulum+pendulum_no_velocity", episode_length=7)
    assert (env.obs_size, env.action_size, env.episode_length) == (3 + 2, 1, 7)
    assert [task.name for task in env.tasks] == ["pendulum", "pendulum_no_velocity"]
    alone = multi_task.at(pendulum.make(), 0)
    assert alone.name == "pendulum"


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([HALL], "at least, not 1"),
        ([HALL, point_mass.make()], "num_actions of hall is 4, of point_mass 0"),
        ([BOTH, HALL], "hall.yard has several tasks itself"),
        (
            [pendulum.make(), point_mass.make()],
            "action_size of pendulum is 1, of point_mass 2",
        ),
        ([HALL, HALL._replace(host=True)], "hall steps outside jax"),
    ],
)
def test_what_does_not_go_together(members: list[Env], error: str):
    with pytest.raises(ValueError, match=error):
        multi_task.make(members)
