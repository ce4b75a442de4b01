"""Does it learn?  Every preset on seeds it was not chosen on, and what that is next to.

    python -m benchmarks.returns                   # every preset, seeds 10 to 14
    python -m benchmarks.returns --presets=pets/pendulum
    python -m benchmarks.returns --references      # random policy, true dynamics

The sweeps are in runs/returns, and go on where they were stopped.  Their lines are
added to results/ledger.jsonl, from which `experiments.report` makes every table.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from experiments.reports import results
from experiments.runs import jax_settings, ledger, presets, run_folder
from mbrl_jax import envs, policies, rollout
from mbrl_jax.envs import simulator
from mbrl_jax.planners import mpc
from mbrl_jax.types import Env, Policy

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "benchmarks" / "results" / "ledger.jsonl"
SWEEPS = ROOT / "runs" / "returns"
FIRST_SEED, NUM_SEEDS = 10, 5
NUM_EPISODES = 20
BOUNDS = {  # where the true dynamics are not there to be planned on, or need not be
    "brax/inverted_pendulum": (200.0, "the most: 1 in every step"),
    "brax/reacher": (0.0, "a bound: no distance, no effort"),
    "cartpole": (500.0, "the most: 1 in every step"),
    "cartpole_no_velocity": (500.0, "the most: 1 in every step"),
    "maze": (1.0, "the most: the goal"),
    "t_maze": (4.0, "the most: every turn right, no detour"),
    "gymnasium/Pendulum-v1": (0.0, "a bound: upright, at rest, no effort"),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # app.run makes jax chatty
    names = [tuple(name.split("/", 1)) for name in flags.FLAGS.presets]
    names = names or presets.names()
    for algorithm, env in names:
        if flags.FLAGS.references:
            _add_reference(algorithm, env)
        else:
            _run(algorithm, env)


def _run(algorithm: str, env: str) -> None:
    folder = SWEEPS / algorithm / presets.path(algorithm, env).stem
    command = [sys.executable, "-m", "experiments.sweep", "--preset"]
    command += [f"--algorithm={algorithm}", f"--env={env}", f"--sweep_dir={folder}"]
    command += [f"--seed={FIRST_SEED}", f"--num_seeds={NUM_SEEDS}", "--eval_every=0"]
    subprocess.run(command, cwd=ROOT, check=True)
    lines = ledger.read(folder / "ledger.jsonl")
    for line in lines:
        line["folder"] = str(Path(line["folder"]).relative_to(ROOT))
    ledger.add(LEDGER, lines)


def _add_reference(algorithm: str, name: str) -> None:
    """Returns of the random policy and, if known, of the best there is."""
    settings = presets.load(algorithm, name)["settings"]
    env = envs.make(name)
    if "episode_length" in settings:
        env = simulator.time_limit(env, settings["episode_length"])
    path = results.REFERENCES
    found = json.loads(path.read_text()) if path.exists() else {}
    best, best_is = BOUNDS.get(name, (None, ""))
    if name in envs.names() and name not in BOUNDS:
        horizon = settings.get("plan.horizon", mpc.Config().horizon)
        planner = mpc.make(
            "icem",
            mpc.Config(horizon=horizon),
            env.action_size,
            env.action_limit,
            lambda key, env_state: rollout.simulation(env, env_state),
        )
        best = _evaluate(simulator.observe_all(env), planner)
        best_is = f"iCEM on the true dynamics, {horizon} steps ahead"
    random = _evaluate(env, policies.uniform(env))
    found[name] = {"random": random, "best": best, "best_is": best_is}
    run_folder.write_json(path, found)
    print(name, found[name], flush=True)


def _evaluate(env: Env, policy: Policy) -> float:
    run = jax.jit(lambda key: rollout.evaluate(key, env, policy, NUM_EPISODES)[0])
    return round(float(run(jax.random.key(1_000_000))["eval/return_mean"]), 2)


if __name__ == "__main__":
    flags.DEFINE_list("presets", [], "ALGORITHM/ENVIRONMENT; default: all")
    flags.DEFINE_boolean("references", False, "measure these in place of the presets")
    jax_settings.apply("fast")
    app.run(main)
