"""Is collocation as exact as it should be, as good as iLQR, and linear in intervals?

    python -m benchmarks.collocation         # minutes, most of them compilation

On a linear-quadratic problem, whose optimum has a closed form, and on Kelly's swing-up
of a cartpole ("An introduction to trajectory optimization", 2017, Sec. 6): the order of
convergence; the costs next to those of a dense solver and of iLQR; the seconds of an
iteration.  Writes results/collocation.json and docs/collocation.png.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import timing
from experiments.reports import plots
from experiments.runs import jax_settings, run_folder
from mbrl_jax.envs.simulator import rk4
from mbrl_jax.planners import augmented_lagrangian, collocation_mesh, ilqr
from mbrl_jax.planners.collocation import Solution, Status, collocate
from mbrl_jax.planners.transcription import (
    METHODS,
    CollocationProblem,
    Trajectory,
    straight_line,
)
from mbrl_jax.types import Array

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "collocation.json"
PICTURE = ROOT / "docs" / "collocation.png"

START, GOAL, DURATION, FORCE, ROOM = (0.0,) * 4, (1.0, np.pi, 0.0, 0.0), 2.0, 20.0, 2.0
DENSE = {  # by SciPy's SLSQP, all matrices dense, from the same guess
    ("trapezoidal", 30): 59.6862,
    ("trapezoidal", 50): 59.1478,
    ("hermite_simpson", 25): 58.8054,
}
LINEAR_SIZES, SWING_SIZES = (4, 8, 16, 32, 64), (40, 80, 160)
SPEED_SIZES = (50, 200, 800)
EXACT_SIZE = 320  # of Hermite-Simpson, for the best cost of the swing-up
TOLERANCE = 1e-5  # error of each interval after refinement
PENALTIES = {"near the guess": 1e4, "farther away": 10.0}  # two optima
ILQR_STEPS, ILQR_PENALTY = 400, 1e5
NUM_ITERATIONS, NUM_REPEATS = 20, 5  # that are timed


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found, best = measure()
    run_folder.write_json(RESULTS, found | run_folder.surroundings())
    draw(found, best, PICTURE)


def measure() -> tuple[dict[str, Any], Trajectory]:
    """The results, and the swing-up after refinement."""
    optima = {
        name: collocation_mesh.refine(
            swing_up(), guess(10), tolerance=TOLERANCE, penalty=penalty
        )
        for name, penalty in PENALTIES.items()
    }
    found = {
        "dense": [dense(method, size) for method, size in DENSE],
        "linear": {method: linear_errors(method) for method in METHODS},
        "swing_up": swing_up_errors(),
        "refined": {name: [row(r) for r in rounds] for name, rounds in optima.items()},
        "iLQR": {name: shooting(optima[name][-1].solution) for name in optima},
        "speed": {method: speed(method) for method in METHODS},
    }
    return found, optima["near the guess"][-1].solution.trajectory


def row(now: collocation_mesh.Round) -> dict[str, Any]:
    size, error = len(now.errors), float(now.errors.max())
    return {"intervals": size, "error": error} | summary(now.solution)


def cartpole(x: Array, u: Array, t: Array) -> Array:
    """x is (m, rad from hanging, m/s, rad/s), u N."""
    cart, pole, length, gravity = 1.0, 0.3, 0.5, 9.81
    s, c = jnp.sin(x[1]), jnp.cos(x[1])
    push = u[0] + pole * length * s * x[3] ** 2
    inertia = cart + pole * s**2
    faster = (push + pole * gravity * c * s) / inertia
    turn = -(push * c + (cart + pole) * gravity * s) / (length * inertia)
    return jnp.stack([x[2], x[3], faster, turn])


def effort(x: Array, u: Array, t: Array) -> Array:
    return (u**2).sum()


def swing_up() -> CollocationProblem:
    room = jnp.array([ROOM, jnp.inf, jnp.inf, jnp.inf])
    return CollocationProblem(
        cartpole,
        effort,
        final_constraint=lambda x: x - jnp.array(GOAL),
        x_limits=(-room, room),
        u_limits=(jnp.array([-FORCE]), jnp.array([FORCE])),
    )


def guess(num_intervals: int) -> Trajectory:
    start, goal = jnp.array(START), jnp.array(GOAL)
    return straight_line(start, goal, jnp.asarray(DURATION), num_intervals, 1)


def summary(solution: Solution) -> dict[str, Any]:
    return {
        "cost": float(solution.cost),
        "violation": float(solution.violation),
        "iterations": int(solution.iterations),
        "status": Status(int(solution.status)).name,
    }


def dense(method: str, size: int) -> dict[str, Any]:
    solution = jax.jit(partial(collocate, swing_up(), method=method))(guess(size))
    theirs = {"method": method, "intervals": size, "cost of SLSQP": DENSE[method, size]}
    return theirs | summary(solution)


def linear_errors(method: str) -> dict[str, list[float]]:
    """x' = u - x, cost x^2 + u^2, from 1 in 1 s: errors of x half-way, and of the cost.

    The optimum is by the Riccati equation.
    """
    root = np.sqrt(2.0)
    part = lambda ahead: np.sinh(root * ahead) + root * np.cosh(root * ahead)
    x, cost = part(0.5) / part(1.0), 1 / (1 + root / np.tanh(root))
    problem = CollocationProblem(
        lambda x, u, t: u - x, lambda x, u, t: (x**2 + u**2).sum()
    )
    start, errors = jnp.ones(1), []
    for size in LINEAR_SIZES:
        line = straight_line(start, start, jnp.asarray(1.0), size, 1)
        solve = partial(collocate, problem, method=method, tolerance=1e-11)
        solution = jax.jit(solve)(line)
        off = solution.trajectory.x[size // 2, 0] - x
        errors.append((abs(float(off)), abs(float(solution.cost) - cost)))
    of_x, of_cost = zip(*errors, strict=True)
    return with_orders(LINEAR_SIZES, of_x) | {"error of cost": of_cost}


def swing_up_errors() -> dict[str, Any]:
    """Relative errors of the cost, without limits, next to a fine discretisation."""
    problem = swing_up()._replace(x_limits=None, u_limits=None)

    def cost(method: str, size: int) -> float:
        solve = partial(collocate, problem, method=method, tolerance=1e-9)
        return float(jax.jit(solve)(guess(size)).cost)

    best = cost("hermite_simpson", EXACT_SIZE)
    errors = {
        method: [abs(cost(method, size) / best - 1) for size in SWING_SIZES]
        for method in METHODS
    }
    rows = {method: with_orders(SWING_SIZES, row) for method, row in errors.items()}
    return {"best cost": best, **rows}


def with_orders(sizes: Sequence[int], errors: Sequence[float]) -> dict[str, Any]:
    orders = -np.diff(np.log(errors)) / np.diff(np.log(sizes))
    return {"intervals": sizes, "error": errors, "order": orders}


def shooting(solution: Solution) -> dict[str, Any]:
    """iLQR with steps of Runge and Kutta, the end by an augmented Lagrangian.

    From the controls of `solution`: is its optimum one of theirs?
    """
    dt, start = DURATION / ILQR_STEPS, jnp.array(START)
    box = (jnp.array([-FORCE]), jnp.array([FORCE]))
    step = lambda x, u, t: rk4(lambda x: cartpole(x, u, t), x, dt)
    inner = lambda l, last, u: ilqr.ilqr(step, l, last, start, u, limits=box)
    nothing = jnp.zeros(0)
    Constraints = augmented_lagrangian.Constraints
    times = dt * (jnp.arange(ILQR_STEPS) + 0.5)
    u = jax.vmap(partial(collocation_mesh.control, solution.trajectory))(times)
    found = jax.jit(
        lambda u: augmented_lagrangian.augmented_lagrangian(
            inner,
            lambda x, u, t: dt * effort(x, u, t),
            lambda x: jnp.zeros_like(x[0]),
            start,
            u,
            constraints=lambda x, u, t: Constraints(nothing, nothing),
            final_constraints=lambda x: Constraints(nothing, x - jnp.array(GOAL)),
            penalty=ILQR_PENALTY,
        )
    )(u)
    cost = float(found.solution.cost)
    return {
        "steps": ILQR_STEPS,
        "cost": cost,
        "violation": float(found.violation),
        "cost of collocation, relative": float(solution.cost) / cost - 1,
        "largest difference of u": float(jnp.abs(found.solution.u - u).max()),
    }


def speed(method: str) -> dict[str, Any]:
    """CPU seconds of an iteration, and the power of the intervals that they grow by."""
    options = {"num_iterations": NUM_ITERATIONS, "tolerance": 0.0}
    seconds = []
    for size in SPEED_SIZES:
        solve = jax.jit(partial(collocate, swing_up(), method=method, **options))
        call = partial(solve, guess(size))
        count = int(call().iterations)
        seconds.append(timing.measure(call, 1, NUM_REPEATS).seconds / count)
    power = np.diff(np.log(seconds)) / np.diff(np.log(SPEED_SIZES))
    return {"intervals": SPEED_SIZES, "seconds": seconds, "power": power}


def draw(found: dict[str, Any], best: Trajectory, path: Path) -> None:
    figure, (error_axis, swing_axis, speed_axis) = plots.new_figure(3, width=13)
    draw_errors(error_axis, found)
    draw_swing(swing_axis, best)
    for i, (method, row) in enumerate(found["speed"].items()):
        how = {"color": plots.COLOURS[i], "marker": "o", "label": label(method)}
        speed_axis.loglog(row["intervals"], np.multiply(row["seconds"], 1e3), **how)
    speed_axis.set(xlabel="intervals", ylabel=f"{timing.seconds_unit()} / 1000")
    speed_axis.set_xticks(SPEED_SIZES, map(str, SPEED_SIZES))
    speed_axis.minorticks_off()
    speed_axis.set_title("an iteration", loc="left")
    speed_axis.legend(frameon=False)
    plots.save(figure, path)


def draw_errors(axis: Any, found: dict[str, Any]) -> None:
    for i, (method, order) in enumerate(zip(METHODS, (2, 4), strict=True)):
        how = {"color": plots.COLOURS[i]}
        for name, line in (("linear", "-"), ("swing_up", "--")):
            row = found[name][method]
            title = f"{label(method)}, {name.replace('_', '-')}"
            axis.loglog(
                row["intervals"], row["error"], line, marker="o", label=title, **how
            )
        sizes, first = np.array(LINEAR_SIZES), found["linear"][method]["error"][0]
        slope = 3 * first * (sizes / sizes[0]) ** -float(order)
        axis.loglog(sizes, slope, ":", color=plots.INK, lw=1)
        axis.annotate(f"order {order}", (sizes[-1], slope[-1]), fontsize=8)
    axis.set(xlabel="intervals", ylabel="error (x half-way; cost)")
    axis.set_title("convergence", loc="left")
    axis.legend(frameon=False, fontsize=8)


def draw_swing(axis: Any, best: Trajectory) -> None:
    t = np.linspace(0, DURATION, 400)
    x = jax.vmap(partial(collocation_mesh.state, swing_up(), best))(jnp.asarray(t))
    u = jax.vmap(partial(collocation_mesh.control, best))(jnp.asarray(t))
    lines = ((u[:, 0] / 10, best.u[:, 0] / 10, "force, 10 N"),)
    lines += ((x[:, 0], best.x[:, 0], "cart, m"), (x[:, 1], best.x[:, 1], "pole, rad"))
    for i, (line, nodes, name) in enumerate(lines):
        axis.plot(t, line, color=plots.COLOURS[i], label=name)
        axis.plot(best.t, nodes, "o", ms=3, color=plots.COLOURS[i])
    axis.set(xlabel="s")
    axis.set_title(f"swing-up, refined to {len(best.t) - 1} intervals", loc="left")
    axis.legend(frameon=False)


def label(method: str) -> str:
    return method.replace("_", "-").title()


if __name__ == "__main__":
    jax_settings.apply("x64")
    app.run(main)
