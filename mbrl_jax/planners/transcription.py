"""From a continuous problem of optimal control to equations between nodes.

A `Problem` has dynamics, costs and constraints in continuous time; on N intervals it
becomes costs, defects and inequalities of the states and controls at the nodes, by the
trapezoidal or the Hermite-Simpson rule (Kelly, "An introduction to trajectory
optimization", 2017, Sec. 3 and 4).  `collocation` solves them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array

Function = Callable[[Array, Array, Array], Array]  # of x, u and t (s)
Limits = tuple[Array, Array]  # least and largest, infinite where there is none

METHODS = ("trapezoidal", "hermite_simpson")


class CollocationProblem(NamedTuple):
    dynamics: Function  # -> dx/dt [O]
    cost: Function  # -> [] per s
    final_cost: Callable[[Array], Array] = lambda x: jnp.zeros((), x.dtype)
    final_constraint: Callable[[Array], Array] = lambda x: x[:0]  # to be 0
    constraints: Function = lambda x, u, t: x[:0]  # to be at most 0
    x_limits: Limits | None = None  # each [O]
    u_limits: Limits | None = None  # each [A]


class Trajectory(NamedTuple):
    t: Array  # [N + 1] s, ascending
    x: Array  # [N + 1, O]
    u: Array  # [N + 1, A]
    u_mid: Array  # [N, A] half-way through each interval


class Transcription(NamedTuple):
    problem: CollocationProblem
    hermite: bool
    t: Array  # [N + 1]
    num_states: int  # O
    num_controls: int  # A


class Values(NamedTuple):
    cost: Array  # []
    equality: Array  # [O] defect; at T the final constraint
    inequality: Array  # [L]


class Point(NamedTuple):
    z: Array  # [N + 1, O + A]
    v: Array  # [N, A] u half-way; [N, 0] if trapezoidal
    costate: Array  # [N, O]


def straight_line(
    start: Array, end: Array, duration: Array, num_intervals: int, num_controls: int
) -> Trajectory:
    """A guess: from `start` [O] to `end` [O] in `duration` s, without control."""
    share = jnp.linspace(0, 1, num_intervals + 1, dtype=jnp.result_type(start, float))
    x = start[None] + share[:, None] * (end - start)[None]
    u = jnp.zeros((num_intervals + 1, num_controls), x.dtype)
    return Trajectory(share * duration, x, u, u[1:])


def interval(task: Transcription, p: Array, t: Array, h: Array) -> Values:
    """Kelly, 2017, Sec. 3 and 4."""
    f, l = task.problem.dynamics, task.problem.cost
    O, A = task.num_states, task.num_controls
    x, u, v, x_next, u_next = jnp.split(p, (O, O + A, len(p) - O - A, len(p) - A))
    f_0, f_1 = f(x, u, t), f(x_next, u_next, t + h)
    l_0, l_1 = l(x, u, t), l(x_next, u_next, t + h)
    inequality = _inequality(task.problem, x, u, t)
    if not task.hermite:
        defect = x_next - x - h / 2 * (f_0 + f_1)
        return Values(h / 2 * (l_0 + l_1), defect, inequality)
    half_way = ((x + x_next) / 2 + h / 8 * (f_0 - f_1), v, t + h / 2)
    return Values(
        h / 6 * (l_0 + 4 * l(*half_way) + l_1),
        x_next - x - h / 6 * (f_0 + 4 * f(*half_way) + f_1),
        jnp.concatenate([inequality, _inequality(task.problem, *half_way)]),
    )


def end(task: Transcription, z: Array) -> Values:
    problem, x, u = task.problem, z[: task.num_states], z[task.num_states :]
    inequality = _inequality(problem, x, u, task.t[-1])
    return Values(problem.final_cost(x), problem.final_constraint(x), inequality)


def _inequality(problem: CollocationProblem, x: Array, u: Array, t: Array) -> Array:
    """What is to be at most 0, [L]."""
    parts = [problem.constraints(x, u, t)]
    for value, limits in ((x, problem.x_limits), (u, problem.u_limits)):
        if limits is not None:
            low, high = (jnp.asarray(limit, value.dtype) for limit in limits)
            parts += [
                jnp.where(jnp.isfinite(low), low - value, -1.0),
                jnp.where(jnp.isfinite(high), value - high, -1.0),
            ]
    return jnp.concatenate(parts)


def pairs(point: Point) -> Array:
    """p = (z, v, next z), [N, P]."""
    return jnp.concatenate([point.z[:-1], point.v, point.z[1:]], axis=1)


def evaluate(task: Transcription, point: Point) -> tuple[Values, Values]:
    """Of each interval, and of T."""
    each = jax.vmap(partial(interval, task))
    steps = (pairs(point), task.t[:-1], jnp.diff(task.t))
    return each(*steps), end(task, point.z[-1])
