"""Does PILCO stay finite on systems that nobody chose?  On fifty, for three trials.

    python -m benchmarks.random_systems

    x' = A x + B u + 0.1 sin(C x)

of one to three states and one or two controls: stable and unstable, with and without
enough control to do something about it.  Each run has a system and a seed of its own:
a random episode, then two by policies.  Writes results/random_systems.json, a line for
each run, and ends with exit code 1 if one of them raised an exception, or has a number
that is not finite in a state or a metric.
"""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from experiments.runs import jax_settings, run_folder
from mbrl_jax.algorithms import pilco
from mbrl_jax.envs import saturating, simulator
from mbrl_jax.models import gaussian_process
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key, Metrics

RESULTS = Path(__file__).parent / "results" / "random_systems.json"
FIRST_SEED, NUM_RUNS, NUM_TRIALS = 10, 50, 3
SIZES = ((1, 1), (2, 1), (3, 2))  # states and controls, in turn: a program for each
EPISODE_LENGTH = 20
LEAST_RADIUS, LARGEST_RADIUS = 0.7, 1.2  # of A: its eigenvalues; unstable above 1
BEND = 0.1  # of the nonlinear part
START_STD, WIDTH = 0.1, 1.0  # of the first state, and of the cost around 0
NUM_ROWS = NUM_TRIALS * EPISODE_LENGTH
CONFIG = pilco.Config(
    capacity=NUM_ROWS, model=gaussian_process.Config(max_exact=NUM_ROWS)
)


class System(NamedTuple):
    A: Array  # [O, O]
    B: Array  # [O, A]
    C: Array  # [O, O]
    start: Array  # [O], the mean


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + NUM_RUNS):
        rows.append(measure(seed))
        print(json.dumps(rows[-1]), flush=True)
    found = summary(rows)
    print(found)
    run_folder.write_json(RESULTS, {**found, "runs": rows, **run_folder.surroundings()})
    if found["num_failed"]:
        sys.exit(1)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the costs, of the runs that did not fail."""
    fine = [row for row in rows if row["finite"]]
    median = lambda name: (
        float(np.median([row[name] for row in fine])) if fine else None
    )
    return {
        "num_runs": len(rows),
        "num_failed": len(rows) - len(fine),
        "num_with_jitters": sum(row["num_jitters"] > 0 for row in fine),
        "num_improved": sum(row["cost_last"] < row["cost_first"] for row in fine),
        "cost_first": median("cost_first"),
        "cost_last": median("cost_last"),
    }


def measure(seed: int) -> dict[str, Any]:
    """One run.  Costs are means over an episode, in [0, 1]."""
    num_states, num_controls = SIZES[seed % len(SIZES)]
    system = draw(np.random.default_rng(seed), num_states, num_controls)
    row = {"seed": seed, "num_states": num_states, "num_controls": num_controls}
    row["spectral_radius"] = radius(system.A)
    try:
        finite, metrics = run(jax.random.key(seed), system)
        costs = -np.asarray(metrics["episode/return"]) / EPISODE_LENGTH
        row["finite"] = bool(finite)
        row["num_jitters"] = int(metrics["model/num_jitters"].sum())
        row |= {"cost_first": float(costs[0]), "cost_last": float(costs[-1])}
    except Exception as error:
        row |= {"finite": False, "error": repr(error)}
    return row


def draw(rng: np.random.Generator, num_states: int, num_controls: int) -> System:
    square = num_states, num_states
    A = rng.normal(size=square)
    A *= rng.uniform(LEAST_RADIUS, LARGEST_RADIUS) / radius(A)
    B = rng.normal(size=(num_states, num_controls))
    return System(A, B, rng.normal(size=square), rng.normal(size=num_states))


def radius(matrix: np.ndarray) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


@jax.jit
def run(key: Key, system: System) -> tuple[Array, Metrics]:
    """Whether all is finite, and the metrics [trials]."""
    algorithm = pilco.make(environment(system), CONFIG)
    init_key, key = jax.random.split(key)
    step = lambda state, key: algorithm.step(key, state)
    keys = jax.random.split(key, NUM_TRIALS)
    state, metrics = jax.lax.scan(step, algorithm.init(init_key), keys)
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((state, metrics))]
    return functools.reduce(jnp.logical_and, finite), metrics


def environment(system: System, start_std: float = START_STD) -> Env:
    size, num_controls = system.B.shape
    eye = tuple(map(tuple, np.eye(size)))
    goal = saturating.Goal((), eye, place=(0.0,) * size, width=WIDTH)
    task = saturating.task(goal, tuple(system.start), (start_std,) * size)

    def dynamics(x: Array, u: Array) -> Array:
        return system.A @ x + system.B @ u + BEND * jnp.sin(system.C @ x)

    return simulator.make_env(
        "random_system",
        **task,
        dynamics=dynamics,
        shapes=lambda x: raster.lanes(x, 2.0),
        view=raster.View(centre=(0.0, 0.0), half_height=1.0),
        action_size=num_controls,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
    )


if __name__ == "__main__":
    jax_settings.apply("x64")
    app.run(main)
