"""Pushing: soft blobs on a table, seen from above; the first is to be at the goal.

A table-top of the kind that visual foresight learns from (Finn and Levine, 2017, "Deep
visual foresight for planning robot motion"), with a physics of its own: everything is
slow and rough, so that nothing moves unless it is pushed, and whatever overlaps is
pushed apart within the step.  action: the velocity of the pusher along x and y, `STEP`
m a step at most.  obs: pusher and `NUM_BLOBS` blobs, (x, y) each, m, in the square of
+-`RANGE`.  reward: -|first blob - goal|^2, after the step.  A blob at the edge stays
there, and the pusher goes over it.

`pushing_occluded` is the same under an arm, which reaches from the lower edge of the
table to the pusher and hides what it passes over, but does not touch it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

RANGE, STEP = 0.7, 0.2  # m
GOAL = (0.0, 0.0)
PUSHER, BLOB, ARM = 0.16, 0.25, 0.2  # m, radii; half the width of the arm
NUM_BLOBS = 1
SOFTNESS = 0.1  # m of overlap, within which the force of a contact builds up
NUM_SUBSTEPS = 4
START_RANGE, LEAST_WAY = 0.5, 0.35  # m, of blobs; from the goal to any of them
NEAR = 0.1  # m, the widest gap between the pusher and the designated blob, at first
EPISODE_LENGTH = 15
NUM_TRIES = 100  # to find places apart from each other
DESIGNATED = raster.AMBER  # the colour


class State(NamedTuple):
    pusher: Array  # [2]
    blobs: Array  # [NUM_BLOBS, 2], the designated one first


def make() -> Env:
    return _make("pushing", arm=False)


def occluded() -> Env:
    return _make("pushing_occluded", arm=True)


def _make(name: str, arm: bool) -> Env:
    return simulator.make_env(
        name,
        initial=initial,
        dynamics=dynamics,
        observe=lambda state: jnp.concatenate([state.pusher, state.blobs.reshape(-1)]),
        reward=lambda obs, action, next_obs: (
            -((next_obs[2:4] - jnp.array(GOAL)) ** 2).sum()
        ),
        shapes=lambda state: shapes(state, arm),
        view=raster.View(centre=(0.0, 0.0), half_height=0.9),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
        goal=goal,
    )


def initial(key: Key) -> State:
    """Everything apart, the blobs away from the goal, the pusher near the designated
    one, on any side of it."""
    tries = jax.vmap(_anywhere)(jax.random.split(key, NUM_TRIES))
    first = jnp.argmax(jax.vmap(apart)(tries))
    return jax.tree.map(lambda x: x[first], tries)


def _anywhere(key: Key) -> State:
    blob_key, angle_key, away_key = jax.random.split(key, 3)
    shape, most = (NUM_BLOBS, 2), START_RANGE
    blobs = jax.random.uniform(blob_key, shape, minval=-most, maxval=most)
    angle = jax.random.uniform(angle_key, (), maxval=2 * jnp.pi)
    away = PUSHER + BLOB + jax.random.uniform(away_key, (), maxval=NEAR)
    aside = away * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return State(blobs[0] + aside, blobs)


def apart(state: State) -> Array:
    """Whether nothing touches and the goal is free, [] bool."""
    places = jnp.concatenate([state.blobs, state.pusher[None], jnp.array([GOAL])])
    room = jnp.full((NUM_BLOBS,), BLOB)
    room = jnp.concatenate([room, jnp.array([PUSHER, LEAST_WAY - BLOB])])
    away = jnp.linalg.norm(places[:, None] - places[None], axis=-1)
    clear = away > room[:, None] + room[None]
    i, j = jnp.triu_indices(NUM_BLOBS + 2, 1)
    within = (jnp.abs(state.pusher) <= RANGE).all()
    return clear[i, j][:-1].all() & within  # the pusher may be at the goal


def goal() -> State:
    """The designated blob there, all else in corners."""
    corner = jnp.array([RANGE, RANGE])
    others = jnp.broadcast_to(-corner, (NUM_BLOBS - 1, 2))
    return State(corner, jnp.concatenate([jnp.array([GOAL]), others]))


def dynamics(state: State, action: Array) -> State:
    def substep(state: State, _: None) -> tuple[State, None]:
        pusher = state.pusher + STEP / NUM_SUBSTEPS * action
        pusher = jnp.clip(pusher, -RANGE, RANGE)
        blobs = state.blobs
        gap = blobs - pusher[None]  # the pusher does not give way
        moved = jax.vmap(lambda x: apart_by(x, PUSHER + BLOB))(gap)
        between = blobs[:, None] - blobs[None]
        give = jax.vmap(jax.vmap(lambda x: apart_by(x, 2 * BLOB)))(between)
        blobs = blobs + moved + give.sum(axis=1) / 2  # each of two goes half of it
        return State(pusher, jnp.clip(blobs, -RANGE, RANGE)), None

    return jax.lax.scan(substep, state, None, length=NUM_SUBSTEPS)[0]


def apart_by(gap: Array, reach: float) -> Array:
    """The move [2] along `gap` that ends an overlap: 0 without one, and smooth."""
    square = (gap**2).sum()
    away = jnp.sqrt(jnp.where(square > 0, square, 1.0))  # 0 has no slope
    overlap = jnp.maximum(reach - away, 0)
    rising = jnp.minimum(overlap, SOFTNESS)
    move = rising**2 / (2 * SOFTNESS) + (overlap - rising)
    return jnp.where(square > 0, move / away, 0.0) * gap


def shapes(state: State, arm: bool) -> list[raster.Shapes]:
    colours = [DESIGNATED] + [raster.BLUE] * (NUM_BLOBS - 1)
    blobs = [
        raster.disc(place, BLOB, colour)
        for place, colour in reversed(list(zip(state.blobs, colours, strict=True)))
    ]
    parts = [raster.box((0.0, 0.0), (0.9, 0.9), raster.PAPER), *blobs]
    if arm:
        below = state.pusher * jnp.array([1.0, 0.0]) - jnp.array([0.0, 2 * RANGE])
        parts.append(raster.capsule(state.pusher, below, ARM, raster.STEEL))
    return [*parts, raster.disc(state.pusher, PUSHER, raster.INK)]
