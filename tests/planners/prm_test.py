"""Roadmaps next to scipy's shortest paths, and to the shortest paths there are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.csgraph import dijkstra

from benchmarks import visibility
from mbrl_jax.ops import obstacles, paths
from mbrl_jax.planners import prm

BOXES = [(2.0, 2.0, 4.0, 12.0), (5.5, -2.0, 7.5, 6.0)]
LOW, HIGH = (0.0, 0.0), (10.0, 10.0)
START, GOAL = (1.0, 8.0), (9.0, 1.0)
SPACE = obstacles.point(obstacles.shapes(boxes=BOXES), LOW, HIGH)
ENDS = jnp.array([START, GOAL])
DISCS = [(1.2, 0.9, 0.35), (-1.0, 0.8, 0.3), (0.9, -1.1, 0.3)]
ARM = obstacles.two_link_arm((1.0, 1.0), obstacles.shapes(DISCS))


def as_matrix(neighbours: np.ndarray, edges: np.ndarray) -> scipy.sparse.csr_array:
    """Entry (i, j): the edge from i to j."""
    to, k = np.nonzero(np.isfinite(edges))
    entries = edges[to, k].astype(float), (neighbours[to, k], to)
    return scipy.sparse.csr_array(entries, shape=(len(edges), len(edges)))


@pytest.fixture(scope="module")
def star() -> prm.Search:
    """Of four keys."""
    search = lambda key: prm.prm_star(key, SPACE, *ENDS, num_samples=800)
    keys = jax.random.split(jax.random.key(0), 4)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(search))(keys))


def test_costs_are_those_of_dijkstra(star: prm.Search):
    for i in range(4):
        found = jax.tree.map(lambda x, i=i: x[i], star.roadmap)
        graph = as_matrix(found.neighbours, found.edges)
        expected = dijkstra(graph, indices=0)
        np.testing.assert_allclose(found.costs, expected, rtol=1e-5)
        np.testing.assert_allclose(star.path.cost[i], expected[1], rtol=1e-5)
        assert np.isfinite(expected).sum() > 400


def test_the_path_is_one_of_the_graph(star: prm.Search):
    for i in range(4):
        num, points = star.path.num_points[i], star.path.points[i].astype(float)
        np.testing.assert_array_equal(points[0], START)
        np.testing.assert_array_equal(points[num - 1], GOAL)
        legs = list(itertools.pairwise(points[:num]))
        assert all(visibility.sees(BOXES, *leg) for leg in legs)
        length = sum(np.linalg.norm(y - x) for x, y in legs)
        np.testing.assert_allclose(star.path.cost[i], length, rtol=1e-5)
        assert star.status[i] == paths.FOUND


def test_edges_are_as_long_as_the_theorem_says_and_a_tenth(star: prm.Search):
    """In the plane, 2 (3 / 2)^(1/2) (area / pi)^(1/2) (log n / n)^(1/2)."""
    longest = star.roadmap.edges[np.isfinite(star.roadmap.edges)].max()
    radius = 1.1 * 2 * np.sqrt(1.5 * 100 / np.pi * np.log(800) / 800)
    assert 0.99 * radius < longest <= radius * (1 + 1e-6)


def test_prm_star_approaches_the_shortest_path_from_above(star: prm.Search):
    best, _ = visibility.shortest_path(BOXES, START, GOAL, LOW, HIGH)
    search = lambda key: prm.prm_star(key, SPACE, *ENDS, num_samples=100)
    keys = jax.random.split(jax.random.key(0), 4)
    few = np.asarray(jax.jit(jax.vmap(search))(keys).path.cost)
    assert (few > best).all()
    assert (star.path.cost > best).all()
    assert star.path.cost.mean() < 1.08 * best
    assert star.path.cost.mean() < few.mean()


@pytest.mark.parametrize("num_neighbours", [59, 5])
def test_edges_come_from_the_nearest_that_are_seen(num_neighbours: int):
    radius = 3.0
    nodes = jax.random.uniform(jax.random.key(0), (60, 2), maxval=10.0)
    connect = lambda nodes: prm.connect(SPACE, nodes, radius, num_neighbours)
    neighbours, edges = jax.jit(connect)(nodes)
    graph = as_matrix(np.asarray(neighbours), np.asarray(edges)).toarray()
    expected = np.zeros((60, 60))
    nodes = np.asarray(nodes, float)
    free = [visibility.sees(BOXES, x, x) for x in nodes]
    for j in np.flatnonzero(free):
        length = np.where(free, np.linalg.norm(nodes - nodes[j], axis=1), np.inf)
        for i in np.argsort(length)[1 : num_neighbours + 1]:
            if length[i] <= radius and visibility.sees(BOXES, nodes[i], nodes[j]):
                expected[i, j] = length[i]
    assert 0 < (expected > 0).sum() < 59 * 60 / 4
    np.testing.assert_allclose(graph, expected, rtol=1e-5)


def test_a_chain_takes_as_many_passes_as_it_has_edges():
    n = 50
    neighbours = jnp.maximum(jnp.arange(n) - 1, 0)[:, None]
    edges = jnp.where(jnp.arange(n) == 0, jnp.inf, 1.0)[:, None]
    costs, parents = jax.jit(prm.shortest)(neighbours, edges)
    np.testing.assert_array_equal(costs, np.arange(n))
    np.testing.assert_array_equal(parents, neighbours[:, 0])
    cut = edges.at[20].set(jnp.inf)
    costs, _ = prm.shortest(neighbours, cut)
    assert np.isinf(costs[20:]).all()


def test_edges_of_length_zero_make_no_cycle():
    neighbours = jnp.array([[1, 2], [0, 2], [1, 0], [2, 1]])
    edges = jnp.array([[0.0, 0.0], [0.0, 0.0], [0.0, jnp.inf], [0.0, 0.0]])
    costs, parents = prm.shortest(neighbours, edges)
    np.testing.assert_array_equal(costs, 0)
    np.testing.assert_array_equal(parents[parents[parents]], 0)


WALLED = [(3.0, -5.0, 4.0, 15.0), (8.0, 8.0, 9.5, 9.5)]
STATUSES = {
    "found": ((1.0, 1.0), (2.0, 9.0), paths.FOUND),
    "already there": ((1.0, 1.0), (1.0, 1.0), paths.FOUND),
    "behind a wall": ((1.0, 1.0), (6.0, 1.0), paths.NOT_FOUND),
    "start in a box": ((9.0, 9.0), (1.0, 1.0), paths.START_BLOCKED),
    "goal in a box": ((1.0, 1.0), (9.0, 9.0), paths.GOAL_BLOCKED),
    "goal is NaN": ((1.0, 1.0), (1.0, np.nan), paths.GOAL_BLOCKED),
}


def test_a_status_says_how_it_ended():
    space = obstacles.point(obstacles.shapes(boxes=WALLED), LOW, HIGH)
    search = lambda start, goal: prm.prm(
        jax.random.key(0), space, start, goal, num_samples=100, radius=3.0
    )
    starts, goals, codes = map(np.array, zip(*STATUSES.values(), strict=True))
    found = jax.jit(jax.vmap(search))(jnp.asarray(starts), jnp.asarray(goals))
    np.testing.assert_array_equal(found.status, codes)
    there = codes == paths.FOUND
    np.testing.assert_array_equal(np.isfinite(found.path.cost), there)
    np.testing.assert_array_equal(found.path.num_points > 0, there)
    assert found.path.cost[1] == 0
    edges = np.asarray(found.roadmap.edges[0])
    assert edges[np.isfinite(edges)].max() <= 3.0


def test_an_arm_moves_without_a_collision():
    """The path, at a resolution 10 times finer than that of the search."""
    ends = jnp.array([[-0.6, -0.3], [2.4, 0.5]])
    assert not ARM.clear(*ends)
    search = jax.jit(lambda key: prm.prm_star(key, ARM, *ends, num_samples=300))
    found = search(jax.random.key(0))
    assert found.status == paths.FOUND
    smooth = jax.jit(lambda key, path: paths.shortcut(key, ARM.clear, path, 50))
    path = smooth(jax.random.key(1), found.path)
    assert np.linalg.norm(ends[1] - ends[0]) < path.cost <= found.path.cost
    for one in (found.path, path):
        points = np.asarray(one.points[: one.num_points], float)
        for x, y in itertools.pairwise(points):
            num = int(np.linalg.norm(y - x) / 0.005) + 2
            assert arm_gap(x + np.linspace(0, 1, num)[:, None] * (y - x)) > 0


def arm_gap(angles: np.ndarray) -> float:
    """Between the arm at angles [T, 2], 100 points on each link, and the discs."""
    turned = np.cumsum(angles, axis=1)  # [T, 2]
    inner, outer = np.moveaxis([np.sin(turned), -np.cos(turned)], 2, 0)  # [2, T]
    part = np.linspace(0, 1, 100)[:, None, None]
    points = np.concatenate([part * inner, inner + part * outer])  # [200, 2, T]
    return min(
        (np.hypot(points[:, 0] - x, points[:, 1] - y) - radius).min()
        for x, y, radius in DISCS
    )


@pytest.mark.slow
def test_one_sample_has_a_radius_too():
    """And a start and a goal in NumPy's float64 are those of floats here."""
    space = obstacles.point(obstacles.shapes(), LOW, HIGH)
    start, goal = np.array([4.0, 5.0]), np.array([6.0, 5.0])
    found = prm.prm_star(jax.random.key(0), space, start, goal, num_samples=1)
    assert found.status == paths.FOUND
    np.testing.assert_allclose(found.path.cost, 2, rtol=1e-6)
