"""How noisy are the gradients of particles?  Deep PILCO's and PIPPS's, by the horizon.

    python -m benchmarks.particles        # measures what is missing, draws the picture

A Gaussian process and a Bayesian network know three random episodes of cartpole_pilco.
Of five policies, random ones and ones that react sharply (half the length scales,
three times the targets), each estimator gives the gradient of the mean return of 100
particles, 24 times; its variance is the trace of the covariance of these.  Writes
results/particles.json and docs/particles.png.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from experiments.reports import plots
from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs, moment_policies, policies, replay
from mbrl_jax.algorithms import deep_pilco, pipps
from mbrl_jax.gradients import by_name, closed_loop, swarm
from mbrl_jax.gradients.closed_loop import ExpectedReturn
from mbrl_jax.models import bnn, gaussian_process, outcomes
from mbrl_jax.rollout import episode
from mbrl_jax.types import Array, Key, Model, Params, PyTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "particles.json"
PICTURE = ROOT / "docs" / "particles.png"
ENV, NUM_EPISODES = "cartpole_pilco", 3
HORIZONS, NUM_PARTICLES, NUM_REPEATS = (2, 5, 10, 20, 40), 100, 24
FIRST_SEED, NUM_POLICIES = 10, 5
KINDS = {"random": (1.0, 1.0), "sharp": (0.5, 3.0)}  # length scales, targets
NETWORKS = {"network, redrawn": True, "network": False}

Estimate = Callable[[Key, Params], tuple[Params, Array]]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in (*by_name.ESTIMATORS, *NETWORKS):
        for horizon in HORIZONS:
            case = f"{name}/{horizon}"
            if case not in found:
                found[case] = {**variances(name, horizon), **run_folder.surroundings()}
                run_folder.write_json(RESULTS, found)
            print(case, {kind: np.median(found[case][kind]) for kind in KINDS})
    picture(found)


def variances(name: str, horizon: int) -> dict[str, list[float]]:
    """Of each kind of policy, for each of them."""
    env = envs.make(ENV)
    assert env.belief is not None
    made = moment_policies.make(env, env.belief, "rbf", num_basis=50, spread=1.0)
    of = of_network if name in NETWORKS else of_process
    estimate = of(name, horizon, made)
    one = partial(moment_policies.pulled_back, made, estimate)

    @jax.jit
    def variance(key: Key, params: Params) -> Array:
        keys = jax.random.split(key, NUM_REPEATS)
        gradients = jax.lax.map(lambda key: one(key, params)[0], keys)
        return sum(x.var(axis=0, ddof=1).sum() for x in jax.tree.leaves(gradients))

    def measured(key: Key, widths: float, height: float) -> float:
        policy_key, key = jax.random.split(key)
        params = made.init(policy_key)
        params = params._replace(
            targets=10 * height * params.targets,  # of unit std, times `height`
            log_lengthscales=params.log_lengthscales + np.log(widths),
        )
        return float(variance(key, params))

    keys = jax.random.split(jax.random.key(FIRST_SEED), NUM_POLICIES)
    return {kind: [measured(key, *how) for key in keys] for kind, how in KINDS.items()}


def of_process(name: str, horizon: int, made: moment_policies.MomentPolicy) -> Estimate:
    env = envs.make(ENV)
    config = dataclasses.replace(pipps.Config().model, angles=env.belief.angles)
    model = gaussian_process.make(env.obs_size, env.action_size, config)
    decode = outcomes.decoder(env, learn_reward=False, learn_terminal=False)
    blank = jnp.zeros((1, env.obs_size))
    predict = partial(model.predict, known(model))
    system = closed_loop.from_member(predict, decode, blank, env.action_size)
    system = system._replace(reset=lambda key: env.reset(key).obs)
    actor = closed_loop.deterministic(made.action)
    problem = ExpectedReturn(system, actor, horizon)
    return lambda key, ready: by_name.ESTIMATORS[name](
        key, ready, problem, NUM_PARTICLES
    )


def of_network(name: str, horizon: int, made: moment_policies.MomentPolicy) -> Estimate:
    env = envs.make(ENV)
    config = dataclasses.replace(deep_pilco.Config().model, angles=env.belief.angles)
    model = bnn.make(env.obs_size, env.action_size, config)
    decode = outcomes.decoder(env, learn_reward=False, learn_terminal=False)
    state = known(model)
    actor = closed_loop.deterministic(jax.vmap(made.action, (None, 0)))

    def estimate(key: Key, ready: Params) -> tuple[Params, Array]:
        masks_key, key = jax.random.split(key)
        system = swarm.of_members(
            model.predict,
            bnn.sample_members(masks_key, state, NUM_PARTICLES),
            lambda key: env.reset(key).obs,
            lambda *moved: decode(*moved).reward,
            NUM_PARTICLES,
            NETWORKS[name],
        )
        return swarm.pathwise(ExpectedReturn(system, actor, horizon), key, ready)

    return estimate


def known(model: Model) -> PyTree:
    """The state of `model` that has seen the episodes."""
    env = envs.make(ENV)
    run_key, init_key, fit_key = jax.random.split(jax.random.key(FIRST_SEED), 3)
    data = replay.init(env.obs_size, env.action_size, NUM_EPISODES * env.episode_length)
    for key in jax.random.split(run_key, NUM_EPISODES):
        data = replay.insert(data, *episode(key, env, policies.uniform(env)))
    return jax.jit(model.fit)(fit_key, model.init(init_key), data)[0]


def picture(found: dict[str, Any]) -> None:
    made, axes = plots.new_figure(len(KINDS), width=12)
    names = [*by_name.ESTIMATORS, *NETWORKS]
    for axis, kind in zip(axes, KINDS, strict=True):
        for i, name in enumerate(names):
            each = np.array([found[f"{name}/{horizon}"][kind] for horizon in HORIZONS])
            how = {"color": plots.COLOURS[i], "marker": "o", "markersize": 3}
            label = name.replace("_", " ")
            axis.plot(HORIZONS, np.median(each, axis=1), label=label, **how)
        axis.set(xscale="log", yscale="log", xlabel="horizon, steps")
        axis.set_xticks(HORIZONS, HORIZONS)
        axis.set_title(f"{kind} policies: variance", loc="left", fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("x64")
    app.run(main)
