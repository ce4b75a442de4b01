"""What local policies need: feedback, a prior, a bound.  LQR-FLM in the wind.

    python -m benchmarks.local_policies     # learns what is missing, draws the picture

The cost of the mean of the controller, on 100 starts that all share, relative to iLQR
on the true dynamics from each of these starts; against the episodes seen, on five seeds
that nothing was chosen on.  Settings are the preset's, but for what a label says.  Of
one seed: what the bound on the KL divergence did, and where the controllers of three
iterations lead, noise included.  Writes results/local_policies.json,
docs/local_policies.png and docs/local_policies_ways.png.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from matplotlib import patches

from experiments.reports import plots
from experiments.runs import command_flags, jax_settings, presets, run_folder
from mbrl_jax import envs, rollout
from mbrl_jax.algorithms import lqr_flm
from mbrl_jax.envs import point_mass
from mbrl_jax.local_policies import controllers
from mbrl_jax.planners.ilqr import ilqr
from mbrl_jax.training import train
from mbrl_jax.types import Array

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "local_policies.json"
PICTURE = ROOT / "docs" / "local_policies.png"
WAYS = ROOT / "docs" / "local_policies_ways.png"
ENV = "windy_point_mass"
FIRST_SEED, NUM_SEEDS, NUM_EPISODES = 10, 5, 100
MOST_EPISODES = 100
DEFAULT = "LQR-FLM"
UNBOUND = 1e9  # nats
CASES: dict[str, dict[str, dict[str, Any]]] = {  # settings in place of the preset's
    "controllers": {
        DEFAULT: {},
        "feedback (1.0)": {"controller": "feedback"},
        "open loop (0.5)": {"controller": "open_loop"},
    },
    "prior": {
        DEFAULT: {},
        "no prior, 10 episodes": {"prior": "none", "num_episodes": 10},
        "no prior, 20 episodes": {"prior": "none", "num_episodes": 20},
    },
    "bound": {
        DEFAULT: {},
        "no bound": {"max_kl": UNBOUND},
        "feedback, no bound": {"controller": "feedback", "max_kl": UNBOUND},
    },
}
SHOWN_SEED, SHOWN_STEPS = 10, (1, 3, 10)
NUM_SHOWN, NUM_LINES = 200, 20  # episodes that ellipses are of, and that are drawn
LEVEL = 5.99  # of chi^2 with two degrees of freedom: an ellipse holds 95 %
KEPT = ("controller/kl", "controller/max_kl", "model/std", "controller/num_kept")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "ilqr" not in found:
        found["ilqr"] = best_return()
    for cases in CASES.values():
        for label, settings in cases.items():
            if label not in found:
                found[label] = learn(settings)
                run_folder.write_json(RESULTS, found)
            costs = relative(found, label)[-1]
            print(label, np.median(costs), costs.max(), flush=True)
    curves(found)
    trajectories()


def best_return() -> float:
    """Of iLQR on the true dynamics, the mean over the starts of all evaluations."""
    env = envs.make(ENV)
    keys = jax.random.split(jax.random.key(train.EVALUATION_SEED), NUM_EPISODES)
    starts = jax.vmap(lambda key: env.reset(key).obs)(keys)

    def dynamics(x: Array, u: Array, t: Array) -> Array:
        state = point_mass.State(x[:2], x[2:4], x[4:])
        return jnp.concatenate(point_mass.windy_dynamics(state, u))

    def cost(x: Array, u: Array, t: Array) -> Array:
        return -point_mass.reward(x, u, dynamics(x, u, t))

    limit = jnp.full(env.action_size, env.action_limit)
    solved = jax.jit(
        jax.vmap(
            lambda x: ilqr(
                dynamics,
                cost,
                lambda x: jnp.zeros(()),
                x,
                jnp.zeros((env.episode_length, env.action_size)),
                limits=(-limit, limit),
            )
        )
    )(starts)
    return -float(solved.cost.mean())


def learn(settings: dict[str, Any]) -> dict[str, Any]:
    """A curve: episodes [P], of returns and of `KEPT` [P, S]."""
    config = configured(settings)
    env = envs.make(ENV)
    curve: dict[str, list] = {name: [] for name in ("episodes", "return", *KEPT)}

    def log(step: int, metrics: dict[str, Any]) -> None:
        curve["episodes"].append(step * config.num_episodes)
        curve["return"].append(np.asarray(metrics["eval/return_mean"]).tolist())
        for name in KEPT:
            curve[name].append(np.asarray(metrics[name]).tolist())

    train.run(
        train.seeds(FIRST_SEED, NUM_SEEDS),
        lqr_flm.make(env, config),
        env,
        MOST_EPISODES // config.num_episodes,
        eval_every=1,
        eval_episodes=NUM_EPISODES,
        log=log,
    )
    return {**curve, "settings": settings, **run_folder.surroundings()}


def configured(settings: dict[str, Any]) -> lqr_flm.Config:
    of_preset = presets.record("lqr_flm", ENV)["config"]
    return command_flags.replace(lqr_flm.Config(), {**of_preset, **settings})


def relative(found: dict[str, Any], label: str) -> np.ndarray:
    """Costs [P, S], of which 1 is that of iLQR."""
    return np.asarray(found[label]["return"]) / found["ilqr"]


def ways() -> dict[int, np.ndarray]:
    """By iteration, where the noisy controller of one seed leads: [E, T, 2], m."""
    env = envs.make(ENV)
    algorithm = lqr_flm.make(env, configured({}))
    loop = train.build(jax.random.key(SHOWN_SEED), algorithm, env)
    key = jax.random.key(SHOWN_SEED)
    state, found = loop.init(key), {}

    @jax.jit
    def positions(controller: controllers.Controller) -> Array:
        policy = controllers.policy(controller)
        episodes = rollout.evaluate(key, env, policy, NUM_SHOWN)[1]
        return episodes.transitions.obs[:, :, :2]

    for step in range(max(SHOWN_STEPS) + 1):
        if step in SHOWN_STEPS:
            found[step] = np.asarray(positions(state.controller))
        state, _ = loop.step(key, step, state)
    return found


def curves(found: dict[str, Any]) -> None:
    made, axes = plots.new_figure(len(CASES) + 1, width=18)
    for axis, (title, cases) in zip(axes, CASES.items(), strict=False):
        for colour, label in zip(plots.COLOURS, cases, strict=False):
            costs, episodes = relative(found, label), found[label]["episodes"]
            low, high = costs.min(axis=1), costs.max(axis=1)
            middle = np.median(costs, axis=1)
            axis.plot(episodes, middle, "o-", ms=3, color=colour, label=label)
            axis.fill_between(episodes, low, high, color=colour, alpha=0.15, lw=0)
        axis.set_title(title, loc="left", fontsize=11)
        axis.set(xlabel="episodes", yscale="log")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("cost relative to iLQR")
    axis, curve = axes[-1], found[DEFAULT]
    labels = {"controller/kl": "KL(new || old)", "controller/max_kl": "bound"}
    for colour, (name, label) in zip(plots.COLOURS, labels.items(), strict=False):
        values = np.asarray(curve[name])[:, SHOWN_SEED - FIRST_SEED]
        axis.plot(curve["episodes"], values, "o-", ms=3, color=colour, label=label)
    axis.set_title(f"seed {SHOWN_SEED}: nats", loc="left", fontsize=11)
    axis.set(xlabel="episodes", yscale="log")
    axis.legend(frameon=False, fontsize=8)
    plots.save(made, PICTURE)


def trajectories() -> None:
    shown = ways()
    made, axes = plots.new_figure(len(shown), width=13)
    for axis, (step, positions) in zip(axes, shown.items(), strict=True):
        few = positions[:NUM_LINES].transpose(2, 1, 0)
        axis.plot(*few, lw=0.5, color=plots.COLOURS[0])
        for time in range(0, positions.shape[1], 10):
            axis.add_patch(ellipse(positions[:, time]))
        axis.set_title(f"after iteration {step}", loc="left", fontsize=11)
        axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xlabel="x, m")
    axes[0].set_ylabel("y, m")
    plots.save(made, WAYS)


def ellipse(points: np.ndarray) -> patches.Ellipse:
    """Of a Gaussian with the moments of `points` [E, 2]."""
    values, vectors = np.linalg.eigh(np.cov(points.T))
    width, height = 2 * np.sqrt(LEVEL * np.maximum(values, 0))
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    style = {"fill": False, "lw": 1.2, "color": plots.COLOURS[1]}
    return patches.Ellipse(points.mean(axis=0), width, height, angle=angle, **style)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
