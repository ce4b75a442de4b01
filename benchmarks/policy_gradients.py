"""Learning curves of policy gradients: every learner, a memory, a learned model.

    python -m benchmarks.policy_gradients    # trains what is missing, draws the picture

Five seeds that nothing was chosen on, evaluated by the most likely action.  Settings
are those of the presets, but for what a label says.  Writes
results/policy_gradients.json and docs/policy_gradients.png.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app
from matplotlib import ticker

from experiments.reports import plots, statistics
from experiments.runs import command_flags, jax_settings, presets, registry, run_folder
from mbrl_jax import envs
from mbrl_jax.envs import simulator
from mbrl_jax.training import train
from mbrl_jax.types import PyTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "policy_gradients.json"
PICTURE = ROOT / "docs" / "policy_gradients.png"
FIRST_SEED, NUM_SEEDS, NUM_EPISODES, NUM_POINTS = 10, 5, 20, 12


class Case(NamedTuple):
    label: str
    algorithm: str
    settings: tuple[tuple[str, Any], ...] = ()  # in place of the preset's


NO_MEMORY = Case("PPO without a memory", "ppo", (("net.memory_size", 0),))
CASES = {
    "cartpole": (
        Case("REINFORCE", "reinforce"),
        Case("natural gradient", "npg"),
        Case("TRPO", "trpo"),
        Case("A2C", "a2c"),
        Case("PPO", "ppo"),
    ),
    "pendulum": (
        Case("PPO", "ppo"),
        Case("TRPO", "trpo"),
        Case("ME-TRPO", "me_trpo"),
        Case("the same with PPO", "me_trpo", (("learner", "ppo"),)),
    ),
    "t_maze": (Case("PPO with a GRU", "ppo"), NO_MEMORY),
    "cartpole_no_velocity": (Case("PPO with a GRU", "ppo"), NO_MEMORY),
    "pendulum_no_velocity": (Case("PPO with a GRU", "ppo"), NO_MEMORY),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for env, cases in CASES.items():
        for case in cases:
            name = f"{env}/{case.label}"
            if name not in found:
                found[name] = learn(env, case)
                run_folder.write_json(RESULTS, found)
            last = found[name]["env_steps"][-1], found[name]["return"][-1]
            print(name, *last, flush=True)
    picture(found)


def learn(
    env_name: str,
    case: Case,
    *,
    num_steps: int = 0,
    every: int = 0,
    num_episodes: int = NUM_EPISODES,
    look: Callable[[PyTree], dict[str, Any]] = lambda state: {},
) -> dict[str, Any]:
    """A learning curve [P] of env_steps and [P, S] of returns: `num_steps` iterations,
    else the preset's, and a point `every` so many, or some `NUM_POINTS` in all.  With
    what is seen by a `look` at the last states [S, ...]."""
    record = presets.record(case.algorithm, env_name)
    settings = {**record["config"], **dict(case.settings)}
    module, env = registry.module(case.algorithm), envs.make(env_name)
    if record.get("episode_length"):
        env = simulator.time_limit(env, record["episode_length"])
    algorithm = module.make(env, command_flags.replace(module.Config(), settings))
    num_steps = num_steps or record["num_steps"]
    curve: dict[str, list] = {"env_steps": [], "return": []}

    def log(step: int, metrics: dict[str, Any]) -> None:
        if "eval/return_mean" in metrics:
            curve["env_steps"].append(int(np.mean(metrics["env_steps"])))
            curve["return"].append(np.asarray(metrics["eval/return_mean"]).tolist())

    result = train.run(
        train.seeds(FIRST_SEED, NUM_SEEDS),
        algorithm,
        env,
        num_steps,
        eval_every=every or max(1, num_steps // NUM_POINTS),
        eval_episodes=num_episodes,
        log=log,
    )
    return {
        **curve,
        **look(result.state),
        "settings": dict(case.settings),
        **run_folder.surroundings(),
    }


def draw(axis: Any, curves: dict[str, dict[str, Any]]) -> None:
    """Interquartile means with their intervals, by label."""
    rng = np.random.default_rng(0)
    for colour, (label, curve) in zip(plots.COLOURS, curves.items(), strict=False):
        points = [
            statistics.bootstrap(rng, statistics.iqm, [np.asarray(row)])
            for row in curve["return"]
        ]
        value, low, high = np.array(points).T
        steps = curve["env_steps"]
        axis.plot(steps, value, "o-", ms=3, color=colour, label=label)
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set(xlabel="environment steps")
    axis.legend(frameon=False, fontsize=8)


def picture(found: dict[str, Any]) -> None:
    made, axes = plots.new_figure(len(CASES), width=18)
    for axis, (env, cases) in zip(axes, CASES.items(), strict=True):
        draw(axis, {case.label: found[f"{env}/{case.label}"] for case in cases})
        axis.set_title(env, loc="left", fontsize=11)
        axis.set_xlim(right=1.1e6)
    axes[0].set_ylabel("return, IQM of 5 seeds")
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
