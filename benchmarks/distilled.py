"""Plans in an ensemble, and in one network that holds all that it says.

    python -m benchmarks.distilled    # trains what is missing

PETS by its preset, on five seeds, the network chosen on two others; its last ensemble
is put into one network (`models/distilled.py`), and plans are made in either, from the
same 20 starts.  "one member" is what the same few particles do in a network that was
not taught: the ensemble's first.  Writes results/distilled.json, for each seed

    return        of each start, by what plans are made in
    cpu_seconds   of a plan, medians of calls in turn; of the distillation
    flop          of one step of all candidates' particles, as XLA counts it
    rank          correlations of the uncertainties of both, on episodes that were not
                  learned from: of their root mean squares over the entries, each in
                  units of its change in a step, and the least and the median entry's
    error         of the one network's mean, in units of the ensemble's own std
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy import stats

from benchmarks import timing
from experiments import run
from experiments.runs import jax_settings, registry, run_folder
from mbrl_jax import policies, rollout
from mbrl_jax.algorithms import pets
from mbrl_jax.models import aggregation, distilled, outcomes, propagation
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble as ensembles
from mbrl_jax.types import Array, Env, Key, Model, PyTree, Transition

RESULTS = Path(__file__).parent / "results" / "distilled.json"
ENV, FIRST_SEED, NUM_SEEDS, NUM_STARTS, NUM_TIMED = "cartpole_swingup", 10, 5, 20, 15
NUM_UPDATES, NUM_PARTICLES = 30_000, 2
_RUNS = flags.DEFINE_string("runs", "runs/distilled", "folder of the runs of PETS")


class Case(NamedTuple):
    """What plans are made in."""

    config: pets.Config
    state: aggregation.State


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in range(FIRST_SEED, FIRST_SEED + NUM_SEEDS):
        if str(seed) not in found:
            found[str(seed)] = measure(seed)
            run_folder.write_json(RESULTS, found)
    print(json.dumps(summary(found), indent=2))


def measure(seed: int) -> dict[str, Any]:
    folder = Path(_RUNS.value) / str(seed)
    settings = [f"--seed={seed}", "--eval_episodes=0", "--nopictures"]
    run.main(["run", f"--env={ENV}", "--preset", *settings, f"--run_dir={folder}"])
    trained = registry.load(folder, print)
    env, state = trained.env, trained.state
    cases, seconds = cases_of(env, state, jax.random.key(seed))
    returns, planned = {}, None
    for name, case in cases.items():
        episodes = play(env, case, jax.random.key(1000 + seed))
        returns[name] = np.asarray(episodes.reward.sum(axis=1)).tolist()
        planned = planned or episodes  # those in the ensemble
        print(seed, name, np.mean(returns[name]), flush=True)
    keys = jax.random.split(jax.random.key(2000 + seed), 4)
    at_random = lambda key: rollout.episode(key, env, policies.uniform(env))[0]
    held_out = {"planned": planned, "random": jax.jit(jax.vmap(at_random))(keys)}
    return {
        "return": returns,
        "cpu_seconds": {**plan_seconds(env, cases), "distillation": seconds},
        "flop": {name: step_flop(env, case) for name, case in cases.items()},
        "held_out": {name: compared(env, cases, x) for name, x in held_out.items()},
    }


def cases_of(
    env: Env, state: aggregation.State, key: Key
) -> tuple[dict[str, Case], float]:
    """What a trained PETS may plan in; and the seconds of the distillation."""
    config = pets.Config()
    few = dataclasses.replace(
        config,
        num_particles=NUM_PARTICLES,
        distil=distilled.Config(num_updates=NUM_UPDATES),
    )
    model = model_of(env, few, frozen=True)
    start = model.init(key)._replace(taught=state.model)
    fit = jax.jit(model.fit).lower(key, start, state.replay).compile()
    seconds = timing.cpu_seconds()
    taught, _ = jax.block_until_ready(fit(key, start, state.replay))
    seconds = timing.cpu_seconds() - seconds
    alone = dataclasses.replace(
        config,
        num_particles=NUM_PARTICLES,
        model=models.Config(ensemble=ensembles.Config(num_members=1)),
    )
    first = jax.tree.map(lambda x: x[:1], state.model.params)
    member = state.model._replace(params=first, elites=jnp.arange(1))
    return {
        "ensemble": Case(config, state),
        "distilled": Case(few, state._replace(model=taught)),
        "one member": Case(alone, state._replace(model=member)),
    }, seconds


def model_of(env: Env, config: pets.Config, *, frozen: bool = False) -> Model:
    """That of PETS; what is distilled is fitted too, unless it is frozen."""
    model, _ = outcomes.learned(env, config.model)
    if frozen:
        model = model._replace(fit=lambda key, state, data: (state, {}))
    if config.distil.num_updates:
        return distilled.make(model, env.obs_size, env.action_size, config.distil)
    return model


def play(env: Env, case: Case, key: Key) -> Transition:
    """Episodes [E, T, ...] from the starts that belong to the key."""
    method = pets.make(env, case.config)

    @jax.jit
    def episodes(state: aggregation.State, keys: Key) -> Transition:
        one = lambda key: rollout.episode(key, env, method.policy(state))[0]
        return jax.lax.map(one, keys)

    return episodes(case.state, jax.random.split(key, NUM_STARTS))


def plan_seconds(env: Env, cases: dict[str, Case]) -> dict[str, float]:
    """Of one step of model-predictive control; all are timed in turn."""

    def call(case: Case) -> timing.Call:
        method = pets.make(env, case.config)

        @jax.jit
        def act(state: aggregation.State, key: Key, obs: Array) -> Any:
            policy = method.policy(state)
            return policy.act(key, obs, policy.init())

        key, obs = jax.random.key(0), env.reset(jax.random.key(1)).obs
        jax.block_until_ready(act(case.state, key, obs))
        return lambda: act(case.state, key, obs)

    calls = {name: call(case) for name, case in cases.items()}
    rounds = [
        {name: timing.time_calls(x, 3)[0] for name, x in calls.items()}
        for _ in range(NUM_TIMED)
    ]
    return {name: statistics.median(x[name] for x in rounds) for name in calls}


def step_flop(env: Env, case: Case) -> float:
    """Of a step of the particles of all candidates."""
    model, config = model_of(env, case.config), case.config

    def step(state: PyTree, obs: Array, action: Array) -> Array:
        move = propagation.PROPAGATIONS[config.propagation](model, state)
        alive = jnp.ones(config.num_particles, bool)
        one = lambda obs, action: move(jax.random.key(0), obs, action, alive)
        return jax.vmap(one)(obs, action)

    number = config.plan.num_samples
    obs = jnp.zeros((number, config.num_particles, env.obs_size))
    action = jnp.zeros((number, env.action_size))
    compiled: Any = jax.jit(step).lower(case.state.model, obs, action).compile()
    return compiled.cost_analysis()["flops"]


def compared(env: Env, cases: dict[str, Case], held: Transition) -> dict[str, Any]:
    """What the one network says of rows that nothing was learned from."""
    one, many = cases["distilled"], cases["ensemble"]
    obs = held.obs.reshape(-1, env.obs_size)
    action = held.action.reshape(-1, env.action_size)
    ensemble, model = model_of(env, many.config), model_of(env, one.config)
    every = jax.vmap(partial(distilled.every, ensemble, many.state.model))
    recalled = jax.vmap(partial(distilled.recalled, model, one.state.model))
    known, found = jax.jit(every)(obs, action), jax.jit(recalled)(obs, action)
    spread = {
        "aleatoric": (known.aleatoric, found.aleatoric),
        "epistemic": (known.means.std(axis=1), found.means.std(axis=1)),
    }
    scale = one.state.model.targets.std[None]
    total = jnp.sqrt(sum(jnp.square(x) for x, _ in spread.values()))
    error = (found.means.mean(axis=1) - known.means.mean(axis=1)) / total
    size = lambda x: jnp.sqrt(jnp.square(x / scale).mean(axis=1))
    rank = lambda x, y: float(stats.spearmanr(x, y).statistic)
    found_ranks = {}
    for name, (x, y) in spread.items():
        entries = [rank(x[:, i], y[:, i]) for i in range(env.obs_size)]
        found_ranks[name] = {
            "together": rank(size(x), size(y)),
            "least": min(entries),
            "median": statistics.median(entries),
        }
    return {
        "num_rows": len(obs),
        "rank": found_ranks,
        "error": float(jnp.sqrt(jnp.square(error).mean())),
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Over the seeds: means of returns and medians of ratios, and the least ranks."""
    runs = list(found.values())
    mean = lambda name: [float(np.mean(x["return"][name])) for x in runs]
    ratio = lambda what, name: [x[what][name] / x[what]["ensemble"] for x in runs]
    names = runs[0]["return"]
    ranks = [
        (part["rank"][kind]["together"], part["rank"][kind]["median"])
        for x in runs
        for part in x["held_out"].values()
        for kind in part["rank"]
    ]
    return {
        "return": {name: mean(name) for name in names},
        "cpu_ratio": {name: ratio("cpu_seconds", name) for name in names},
        "flop_ratio": {name: ratio("flop", name) for name in names},
        "least_rank_together": min(x for x, _ in ranks),
        "least_rank_of_a_median_entry": min(x for _, x in ranks),
    }


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
