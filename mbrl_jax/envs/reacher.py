"""Reacher: bring the tip of a two-link arm to a goal in a horizontal plane.

obs (cos q1, sin q1, cos q2, sin q2, q1_dot, q2_dot, goal x, goal y), as in Gymnasium's
Reacher (Towers et al., 2024) but without the tip, which follows from the angles; rad,
rad/s, m.  q1 of the first link from the x axis, q2 of the second from the first.
action: the torques at shoulder and elbow, in units of its `gear`.
reward: -(distance of the tip from the goal, m) - 0.01 |action|^2.
The arm is our own: two uniform rods with viscous joints and no stops.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster, two_link
from mbrl_jax.types import Array, Env, Key

LENGTHS = (0.5, 0.5)  # m
LINKS = two_link.TwoLink(
    lengths=LENGTHS,
    masses=(1.0, 1.0),
    centres=(0.25, 0.25),
    inertias=(0.5**2 / 12, 0.5**2 / 12),
    gravity=0.0,
)


class Reacher(NamedTuple):
    links: two_link.TwoLink
    damping: float  # N m s/rad, of both joints
    gear: float  # N m at action 1


REACHER = Reacher(LINKS, damping=0.1, gear=1.0)
DT = 0.05  # s
GOAL_RANGE = (0.2, 0.9)  # m from the shoulder
START_SPEED_STD = 0.1  # rad/s; the angles start anywhere
ACTION_COST = 0.01
ROUNDING = 1e-3  # m, within which the distance is smooth
EPISODE_LENGTH = 100


class State(NamedTuple):
    arm: Array  # [4] q1, q2, q1_dot, q2_dot
    goal: Array  # [2]


def make(reacher: Reacher = REACHER) -> Env:
    """The constants may be traced; reward and drawing have their own."""
    return simulator.make_env(
        "reacher",
        initial=initial,
        dynamics=lambda state, action: dynamics(state, action, reacher),
        observe=observe,
        reward=reward,
        shapes=shapes,
        view=raster.View(centre=(0.0, -0.1), half_height=1.25),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
    )


def initial(key: Key) -> State:
    """The goal is uniform in distance and direction."""
    angle_key, speed_key, distance_key, direction_key = jax.random.split(key, 4)
    angles = jax.random.uniform(angle_key, (2,), minval=-jnp.pi, maxval=jnp.pi)
    speeds = START_SPEED_STD * jax.random.normal(speed_key, (2,))
    low, high = GOAL_RANGE
    distance = jax.random.uniform(distance_key, minval=low, maxval=high)
    direction = jax.random.uniform(direction_key, minval=-jnp.pi, maxval=jnp.pi)
    goal = distance * jnp.stack([jnp.cos(direction), jnp.sin(direction)])
    return State(jnp.concatenate([angles, speeds]), goal)


def dynamics(state: State, action: Array, reacher: Reacher = REACHER) -> State:
    def derivative(arm: Array) -> Array:
        angles, speeds = arm[:2], arm[2:]
        torques = reacher.gear * action - reacher.damping * speeds
        acceleration = two_link.acceleration(reacher.links, angles, speeds, torques)
        return jnp.concatenate([speeds, acceleration])

    return state._replace(arm=simulator.rk4(derivative, state.arm, DT))


def observe(state: State) -> Array:
    q1, q2, q1_dot, q2_dot = state.arm
    circles = [jnp.cos(q1), jnp.sin(q1), jnp.cos(q2), jnp.sin(q2)]
    return jnp.concatenate([jnp.stack([*circles, q1_dot, q2_dot]), state.goal])


def place(obs: Array) -> State:
    """The state that shows `obs`."""
    angles = jnp.arctan2(obs[1:4:2], obs[0:4:2])
    return State(jnp.concatenate([angles, obs[4:6]]), obs[6:])


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    y, x = two_link.tip(LENGTHS, next_obs[0:4:2], next_obs[1:4:2])
    square = (x - next_obs[6]) ** 2 + (y - next_obs[7]) ** 2
    distance = jnp.sqrt(square + ROUNDING**2) - ROUNDING
    return -distance - ACTION_COST * (action**2).sum()


def shapes(state: State) -> list[raster.Shapes]:
    first, second = state.arm[0], state.arm[0] + state.arm[1]
    shoulder = jnp.zeros(2)
    elbow = LENGTHS[0] * jnp.stack([jnp.cos(first), jnp.sin(first)])
    tip = elbow + LENGTHS[1] * jnp.stack([jnp.cos(second), jnp.sin(second)])
    return [
        raster.disc(shoulder, sum(LENGTHS), raster.STEEL, opacity=0.25),
        raster.disc(state.goal, 0.12, raster.GREEN, opacity=0.35),
        raster.disc(state.goal, 0.035, raster.GREEN),
        raster.capsule(shoulder, elbow, 0.045, raster.BLUE),
        raster.capsule(elbow, tip, 0.045, raster.AMBER),
        raster.disc(shoulder, 0.028, raster.PAPER),
        raster.disc(elbow, 0.028, raster.PAPER),
        raster.disc(tip, 0.028, raster.PAPER),
    ]
