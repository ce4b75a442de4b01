"""Trees next to a second implementation, and to the shortest paths there are."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import visibility
from mbrl_jax.ops import obstacles, paths
from mbrl_jax.planners import rrt
from mbrl_jax.types import Key

BOXES = [(3.0, 2.0, 3.1, 12.0), (6.0, -2.0, 6.1, 7.0)]  # thin: the nearest is behind
LOW, HIGH = (0.0, 0.0), (10.0, 10.0)
START, GOAL = (1.0, 8.0), (9.0, 1.0)
STEP, NUM_SAMPLES, NUM_KEYS = 2.0, 800, 4
SPACE = obstacles.point(obstacles.shapes(boxes=BOXES), LOW, HIGH)
PLANNERS = {"rrt": rrt.rrt, "rrt_star": rrt.rrt_star}


def search_for(name: str, num_samples: int, key: Key) -> rrt.Search:
    ends = jnp.array(START), jnp.array(GOAL)
    return PLANNERS[name](key, SPACE, *ends, num_samples=num_samples, step=STEP)


@cache
def searches(name: str, num_samples: int = NUM_SAMPLES) -> rrt.Search:
    """With a leading axis of keys."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    every = jax.vmap(partial(search_for, name, num_samples))
    return jax.tree.map(np.asarray, jax.jit(every)(keys))


def each(name: str) -> list[rrt.Search]:
    one = lambda i: jax.tree.map(lambda x: x[i], searches(name))
    return [one(i) for i in range(NUM_KEYS)]


@pytest.mark.parametrize("name", PLANNERS)
def test_edges_are_clear_and_costs_add_up(name):
    for search in each(name):
        tree, n = search.tree, search.tree.num_nodes
        nodes, parents = tree.nodes[:n].astype(float), tree.parents[:n]
        length = np.linalg.norm(nodes - nodes[parents], axis=1)
        assert length.max() <= STEP * (1 + 1e-6)
        np.testing.assert_allclose(tree.edges[:n], length, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            tree.costs[:n], tree.costs[parents] + tree.edges[:n]
        )
        for node, parent in zip(nodes, nodes[parents], strict=True):
            assert visibility.sees(BOXES, parent, node)
        assert np.isinf(tree.costs[n:]).all()
        assert np.isinf(tree.edges[n:]).all()
        assert len(np.unique(nodes, axis=0)) == n > 20


@pytest.mark.parametrize("name", PLANNERS)
def test_every_node_comes_from_the_start(name):
    for search in each(name):
        above = np.arange(search.tree.num_nodes)
        for _ in range(len(above)):
            above = search.tree.parents[above]
        assert (above == 0).all()  # no cycle, one root


@pytest.mark.parametrize("name", PLANNERS)
def test_the_path_is_that_of_the_tree(name):
    for search in each(name):
        tree, path = search.tree, search.path
        assert search.status == paths.FOUND
        np.testing.assert_array_equal(tree.nodes[tree.goal], GOAL)
        np.testing.assert_array_equal(path.points[0], START)
        np.testing.assert_array_equal(path.points[path.num_points - 1 :, 0], GOAL[0])
        assert (path.points[path.num_points - 2] != GOAL).any()
        length = np.linalg.norm(np.diff(path.points, axis=0), axis=1).sum()
        np.testing.assert_allclose(path.cost, length, rtol=1e-5)


def test_rrt_ends_with_the_goal():
    for search in each("rrt"):
        assert search.tree.goal == search.tree.num_nodes - 1 < NUM_SAMPLES


def replay(
    nodes: np.ndarray, goal: int, clear, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """RRT* as it is told, one node after the other: parents and costs."""
    parents, costs, children = [0], [0.0], [[]]

    def lower(node: int, cost: float) -> None:
        costs[node] = cost
        for child in children[node]:
            lower(child, cost + np.linalg.norm(nodes[child] - nodes[node]))

    for new in range(1, len(nodes)):
        length = np.linalg.norm(nodes[:new] - nodes[new], axis=1)
        radius = min(gamma * np.sqrt(np.log(new) / new), STEP)
        near = {*np.flatnonzero(length <= radius), length.argmin()}
        near = [i for i in near if clear(nodes[i], nodes[new])]
        if new == goal:  # below the node which has just seen it
            near = [new - 1]
        parent = min(near, key=lambda i: costs[i] + length[i])
        parents.append(parent)
        costs.append(costs[parent] + length[parent])
        children.append([])
        children[parent].append(new)
        for i in near:
            if costs[new] + length[i] < costs[i]:
                children[parents[i]].remove(i)
                parents[i] = new
                children[new].append(i)
                lower(i, costs[new] + length[i])
    return np.array(parents), np.array(costs)


def test_rrt_star_rewires_like_a_plain_implementation():
    gamma = 1.1 * np.sqrt(3) * np.sqrt(100 / np.pi)
    clear = lambda x, y: visibility.sees(BOXES, x, y)
    for search in each("rrt_star")[:2]:
        n = search.tree.num_nodes
        parents, costs = replay(
            search.tree.nodes[:n].astype(float), search.tree.goal, clear, gamma
        )
        same = search.tree.parents[:n] == parents
        assert same.mean() > 0.99  # nodes in line, as on the way to a target, tie
        np.testing.assert_allclose(search.tree.costs[:n], costs, rtol=1e-5)
        assert (parents > np.arange(n)).sum() > 10  # rewired ones were among them


def test_rrt_star_approaches_the_shortest_path_from_above():
    best, _ = visibility.shortest_path(BOXES, START, GOAL, LOW, HIGH)
    few, many = (searches("rrt_star", n).path.cost for n in (200, NUM_SAMPLES))
    for cost in (few, many, searches("rrt").path.cost):
        assert (cost > best).all()
    assert many.mean() < 1.08 * best
    assert many.mean() < few[np.isfinite(few)].mean()
    assert searches("rrt").path.cost.mean() > 1.2 * best


def test_rrt_star_rounds_a_disc():
    """Of which two tangents and an arc are the shortest way."""
    space = obstacles.point(obstacles.shapes([(0.0, 0.0, 1.0)]), (-3, -3), (3, 3))
    ends = jnp.array([[-2.0, 0.0], [2.0, 0.0]])
    search = lambda key: rrt.rrt_star(key, space, *ends, num_samples=800, step=1.0)
    cost = jax.jit(search)(jax.random.key(0)).path.cost
    best = 2 * np.sqrt(3) + np.pi / 3
    assert best < cost < 1.08 * best


def test_a_space_of_any_size_will_do():
    """Round a ball in three dimensions it is as far as round a disc."""

    def clear(start, end):
        points = start[None] + jnp.linspace(0, 1, 30)[:, None] * (end - start)[None]
        return (jnp.linalg.norm(points, axis=1) > 1).all()

    bounds = jnp.full(3, -2.5), jnp.full(3, 2.5)
    space = obstacles.Space(*bounds, lambda x: clear(x, x), clear)
    ends = jnp.array([[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    search = lambda key: rrt.rrt_star(key, space, *ends, num_samples=800, step=1.0)
    cost = jax.jit(search)(jax.random.key(0)).path.cost
    best = 2 * np.sqrt(3) + np.pi / 3
    assert best < cost < 1.2 * best


WALLED = [(3.0, -5.0, 4.0, 15.0), (8.0, 8.0, 9.5, 9.5)]
STATUSES = {
    "found": ((1.0, 1.0), (2.0, 9.0), paths.FOUND),
    "already there": ((1.0, 1.0), (1.0, 1.0), paths.FOUND),
    "behind a wall": ((1.0, 1.0), (6.0, 1.0), paths.NOT_FOUND),
    "start in a box": ((9.0, 9.0), (1.0, 1.0), paths.START_BLOCKED),
    "both in a box": ((9.0, 9.0), (3.5, 1.0), paths.START_BLOCKED),
    "goal in a box": ((1.0, 1.0), (9.0, 9.0), paths.GOAL_BLOCKED),
    "goal out of bounds": ((1.0, 1.0), (1.0, -1.0), paths.GOAL_BLOCKED),
    "start is NaN": ((np.nan, 1.0), (1.0, 1.0), paths.START_BLOCKED),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_a_status_says_how_it_ended(name):
    space = obstacles.point(obstacles.shapes(boxes=WALLED), LOW, HIGH)
    search = lambda start, goal: PLANNERS[name](
        jax.random.key(0), space, start, goal, num_samples=150, step=STEP
    )
    starts, goals, codes = map(np.array, zip(*STATUSES.values(), strict=True))
    found = jax.jit(jax.vmap(search))(jnp.asarray(starts), jnp.asarray(goals))
    np.testing.assert_array_equal(found.status, codes)
    there = codes == paths.FOUND
    np.testing.assert_array_equal(np.isfinite(found.path.cost), there)
    np.testing.assert_array_equal(found.path.num_points > 0, there)
    np.testing.assert_array_equal(found.tree.goal >= 0, there)
    assert found.path.cost[1] == 0
    blocked = codes >= paths.START_BLOCKED
    assert (np.asarray(found.tree.num_nodes)[blocked] == 1).all()


def test_a_key_alone_finds_what_it_finds_in_a_batch():
    key = jax.random.split(jax.random.key(0), NUM_KEYS)[1]
    alone = jax.jit(partial(search_for, "rrt", NUM_SAMPLES))(key)
    expected = each("rrt")[1]
    np.testing.assert_array_equal(alone.tree.parents, expected.tree.parents)
    np.testing.assert_allclose(alone.path.points, expected.path.points, rtol=1e-5)
