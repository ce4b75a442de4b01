"""Planar: a point among obstacles, to be brought to one place.

The smallest task of control from pictures (Watter et al., 2015, "Embed to control",
Sec. 4.1), with a layout of its own.  obs: the point (x, y), m, in the square of
+-`RANGE`.  action: a move of `STEP` at most along x and y; one that would end in an
obstacle or outside does not happen.  reward: -|position - goal|^2, after the step.
Starts are uniform over all free places.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

RANGE, STEP = 1.0, 0.15  # m
GOAL = (0.7, 0.7)
OBSTACLES = ((-0.55, 0.0), (0.55, 0.0), (0.0, 0.55), (0.0, -0.55))
RADIUS, SIZE = 0.15, 0.15  # m, of the obstacles and of the point
EPISODE_LENGTH = 40
NUM_TRIES = 20  # to find a free place: about a quarter of the square is not free


def make() -> Env:
    return simulator.make_env(
        "planar",
        initial=initial,
        dynamics=dynamics,
        observe=lambda position: position,
        reward=lambda obs, action, next_obs: -((next_obs - jnp.array(GOAL)) ** 2).sum(),
        shapes=shapes,
        view=raster.View(centre=(0.0, 0.0), half_height=RANGE + SIZE),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
        goal=lambda: jnp.array(GOAL),
    )


def initial(key: Key) -> Array:
    places = jax.random.uniform(key, (NUM_TRIES, 2), minval=-RANGE, maxval=RANGE)
    return places[jnp.argmax(jax.vmap(free)(places))]


def dynamics(position: Array, action: Array) -> Array:
    ahead = position + STEP * action
    return jnp.where(free(ahead), ahead, position)


def free(position: Array) -> Array:
    """Whether the point may be there, [] bool."""
    away = jnp.array(OBSTACLES) - position[None]
    clear = ((away**2).sum(axis=1) > (RADIUS + SIZE) ** 2).all()
    return clear & (jnp.abs(position) <= RANGE).all()


def shapes(position: Array) -> list[raster.Shapes]:
    walls = [raster.disc(place, RADIUS, raster.STEEL) for place in OBSTACLES]
    return [*walls, raster.disc(position, SIZE, raster.INK)]
