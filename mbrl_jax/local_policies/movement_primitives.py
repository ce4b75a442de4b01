"""Dynamic movement primitives: a spring to a goal, whose rest a learned motion shifts.

(Ijspeert et al., "Dynamical movement primitives", 2013, Sec. 2.1.)

    tau x' = -decay x                                      the phase, from 1 on
    tau z' = alpha (alpha / 4 (goal + f(x) - y) - z)       critically damped
    tau y' = z
    f(x) = amplitude x sum_k psi_k(x) w_k / sum_k psi_k(x)

Time is in units of tau, the duration of the motion.  Deviation: f is within the
parentheses, so that a weight is a displacement in units of the amplitude; the paper's
is alpha^2 / 4 times as large.

D dimensions, K basis functions of the phase.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.types import Array

ALPHA = 25.0  # of the spring, per duration
LARGEST_STEP = 0.5  # of the integration, in units of 1 / ALPHA


class State(NamedTuple):
    phase: Array  # []
    position: Array  # [D] y
    velocity: Array  # [D] z, per duration


class Shape(NamedTuple):
    """What stays the same throughout a motion."""

    weights: Array  # [D, K]
    goal: Array  # [D]
    amplitude: Array  # [D]
    decay: float | Array  # of the phase, per duration


def start(position: Array) -> State:
    """At rest."""
    return State(jnp.ones((), position.dtype), position, jnp.zeros_like(position))


def advance(shape: Shape, state: State, dt: float, halvings: int = 0) -> State:
    """After `dt` durations, by Runge-Kutta in small steps, halved so many times."""

    def derivative(state: State) -> State:
        phase, y, z = state
        rest = shape.goal + shape.amplitude * (
            shape.weights @ features(phase, shape.weights.shape[1], shape.decay)
        )
        return State(-shape.decay * phase, z, ALPHA * (ALPHA / 4 * (rest - y) - z))

    num_steps = 2**halvings * max(1, math.ceil(dt * ALPHA / LARGEST_STEP))
    return simulator.rk4(derivative, state, dt / num_steps, num_steps)


def unroll(shape: Shape, state: State, num_steps: int) -> State:
    """After each of the steps that a duration has, [num_steps, ...]."""

    def one(state: State, _: None) -> tuple[State, State]:
        after = advance(shape, state, 1 / num_steps)
        return after, after

    return jax.lax.scan(one, state, length=num_steps)[1]


def features(phase: Array, num_basis: int, decay: float | Array) -> Array:
    """phase psi_k / sum psi, [K]: Gaussians with centres equally far apart in time,
    each as wide as the next is far."""
    times = jnp.arange(num_basis + 1, dtype=phase.dtype) / max(num_basis - 1, 1)
    centres = jnp.exp(-decay * times)
    log_psi = -jnp.square((phase - centres[:-1]) / jnp.diff(centres)) / 2
    return phase * jax.nn.softmax(log_psi)


def fit(
    positions: Array,
    goal: Array,
    amplitude: Array,
    num_basis: int,
    decay: float | Array,
) -> Shape:
    """The motion nearest to a shown one, positions [T + 1, D] over one duration: by
    linear regression of f, its derivatives by differences."""
    times = jnp.linspace(0, 1, len(positions), dtype=positions.dtype)
    y, dt = positions, 1 / (len(positions) - 1)
    z: Any = jnp.gradient(y, dt, axis=0)
    change: Any = jnp.gradient(z, dt, axis=0)
    target = y - goal[None] + 4 / ALPHA**2 * (change + ALPHA * z)  # [T + 1, D]
    phases = jnp.exp(-decay * times)
    rows = jax.vmap(lambda phase: features(phase, num_basis, decay))(phases)
    weights = jnp.linalg.lstsq(rows, target / amplitude[None])[0]
    return Shape(weights.T, goal, amplitude, decay)
