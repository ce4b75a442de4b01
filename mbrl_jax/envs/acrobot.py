"""Acrobot: swing a double pendulum up by its elbow, and balance it.

obs (cos q1, sin q1, cos q2, sin q2, q1_dot, q2_dot): q1 of the first link from hanging,
q2 of the second from the first, anticlockwise, rad and rad/s; action: the torque at the
elbow, in units of its `gear`.
reward: exp(-(distance of the tip from its place upright, in lengths of both links)^2)
- 0.01 action^2: about 1 per step when solved, 0.02 hanging.

The links and the step of integration are those of Sutton, "Generalization in
reinforcement learning: successful examples using sparse coarse coding", 1996 (after
Spong, "The swing up control problem for the Acrobot", 1995).  Deviations: the torque is
continuous and stronger, acts for two steps of 0.05 s in place of four, speeds are not
cut, and the reward is dense, so that balancing counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster, two_link
from mbrl_jax.types import Array, Env, Key

LENGTHS = (1.0, 1.0)  # m
LINKS = two_link.TwoLink(
    lengths=LENGTHS,
    masses=(1.0, 1.0),
    centres=(0.5, 0.5),
    inertias=(1.0, 1.0),
    gravity=9.8,
)


class Acrobot(NamedTuple):
    links: two_link.TwoLink
    gear: float  # N m at action 1


ACROBOT = Acrobot(LINKS, gear=5.0)
DT, SUBSTEPS = 0.1, 2  # s, and steps of integration in it
START_STD = 0.1  # of all four, around hanging at rest
ACTION_COST = 0.01
EPISODE_LENGTH = 200


def make(acrobot: Acrobot = ACROBOT) -> Env:
    """The constants may be traced; reward and drawing have their own."""
    return simulator.make_env(
        "acrobot",
        initial=initial,
        dynamics=lambda state, action: dynamics(state, action, acrobot),
        observe=observe,
        reward=reward,
        shapes=shapes,
        view=raster.View(centre=(0.0, 0.0), half_height=2.6),
        action_size=1,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
    )


def initial(key: Key) -> Array:
    """The physical state (q1, q2, q1_dot, q2_dot), [4]."""
    return START_STD * jax.random.normal(key, (4,))


def dynamics(state: Array, action: Array, acrobot: Acrobot = ACROBOT) -> Array:
    torques = jnp.stack([jnp.zeros_like(action[0]), acrobot.gear * action[0]])

    def derivative(state: Array) -> Array:
        angles, speeds = state[:2], state[2:]
        acceleration = two_link.acceleration(acrobot.links, angles, speeds, torques)
        return jnp.concatenate([speeds, acceleration])

    return simulator.rk4(derivative, state, DT / SUBSTEPS, SUBSTEPS)


def observe(state: Array) -> Array:
    q1, q2, q1_dot, q2_dot = state
    return jnp.stack(
        [jnp.cos(q1), jnp.sin(q1), jnp.cos(q2), jnp.sin(q2), q1_dot, q2_dot]
    )


def place(obs: Array) -> Array:
    """The state that shows `obs`."""
    return jnp.concatenate([jnp.arctan2(obs[1:4:2], obs[0:4:2]), obs[4:]])


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    right, down = two_link.tip(LENGTHS, next_obs[0:4:2], next_obs[1:4:2])
    reach = sum(LENGTHS)
    distance = (right / reach) ** 2 + (down / reach + 1) ** 2
    return jnp.exp(-distance) - ACTION_COST * action[0] ** 2


def shapes(state: Array) -> list[raster.Shapes]:
    first, second = state[0], state[0] + state[1]
    shoulder = jnp.zeros(2)
    elbow = LENGTHS[0] * jnp.stack([jnp.sin(first), -jnp.cos(first)])
    tip = elbow + LENGTHS[1] * jnp.stack([jnp.sin(second), -jnp.cos(second)])
    target = jnp.array([0.0, sum(LENGTHS)])
    return [
        raster.disc(target, 0.28, raster.GREEN, opacity=0.35),
        raster.disc(target, 0.08, raster.GREEN),
        raster.capsule(shoulder, elbow, 0.1, raster.BLUE),
        raster.capsule(elbow, tip, 0.1, raster.AMBER),
        raster.disc(shoulder, 0.06, raster.PAPER),
        raster.disc(elbow, 0.06, raster.PAPER),
    ]
