"""The reward of PILCO's tasks: -(1 - exp(-distance^2 / (2 width^2))), in [-1, 0].

The distance is that of a point from its place, where the point is linear in the
observation once each angle in it counts by its sine and cosine; so the expectation over
a Gaussian is closed-form too.  Deisenroth and Rasmussen, "PILCO: a model-based and
data-efficient approach to policy search", 2011, Sec. 2.2 and 3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import moments
from mbrl_jax.types import Array, Belief, Key


class Goal(NamedTuple):
    """Where which point is to be, in P dimensions."""

    angles: tuple[int, ...]  # entries of obs, rad; O + i is sum i
    point: tuple[tuple[float, ...], ...]
    # [P, F], of the entries that are no angles, then sin and cos of each angle
    place: tuple[float, ...]  # [P]
    width: float  # of the cost, in the unit of `place`
    sums: tuple[tuple[float, ...], ...] = ()  # [S, O] of entries, beside these


def task(
    goal: Goal,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    angles: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """What `simulator.make_env` is told: the state is what is observed, and begins with
    independent entries of this mean and std.  `angles` as in `belief`."""

    def initial(key: Key) -> Array:
        noise = jax.random.normal(key, (len(mean),))
        return jnp.array(mean) + jnp.array(std) * noise

    return {
        "initial": initial,
        "observe": lambda state: state,
        "reward": lambda obs, action, next_obs: reward(goal, next_obs),
        "belief": belief(goal, mean, std, angles),
    }


def reward(goal: Goal, obs: Array) -> Array:
    entries = _with_sums(goal, len(obs)) @ obs
    others = [i for i in range(len(entries)) if i not in goal.angles]
    features = [entries[i] for i in others]
    for i in goal.angles:
        features += [jnp.sin(entries[i]), jnp.cos(entries[i])]
    away = jnp.array(goal.point) @ jnp.stack(features) - jnp.array(goal.place)
    return jnp.expm1(-(away @ away) / (2 * goal.width**2))


def belief(
    goal: Goal,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    angles: tuple[int, ...] | None = None,
) -> Belief:
    """Of an environment whose first observation has this mean and std.

    `angles` are those of the goal if None.
    """

    def expected(mean: Array, cov: Array) -> Array:
        sums, matrix = _with_sums(goal, len(mean)), jnp.array(goal.point)
        place = jnp.array(goal.place)
        point = moments.chain(
            moments.Normal(mean, cov),
            lambda x: moments.linear(x, sums, jnp.zeros(len(sums))),
            lambda x: moments.with_angles(x, goal.angles),
            lambda x: moments.linear(x, matrix, jnp.zeros_like(place)),
        )
        root = jnp.eye(len(place)) / goal.width
        return -moments.saturating_cost(point.normal, place, root)

    return Belief(mean, std, goal.angles if angles is None else angles, expected)


def _with_sums(goal: Goal, size: int) -> Array:
    """[O + S, O]"""
    return jnp.concatenate([jnp.eye(size), jnp.array(goal.sums).reshape(-1, size)])
