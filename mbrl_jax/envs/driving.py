"""Driving: keep a car going among pillars, which it sees by rays.

The car never stops: `SPEED` m in a step, in a square room of +-`ROOM`.  action: how far
the wheel is turned, of `MAX_TURN` rad a step at most.  obs: the free distance along
`NUM_RAYS` rays over a half circle ahead, from right to left, in units of `SIGHT`, at
most 1.  reward: 1 in a step without a collision; a collision is terminal.  Pillars
stand where they stood in the last episode; starts are free and head anywhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

ROOM, SPEED, MAX_TURN = 1.0, 0.08, 0.35
CAR = 0.06  # m, its radius
PILLARS = ((-0.45, 0.4), (0.4, 0.5), (0.0, -0.15), (-0.55, -0.5), (0.55, -0.45))
RADIUS = 0.14  # m, of a pillar
NUM_RAYS, SIGHT = 9, 1.0  # m
EPISODE_LENGTH = 100
NUM_TRIES = 30  # to find a free start; about a third of the places are
MARGIN = 0.12  # m, that a start is away from everything, besides


class State(NamedTuple):
    position: Array  # [2]
    heading: Array  # [] rad, anticlockwise from the x axis


def make() -> Env:
    return simulator.make_env(
        "driving",
        initial=initial,
        dynamics=dynamics,
        observe=observe,
        reward=lambda obs, action, next_obs: jnp.where(collided(next_obs), 0.0, 1.0),
        terminal=lambda obs, action, next_obs: collided(next_obs),
        shapes=shapes,
        view=raster.View(centre=(0.0, 0.0), half_height=1.1),
        action_size=1,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
    )


def initial(key: Key) -> State:
    place_key, heading_key = jax.random.split(key)
    places = jax.random.uniform(place_key, (NUM_TRIES, 2), minval=-ROOM, maxval=ROOM)
    first = jnp.argmax(jax.vmap(clearance)(places) > MARGIN)
    heading = jax.random.uniform(heading_key, (), minval=-jnp.pi, maxval=jnp.pi)
    return State(places[first], heading)


def dynamics(state: State, action: Array) -> State:
    heading = state.heading + MAX_TURN * action[0]
    ahead = jnp.stack([jnp.cos(heading), jnp.sin(heading)])
    return State(state.position + SPEED * ahead, heading)


def clearance(position: Array) -> Array:
    """How far the car at `position` is from the nearest pillar or wall, m; []."""
    away = jnp.linalg.norm(jnp.array(PILLARS) - position[None], axis=1) - RADIUS
    wall = ROOM - jnp.abs(position)
    return jnp.minimum(away.min(), wall.min()) - CAR


def observe(state: State) -> Array:
    """Free distances [NUM_RAYS]; all are 0 where the car has collided."""
    angles = state.heading + jnp.linspace(-jnp.pi / 2, jnp.pi / 2, NUM_RAYS)
    free = jax.vmap(lambda angle: sight(state.position, angle))(angles)
    seen = jnp.clip((free - CAR) / SIGHT, 0, 1)
    return jnp.where(clearance(state.position) > 0, jnp.maximum(seen, 1e-3), 0.0)


def sight(position: Array, angle: Array) -> Array:
    """Along a ray, to the first pillar or wall, m; []."""
    ahead = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    slow = jnp.where(jnp.abs(ahead) < 1e-6, 1e-6, ahead)
    wall = ((jnp.sign(slow) * ROOM - position) / slow).min()

    def pillar(centre: Array) -> Array:
        gap = centre - position
        along = gap @ ahead
        square = RADIUS**2 - (gap @ gap - along**2)
        met = square > 0
        entry = along - jnp.sqrt(jnp.where(met, square, 1.0))  # 0 has no slope
        return jnp.where(met & (entry > 0), entry, jnp.inf)

    return jnp.minimum(wall, jax.vmap(pillar)(jnp.array(PILLARS)).min())


def collided(obs: Array) -> Array:
    return (obs == 0).all()


def shapes(state: State) -> list[raster.Shapes]:
    nose = jnp.stack([jnp.cos(state.heading), jnp.sin(state.heading)])
    side = ROOM + 0.05
    return [
        raster.box((0.0, 0.0), (side, side), raster.STEEL),
        raster.box((0.0, 0.0), (ROOM, ROOM), raster.PAPER),
        *(raster.disc(place, RADIUS, raster.INK) for place in PILLARS),
        raster.capsule(
            state.position, state.position + 1.6 * CAR * nose, 0.02, raster.AMBER
        ),
        raster.disc(state.position, CAR, raster.BLUE),
    ]
