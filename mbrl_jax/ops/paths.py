"""Paths of straight edges in arrays of fixed size: found in a tree, and smoothed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Key

FOUND, NOT_FOUND, START_BLOCKED, GOAL_BLOCKED = range(4)  # how a search ended


class Path(NamedTuple):
    """From the start to the goal; without a path, the start alone, at cost inf."""

    points: Array  # [L, D], the last one repeated to the end of the array
    num_points: Array  # [] int32, 0 without a path
    cost: Array  # [] its length


def status(start_free: Array, goal_free: Array, found: Array) -> Array:
    """Of these codes the one that applies, [] int32; a blocked start comes first."""
    code = jnp.where(found, FOUND, NOT_FOUND)
    code = jnp.where(goal_free, code, GOAL_BLOCKED)
    return jnp.where(start_free, code, START_BLOCKED).astype(jnp.int32)


def trace(nodes: Array, parents: Array, costs: Array, goal: Array) -> Path:
    """The path to node `goal` from node 0, which is its own parent.

    `nodes` [L, D], `parents` and `costs` [L]; `goal` [] is -1 where there is none.
    """
    last = jnp.maximum(goal, 0)
    up = lambda node, _: (parents[node], node)
    _, upwards = jax.lax.scan(up, last, None, length=len(nodes))  # [L], then zeros
    depth = (upwards != 0).sum()
    order = upwards[jnp.maximum(depth - jnp.arange(len(nodes)), 0)]
    found = goal >= 0
    num_points = jnp.where(found, depth + 1, 0).astype(jnp.int32)
    return Path(nodes[order], num_points, jnp.where(found, costs[last], jnp.inf))


def distances(points: Array) -> Array:
    """How far each of [L, D] is from the first along the path, [L]."""
    edges = jnp.linalg.norm(jnp.diff(points, axis=0), axis=1)
    return jnp.concatenate([jnp.zeros_like(edges[:1]), jnp.cumsum(edges)])


def at(points: Array, distance: Array) -> Array:
    """The configuration [D] this far along the path [L, D]."""
    along = distances(points)
    return jax.vmap(jnp.interp, (None, None, 1))(distance, along, points)


def shortcut(
    key: Key, clear: Callable[[Array, Array], Array], path: Path, num_tries: int
) -> Path:
    """Tries straight ways between two random points of a path, one after the other.

    `clear` (from [D], to [D]) says whether an edge is free.  No try makes the path
    longer, and one that needs more points than the array has room for is left out.
    """

    def attempt(path: Path, key: Key) -> tuple[Path, None]:
        along = distances(path.points)  # [L]
        places = jax.random.uniform(key, (2,), along.dtype) * along[-1]
        first, second = jnp.sort(places)
        real = jnp.arange(len(along)) < path.num_points
        before = (real & (along <= first)).sum()
        after = (real & (along < second)).sum()
        ends = jnp.stack([at(path.points, first), at(path.points, second)])
        i = jnp.arange(len(along)) - before  # [L]; 0 and 1 are the new points
        kept = jnp.where(i < 0, i + before, jnp.minimum(i - 2 + after, len(along) - 1))
        new = (i == 0) | (i == 1)
        points = jnp.where(
            new[:, None], ends[jnp.clip(i, 0, 1)], path.points[jnp.maximum(kept, 0)]
        )
        num_points = before + 2 + path.num_points - after
        cost = distances(points)[-1]
        legs = points[before - 1 + jnp.arange(4)]  # what remains of the edges, too
        accept = jax.vmap(clear)(legs[:-1], legs[1:]).all() & (cost < path.cost)
        accept &= (path.num_points > 0) & (num_points <= len(along))
        shorter = Path(points, num_points.astype(jnp.int32), cost)
        return jax.tree.map(lambda x, y: jnp.where(accept, x, y), shorter, path), None

    path, _ = jax.lax.scan(attempt, path, jax.random.split(key, num_tries))
    return path
