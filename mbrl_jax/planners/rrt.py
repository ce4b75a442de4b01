"""Rapidly exploring random trees: RRT (LaValle, 1998), RRT* (Karaman, Frazzoli, 2011).

    search = rrt_star(key, space, start, goal, num_samples=1000, step=0.5)
    search.path.points, search.path.cost, search.status

Karaman and Frazzoli, "Sampling-based algorithms for optimal motion planning",
International Journal of Robotics Research 30(7), 2011, Algorithms 3 and 6:

    repeat: draw a target; from the nearest node go at most a step towards it; if the
    way is clear, this is a new node, below the nearest (RRT) or below that of the near
    nodes which makes it cheapest (RRT*), and then above near nodes that this makes
    cheaper (RRT*)

The goal comes below the first node that sees it within a step, and is then a node like
others; until then some targets are the goal.
Deviations: at most `num_neighbours` are near; the radius is that of the volume within
the bounds, above that of the free space.  Everything has a fixed size and can be
jitted and vmapped, over keys, starts, goals and shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import obstacles, paths
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key


class Tree(NamedTuple):
    """Nodes in the order of their coming; node 0 is the start and its own parent."""

    nodes: Array  # [L, D], L is two more than samples
    parents: Array  # [L] int32
    edges: Array  # [L] length of the edge from the parent; inf where unused
    costs: Array  # [L] length of the way from the start; inf where unused
    num_nodes: Array  # [] int32
    goal: Array  # [] int32, the node that is the goal; -1 without


class Search(NamedTuple):
    tree: Tree
    path: paths.Path
    status: Array  # [] int32: paths.FOUND, NOT_FOUND, START_BLOCKED, GOAL_BLOCKED


# (tree, nearest node [], new node [D], is it to be added []) -> tree
Attach = Callable[[Tree, Array, Array, Array], Tree]


def rrt(
    key: Key,
    space: obstacles.Space,
    start: Array,
    goal: Array,
    *,
    num_samples: int,
    step: float | Array,
    goal_bias: float | Array = 0.05,
) -> Search:
    """Any path from `start` to `goal` [D]: ends with the first, or out of samples.

    `step` is the longest edge, `goal_bias` the chance that a target is the goal.
    """
    start, goal = floats("rrt", (start, goal))
    target = lambda key, tree: _target(key, space, goal, tree, goal_bias)
    going_on = lambda tree: tree.goal < 0
    return _search(key, space, start, goal, num_samples, step, target, _add, going_on)


def rrt_star(
    key: Key,
    space: obstacles.Space,
    start: Array,
    goal: Array,
    *,
    num_samples: int,
    step: float | Array,
    goal_bias: float | Array = 0.05,
    radius_factor: float | Array = 1.1,
    num_neighbours: int = 64,
) -> Search:
    """A path from `start` to `goal` [D] that becomes shortest with ever more samples.

    Nodes are near within gamma (log n / n)^(1/D), for n nodes, and within `step`;
    gamma is `radius_factor` times the bound of their Theorem 38.  `num_neighbours`
    bounds the work per sample.  Otherwise as `rrt`.
    """
    start, goal = floats("rrt_star", (start, goal))
    size = len(start)
    gamma = radius_factor * (2 * (1 + 1 / size)) ** (1 / size)
    gamma = gamma * obstacles.ball_radius(space)
    num_near = min(num_neighbours, num_samples + 2)

    def attach(tree: Tree, _: Array, new: Array, accept: Array) -> Tree:
        closeness, near = jax.lax.top_k(-_distances(tree, new), num_near)  # [K]
        n = tree.num_nodes.astype(new.dtype)
        radius = jnp.minimum(gamma * (jnp.log(n) / n) ** (1 / size), step)
        close = (-closeness <= radius).at[0].set(True)  # the nearest is always one
        ends = jnp.where(close[:, None], tree.nodes[near], new[None])
        close &= jax.vmap(space.clear, (0, None))(ends, new)
        length = -closeness
        through = jnp.where(close, tree.costs[near] + length, jnp.inf)
        best = through.argmin()
        cheaper = accept & close & (through[best] + length < tree.costs[near])
        rewired = jnp.where(cheaper, near, len(tree.nodes))
        index = tree.num_nodes
        tree = _add(tree, near[best], new, accept)
        parents = tree.parents.at[rewired].set(index, mode="drop")
        edges = tree.edges.at[rewired].set(length, mode="drop")
        return _with_costs(tree._replace(parents=parents, edges=edges))

    target = lambda key, tree: _target(key, space, goal, tree, goal_bias)
    going_on = lambda tree: True
    return _search(key, space, start, goal, num_samples, step, target, attach, going_on)


def _search(
    key: Key,
    space: obstacles.Space,
    start: Array,
    goal: Array,
    num_samples: int,
    step: float | Array,
    draw: Callable[[Key, Tree], Array],
    attach: Attach,
    going_on: Callable[[Tree], Array | bool],
) -> Search:
    start_free, goal_free = space.free(start), space.free(goal)

    def more(carry: tuple[Array, Tree]) -> Array:
        i, tree = carry
        return (i < num_samples) & start_free & goal_free & going_on(tree)

    def extend(carry: tuple[Array, Tree]) -> tuple[Array, Tree]:
        i, tree = carry
        target = draw(jax.random.fold_in(key, i), tree)
        far = _distances(tree, target)
        nearest = far.argmin()
        near, distance = tree.nodes[nearest], far[nearest]
        part = step / jnp.maximum(distance, step)
        new = jnp.where(distance <= step, target, near + part * (target - near))
        accept = space.clear(near, new)
        grown = attach(tree, nearest, new, accept)
        return i + 1, _with_goal(grown, space, goal, tree.num_nodes, accept, step)

    root, always = _plant(start, num_samples + 2), jnp.array(True)
    root = _with_goal(root, space, goal, jnp.zeros((), jnp.int32), always, step)
    first = (jnp.zeros((), jnp.int32), root)
    _, tree = jax.lax.while_loop(more, extend, first)
    path = paths.trace(tree.nodes, tree.parents, tree.costs, tree.goal)
    return Search(tree, path, paths.status(start_free, goal_free, tree.goal >= 0))


def _target(
    key: Key, space: obstacles.Space, goal: Array, tree: Tree, goal_bias: float | Array
) -> Array:
    bias_key, key = jax.random.split(key)
    anywhere = jax.random.uniform(
        key, goal.shape, goal.dtype, minval=space.low, maxval=space.high
    )
    at_goal = (jax.random.uniform(bias_key) < goal_bias) & (tree.goal < 0)
    return jnp.where(at_goal, goal, anywhere)


def _plant(start: Array, capacity: int) -> Tree:
    unused = jnp.full(capacity, jnp.inf, start.dtype).at[0].set(0.0)
    one, none = jnp.ones((), jnp.int32), jnp.full((), -1, jnp.int32)
    nodes = jnp.tile(start, (capacity, 1))
    return Tree(nodes, jnp.zeros(capacity, jnp.int32), unused, unused, one, none)


def _distances(tree: Tree, x: Array) -> Array:
    """Of all nodes from `x` [D]; inf where unused, [L]."""
    used = jnp.arange(len(tree.nodes)) < tree.num_nodes
    return jnp.where(used, jnp.linalg.norm(tree.nodes - x[None], axis=1), jnp.inf)


def _add(tree: Tree, parent: Array, new: Array, accept: Array) -> Tree:
    """With the node `new` [D] below `parent`, if `accept`."""
    slot = jnp.where(accept, tree.num_nodes, len(tree.nodes))
    length = jnp.linalg.norm(new - tree.nodes[parent])
    put = lambda x, value: x.at[slot].set(value, mode="drop")
    return tree._replace(
        nodes=put(tree.nodes, new),
        parents=put(tree.parents, parent.astype(jnp.int32)),
        edges=put(tree.edges, length),
        costs=put(tree.costs, tree.costs[parent] + length),
        num_nodes=tree.num_nodes + accept.astype(jnp.int32),
    )


def _with_goal(
    tree: Tree,
    space: obstacles.Space,
    goal: Array,
    node: Array,
    exists: Array,
    step: float | Array,
) -> Tree:
    """With the goal below `node`, if that exists and is the first to see it."""
    place = tree.nodes[node]
    near = jnp.linalg.norm(goal - place) <= step
    accept = exists & (tree.goal < 0) & near & space.clear(place, goal)
    index = jnp.where(accept, tree.num_nodes, tree.goal)
    return _add(tree, node, goal, accept)._replace(goal=index)


def _with_costs(tree: Tree) -> Tree:
    """Costs after rewiring: one pass for each generation below what has changed."""
    update = lambda costs: costs[tree.parents] + tree.edges

    def changing(carry: tuple[Array, Array, Array]) -> Array:
        i, before, costs = carry
        return (before != costs).any() & (i < len(tree.nodes))

    def descend(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, _, costs = carry
        return i + 1, costs, update(costs)

    first = (jnp.zeros((), jnp.int32), tree.costs, update(tree.costs))
    return tree._replace(costs=jax.lax.while_loop(changing, descend, first)[2])
