"""Guided policy search on the arm: what the network makes of its local controllers.

    python -m benchmarks.gps    # trains what is missing, draws the picture

Each variant with the preset of the default one, five seeds that nothing was chosen on,
12 steps of 20 episodes (4 starts, 5 of each).  After each step, without noise and in
the environment: the cost (minus the return) of the local controllers and of the network
from the starts that were learned from.  At the end also: the network's cost over the
controllers', the share of 20 other starts from which it holds the hand within 5 cm of
the goal during the last half second (idle: from none), and the violation of the
constraint, in nats per step.  Writes results/gps.json and docs/gps.png.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from experiments.reports import plots
from experiments.runs import command_flags, jax_settings, presets, run_folder
from mbrl_jax import envs, policies, rollout
from mbrl_jax.algorithms import gps
from mbrl_jax.envs import arm
from mbrl_jax.local_policies import controllers
from mbrl_jax.training import train
from mbrl_jax.types import Array, Env, EnvState, Policy

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gps.json"
PICTURE = ROOT / "docs" / "gps.png"
VARIANTS = ("lagrangian", "badmm", "mdgps")
FIRST_SEED, NUM_SEEDS, NUM_STARTS = 10, 5, 20
STARTS_SEED = 1_000_000
NEAR, NUM_LAST = 0.05, 10  # m, steps


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    env = envs.make("arm")
    if "idle" not in found:
        idle = jax.jit(lambda: success(env, policies.constant(env)))
        found["idle"] = {"success": float(idle())}
    for variant in VARIANTS:
        if variant not in found:
            found[variant] = learn(env, variant)
            run_folder.write_json(RESULTS, found)
        case = found[variant]
        ratio = np.array(case["network_cost"][-1]) / np.array(case["local_cost"][-1])
        print(variant, ratio.round(3), case["success"], case["violation"])
    picture(found)


def learn(env: Env, variant: str) -> dict[str, Any]:
    """Curves [steps, S], and what is there at the end, [S]."""
    record = presets.record("gps", env.name)
    config = command_flags.unflat(gps.Config(), record["config"])
    algorithm = gps.make(env, dataclasses.replace(config, variant=variant))
    keys = train.seeds(FIRST_SEED, NUM_SEEDS)
    loop = train.build(keys, algorithm, env)

    @jax.jit
    @jax.vmap
    def costs(state: gps.State) -> tuple[Array, Array]:
        network = algorithm.policy(state)
        local = lambda start, own: cost(
            env, controllers.policy(own, noisy=False), start
        )
        return (
            jax.vmap(local)(state.starts, state.controllers).mean(),
            jax.vmap(partial(cost, env, network))(state.starts).mean(),
        )

    state, curves = loop.init(keys), []
    for i in range(record["num_steps"]):
        state, metrics = loop.step(keys, i, state)
        curves.append([np.asarray(x).tolist() for x in costs(state)])
        print(variant, i + 1, curves[-1], flush=True)
    local, network = zip(*curves, strict=True)
    ends = jax.jit(jax.vmap(lambda state: success(env, algorithm.policy(state))))
    return {
        "env_steps": np.asarray(metrics["env_steps"]).tolist(),
        "local_cost": list(local),
        "network_cost": list(network),
        "success": np.asarray(ends(state)).tolist(),
        "violation": np.asarray(metrics["constraint/violation"]).tolist(),
        **run_folder.surroundings(),
    }


def cost(env: Env, policy: Policy, start: EnvState) -> Array:
    """Of an episode [] from there."""
    own = env._replace(reset=lambda key: start)
    return -rollout.episode(jax.random.key(0), own, policy).transitions.reward.sum()


def success(env: Env, policy: Policy) -> Array:
    """The share [] of other starts from which the hand arrives and stays."""
    key = jax.random.key(STARTS_SEED)
    _, episodes = rollout.evaluate(key, env, policy, NUM_STARTS)
    last = episodes.transitions.next_obs[:, -NUM_LAST:]
    gap = jax.vmap(jax.vmap(arm.hand))(last) - jnp.array(arm.GOAL)
    return (jnp.linalg.norm(gap, axis=-1) < NEAR).all(axis=1).mean()


def picture(found: dict[str, Any]) -> None:
    made, axes = plots.new_figure(len(VARIANTS), width=12)
    for axis, variant in zip(axes, VARIANTS, strict=True):
        case = found[variant]
        for i, (name, label) in enumerate(
            (("local_cost", "local controllers"), ("network_cost", "network"))
        ):
            values = np.array(case[name])
            steps, colour = np.arange(1, len(values) + 1), plots.COLOURS[i]
            axis.plot(steps, values, color=colour, alpha=0.3, lw=1)
            middle = np.median(values, axis=1)
            axis.plot(steps, middle, "o-", ms=3, color=colour, label=label)
        axis.set_title(variant, loc="left", fontsize=11)
        axis.set_yscale("log")
        axis.set(xlabel="steps of 20 episodes")
    axes[0].set(ylabel="cost of an episode")
    axes[0].legend(frameon=False)
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
