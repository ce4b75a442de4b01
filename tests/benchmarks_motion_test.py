"""The visibility graph where its answer is known; the benchmark at a small size."""

import numpy as np
import pytest

from benchmarks import motion, visibility
from mbrl_jax.ops import paths

LOW, HIGH = (-5.0, -5.0), (5.0, 5.0)


def test_nothing_in_between_is_a_straight_way():
    cost, points = visibility.shortest_path([], (0, 0), (3, 4), LOW, HIGH)
    assert cost == 5
    np.testing.assert_array_equal(points, [(0, 0), (3, 4)])


@pytest.mark.parametrize("height", [1.0, 0.4])
def test_a_box_is_passed_on_its_lower_side(height):
    box = [(-1.0, -2.0, 1.0, height)]
    cost, points = visibility.shortest_path(box, (-3, 0), (3, 0), LOW, HIGH)
    assert cost == pytest.approx(2 + 2 * np.hypot(2, height))
    np.testing.assert_array_equal(points, [(-3, 0), (-1, height), (1, height), (3, 0)])


def test_a_wall_beyond_the_bounds_is_not_passed_outside():
    wall = (-1.0, -6.0, 1.0, 4.0)
    cost, _ = visibility.shortest_path([wall], (-3, 0), (3, 0), LOW, HIGH)
    assert cost == pytest.approx(2 + 2 * np.hypot(2, 4))
    cost, points = visibility.shortest_path(
        [wall, (-1.5, 3.0, 0.0, 6.0)], (-3, 0), (3, 0), LOW, HIGH
    )
    assert cost == np.inf
    assert points.shape == (0, 2)


def test_walls_may_be_touched_but_not_crossed():
    sees = lambda *ends: visibility.sees([(0, 0, 2, 1)], *np.array(ends, float))
    assert sees((-1, 1), (3, 1))  # along the upper side
    assert sees((-1, 1), (1, -1))  # through a corner
    assert not sees((-1, 0.9), (3, 0.9))
    assert not sees((-1, 1), (1, -0.5))
    assert not sees((1, 0.5), (1, 0.5))


@pytest.mark.slow
def test_the_world_of_the_benchmark_is_solved_and_drawn(tmp_path):
    found = motion.measure((300,), 2)
    assert found["costs"].keys() == motion.planners().keys()
    for costs in found["costs"].values():
        assert costs.shape == (1, 2)
        assert (costs > found["optimum"]).all()
    assert np.isfinite(found["costs"]["PRM*"]).all()
    path, smooth = motion.arm_motion(300)
    assert smooth.cost < path.cost < np.inf
    tree = motion.point_tree(1000)
    assert tree.status == paths.FOUND
    picture = tmp_path / "motion.png"
    motion.draw(found, tree, smooth, picture)
    assert picture.stat().st_size > 10_000
