"""Gymnasium's Pendulum-v1: swing up a rod with a torque that cannot lift it.

obs (cos th, sin th, th_dot), th = 0 upright, positive anticlockwise, in rad and rad/s;
action: torque in N m.  Constants and the semi-implicit Euler step are Gymnasium's
(Towers et al., 2024, `classic_control/pendulum.py`), so the returns compare.

`pilco` is the pendulum of PILCO.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import saturating, simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key


class Pendulum(NamedTuple):
    """A uniform rod."""

    gravity: float  # m/s^2
    mass: float  # kg
    length: float  # m
    damping: float  # N m s/rad


PENDULUM = Pendulum(gravity=10.0, mass=1.0, length=1.0, damping=0.0)
DT = 0.05  # s
MAX_TORQUE = 2.0  # N m
MAX_SPEED = 8.0  # rad/s, beyond which the speed is cut
START_ANGLE = jnp.pi  # rad, the start is uniform within +-
START_SPEED = 1.0  # rad/s
EPISODE_LENGTH = 200


def make(pendulum: Pendulum = PENDULUM) -> Env:
    """The constants may be traced."""
    return simulator.make_env(
        "pendulum",
        initial=initial,
        dynamics=lambda state, action: dynamics(state, action, pendulum),
        observe=observe,
        reward=reward,
        shapes=lambda state: shapes(state, pendulum.length),
        view=raster.View(centre=(0.0, 0.0), half_height=1.4),
        action_size=1,
        action_limit=MAX_TORQUE,
        episode_length=EPISODE_LENGTH,
    )


def no_velocity() -> Env:
    """`make`, of which only the position (cos th, sin th) is seen."""
    return simulator.partly_observed(make(), "pendulum_no_velocity", lambda x: x[:2])


def initial(key: Key) -> Array:
    """The physical state (th, th_dot), [2]."""
    limit = jnp.array([START_ANGLE, START_SPEED])
    return jax.random.uniform(key, (2,), minval=-limit, maxval=limit)


def dynamics(state: Array, action: Array, pendulum: Pendulum = PENDULUM) -> Array:
    angle, speed = state
    gravity = 3 * pendulum.gravity / (2 * pendulum.length) * jnp.sin(angle)
    torque = action[0] - pendulum.damping * speed
    torque = 3 / (pendulum.mass * pendulum.length**2) * torque
    speed = jnp.clip(speed + (gravity + torque) * DT, -MAX_SPEED, MAX_SPEED)
    return jnp.stack([angle + speed * DT, speed])


def observe(state: Array) -> Array:
    return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])


def place(obs: Array) -> Array:
    """The state that shows `obs`."""
    return jnp.stack([jnp.arctan2(obs[1], obs[0]), obs[2]])


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """Of the state before the step, as in Gymnasium; -16.3 to 0."""
    angle = jnp.arctan2(obs[1], obs[0])  # in [-pi, pi]
    return -(angle**2 + 0.1 * obs[2] ** 2 + 0.001 * action[0] ** 2)


def shapes(state: Array, length: float) -> list[raster.Shapes]:
    hinge = jnp.zeros(2)
    tip = length * jnp.stack([-jnp.sin(state[0]), jnp.cos(state[0])])
    return [
        raster.disc(jnp.array([0.0, length]), 0.16, raster.GREEN, opacity=0.35),
        raster.disc(jnp.array([0.0, length]), 0.045, raster.GREEN),
        raster.capsule(hinge, tip, 0.08, raster.BLUE),
        raster.disc(hinge, 0.05, raster.INK),
    ]


# --- The pendulum of PILCO (Deisenroth, McHutchon, Hall and Rasmussen, 2013).

PILCO = Pendulum(gravity=9.82, mass=1.0, length=1.0, damping=0.01)
PILCO_DT, PILCO_SUBSTEPS = 0.1, 8
PILCO_MAX_TORQUE = 2.5  # N m
PILCO_START, PILCO_START_STD = (math.pi, 0.0), (0.1, 0.1)
PILCO_GOAL = saturating.Goal(
    angles=(0,),
    point=((0.0, -1.0, 0.0), (0.0, 0.0, 1.0)),  # the tip, m
    place=(0.0, 1.0),
    width=0.5,
)


def pilco(pendulum: Pendulum = PILCO) -> Env:
    """Swing the rod up from hanging, within 4 s.

    Its constants may be traced; reward and drawing have their own.
    obs (th, th_dot), the angle not wrapped; action: torque in N m.  reward: see
    `saturating`, of the tip, with a width of 0.5 m: 0 upright, -1 hanging.
    Deviation: observations are without noise; the original's has std (0.01, 0.1).
    """
    return simulator.make_env(
        "pendulum_pilco",
        dynamics=lambda state, action: pilco_dynamics(state, action, pendulum),
        shapes=lambda state: shapes(state, PILCO.length),
        view=raster.View(centre=(0.0, 0.0), half_height=1.4),
        action_size=1,
        action_limit=PILCO_MAX_TORQUE,
        episode_length=40,
        **saturating.task(PILCO_GOAL, PILCO_START, PILCO_START_STD),
    )


def pilco_dynamics(state: Array, action: Array, pendulum: Pendulum = PILCO) -> Array:
    gravity, mass, length, damping = pendulum
    inertia = mass * length**2 / 3  # about the hinge, kg m^2

    def derivative(state: Array) -> Array:
        angle, speed = state
        weight = mass * gravity * length / 2 * jnp.sin(angle)
        return jnp.stack([speed, (weight + action[0] - damping * speed) / inertia])

    return simulator.rk4(derivative, state, PILCO_DT / PILCO_SUBSTEPS, PILCO_SUBSTEPS)
