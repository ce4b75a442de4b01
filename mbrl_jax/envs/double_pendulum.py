"""Double pendulums of PILCO: `make` drives both links, `pendubot` only the inner one.

By Deisenroth, McHutchon, Hall and Rasmussen, "PILCO code documentation", 2013, and
Deisenroth, "Efficient reinforcement learning using Gaussian processes", 2010, App. C.
obs (th1, th2, th1_dot, th2_dot), rad and rad/s: both angles are from upright, positive
anticlockwise, not wrapped.  Actions: torques in N m, between each link and the ground
as in the original; motors in the joints would give the same motion with the torques
a1 + a2 and a2.  reward: see `saturating`, of the tip: 0 upright, -1 hanging.

Deviation: observations are without noise; the original's has a std of 0.01.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp

from mbrl_jax.envs import saturating, simulator
from mbrl_jax.ops import raster, two_link
from mbrl_jax.types import Array, Env

LENGTH, MASS = 0.5, 0.5  # m, kg, of each link, a uniform rod
LINKS = two_link.TwoLink(
    lengths=(LENGTH, LENGTH),
    masses=(MASS, MASS),
    centres=(LENGTH / 2, LENGTH / 2),
    inertias=(MASS * LENGTH**2 / 12, MASS * LENGTH**2 / 12),
    gravity=9.82,
)
DT, SUBSTEPS = 0.1, 32  # s, and steps of integration in it
MAX_TORQUE, WIDTH = 2.0, 0.5  # N m, m
PENDUBOT_DT, PENDUBOT_SUBSTEPS = 0.05, 16
PENDUBOT_MAX_TORQUE, PENDUBOT_WIDTH = 3.5, 0.25
DURATION = 3.0  # s, of an episode
START = (math.pi, math.pi, 0.0, 0.0)
START_STD = (0.01, 0.01, 0.1, 0.1)


def make(links: two_link.TwoLink = LINKS) -> Env:
    """Two torques.  The constants may be traced; reward and drawing have their own."""
    return _make("double_pendulum", dynamics, links, 2, MAX_TORQUE, DT, WIDTH)


def pendubot(links: two_link.TwoLink = LINKS) -> Env:
    """One torque, at the shoulder.  The constants may be traced, as those of `make`."""
    sizes = PENDUBOT_MAX_TORQUE, PENDUBOT_DT, PENDUBOT_WIDTH
    return _make("pendubot", pendubot_dynamics, links, 1, *sizes)


def _make(
    name: str,
    move: Callable[[Array, Array, two_link.TwoLink], Array],
    links: two_link.TwoLink,
    action_size: int,
    action_limit: float,
    dt: float,
    width: float,
) -> Env:
    target = goal(width)
    return simulator.make_env(
        name,
        dynamics=lambda state, action: move(state, action, links),
        shapes=shapes,
        view=raster.View(centre=(0.0, 0.0), half_height=1.3),
        action_size=action_size,
        action_limit=action_limit,
        episode_length=round(DURATION / dt),
        **saturating.task(target, START, START_STD),
    )


def goal(width: float) -> saturating.Goal:
    """The tip, m, of th1_dot, th2_dot, and sin and cos of th1 and th2."""
    return saturating.Goal(
        angles=(0, 1),
        point=(
            (0.0, 0.0, -LENGTH, 0.0, -LENGTH, 0.0),
            (0.0, 0.0, 0.0, LENGTH, 0.0, LENGTH),
        ),
        place=(0.0, 2 * LENGTH),
        width=width,
    )


def dynamics(state: Array, action: Array, links: two_link.TwoLink = LINKS) -> Array:
    """Of `make`."""
    return _dynamics(state, action, links, DT, SUBSTEPS)


def pendubot_dynamics(
    state: Array, action: Array, links: two_link.TwoLink = LINKS
) -> Array:
    return _dynamics(state, action, links, PENDUBOT_DT, PENDUBOT_SUBSTEPS)


def _dynamics(
    state: Array, action: Array, links: two_link.TwoLink, dt: float, substeps: int
) -> Array:
    outer = action[1] if len(action) > 1 else jnp.zeros_like(action[0])
    torques = jnp.stack([action[0] + outer, outer])  # of the joints

    def derivative(state: Array) -> Array:
        th1, th2, th1_dot, th2_dot = state
        angles = jnp.stack([th1 + jnp.pi, th2 - th1])
        speeds = jnp.stack([th1_dot, th2_dot - th1_dot])
        inner, elbow = two_link.acceleration(links, angles, speeds, torques)
        return jnp.stack([th1_dot, th2_dot, inner, inner + elbow])

    return simulator.rk4(derivative, state, dt / substeps, substeps)


def shapes(state: Array) -> list[raster.Shapes]:
    shoulder, target = jnp.zeros(2), jnp.array([0.0, 2 * LENGTH])
    elbow = LENGTH * jnp.stack([-jnp.sin(state[0]), jnp.cos(state[0])])
    tip = elbow + LENGTH * jnp.stack([-jnp.sin(state[1]), jnp.cos(state[1])])
    return [
        raster.disc(target, 0.14, raster.GREEN, opacity=0.35),
        raster.disc(target, 0.04, raster.GREEN),
        raster.capsule(shoulder, elbow, 0.05, raster.BLUE),
        raster.capsule(elbow, tip, 0.05, raster.AMBER),
        raster.disc(shoulder, 0.03, raster.PAPER),
        raster.disc(elbow, 0.03, raster.PAPER),
    ]
