"""The mazes' benchmark: larger mazes, its loop in numpy, what counts as arrived."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import dyna_maze
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.envs import grid
from mbrl_jax.ops import tabular


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_larger_maze_is_the_maze_and_its_way_longer(size: int):
    layout = grid.parse(dyna_maze.enlarged(size))
    small = grid.parse(grid.MAZE)
    np.testing.assert_array_equal(
        layout.walls, np.kron(small.walls, np.ones((size, size), bool))
    )
    values = tabular.value_iteration(grid.tables(layout), 0.95, tolerance=0).values
    (start,) = layout.starts
    np.testing.assert_allclose(values[start], 0.95 ** (14 * size - 1), rtol=1e-4)


def test_the_loop_in_numpy_learns_the_way():
    q, s = dyna_maze.plain_loop(4000), 18
    ways = grid._neighbours(grid.parse(grid.MAZE))
    for _ in range(18):
        s = ways[s, q[s].argmax()]
    assert s == 8
    assert (q <= 1).all()
    assert (q[8] == 0).all()


def test_updates_are_counted_until_the_greedy_way_is_short_enough():
    """A hall of three cells with two ways to go wrong: some intervals of ten steps,
    each of a real and two planned updates."""
    config = dyna_q.Config(interval=10, num_planning=2)
    numbers = dyna_maze.until_good("S.G", 2, config)
    assert numbers.shape == (len(dyna_maze.SIZE_SEEDS),)
    assert (numbers >= 30).all()
    np.testing.assert_array_equal(numbers % 30, 0)
    assert numbers.max() < 3000


def test_intervals_hold_the_mean():
    found = dyna_maze.interval(jnp.arange(9.0))
    assert found["low"] < found["value"] == 4 < found["high"]
