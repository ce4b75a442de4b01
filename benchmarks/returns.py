"""Does it learn?  PETS on the tasks that it is judged by, over several seeds.

    python -m benchmarks.returns                     # all tasks, the reported seeds
    python -m benchmarks.returns --tasks=swingup --seeds=0,1
    python -m benchmarks.returns --readme            # put what is measured there

Hyperparameters were chosen on seeds 0 to 4; the reported seeds are 10 to 14.  Each run
is added to the results file when it ends; runs that are there are not repeated.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging

from experiments import command_flags, jax_settings, run_folder
from mbrl_jax import envs, imagine, policies, rollout, simulator, train
from mbrl_jax.algorithms import pets
from mbrl_jax.planners import mpc
from mbrl_jax.types import Env, Policy

RESULTS = Path(__file__).parent / "results" / "returns.json"
README = Path(__file__).parents[1] / "README.md"
REPORTED_SEEDS = tuple(range(10, 15))
Run = dict[str, Any]


class Task(NamedTuple):
    env: str
    num_steps: int  # episodes
    flags: dict[str, Any]  # of the command, where not the defaults
    criterion: str  # of one run
    passed: Callable[[Run, dict[str, float]], bool]  # (run, references)
    episode_length: int | None = None  # where not the environment's own


TASKS = {
    "swingup": Task(
        "cartpole_swingup",
        10,
        {},
        "mean of 5 evaluation episodes at least 85 % of the same planner's on the true "
        "dynamics, after 10 episodes",
        lambda run, reference: run["eval"] >= 0.85 * reference["true_dynamics"],
    ),
    "balance": Task(
        "cartpole_balance",
        6,
        {"plan.horizon": 15},
        "180 of 200 or more in one of 6 trials",
        lambda run, reference: max(run["returns"]) >= 180,
    ),
    "pets_cartpole": Task(
        "cartpole_pets",
        10,
        {"plan.horizon": 25},
        "165 or more in each of the last 3 of 10 trials",
        lambda run, reference: min(run["returns"][-3:]) >= 165,
    ),
    "gymnasium_pendulum": Task(
        "gymnasium/Pendulum-v1",
        8,
        {},
        "mean of 5 evaluation episodes at least -300, after 8 episodes",
        lambda run, reference: run["eval"] >= -300,
    ),
    "brax_inverted_pendulum": Task(
        "brax/inverted_pendulum",
        40,
        {"num_random_episodes": 20},
        "mean of 5 evaluation episodes (200 is the most) ten times the random "
        "policy's, after 40 episodes, 20 of them at random (some 5 steps each)",
        lambda run, reference: run["eval"] >= 10 * reference["random"],
        episode_length=200,
    ),
    "brax_reacher": Task(
        "brax/reacher",
        10,
        {"plan.horizon": 10},
        "mean of 5 evaluation episodes closes half of the gap between the random "
        "policy and 0, after 10 episodes",
        lambda run, reference: run["eval"] >= 0.5 * reference["random"],
        episode_length=50,
    ),
}


def make(task: Task) -> tuple[Env, pets.Config]:
    env = envs.make(task.env)
    if task.episode_length:
        env = simulator.time_limit(env, task.episode_length)
    default = pets.Config()
    config = command_flags.unflat(default, command_flags.flat(default) | task.flags)
    return env, config


def references(env: Env, config: pets.Config) -> dict[str, float]:
    """Mean returns of the random policy and, on our own environments, of the planner on
    the true dynamics."""
    found = {"random": _evaluate(env, policies.uniform(env), 5 if env.host else 20)}
    if env.name in envs.names():
        planner = mpc.make(
            config.planner,
            config.plan,
            env.action_size,
            env.action_limit,
            lambda key, env_state: partial(imagine.simulated_return, env, env_state),
        )
        found["true_dynamics"] = _evaluate(simulator.observe_all(env), planner, 5)
    return found


def measure(env: Env, config: pets.Config, num_steps: int, seed: int) -> Run:
    """One run: its episodes' returns and env_steps, the final evaluation, its cost."""
    lines: list[dict[str, Any]] = []
    wall, cpu = time.perf_counter(), _cpu_seconds()
    train.run(
        jax.random.key(seed),
        pets.make(env, config),
        env,
        num_steps,
        log=lambda step, metrics: lines.append(metrics),
    )
    return {
        "seed": seed,
        "returns": [round(float(line["episode/return"]), 2) for line in lines],
        "env_steps": [int(line["env_steps"]) for line in lines],
        "eval": round(float(lines[-1]["eval/return_mean"]), 2),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(_cpu_seconds() - cpu, 1),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown, a row per task."""
    rows = [
        "| task | environment | criterion | seeds that pass | final evaluation: mean "
        "[95 % interval] | random | true dynamics |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        task, runs, reference = TASKS[name], result["runs"], result["references"]
        evals = [run["eval"] for run in runs]
        low, high = interval(evals)
        passed = sum(task.passed(run, reference) for run in runs)
        best = reference.get("true_dynamics")
        rows.append(
            f"| {name} | {task.env} | {task.criterion} | {passed} of {len(runs)} | "
            f"{np.mean(evals):.1f} [{low:.1f}, {high:.1f}] | {reference['random']:.1f} "
            f"| {'not measured' if best is None else f'{best:.1f}'} |"
        )
    return "\n".join(rows)


def with_table(text: str, results: dict[str, Any]) -> str:
    """`text` with the table between its two marks."""
    before, _, rest = text.partition("<!-- returns -->\n")
    _, _, after = rest.partition("<!-- end -->")
    return f"{before}<!-- returns -->\n{table(results)}\n<!-- end -->{after}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap of the mean, 95 %."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _evaluate(env: Env, policy: Policy, num_episodes: int) -> float:
    run = jax.jit(lambda key: rollout.evaluate(key, env, policy, num_episodes)[0])
    return round(float(run(jax.random.key(1_000_000))["eval/return_mean"]), 2)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # app.run makes jax chatty
    path = Path(flags.FLAGS.output)
    results = json.loads(path.read_text()) if path.exists() else {}
    if flags.FLAGS.readme:
        README.write_text(with_table(README.read_text(), results))
        return
    jax_settings.apply("fast")
    seeds = [int(seed) for seed in flags.FLAGS.seeds]
    for name in flags.FLAGS.tasks:
        _add(name, seeds, results, path)
    print(table(results))


def _add(name: str, seeds: Sequence[int], results: dict[str, Any], path: Path) -> None:
    task = TASKS[name]
    env, config = make(task)
    said = {
        "env": task.env,
        "episode_length": env.episode_length,
        "num_steps": task.num_steps,
        "config": run_folder.plain(dataclasses.asdict(config)),
    }
    result = results.get(name, {})
    if {key: result.get(key) for key in said} != said:  # measured with other settings
        result = {**said, "references": references(env, config), "runs": []}
    result["criterion"] = task.criterion
    done = {run["seed"] for run in result["runs"]}
    for seed in seeds:
        if seed in done:
            continue
        run = measure(env, config, task.num_steps, seed)
        result["runs"].append(run)
        result["surroundings"] = run_folder.surroundings()["versions"]
        results[name] = result
        run_folder.write_json(path, results)
        print(name, run, flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("tasks", list(TASKS), "tasks to run")
    flags.DEFINE_list("seeds", [str(seed) for seed in REPORTED_SEEDS], "seeds to run")
    flags.DEFINE_string("output", str(RESULTS), "results file")
    flags.DEFINE_boolean("readme", False, "only write the table into README.md")
    app.run(main)
