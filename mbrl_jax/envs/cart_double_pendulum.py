"""PILCO's cart with a double pendulum: swing both links up by pushing the cart.

By Deisenroth, McHutchon, Hall and Rasmussen, "PILCO code documentation", 2013, and
Deisenroth, "Efficient reinforcement learning using Gaussian processes", 2010, App. C.
obs (x, th1, th2, x_dot, th1_dot, th2_dot), m, rad, m/s and rad/s: both angles are from
upright, positive to the right, not wrapped; action: the force on the cart, N; the
track has no end.  reward: see `saturating`, of the tip, with a width of 0.5 m: 0
upright over x = 0, -1 hanging.

Deviations: the tip is where links of 0.6 m end, not of 1 m as in the original's cost;
observations are without noise, the original's has a std of 0.01.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.envs import saturating, simulator
from mbrl_jax.ops import raster
from mbrl_jax.ops.circle import cos_sin
from mbrl_jax.types import Array, Env

Motion = tuple[Array, Array, Array, Array, Array, Array]  # a state, or its derivative


class CartDoublePendulum(NamedTuple):
    """The links, inner and outer, are uniform rods."""

    cart_mass: float  # kg
    masses: tuple[float, float]  # kg
    lengths: tuple[float, float]  # m
    gravity: float  # m/s^2
    damping: float  # N s/m, of the cart


LENGTH = 0.6
SYSTEM = CartDoublePendulum(
    cart_mass=0.5,
    masses=(0.5, 0.5),
    lengths=(LENGTH, LENGTH),
    gravity=9.82,
    damping=0.1,
)
DT, SUBSTEPS = 0.05, 16  # s, and steps of integration in it
MAX_FORCE = 20.0  # N
EPISODE_LENGTH = 100
START = (0.0, math.pi, math.pi, 0.0, 0.0, 0.0)
START_STD = (0.1, 0.01, 0.01, 0.1, 0.1, 0.1)
GOAL = saturating.Goal(
    angles=(1, 2),
    # the tip, m, of x, three velocities, and sin and cos of th1 and th2
    point=(
        (1.0, 0.0, 0.0, 0.0, LENGTH, 0.0, LENGTH, 0.0),
        (0.0, 0.0, 0.0, 0.0, 0.0, LENGTH, 0.0, LENGTH),
    ),
    place=(0.0, 2 * LENGTH),
    width=0.5,
)


def make(system: CartDoublePendulum = SYSTEM) -> Env:
    """The constants may be traced; reward and drawing have their own."""
    return simulator.make_env(
        "cart_double_pendulum",
        dynamics=lambda state, action: dynamics(state, action, system),
        shapes=shapes,
        view=raster.View((0.0, 0.0), half_height=1.6, height=180, width=360),
        action_size=1,
        action_limit=MAX_FORCE,
        episode_length=EPISODE_LENGTH,
        **saturating.task(GOAL, START, START_STD),
    )


def accelerations(
    system: CartDoublePendulum, state: Motion, force: Array
) -> tuple[Array, Array, Array]:
    """Of the cart (m/s^2) and the links (rad/s^2): Lagrange's equations, solved.

    mass (x_ddot, th1_ddot, th2_ddot) = pushes, of which the cart is eliminated first.
    """
    cart_mass, (m1, m2), (l1, l2), gravity, damping = system
    _, th1, th2, x_dot, th1_dot, th2_dot = state
    (cos1, sin1), (cos2, sin2) = cos_sin(th1), cos_sin(th2)
    total = cart_mass + m1 + m2
    moment1, moment2 = (m1 / 2 + m2) * l1, m2 * l2 / 2  # kg m
    inertia1, inertia2 = (m1 / 3 + m2) * l1**2, m2 * l2**2 / 3  # kg m^2
    coupling = moment2 * l1
    along, across = cos1 * cos2 + sin1 * sin2, sin1 * cos2 - cos1 * sin2

    cart = force - damping * x_dot
    cart += moment1 * th1_dot**2 * sin1 + moment2 * th2_dot**2 * sin2
    push = cart / total
    turn1 = moment1 * (gravity * sin1 - push * cos1) - coupling * th2_dot**2 * across
    turn2 = moment2 * (gravity * sin2 - push * cos2) + coupling * th1_dot**2 * across

    share1, share2 = moment1 * cos1 / total, moment2 * cos2 / total
    m11 = inertia1 - share1 * moment1 * cos1
    m12 = coupling * along - share1 * moment2 * cos2
    m22 = inertia2 - share2 * moment2 * cos2
    determinant = m11 * m22 - m12**2
    th1_ddot = (m22 * turn1 - m12 * turn2) / determinant
    th2_ddot = (m11 * turn2 - m12 * turn1) / determinant
    return push - share1 * th1_ddot - share2 * th2_ddot, th1_ddot, th2_ddot


def dynamics(state: Array, action: Array, system: CartDoublePendulum = SYSTEM) -> Array:
    def derivative(state: Motion) -> Motion:
        return *state[3:], *accelerations(system, state, action[0])

    # as scalars: to differentiate slices and stacks of vectors takes twice as long
    x, th1, th2, x_dot, th1_dot, th2_dot = state
    start = x, th1, th2, x_dot, th1_dot, th2_dot
    return jnp.stack(simulator.rk4(derivative, start, DT / SUBSTEPS, SUBSTEPS))


def shapes(state: Array) -> list[raster.Shapes]:
    hinge = jnp.stack([state[0], jnp.zeros_like(state[0])])
    target = jnp.array([0.0, 2 * LENGTH])
    elbow = hinge + LENGTH * jnp.stack([jnp.sin(state[1]), jnp.cos(state[1])])
    tip = elbow + LENGTH * jnp.stack([jnp.sin(state[2]), jnp.cos(state[2])])
    return [
        raster.disc(target, 0.18, raster.GREEN, opacity=0.35),
        raster.disc(target, 0.05, raster.GREEN),
        raster.capsule((-9.0, 0.0), (9.0, 0.0), 0.015, raster.STEEL),
        raster.box(hinge, (0.2, 0.08), raster.INK, radius=0.03),
        raster.capsule(hinge, elbow, 0.05, raster.BLUE),
        raster.capsule(elbow, tip, 0.05, raster.AMBER),
        raster.disc(hinge, 0.03, raster.PAPER),
        raster.disc(elbow, 0.03, raster.PAPER),
    ]
