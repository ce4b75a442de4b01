"""iLQR next to trajax's, and a batch of problems next to a loop over them.

    git clone https://github.com/google/trajax && .venv/bin/pip install frozendict
    sed -i "s/sym_pos=True/assume_a='pos'/" trajax/trajax/tvlqr.py   # its name today
    python -m benchmarks.ilqr --peer_path=trajax             # minutes

The same problems, starts, horizons and tolerance, in float64: pendulum swing-up,
acrobot swing-up, a car among obstacles.  Both are compiled and measured in turn; the
ratio is the median of those of neighbours in time.  An iteration is an expansion of the
trajectory: the last of ours, after which nothing moves, counts too.  trajax runs as it
is, and with its projection (`make_psd`), without which it ends early on two of them.

The loop over 256 starts calls the compiled function for one and waits at the end; the
batch is the compiled vmap, also in chunks (`jax.lax.map`), in which a problem waits for
fewer others.  To convergence, and for three iterations each as in replanning, where
nobody waits for more iterations of others.  Seconds are CPU seconds, medians; `wall` is
the clock's.  Without --peer_path only ours is measured.  Writes results/ilqr.json.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import timing
from experiments.runs import jax_settings, run_folder
from mbrl_jax.ops import two_link
from mbrl_jax.planners.ilqr import Solution, ilqr
from mbrl_jax.types import Array

RESULTS = Path(__file__).parent / "results" / "ilqr.json"
TOLERANCE, NUM_ITERATIONS, NUM_REPEATS, NUM_CALLS = 1e-6, 500, 9, 5
BATCH, BATCH_ITERATIONS, BATCH_REPEATS, CHUNKS, START_STD = 256, (100, 3), 3, (32,), 0.1
LINKS = two_link.TwoLink((1.0, 1.0), (1.0, 1.0), (0.5, 0.5), (1.0, 1.0), 9.8)
OBSTACLES, RADIUS = np.array([[1.0, 1.0], [1.0, 2.5], [2.5, 2.5]]), 0.5


class Problem(NamedTuple):
    dynamics: Callable[[Array, Array, Array], Array]
    cost: Callable[[Array, Array, Array], Array]
    final_cost: Callable[[Array], Array]
    x: np.ndarray  # [O] where it starts
    u: np.ndarray  # [H, A] of the first trajectory


def pendulum() -> Problem:
    """Hanging to upright; (angle from hanging, its rate), 60 steps of 0.05 s."""
    dt = 0.05

    def dynamics(x: Array, u: Array, t: Array) -> Array:
        return jnp.stack([x[0] + dt * x[1], x[1] + dt * (u[0] - 9.81 * jnp.sin(x[0]))])

    def cost(x: Array, u: Array, t: Array) -> Array:
        far = 0.5 * (1 + jnp.cos(x[0])) + 0.05 * x[1] ** 2
        return dt * (far + 0.02 * u[0] ** 2)

    final = lambda x: 20 * (1 + jnp.cos(x[0])) + 2 * x[1] ** 2
    return Problem(dynamics, cost, final, np.zeros(2), np.full((60, 1), 0.1))


def acrobot() -> Problem:
    """Hanging to upright, by the torque at the elbow; 50 steps of 0.1 s."""
    dt, goal = 0.1, np.array([np.pi, 0.0, 0.0, 0.0])

    def dynamics(x: Array, u: Array, t: Array) -> Array:
        torques = jnp.stack([jnp.zeros_like(u[0]), u[0]])
        change = two_link.acceleration(LINKS, x[:2], x[2:], torques)
        return x + dt * jnp.concatenate([x[2:], change])

    def cost(x: Array, u: Array, t: Array) -> Array:
        return 0.05 * ((x - goal) ** 2).sum() + 0.005 * (u**2).sum()

    final = lambda x: 500 * ((x - goal) ** 2).sum()
    return Problem(dynamics, cost, final, np.zeros(4), np.zeros((50, 1)))


def car() -> Problem:
    """(right, up, heading, speed) to a goal behind obstacles; 40 steps of 0.1 s."""
    dt, goal = 0.1, np.array([3.0, 3.0, np.pi / 2, 0.0])

    def dynamics(x: Array, u: Array, t: Array) -> Array:
        velocity = x[3] * jnp.stack([jnp.cos(x[2]), jnp.sin(x[2])])
        return x + dt * jnp.concatenate([velocity, u])

    def cost(x: Array, u: Array, t: Array) -> Array:
        outside = ((x[:2][None] - OBSTACLES) ** 2).sum(axis=1) - RADIUS**2
        near = jnp.exp(-10 * outside).sum()
        return dt * (0.2 * u[0] ** 2 + 0.1 * u[1] ** 2 + near)

    final = lambda x: 50 * ((x - goal) ** 2).sum()
    start = np.array([0.0, 0.0, 0.5, 0.0])
    return Problem(dynamics, cost, final, start, np.full((40, 2), 0.01))


PROBLEMS = {"pendulum": pendulum, "acrobot": acrobot, "car": car}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    path = flags.FLAGS.peer_path
    found: dict[str, Any] = {"peer": {}, "batch": {}}
    for name, make in PROBLEMS.items():
        found["peer"][name] = against_peer(make(), path)
        print(name, found["peer"][name], flush=True)
    for most, dtype in itertools.product(BATCH_ITERATIONS, ("float64", "float32")):
        for name, make in PROBLEMS.items():
            title = f"{name}, {dtype}, at most {most} iterations"
            found["batch"][title] = batch(make(), dtype, most)
            print(title, found["batch"][title], flush=True)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())


def against_peer(problem: Problem, path: str | None) -> dict[str, Any]:
    """Cost, iterations and CPU seconds of each; the ratio is ours to the peer's."""
    runs = {"ours": our_run(problem)}
    if path:
        runs |= {f"trajax{end}": peer_run(problem, path, psd) for psd, end in PEERS}
    results = {who: run() for who, run in runs.items()}
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(NUM_REPEATS):
        for who, run in runs.items():
            seconds[who].append(timing.time_calls(run, NUM_CALLS)[0])
    found: dict[str, Any] = {}
    for who, (cost, iterations) in results.items():
        count = int(iterations)
        each = statistics.median(seconds[who]) / count
        found[who] = {
            "cost": float(cost),
            "iterations": count,
            "seconds_per_iteration": each,
        }
    for who in runs:
        found[who]["ratio"] = statistics.median(
            (a / found["ours"]["iterations"]) / (b / found[who]["iterations"])
            for a, b in zip(seconds["ours"], seconds[who], strict=True)
        )
    return found


PEERS = ((False, ""), (True, ", projected"))


def our_run(problem: Problem) -> Callable[[], tuple[Array, Array]]:
    @jax.jit
    def run(x: Array, u: Array) -> tuple[Array, Array]:
        best = solve(problem, x, u, NUM_ITERATIONS)
        return best.cost, best.iterations + 1  # with the last, after which it stays

    return lambda: run(problem.x, problem.u)


def peer_run(
    problem: Problem, path: str, make_psd: bool
) -> Callable[[], tuple[Array, Array]]:
    if path not in sys.path:
        sys.path.insert(0, path)
    from trajax import optimizers

    last, horizon = problem.final_cost, len(problem.u)

    def cost(x: Array, u: Array, t: Array) -> Array:
        return jnp.where(t == horizon, last(x), problem.cost(x, u, t))

    @jax.jit
    def run(x: Array, u: Array) -> tuple[Array, Array]:
        result = optimizers.ilqr(
            cost,
            problem.dynamics,
            x,
            u,
            maxiter=NUM_ITERATIONS,
            grad_norm_threshold=TOLERANCE,
            make_psd=make_psd,
        )
        return result[2], result[-1]

    return lambda: run(problem.x, problem.u)


def solve(problem: Problem, x: Array, u: Array, num_iterations: int) -> Solution:
    return ilqr(*problem[:3], x, u, num_iterations=num_iterations, tolerance=TOLERANCE)


def batch(problem: Problem, dtype: str, most: int) -> dict[str, Any]:
    """CPU and wall seconds of a loop and of batches, and times as fast as the loop."""
    rng = np.random.default_rng(0)
    starts = problem.x + START_STD * rng.normal(size=(BATCH, len(problem.x)))
    x, u = jnp.asarray(starts, dtype), jnp.asarray(problem.u, dtype)
    one = lambda x: solve(problem, x, u, most)
    single, whole = jax.jit(one), jax.jit(jax.vmap(one))
    rows = list(x)
    runs: dict[str, Callable[[], Any]] = {
        "loop": lambda: [single(row) for row in rows],
        "batch": lambda: whole(x),
    }
    for size in CHUNKS:
        split = jax.jit(lambda x, size=size: jax.lax.map(one, x, batch_size=size))
        runs[f"chunks of {size}"] = lambda split=split: split(x)
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(BATCH_REPEATS):
        for name, run in runs.items():
            times[name].append(timing.time_calls(run))
    return summary(times) | {"iterations": counts(whole(x))}


def counts(solutions: Solution) -> dict[str, float]:
    count = np.asarray(solutions.iterations)
    return {"mean": float(count.mean()), "most": float(count.max())}


def summary(times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, row in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*row, strict=True))
        pairs = list(zip(times["loop"], row, strict=True))
        found[name] = {
            "seconds": cpu,
            "wall": wall,
            "times as fast": statistics.median(a[0] / b[0] for a, b in pairs),
            "times as fast, wall": statistics.median(a[1] / b[1] for a, b in pairs),
        }
    return found


if __name__ == "__main__":
    flags.DEFINE_string("peer_path", None, "a folder that `trajax` is imported from")
    jax_settings.apply("x64")
    app.run(main)
