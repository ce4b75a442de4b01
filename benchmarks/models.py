"""PETS in three kinds of models: an ensemble, Gaussian processes, a Bayesian network.

    python -m benchmarks.models    # trains what is missing, draws the picture

The return of each episode that PETS plans, the first acted at random, on PILCO's
pendulum (4 s an episode); the same small plans for all.  Processes and the Bayesian
network see the angle as its sine and cosine, the ensemble as it is.  All in float64.
Five seeds that nothing was chosen on.  Writes results/models.json, with the CPU seconds
of each, and docs/models.png.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app

from benchmarks.policy_gradients import FIRST_SEED, NUM_SEEDS, draw
from experiments.reports import plots
from experiments.runs import command_flags, jax_settings, run_folder
from mbrl_jax import envs
from mbrl_jax.algorithms import pets
from mbrl_jax.training import train

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
PICTURE = ROOT / "docs" / "models.png"
ENV, NUM_STEPS = "pendulum_pilco", 10
COMMON = {
    "capacity": 40 * NUM_STEPS,
    "num_particles": 5,
    "plan.horizon": 20,
    "plan.num_samples": 64,
    "plan.num_elites": 8,
}
CASES: dict[str, dict[str, Any]] = {
    "ensemble": {},
    "Gaussian processes": {
        "model.name": "gaussian_process",
        "model.gaussian_process.angles": (0,),
    },
    "network with dropout": {
        "model.name": "bnn",
        "model.bnn.num_members": 5,
        "model.bnn.angles": (0,),
    },
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for label, settings in CASES.items():
        if label not in found:
            found[label] = learn(settings)
            run_folder.write_json(RESULTS, found)
        row = found[label]
        print(label, np.mean(row["return"], axis=1), row["cpu_seconds"], flush=True)
    picture(found)


def learn(
    settings: dict[str, Any], first_seed: int = FIRST_SEED, num_seeds: int = NUM_SEEDS
) -> dict[str, Any]:
    """A curve: real steps [P], and returns [P, S] of the episodes they end with."""
    env = envs.make(ENV)
    config = command_flags.replace(pets.Config(), {**COMMON, **settings})
    curve: dict[str, list] = {"env_steps": [], "return": []}

    def log(step: int, metrics: dict[str, Any]) -> None:
        curve["env_steps"].append(int(np.mean(metrics["env_steps"])))
        curve["return"].append(np.asarray(metrics["episode/return"]).tolist())

    begun = time.process_time()
    keys = train.seeds(first_seed, num_seeds)
    train.run(keys, pets.make(env, config), env, NUM_STEPS, eval_episodes=0, log=log)
    cpu_seconds = time.process_time() - begun
    return {**curve, "cpu_seconds": cpu_seconds, **run_folder.surroundings()}


def picture(found: dict[str, Any]) -> None:
    made, (axis,) = plots.new_figure(1, width=6.4)
    draw(axis, found)
    axis.set_title("PETS on PILCO's pendulum", loc="left", fontsize=11)
    axis.set(xscale="linear", ylabel="return of an episode, IQM of 5 seeds")
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("x64")
    app.run(main)
