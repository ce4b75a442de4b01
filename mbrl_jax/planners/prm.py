"""Probabilistic roadmaps: PRM (Kavraki et al., 1996), PRM* (Karaman, Frazzoli, 2011).

    search = prm_star(key, space, start, goal, num_samples=1000)
    search.path.points, search.path.cost, search.status

Karaman and Frazzoli, "Sampling-based algorithms for optimal motion planning",
International Journal of Robotics Research 30(7), 2011, Algorithms 2 (the simplified
PRM) and 4:

    draw samples, keep those that are free; an edge leads from a node to another if they
    are near and the straight way is clear; take the shortest path in this graph

Deviations: of those that are near, edges lead to a node from the nearest
`num_neighbours` only; the radius of PRM* is that of the volume within the bounds, above
that of the free space.  Everything has a fixed size and can be jitted and vmapped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import obstacles, paths
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key

ROWS_AT_ONCE = 256  # of the table of distances: bounds the memory


class Roadmap(NamedTuple):
    """Node 0 is the start, node 1 the goal."""

    nodes: Array  # [L, D], L is two more than samples; some in obstacles, without edges
    neighbours: Array  # [L, K] int32, where the edges to a node come from
    edges: Array  # [L, K] their length; inf where there is none
    parents: Array  # [L] int32, the node before on the way from the start
    costs: Array  # [L] length of the shortest way from the start; inf without any


class Search(NamedTuple):
    roadmap: Roadmap
    path: paths.Path
    status: Array  # [] int32: paths.FOUND, NOT_FOUND, START_BLOCKED, GOAL_BLOCKED


def prm(
    key: Key,
    space: obstacles.Space,
    start: Array,
    goal: Array,
    *,
    num_samples: int,
    radius: float | Array,
    num_neighbours: int = 64,
) -> Search:
    """The shortest path from `start` to `goal` [D] in a graph of random nodes.

    `num_samples` are drawn within the bounds, `radius` is the longest edge.
    """
    start, goal = floats("prm", (start, goal))
    samples = jax.random.uniform(
        key,
        (num_samples, len(start)),
        start.dtype,
        minval=space.low,
        maxval=space.high,
    )
    nodes = jnp.concatenate([start[None], goal[None], samples])
    num_near = min(num_neighbours, len(nodes) - 1)
    neighbours, edges = connect(space, nodes, radius, num_near)
    costs, parents = shortest(neighbours, edges)
    found = jnp.isfinite(costs[1])
    path = paths.trace(nodes, parents, costs, jnp.where(found, 1, -1))
    code = paths.status(space.free(start), space.free(goal), found)
    return Search(Roadmap(nodes, neighbours, edges, parents, costs), path, code)


def prm_star(
    key: Key,
    space: obstacles.Space,
    start: Array,
    goal: Array,
    *,
    num_samples: int,
    radius_factor: float | Array = 1.1,
    num_neighbours: int = 64,
) -> Search:
    """`prm` whose path becomes shortest with ever more samples.

    For n nodes, start and goal among them, the radius is gamma (log n / n)^(1/D); gamma
    is `radius_factor` times the bound of their Theorem 34.
    """
    size, n = len(start), num_samples + 2
    shrinking = 2 * ((1 + 1 / size) * jnp.log(n) / n) ** (1 / size)
    return prm(
        key,
        space,
        start,
        goal,
        num_samples=num_samples,
        radius=radius_factor * shrinking * obstacles.ball_radius(space),
        num_neighbours=num_neighbours,
    )


def connect(
    space: obstacles.Space, nodes: Array, radius: float | Array, num_neighbours: int
) -> tuple[Array, Array]:
    """Edges to each of `nodes` [L, D]: from where, and how long, [L, K].

    A node in an obstacle has none.  An edge that is missing is of length inf.
    """
    free = jax.vmap(space.free)(nodes)  # [L]

    def row(index: Array) -> tuple[Array, Array]:
        node = nodes[index]
        length = jnp.linalg.norm(nodes - node[None], axis=1)
        near = free & free[index] & (length <= radius)
        length = jnp.where(near, length, jnp.inf).at[index].set(jnp.inf)  # no loops
        closeness, neighbours = jax.lax.top_k(-length, num_neighbours)  # [K]
        real = closeness > -jnp.inf
        ends = jnp.where(real[:, None], nodes[neighbours], node[None])
        real &= jax.vmap(space.clear, (0, None))(ends, node)
        return neighbours.astype(jnp.int32), jnp.where(real, -closeness, jnp.inf)

    return jax.lax.map(row, jnp.arange(len(nodes)), batch_size=ROWS_AT_ONCE)


def shortest(neighbours: Array, edges: Array) -> tuple[Array, Array]:
    """Costs from node 0 and the nodes before, [L] each, in a graph as of `connect`.

    Bellman and Ford's relaxation of all edges at once, until nothing changes: as often
    as the longest of the shortest paths has edges, at most once per node.
    """
    num_nodes = len(edges)

    def relaxing(carry: tuple[Array, Array, Array, Array]) -> Array:
        i, changed, *_ = carry
        return changed & (i < num_nodes)

    def relax(
        carry: tuple[Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array]:
        i, _, costs, parents = carry
        through = costs[neighbours] + edges  # [L, K]
        best = through.argmin(axis=1, keepdims=True)
        cost = jnp.take_along_axis(through, best, axis=1)[:, 0]
        parent = jnp.take_along_axis(neighbours, best, axis=1)[:, 0]
        better = cost < costs  # strictly, so that parents form no cycle
        parents = jnp.where(better, parent, parents)
        return i + 1, better.any(), jnp.where(better, cost, costs), parents

    costs = jnp.full(num_nodes, jnp.inf, edges.dtype).at[0].set(0.0)
    parents = jnp.zeros(num_nodes, neighbours.dtype)
    first = (jnp.array(0), jnp.array(True), costs, parents)
    _, _, costs, parents = jax.lax.while_loop(relaxing, relax, first)
    return costs, parents
