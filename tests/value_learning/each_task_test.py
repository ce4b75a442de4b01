import jax
import numpy as np

from mbrl_jax.envs import grid, multi_task
from mbrl_jax.types import Array, Policy
from mbrl_jax.value_learning import each_task

HALL = grid.make("hall", grid.parse("S.G"), episode_length=4)
YARD = grid.make("yard", grid.parse("S.\n.P"), episode_length=3)
DOWN, RIGHT = 1, 3


def test_in_each_task_acts_who_is_asked_for_and_its_steps_are_kept():
    """Right in the hall, to its end and again; down in the yard, until time is up."""
    gatherer = each_task.make(multi_task.make([HALL, YARD]), 10, 5)

    def acting(task: Array) -> Policy:
        action = jax.numpy.where(task == 0, RIGHT, DOWN).astype(np.int32)
        return Policy(lambda: (), lambda key, obs, memory: (action, memory))

    @jax.jit
    def run(key: Array) -> tuple[each_task.Experience, Array]:
        gathered, _ = gatherer.gather(key, acting, gatherer.init(key))
        return gatherer.gather(key, acting, gathered)

    experience, so_far = run(jax.random.key(0))
    data, counters = experience.replay.data, experience.counters
    np.testing.assert_array_equal(data.action, [[RIGHT] * 10, [DOWN] * 10])
    hall, yard = data.obs[..., :4].argmax(axis=-1)
    np.testing.assert_array_equal(hall, [0, 1] * 5)
    np.testing.assert_array_equal(yard, [0, 2, 2] * 3 + [0])
    np.testing.assert_array_equal(
        data.obs[..., 4:].argmax(axis=-1), [[0] * 10, [1] * 10]
    )
    np.testing.assert_array_equal(data.reward, [[0, 1] * 5, [0] * 10])
    assert (counters.env_steps, counters.num_episodes) == (20, 5 + 3)
    assert so_far == 0.5  # of what ended just now, and of what goes on
