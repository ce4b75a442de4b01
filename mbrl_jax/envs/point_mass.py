"""Point mass: push a mass of 1 kg to a goal in the plane, and stop there.

The double integrator, stepped exactly for a force held over the step (Astrom and
Wittenmark, "Computer-controlled systems", 1997, Ex. 2.2).  obs (x, y, x_dot, y_dot,
goal x, goal y), m and m/s; action: the force along x and y, N.
reward: -|position - goal|^2 - 0.1 |velocity|^2 - 0.01 |action|^2, after the step.

`windy` goes from near one corner to another, and is pushed about on its way: by a wind
that blows as it does where the mass is when a step begins, and is not observed.
`turned` goes from near any of the four corners to the opposite one, and its thrusters
are turned against the axes, by a quarter clockwise from goal to goal anticlockwise:
what is right from one corner is wrong from the next.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

DT = 0.1  # s
MAX_FORCE = 1.0  # N
RANGE = 1.0  # m, starts and goals are uniform within +-
VELOCITY_COST = 0.1
ACTION_COST = 0.01
EPISODE_LENGTH = 100
CORNER, SPREAD = 0.8, 0.05  # m, of windy starts, and how far around it they are
WIND = 0.4  # N, the most along x and y
GUSTS = 3.0  # rad/m, how the wind turns along the way


class State(NamedTuple):
    position: Array  # [2]
    velocity: Array  # [2]
    goal: Array  # [2]


def make() -> Env:
    return _make("point_mass", initial, dynamics)


def windy() -> Env:
    return _make("windy_point_mass", windy_initial, windy_dynamics)


def turned() -> Env:
    return _make("turned_point_mass", turned_initial, turned_dynamics)


def _make(
    name: str,
    initial: Callable[[Key], State],
    dynamics: Callable[[State, Array], State],
) -> Env:
    return simulator.make_env(
        name,
        initial=initial,
        dynamics=dynamics,
        observe=jnp.concatenate,
        reward=reward,
        shapes=shapes,
        view=raster.View(centre=(0.0, -0.1), half_height=1.4),
        action_size=2,
        action_limit=MAX_FORCE,
        episode_length=EPISODE_LENGTH,
    )


def initial(key: Key) -> State:
    position, goal = jax.random.uniform(key, (2, 2), minval=-RANGE, maxval=RANGE)
    return State(position, jnp.zeros_like(position), goal)


def dynamics(state: State, action: Array) -> State:
    return state._replace(
        position=state.position + DT * state.velocity + DT**2 / 2 * action,
        velocity=state.velocity + DT * action,
    )


def windy_initial(key: Key) -> State:
    away = jax.random.uniform(key, (2,), minval=-SPREAD, maxval=SPREAD)
    corner = jnp.full_like(away, CORNER)
    return State(away - corner, jnp.zeros_like(away), corner)


def windy_dynamics(state: State, action: Array) -> State:
    return dynamics(state, action + wind(state.position))


def turned_initial(key: Key) -> State:
    corner_key, away_key = jax.random.split(key)
    away = jax.random.uniform(away_key, (2,), minval=-SPREAD, maxval=SPREAD)
    corner = CORNER * jax.random.rademacher(corner_key, (2,), away.dtype)
    return State(away - corner, jnp.zeros_like(away), corner)


def turned_dynamics(state: State, action: Array) -> State:
    """To the goal at (1, 1) they push along the axes."""
    x, y = state.goal / CORNER
    cos, sin = (x + y) / 2, (x - y) / 2
    along, across = action
    force = jnp.stack([cos * along - sin * across, sin * along + cos * across])
    return dynamics(state, force)


def wind(position: Array) -> Array:
    """A force [2], N."""
    x, y = GUSTS * position
    return WIND * jnp.stack([jnp.sin(y), jnp.cos(x)])


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    position, velocity, goal = next_obs[:2], next_obs[2:4], next_obs[4:]
    cost = ((position - goal) ** 2).sum() + VELOCITY_COST * (velocity**2).sum()
    return -cost - ACTION_COST * (action**2).sum()


def shapes(state: State) -> list[raster.Shapes]:
    ahead = state.position + 0.3 * state.velocity
    return [
        raster.box((0.0, 0.0), (RANGE, RANGE), raster.STEEL, radius=0.1, opacity=0.25),
        raster.disc(state.goal, 0.16, raster.GREEN, opacity=0.35),
        raster.disc(state.goal, 0.045, raster.GREEN),
        raster.capsule(state.position, ahead, 0.03, raster.STEEL),
        raster.disc(state.position, 0.09, raster.BLUE),
    ]
