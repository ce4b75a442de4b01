"""How far back can a gradient go?  APG and SHAC against the horizon.

    python -m benchmarks.horizons            # trains what is missing, draws the picture

Both take the same steps of the environment with every horizon, one update per window.
APG with the horizon of an episode is plain back-propagation through time.  Five seeds
that nothing was chosen on.  Writes results/horizons.json and docs/horizons.png.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app

from experiments.reports import plots, statistics
from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs
from mbrl_jax.algorithms import apg, shac
from mbrl_jax.training import train

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "horizons.json"
PICTURE = ROOT / "docs" / "horizons.png"
ENVS = ("pendulum", "cartpole_swingup")
HORIZONS = {"apg": (8, 32, 200), "shac": (8, 32)}
NUM_ENVS, STEPS_OF_ENV, NUM_POINTS = 64, 819_200, 8
FIRST_SEED, NUM_SEEDS, NUM_EPISODES = 10, 5, 20


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for env in ENVS:
        for algorithm, horizons in HORIZONS.items():
            for horizon in horizons:
                name = f"{env}/{algorithm}/{horizon}"
                if name not in found:
                    found[name] = learn(env, algorithm, horizon)
                    run_folder.write_json(RESULTS, found)
                print(name, middle(found[name])[-1], flush=True)
    picture(found)


def learn(name: str, algorithm: str, horizon: int) -> dict[str, Any]:
    """Learning curves: environment steps [P], returns and norms of gradients [P, S]."""
    module: Any = {"apg": apg, "shac": shac}[algorithm]
    env = envs.make(name)
    updates = STEPS_OF_ENV // (NUM_POINTS * NUM_ENVS * horizon)
    config = module.Config(num_envs=NUM_ENVS, horizon=horizon, num_updates=updates)
    curve: dict[str, list] = {"env_steps": [], "return": [], "gradient_norm": []}

    def log(step: int, metrics: dict[str, Any]) -> None:
        curve["env_steps"].append(int(np.mean(metrics["env_steps"])))
        curve["return"].append(np.asarray(metrics["eval/return_mean"]).tolist())
        curve["gradient_norm"].append(np.asarray(metrics["gradient/norm"]).tolist())

    train.run(
        train.seeds(FIRST_SEED, NUM_SEEDS),
        module.make(env, config),
        env,
        NUM_POINTS,
        eval_every=1,
        eval_episodes=NUM_EPISODES,
        log=log,
    )
    return {**curve, **run_folder.surroundings()}


def middle(curves: dict[str, Any]) -> list[float]:
    """The interquartile mean of the returns at each point."""
    return [float(statistics.iqm([np.asarray(row)])) for row in curves["return"]]


def picture(found: dict[str, Any]) -> None:
    made, axes = plots.new_figure(2 * len(ENVS), width=14)
    for i, env in enumerate(ENVS):
        returns, norms = axes[2 * i : 2 * i + 2]
        curves = [name for name in found if name.startswith(f"{env}/")]
        for j, name in enumerate(curves):
            _, algorithm, horizon = name.split("/")
            how = {"color": plots.COLOURS[j % len(plots.COLOURS)]}
            label = f"{algorithm.upper()}, {horizon} steps"
            values = np.asarray(found[name]["return"])
            steps = np.asarray(found[name]["env_steps"]) / 1000
            returns.plot(steps, middle(found[name]), label=label, **how)
            returns.fill_between(steps, values.min(1), values.max(1), alpha=0.15, **how)
            norms.plot(steps, np.median(found[name]["gradient_norm"], axis=1), **how)
        returns.set_title(f"{env}: return", loc="left", fontsize=11)
        norms.set_title("norm of the gradient", loc="left", fontsize=11)
        norms.set_yscale("log")
        for axis in (returns, norms):
            axis.set(xlabel="steps of the environment, thousands")
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
