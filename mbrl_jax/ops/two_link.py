"""The mechanics of two links in a plane, as in the acrobot and the reacher."""

from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.types import Array


class TwoLink(NamedTuple):
    """A planar double pendulum; lengths in m, masses in kg, inertias in kg m^2."""

    lengths: tuple[float, float]
    masses: tuple[float, float]
    centres: tuple[float, float]  # from a link's joint to its centre of mass
    inertias: tuple[float, float]  # about the centres of mass
    gravity: float


def acceleration(
    links: TwoLink, angles: Array, velocities: Array, torques: Array
) -> Array:
    """Joint accelerations, [2], rad/s^2.

    `angles` [2]: the first link's from hanging, the second's from the first link.
    Spong, Hutchinson and Vidyasagar, "Robot modeling and control", 2006, Sec. 7.4.
    """
    (length, _), (m1, m2), (c1, c2), (i1, i2), g = links
    inertia = i2 + m2 * c2**2
    coupling = m2 * length * c2 * jnp.cos(angles[1])
    m11 = i1 + m1 * c1**2 + m2 * length**2 + inertia + 2 * coupling
    m12 = inertia + coupling
    h = m2 * length * c2 * jnp.sin(angles[1])
    v1, v2 = velocities
    weight = m2 * c2 * g * jnp.sin(angles[0] + angles[1])
    f1 = torques[0] + h * (2 * v1 + v2) * v2 - weight
    f1 = f1 - (m1 * c1 + m2 * length) * g * jnp.sin(angles[0])
    f2 = torques[1] - h * v1**2 - weight
    determinant = m11 * inertia - m12**2
    a1 = (inertia * f1 - m12 * f2) / determinant
    a2 = (m11 * f2 - m12 * f1) / determinant
    return jnp.stack([a1, a2])


def tip(lengths: tuple[float, float], cos: Array, sin: Array) -> Array:
    """Where the second link ends, (right, down), [2].

    `cos`, `sin` [2] of the joint angles; a model's need not have length one.
    """
    down = lengths[0] * cos[0] + lengths[1] * (cos[0] * cos[1] - sin[0] * sin[1])
    right = lengths[0] * sin[0] + lengths[1] * (sin[0] * cos[1] + cos[0] * sin[1])
    return jnp.stack([right, down])
