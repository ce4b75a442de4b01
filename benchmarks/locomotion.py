"""MBPO at the settings of its paper, on hopper, walker2d and halfcheetah.

    python -m benchmarks.locomotion                  # all three
    python -m benchmarks.locomotion --envs=hopper

On a GPU five seeds are one program, for as many steps as the paper gives; SAC in the
same simulator, for ten times as many, is what it is measured by, as the paper's own
simulator is another.  On a CPU the same program runs a schedule cut short, one seed
after the other, which shows that it runs and not what it learns: the results say which
of the two it was.  Writes results/locomotion.json, with what it took on the wall.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from benchmarks import timing
from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs
from mbrl_jax.algorithms import mbpo, sac
from mbrl_jax.training import train
from mbrl_jax.types import Algorithm
from mbrl_jax.value_learning import branching, off_policy
from mbrl_jax.value_learning import sac as learner

RESULTS = Path(__file__).parent / "results" / "locomotion.json"
FIRST_SEED, NUM_EPISODES = 10, 5


class Task(NamedTuple):
    num_steps: int  # of the environment
    updates_per_step: int
    growing: tuple[int, int, int, int]  # from and until which step, first, last length
    target_entropy: float  # nats, of all dimensions of the action
    action_size: int
    paper: str  # return in the paper's simulator, by its figures


# Janner et al., 2019, Table 1 and Fig. 2; hopper's schedule is that of their code
TASKS = {
    "hopper": Task(125_000, 20, (20_000, 150_000, 1, 15), -1, 3, "about 3,300"),
    "walker2d": Task(300_000, 20, (0, 1, 1, 1), -3, 6, "about 4,500"),
    "halfcheetah": Task(400_000, 40, (0, 1, 1, 1), -3, 6, "12,000 to 13,000"),
}


class Length(NamedTuple):
    """How much of the paper's schedule is run."""

    share: float  # of its steps, and of the steps of its schedule
    warmup: int
    num_rollouts: int  # in an iteration
    updates: float  # share of its updates
    num_seeds: int
    num_points: int  # of the learning curve


PAPER = Length(1.0, 5000, 100_000, 1.0, 5, 25)
SHORT = Length(0.01, 250, 5000, 0.25, 2, 4)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    length = SHORT if timing.on_cpu() else PAPER
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in flags.FLAGS.envs:
        env = envs.make(f"brax/{name}")
        ways = {
            "MBPO": (mbpo.make(env, settings(TASKS[name], length)), 1),
            "SAC": (sac.make(env, yardstick(TASKS[name], length)), 10),
        }
        for label, (algorithm, times) in ways.items():
            row = measure(name, algorithm, times, length)
            found[f"{name}/{label}"] = row
            run_folder.write_json(RESULTS, found)
            print(name, label, row["env_steps"][-1], row["return"][-1], row["wall"])


def settings(task: Task, length: Length) -> mbpo.Config:
    grow_from, grow_until, first, last = task.growing
    return mbpo.Config(
        collect=off_policy.Config(
            capacity=round(length.share * task.num_steps),
            warmup=length.warmup,
            updates_per_step=max(1, round(length.updates * task.updates_per_step)),
        ),
        learn=learner.Config(target_entropy=task.target_entropy / task.action_size),
        imagine=branching.Config(
            num_rollouts=length.num_rollouts,
            first_length=first,
            last_length=last,
            grow_from=round(length.share * grow_from),
            grow_until=max(1, round(length.share * grow_until)),
        ),
    )


def yardstick(task: Task, length: Length) -> sac.Config:
    """SAC as it is usually run: one update a step."""
    collect = off_policy.Config(capacity=1_000_000, warmup=length.warmup)
    return sac.Config(
        collect=dataclasses.replace(
            collect, capacity=min(1_000_000, round(10 * length.share * task.num_steps))
        )
    )


def measure(
    name: str, algorithm: Algorithm, times: int, length: Length
) -> dict[str, Any]:
    """The curve [P] of env_steps and [P, S] of returns, and seconds on the wall."""
    env, interval = envs.make(f"brax/{name}"), off_policy.Config().interval
    num_steps = round(times * length.share * TASKS[name].num_steps / interval)
    curve: dict[str, list] = {"env_steps": [], "return": []}

    def log(step: int, metrics: dict[str, Any]) -> None:
        if "eval/return_mean" in metrics:
            curve["env_steps"].append(int(np.max(metrics["env_steps"])))
            curve["return"].append(np.asarray(metrics["eval/return_mean"]).tolist())

    clock = time.perf_counter()
    train.run(
        train.seeds(FIRST_SEED, length.num_seeds),
        algorithm,
        env,
        num_steps,
        eval_every=max(1, num_steps // length.num_points),
        eval_episodes=NUM_EPISODES,
        log=log,
    )
    return {
        **curve,
        "wall": time.perf_counter() - clock,
        "share_of_the_paper": length.share,
        "paper": TASKS[name].paper,
        **run_folder.surroundings(),
    }


if __name__ == "__main__":
    flags.DEFINE_list("envs", list(TASKS), "Which.")
    jax_settings.apply("fast")
    app.run(main)
