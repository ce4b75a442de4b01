import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.ops import obstacles, paths

NOTHING = obstacles.point(obstacles.shapes(), (-5.0, -5.0), (5.0, 5.0))
DISC = obstacles.point(obstacles.shapes([(0.0, 0.0, 1.0)]), (-5.0, -5.0), (5.0, 5.0))
shortcut = jax.jit(paths.shortcut, static_argnums=(1, 3))


def around(capacity: int) -> paths.Path:
    """Over a disc, by right angles."""
    points = np.array([[-2, 0], [-2, 2], [0, 2], [2, 2], [2, 0]], np.float32)
    points = np.concatenate([points, np.tile(points[-1], (capacity - 5, 1))])
    return paths.Path(
        jnp.asarray(points), jnp.array(5, jnp.int32), jnp.asarray(np.float32(8))
    )


def length(points: np.ndarray) -> float:
    return np.linalg.norm(np.diff(points, axis=0), axis=1).sum()


def test_a_path_is_traced_to_the_root():
    nodes = jnp.arange(12.0).reshape(6, 2)
    parents = jnp.array([0, 0, 4, 0, 1, 2], jnp.int32)
    costs = jnp.array([0.0, 1.0, 3.0, 1.0, 2.0, 9.0])
    path = paths.trace(nodes, parents, costs, jnp.array(2))
    assert path.num_points == 4
    assert path.cost == 3
    np.testing.assert_array_equal(path.points, nodes[jnp.array([0, 1, 4, 2, 2, 2])])
    alone = paths.trace(nodes, parents, costs, jnp.array(0))
    assert (alone.num_points, alone.cost) == (1, 0)
    none = paths.trace(nodes, parents, costs, jnp.array(-1))
    assert none.num_points == 0
    assert np.isinf(none.cost)
    np.testing.assert_array_equal(none.points, jnp.tile(nodes[0], (6, 1)))


def test_a_status_names_what_comes_first():
    cases = {
        (True, True, True): paths.FOUND,
        (True, True, False): paths.NOT_FOUND,
        (True, False, False): paths.GOAL_BLOCKED,
        (False, False, False): paths.START_BLOCKED,
        (False, True, False): paths.START_BLOCKED,
    }
    for given, code in cases.items():
        assert paths.status(*map(jnp.array, given)) == code


def test_a_place_along_a_path_is_found_by_its_distance():
    path = around(8)
    np.testing.assert_allclose(paths.distances(path.points)[-4:], 8.0)
    for distance, place in ((0.0, [-2, 0]), (3.0, [-1, 2]), (8.0, [2, 0])):
        np.testing.assert_allclose(paths.at(path.points, distance), place, atol=1e-6)


def test_without_obstacles_shortcuts_make_a_path_straight():
    path = shortcut(jax.random.key(0), NOTHING.clear, around(40), 300)
    assert 4.0 <= path.cost < 4.04


def test_shortcuts_shorten_and_stay_clear():
    """Towards the tangents and the arc, the shortest way round the disc."""
    best = 2 * np.sqrt(3) + np.pi / 3
    costs = [8.0]
    for num_tries in (10, 300):
        path = shortcut(jax.random.key(1), DISC.clear, around(40), num_tries)
        points = np.asarray(path.points)
        np.testing.assert_array_equal(points[[0, -1]], [[-2, 0], [2, 0]])
        np.testing.assert_array_equal(points[path.num_points - 1 :, 0], 2)
        np.testing.assert_allclose(length(points), path.cost, rtol=1e-5)
        fine = points[:-1] + np.linspace(0, 1, 500)[:, None, None] * np.diff(
            points, axis=0
        )
        assert np.linalg.norm(fine, axis=-1).min() > 1 - 1e-6
        costs.append(float(path.cost))
    assert 8.0 > costs[1] > costs[2] > best
    assert costs[2] < 1.02 * best


def test_without_room_for_more_points_a_path_is_still_one():
    path = shortcut(jax.random.key(2), DISC.clear, around(5), 300)
    np.testing.assert_array_equal(np.asarray(path.points)[[0, -1]], [[-2, 0], [2, 0]])
    assert path.num_points <= 5
    assert path.cost < 6
    np.testing.assert_allclose(length(np.asarray(path.points)), path.cost, rtol=1e-5)


def test_no_path_stays_none():
    none = paths.Path(jnp.ones((6, 2)), jnp.array(0, jnp.int32), jnp.array(jnp.inf))
    path = shortcut(jax.random.key(0), NOTHING.clear, none, 10)
    jax.tree.map(np.testing.assert_array_equal, path, none)
