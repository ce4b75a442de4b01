"""Two peaks: one step in which two actions are good, and one of them is better.

obs is 0, of size 1.  action: a point of the square [-1, 1]^2.  reward: the higher one
of two bumps, `HIGH` of 1 and, across the middle, `LOW` of 0.6, which is wider.  The
best return is 1; who climbs from the middle finds 0.6, who fits one peak to both gets
less.
"""

import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

HIGH = (0.5, 0.5, 1.0, 0.25)  # where [2], how high, how wide (standard deviation)
LOW = (-0.5, -0.5, 0.6, 0.4)


def make() -> Env:
    return simulator.make_env(
        "two_peaks",
        initial=_zero,
        dynamics=lambda state, action: jnp.concatenate([state[:1], action]),
        observe=lambda state: state[:1],
        reward=lambda obs, action, next_obs: height(action),
        terminal=lambda obs, action, next_obs: jnp.ones((), bool),
        shapes=_shapes,
        view=raster.View(centre=(0.0, 0.0), half_height=1.1),
        action_size=2,
        action_limit=1.0,
        episode_length=1,
    )


def height(action: Array) -> Array:
    """Of the higher bump at a point [2], in [0, 1]."""
    return jnp.maximum(*(_bump(action, *bump) for bump in (HIGH, LOW)))


def _bump(action: Array, x: float, y: float, top: float, width: float) -> Array:
    away = action - jnp.array([x, y], action.dtype)
    return top * jnp.exp(-(away**2).sum() / (2 * width**2))


def _zero(key: Key) -> Array:
    """The obs, and the last action."""
    return jnp.zeros(3)


def _shapes(state: Array) -> list[raster.Shapes]:
    rings = [
        raster.disc((x, y), share * width, raster.GREEN, opacity=0.5 * top)
        for x, y, top, width in (LOW, HIGH)
        for share in (1.0, 0.5)
    ]
    return [*rings, raster.disc(state[1:], 0.06, raster.BLUE)]
