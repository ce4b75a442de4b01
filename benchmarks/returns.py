"""Does it learn?  Every preset on seeds it was not chosen on, and what that is next to.

    python -m benchmarks.returns                   # every preset, seeds 10 to 14
    python -m benchmarks.returns --presets=pets/pendulum
    python -m benchmarks.returns --references      # what these returns are next to

The sweeps are in runs/returns, and go on where they were stopped.  Their lines go to
results/ledger.jsonl, from which `experiments.report` makes every table, in place of all
that it had of the same algorithm in the same environment.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from experiments import run
from experiments.reports import results
from experiments.runs import jax_settings, ledger, presets, registry, run_folder
from mbrl_jax import envs, policies, rollout
from mbrl_jax.envs import simulator
from mbrl_jax.planners import mpc
from mbrl_jax.training import train
from mbrl_jax.types import Array, Env, Key, Policy

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "benchmarks" / "results" / "ledger.jsonl"
SWEEPS = ROOT / "runs" / "returns"
FIRST_SEED, NUM_SEEDS = 10, 5
NUM_EPISODES = 200  # of a reference
NUM_EVALUATED = 100  # at the end of a run, the same for all
NUM_UNTRAINED = 20  # of each policy that has learned nothing
PLANNED_AT_ONCE = 20  # episodes, since planning takes much memory
BOUNDS = {  # where the true dynamics are not there to be planned on, or need not be
    "brax/inverted_pendulum": (200.0, "the most: 1 in every step"),
    "brax/reacher": (0.0, "a bound: no distance, no effort"),
    "cartpole": (500.0, "the most: 1 in every step"),
    "cartpole_no_velocity": (500.0, "the most: 1 in every step"),
    "cartpole_pilco": (0.0, "a bound: the tip in its place from the first step on"),
    "detour1+detour2+detour3": (0.53, "the optimum, by their tables"),
    "peg_insertion": (0.0, "a bound: in its place from the first step on, no effort"),
    "+".join(f"two_rooms{i}" for i in range(1, 5)): (
        0.476,
        "the optimum, by their tables",
    ),
    "driving": (100.0, "the most: 1 in every step"),
    "t_maze": (4.0, "the most: every turn right, no detour"),
    "two_peaks": (1.0, "the most: the higher of its peaks"),
    "gymnasium/Pendulum-v1": (0.0, "a bound: upright, at rest, no effort"),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # app.run makes jax chatty
    names = [tuple(name.split("/", 1)) for name in flags.FLAGS.presets]
    names = names or presets.names()
    if flags.FLAGS.references:
        for env in sorted({env for _, env in names}):
            _add_reference(env, sorted(name for name, own in names if own == env))
        return
    for algorithm, env in names:
        _run(algorithm, env)


def _run(algorithm: str, env: str) -> None:
    folder = SWEEPS / algorithm / presets.path(algorithm, env).stem
    command = [sys.executable, "-m", "experiments.sweep", "--preset"]
    command += [f"--algorithm={algorithm}", f"--env={env}", f"--sweep_dir={folder}"]
    command += [f"--seed={FIRST_SEED}", f"--num_seeds={NUM_SEEDS}", "--eval_every=0"]
    command += [f"--eval_episodes={NUM_EVALUATED}"]
    subprocess.run(command, cwd=ROOT, check=True)
    lines = ledger.read(folder / "ledger.jsonl")
    for line in lines:
        line["folder"] = str(Path(line["folder"]).relative_to(ROOT))
    pair = (algorithm, env)
    ledger.add(LEDGER, lines, lambda old: (old["algorithm"], old["env"]) == pair)


def _add_reference(name: str, algorithms: Sequence[str]) -> None:
    """Of an environment: acting at random, doing nothing (the first action, of discrete
    ones), the policies of those algorithms before they learn, and the best known.

    Not of those that plan: it takes hours, and in a model that has learned nothing is
    as good as acting at random.
    """
    record = presets.record(algorithms[0], name)
    env = envs.make(name)
    if "episode_length" in record:
        env = simulator.time_limit(env, record["episode_length"])
    found: dict[str, Any] = {
        "random": _evaluate(env, policies.uniform(env)),
        "idle": _evaluate(env, policies.constant(env)),
        "untrained": {
            algorithm: _untrained(algorithm, name)
            for algorithm in algorithms
            if "planner" not in presets.record(algorithm, name)["config"]
        },
        "best": None,
        "best_is": "",
    }
    if name in BOUNDS:
        found["best"], found["best_is"] = BOUNDS[name]
    elif not env.num_actions:
        horizon = record["config"].get("plan.horizon", mpc.Config().horizon)
        planner = mpc.make(
            "icem",
            mpc.Config(horizon=horizon),
            env.action_size,
            env.action_limit,
            lambda key, env_state: rollout.simulation(env, env_state),
        )
        found["best"] = _evaluate(simulator.observe_all(env), planner)
        found["best_at_starts"] = _at_starts(simulator.observe_all(env), planner)
        found["best_is"] = f"iCEM on the true dynamics, {horizon} steps ahead"
    path = results.REFERENCES
    every = json.loads(path.read_text()) if path.exists() else {}
    run_folder.write_json(path, {**every, name: found})
    print(name, found, flush=True)


def _untrained(algorithm: str, env: str) -> dict[str, float]:
    values, config = run.parse(
        ["run", f"--algorithm={algorithm}", f"--env={env}", "--preset"]
    )
    with jax.enable_x64(values["precision"].value == "x64"):
        made = registry.assemble(run.record_of(values, config))
        method = made.algorithm({})
        state = jax.jit(method.init)(jax.random.key(0))
        return _evaluate(made.env, lambda: method.policy(state), NUM_UNTRAINED)


def _evaluate(
    env: Env, policy: Policy | Callable[[], Policy], number: int = NUM_EPISODES
) -> dict[str, float]:
    """The return of an episode, its standard error, and its steps."""

    def batch(key: Key) -> tuple[Array, Array]:
        acting = policy if isinstance(policy, Policy) else policy()
        _, episodes = rollout.evaluate(key, env, acting, min(number, PLANNED_AT_ONCE))
        return episodes.transitions.reward.sum(axis=1), episodes.valid.sum(axis=1)

    keys = jax.random.split(jax.random.key(1_000_000), -(-number // PLANNED_AT_ONCE))
    returns, steps = map(np.ravel, jax.jit(lambda: jax.lax.map(batch, keys))())
    error = returns.std(ddof=1) / len(returns) ** 0.5
    figures = {"return": returns.mean(), "error": error, "steps": steps.mean()}
    return {name: round(float(x), 2) for name, x in figures.items()}


def _at_starts(env: Env, policy: Policy) -> float:
    """The mean return from where the evaluations of all runs start."""

    def one(start: Key) -> Array:
        own = env._replace(reset=lambda _: env.reset(start))
        key = jax.random.fold_in(start, 1)  # the planner's
        return rollout.episode(key, own, policy)[0].reward.sum()

    starts = jax.random.split(jax.random.key(train.EVALUATION_SEED), NUM_EVALUATED)
    run = jax.jit(lambda: jax.lax.map(one, starts, batch_size=PLANNED_AT_ONCE))
    return round(float(run().mean()), 2)


if __name__ == "__main__":
    flags.DEFINE_list("presets", [], "ALGORITHM/ENVIRONMENT; default: all")
    flags.DEFINE_boolean("references", False, "measure these in place of the presets")
    jax_settings.apply("fast")
    app.run(main)
