"""Points followed from picture to picture, also where they are not seen for a while.

Each point by itself, and x and y alike, by a Kalman filter with a constant velocity
(`planners/lqg.py`); the unit of time is a step:

    (place, velocity)' = [[1, 1], [0, 1]] (place, velocity) + [1/2, 1] acceleration

A point counts as seen where its presence is at least `least_presence`; where it is not,
it goes on as predicted (Finn et al., 2016, "Deep spatial autoencoders for visuomotor
learning", Sec. V).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.models.spatial_autoencoder import Points
from mbrl_jax.ops import checks
from mbrl_jax.planners import lqg
from mbrl_jax.types import Array

UNKNOWN_STD = 1.0  # of a place before a first picture: the picture is of +-1


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters, in units of half a picture, and of a step."""

    least_presence: float = 0.1  # of a point that is seen, see `spatial_autoencoder`
    acceleration_std: float = 0.05  # of what moves
    place_std: float = 0.01  # of where a point is seen


class Track(NamedTuple):
    """A normal distribution of each point's place and velocity."""

    mean: Array  # [P, 2, 2] (place, velocity) x (x, y)
    cov: Array  # [P, 2, 2] of place and velocity, along x, and likewise along y

    @property
    def place(self) -> Array:
        return self.mean[..., 0, :]  # [P, 2]

    @property
    def velocity(self) -> Array:
        return self.mean[..., 1, :]  # [P, 2] per step


def start(points: Points, config: Config = Config()) -> Track:
    """At rest, where they are in a first picture: better is not known."""
    mean = jnp.stack([points.place, jnp.zeros_like(points.place)], axis=1)
    std = jnp.stack([jnp.asarray(UNKNOWN_STD), jnp.asarray(config.acceleration_std)])
    cov = jnp.diag(jnp.square(std)).astype(mean.dtype)
    track = Track(mean, jnp.tile(cov[None], (len(mean), 1, 1)))
    return _corrected(track, points, config)


def follow(track: Track, points: Points, config: Config = Config()) -> Track:
    """A step later, in the next picture."""
    A = jnp.array([[1.0, 1.0], [0.0, 1.0]], track.mean.dtype)
    push = config.acceleration_std * jnp.array([0.5, 1.0], track.mean.dtype)
    noise = jnp.outer(push, push)
    cov = A[None] @ track.cov @ A.T[None] + noise[None]
    return _corrected(Track(A[None] @ track.mean, cov), points, config)


def _corrected(track: Track, points: Points, config: Config) -> Track:
    C = jnp.array([[1.0, 0.0]], track.mean.dtype)
    N = jnp.square(jnp.asarray(config.place_std, track.mean.dtype))[None, None]

    def one(mean: Array, cov: Array, place: Array, presence: Array) -> Track:
        L, after, _ = lqg.correct(cov, C, N)
        seen = presence >= config.least_presence
        moved = mean + L @ (place[None] - C @ mean)
        return Track(jnp.where(seen, moved, mean), jnp.where(seen, after, cov))

    return jax.vmap(one)(track.mean, track.cov, points.place, points.presence)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.within(config, 0, 1, "least_presence")
    checks.positive(config, "acceleration_std", "place_std")
