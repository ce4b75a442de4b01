"""Two discs on a table: push one to its place; the other one drifts about.

A small task for control from pictures, in which not all that moves can be moved.  obs
(x, y, x_dot, y_dot) of the pushed disc, then of the other; the table is the square of
+-1, on which their centres stay within `RANGE`, and velocities are per step.  action: a
push along x and y, by which the velocity grows by `PUSH` at most, as it shrinks to
`GLIDE` of itself.  At an edge the pushed disc stops, and the other one turns back.
reward: -|position - goal|^2 - 0.01 |action|^2, of the pushed disc, after the step.
Starts are uniform: the pushed disc at rest, the other one at a speed of `DRIFT`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

RANGE, RADIUS = 0.8, 0.2
GOAL = (0.5, 0.5)
PUSH, GLIDE, DRIFT = 0.04, 0.8, 0.05
ACTION_COST = 0.01
EPISODE_LENGTH = 40


class State(NamedTuple):
    position: Array  # [2]
    velocity: Array  # [2]
    other: Array  # [2]
    drift: Array  # [2] its velocity


def make() -> Env:
    return simulator.make_env(
        "two_discs",
        initial=initial,
        dynamics=dynamics,
        observe=jnp.concatenate,
        reward=reward,
        shapes=shapes,
        view=raster.View(centre=(0.0, 0.0), half_height=1.0),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
        goal=goal,
    )


def initial(key: Key) -> State:
    place_key, heading_key = jax.random.split(key)
    position, other = jax.random.uniform(place_key, (2, 2), minval=-RANGE, maxval=RANGE)
    heading = jax.random.uniform(heading_key, maxval=2 * jnp.pi)
    drift = DRIFT * jnp.stack([jnp.cos(heading), jnp.sin(heading)])
    return State(position, jnp.zeros_like(position), other, drift)


def dynamics(state: State, action: Array) -> State:
    velocity = GLIDE * state.velocity + PUSH * action
    ahead, position = _within(state.position + velocity)
    beyond, other = _within(state.other + state.drift)
    return State(
        position,
        jnp.where(ahead, 0, velocity),
        other,
        jnp.where(beyond, -state.drift, state.drift),
    )


def goal() -> State:
    """In its place, at rest, the other one out of the way."""
    still = jnp.zeros(2)
    return State(jnp.array(GOAL), still, -jnp.array(GOAL), still)


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    away = next_obs[:2] - jnp.array(GOAL)
    return -(away**2).sum() - ACTION_COST * (action**2).sum()


def shapes(state: State) -> list[raster.Shapes]:
    return [
        raster.disc(GOAL, RADIUS, raster.STEEL, opacity=0.25),
        raster.disc(state.other, RADIUS, raster.AMBER),
        raster.disc(state.position, RADIUS, raster.BLUE),
    ]


def _within(position: Array) -> tuple[Array, Array]:
    """Which coordinates would leave the table, and where they stop, both [2]."""
    return jnp.abs(position) > RANGE, jnp.clip(position, -RANGE, RANGE)
