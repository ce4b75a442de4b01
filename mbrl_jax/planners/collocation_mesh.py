"""Between the nodes of a collocated trajectory: interpolants, errors, finer meshes.

    rounds = refine(problem, guess, tolerance=1e-6)  # outside of jit and vmap
    u = control(rounds[-1].solution.trajectory, t)

The control is the parabola through its values at the ends of an interval and half-way;
the state is the cubic with its values and derivatives at the ends.  Where trajectories
are of the trapezoidal method these are a straight line and a parabola.  (Kelly, "An
introduction to trajectory optimization", 2017, Sec. 3 and 4; errors and meshes: Betts,
"Practical methods for optimal control", 2010, Sec. 4.7, with simpler choices.)

N intervals, x state [O], u control [A].
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.planners.collocation import Solution, Status, collocate
from mbrl_jax.planners.transcription import CollocationProblem, Trajectory
from mbrl_jax.types import Array

ORDERS = {"trapezoidal": 3, "hermite_simpson": 4}  # of the errors of an interval
MOST_PARTS = 4  # of an interval, in a round
QUADRATURE = 6  # points in an interval


class Round(NamedTuple):
    solution: Solution
    errors: Array  # [N]


def control(trajectory: Trajectory, t: Array) -> Array:
    """u [A] at `t` [] s."""
    k, s, _ = _place(trajectory, t)
    first, middle, last = trajectory.u[k], trajectory.u_mid[k], trajectory.u[k + 1]
    ends = (1 - 2 * s) * ((1 - s) * first - s * last)
    return ends + 4 * s * (1 - s) * middle


def state(problem: CollocationProblem, trajectory: Trajectory, t: Array) -> Array:
    """x [O] at `t` [] s."""
    k, s, h = _place(trajectory, t)
    x, x_next = trajectory.x[k], trajectory.x[k + 1]
    slope, slope_next = (
        h * problem.dynamics(trajectory.x[i], trajectory.u[i], trajectory.t[i])
        for i in (k, k + 1)
    )
    line = (1 - s) * x + s * x_next
    bend = (1 - s) * (slope - x_next + x) + s * (x_next - x - slope_next)
    return line + s * (1 - s) * bend


def resample(
    problem: CollocationProblem, trajectory: Trajectory, t: Array
) -> Trajectory:
    """The same on other nodes [M + 1], between the same ends: a guess."""
    controls = jax.vmap(partial(control, trajectory))
    states = jax.vmap(partial(state, problem, trajectory))
    return Trajectory(t, states(t), controls(t), controls((t[:-1] + t[1:]) / 2))


def errors(problem: CollocationProblem, trajectory: Trajectory) -> Array:
    """What each interval adds to the error of the state, relative to its scale, [N].

    The integral of |dx/dt - f(x, u, t)|, the largest over the states of what that is
    next to 1 + the largest |x| and |dx/dt|.
    """
    points, weights = np.polynomial.legendre.leggauss(QUADRATURE)
    h = jnp.diff(trajectory.t)
    t = trajectory.t[:-1, None] + h[:, None] * jnp.asarray((points[None] + 1) / 2)

    def at(t: Array) -> tuple[Array, Array, Array]:
        x, rate = jax.jvp(
            partial(state, problem, trajectory), (t,), (jnp.ones_like(t),)
        )
        expected = problem.dynamics(x, control(trajectory, t), t)
        return jnp.abs(rate - expected), jnp.abs(x), jnp.abs(rate)

    off, x, rate = jax.vmap(jax.vmap(at))(t)  # [N, QUADRATURE, O]
    scale = 1 + jnp.maximum(x.max(axis=(0, 1)), rate.max(axis=(0, 1)))
    each = jnp.einsum("nqo,q->no", off, jnp.asarray(weights / 2)) * h[:, None]
    return (each / scale[None]).max(axis=1)


def refine(
    problem: CollocationProblem,
    guess: Trajectory,
    *,
    method: str = "hermite_simpson",
    tolerance: float = 1e-6,
    num_rounds: int = 8,
    **options: Any,
) -> list[Round]:
    """Collocates, splits the intervals whose error is above `tolerance`, and again.

    The last round has the solution; `options` are those of `collocate`.  It ends, too,
    with a problem that is not solved, or after `num_rounds`.  Each compiles a program.
    """
    solve = partial(collocate, problem, method=method, **options)
    rounds: list[Round] = []
    while len(rounds) < num_rounds:
        solution = jax.jit(solve)(guess)
        rounds.append(Round(solution, jax.jit(partial(errors, problem))(solution[0])))
        nodes = split(solution.trajectory.t, rounds[-1].errors, tolerance, method)
        solved = solution.status in (Status.CONVERGED, Status.STALLED)
        if not solved or len(nodes) == len(guess.t):
            break
        guess = jax.jit(partial(resample, problem))(solution.trajectory, nodes)
    return rounds


def split(t: Array, errors: Array, tolerance: float, method: str) -> Array:
    """Nodes [M + 1]: each interval in as many parts as bring its error to `tolerance`.

    At most MOST_PARTS, since the errors of coarse intervals tell little.
    """
    ends = np.asarray(t)
    parts = np.asarray((errors / tolerance) ** (1 / ORDERS[method]))
    parts = np.clip(np.ceil(parts), 1, MOST_PARTS).astype(int)
    pieces = [
        np.linspace(start, end, num, endpoint=False)
        for (start, end), num in zip(itertools.pairwise(ends), parts, strict=True)
    ]
    return jnp.asarray(np.concatenate([*pieces, ends[-1:]]), t.dtype)


def _place(trajectory: Trajectory, t: Array) -> tuple[Array, Array, Array]:
    """Which interval, what share of it is over, and its length (s)."""
    k = jnp.searchsorted(trajectory.t, t, side="right") - 1
    k = jnp.clip(k, 0, len(trajectory.t) - 2)
    h = trajectory.t[k + 1] - trajectory.t[k]
    return k, (t - trajectory.t[k]) / h, h
