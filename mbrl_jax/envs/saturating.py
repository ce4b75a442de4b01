"""The reward of PILCO's tasks: -(1 - exp(-distance^2 / (2 width^2))), in [-1, 0].

The distance is that of a point from its place, where the point is linear in the
observation once each angle in it counts by its sine and cosine; so the expectation over
a Gaussian is closed-form too.  Deisenroth and Rasmussen, "PILCO: a model-based and
data-efficient approach to policy search", 2011, Sec. 2.2 and 3.
"""

from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.ops import moments
from mbrl_jax.types import Array, Belief


class Goal(NamedTuple):
    """Where which point is to be, in P dimensions."""

    angles: tuple[int, ...]  # entries of obs, rad
    point: tuple[tuple[float, ...], ...]
    # [P, F], of the entries that are no angles, then sin and cos of each angle
    place: tuple[float, ...]  # [P]
    width: float  # of the cost, in the unit of `place`


def reward(goal: Goal, obs: Array) -> Array:
    others = [i for i in range(len(obs)) if i not in goal.angles]
    features = [obs[i] for i in others]
    for i in goal.angles:
        features += [jnp.sin(obs[i]), jnp.cos(obs[i])]
    away = jnp.array(goal.point) @ jnp.stack(features) - jnp.array(goal.place)
    return jnp.expm1(-(away @ away) / (2 * goal.width**2))


def belief(goal: Goal, mean: tuple[float, ...], std: tuple[float, ...]) -> Belief:
    """Of an environment whose first observation has this mean and std."""

    def expected(mean: Array, cov: Array) -> Array:
        matrix, place = jnp.array(goal.point), jnp.array(goal.place)
        point = moments.chain(
            moments.Normal(mean, cov),
            lambda x: moments.with_angles(x, goal.angles),
            lambda x: moments.linear(x, matrix, jnp.zeros_like(place)),
        )
        precision = jnp.eye(len(place)) / goal.width**2
        return -moments.saturating_cost(point.normal, place, precision)

    return Belief(mean, std, goal.angles, expected)
