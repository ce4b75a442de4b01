"""Lagrange's equations of bodies in a plane, from where these are: an oracle."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


class Bodies(NamedTuple):
    """N of them, in the coordinates q [Q]."""

    places: Callable[[Array], tuple[Array, Array]]
    # q -> centres of mass (right, up) [N, 2], m, and angles [N], rad
    masses: tuple[float, ...]
    inertias: tuple[float, ...]  # about the centres of mass
    gravity: float


def energies(bodies: Bodies, q: Array, q_dot: Array) -> tuple[Array, Array]:
    """Kinetic and potential, J."""
    (positions, _), (velocities, turns) = jax.jvp(bodies.places, (q,), (q_dot,))
    masses, inertias = jnp.array(bodies.masses), jnp.array(bodies.inertias)
    kinetic = masses @ (velocities**2).sum(axis=1) + inertias @ turns**2
    return kinetic / 2, bodies.gravity * masses @ positions[:, 1]


def acceleration(bodies: Bodies, q: Array, q_dot: Array, forces: Array) -> Array:
    """q_ddot of d/dt (dL/dq_dot) - dL/dq = forces."""

    def lagrangian(q: Array, q_dot: Array) -> Array:
        kinetic, potential = energies(bodies, q, q_dot)
        return kinetic - potential

    momentum = jax.grad(lagrangian, argnums=1)
    mass = jax.jacobian(momentum, argnums=1)(q, q_dot)
    drift = jax.jacobian(momentum, argnums=0)(q, q_dot) @ q_dot
    push = forces + jax.grad(lagrangian)(q, q_dot) - drift
    return jnp.linalg.solve(mass, push)
