"""Learning curves of model-augmented actor-critics next to what they augment.

    python -m benchmarks.model_augmented    # trains what is missing, draws the picture

Settings are those of the presets; five seeds that nothing was chosen on, evaluated by
the most likely action.  `steps_to_sac` is after how many environment steps a method's
return, in the interquartile mean, was first what SAC's is in the end, `steps_within`
first in the 95 % interval of that, and the shares are of all of SAC's steps.
Writes results/model_augmented.json and docs/model_augmented.png.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app

from benchmarks.policy_gradients import Case, draw, learn
from experiments.reports import plots, statistics
from experiments.runs import jax_settings, run_folder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "model_augmented.json"
PICTURE = ROOT / "docs" / "model_augmented.png"
NAMES = ("SAC", "TD3", "MBPO", "MAAC", "MVE", "STEVE", "NAF", "MBA")
ENVS = ("pendulum", "brax/inverted_pendulum")
MODEL_FREE = {"SAC": 60, "TD3": 60}  # iterations, more than the presets', to settle


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for env in ENVS:
        for name in NAMES:
            label = f"{env}/{name}"
            if label not in found:
                case, num_steps = Case(name, name.lower()), MODEL_FREE.get(name, 0)
                found[label] = learn(env, case, num_steps=num_steps, every=2)
                run_folder.write_json(RESULTS, found)
            found[label] |= compare(found[f"{env}/SAC"], found[label])
            print(label, found[label]["steps_to_sac"], found[label]["steps_within"])
    run_folder.write_json(RESULTS, found)
    picture(found)


def compare(sac: dict[str, Any], curve: dict[str, Any]) -> dict[str, Any]:
    """When a method first returns what SAC does in the end, in steps and in a share of
    SAC's; None where it does not.  `within`: at least the low end of SAC's interval."""
    rng = np.random.default_rng(0)
    last = [np.asarray(sac["return"][-1])]
    goal, low, _ = statistics.bootstrap(rng, statistics.iqm, last)
    found: dict[str, Any] = {}
    for name, least in (("steps_to_sac", goal), ("steps_within", low)):
        reached = [
            steps
            for steps, returns in zip(curve["env_steps"], curve["return"], strict=True)
            if statistics.iqm([np.asarray(returns)]) >= least
        ]
        found[name] = reached[0] if reached else None
        found[f"{name}_share"] = reached[0] / sac["env_steps"][-1] if reached else None
    return found


def picture(found: dict[str, Any]) -> None:
    made, axes = plots.new_figure(len(ENVS), width=7 * len(ENVS))
    for axis, env in zip(axes, ENVS, strict=True):
        draw(axis, {name: found[f"{env}/{name}"] for name in NAMES})
        axis.set_title(env, loc="left", fontsize=11)
    axes[0].set_ylabel("return, IQM of 5 seeds")
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
