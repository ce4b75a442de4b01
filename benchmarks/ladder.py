"""The ladder of the lectures: what each version of model-based RL repairs.

    python -m benchmarks.ladder              # trains what is missing, draws the picture

Versions 0.5, 1.0, 1.5 (`mbrl_v05`, `mbrl_v10`, `mbrl_v15`: one model, one planner) and
2.0 (`bptt`) on the same number of real episodes.  Five seeds that nothing was chosen
on.  Of each, at the end: the model's error where the policy goes, next to that where
random actions go; the return of the policy when a plan is executed blindly, and when
every step is planned anew; the time of an action.  Writes results/ladder.json and
docs/ladder.png.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import timing
from experiments.reports import plots, statistics
from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs, policies, rollout
from mbrl_jax.algorithms import bptt, mbrl_v05, mbrl_v10, mbrl_v15
from mbrl_jax.models import aggregation
from mbrl_jax.training import train
from mbrl_jax.types import Algorithm, Array, Env, Key, PyTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ladder.json"
PICTURE = ROOT / "docs" / "ladder.png"
ENVS = {"pendulum": 8, "cartpole_swingup": 12}  # episodes
RUNGS: dict[str, tuple[str, Any]] = {
    "0.5": ("random data, blind plans", mbrl_v05),
    "1.0": ("data of its own too", mbrl_v10),
    "1.5": ("plan anew at every step", mbrl_v15),
    "2.0": ("a network acts", bptt),
}
FIRST_SEED, NUM_SEEDS, NUM_EPISODES = 10, 5, 5
NUM_ACTIONS = 50  # of which one is timed


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, num_steps in ENVS.items():
        for rung in RUNGS:
            case = f"{name}/{rung}"
            if case not in found:
                found[case] = climb(name, rung, num_steps)
                run_folder.write_json(RESULTS, found)
            print(case, {key: found[case][key] for key in ("end", "seconds")})
    picture(found)


def climb(name: str, rung: str, num_steps: int) -> dict[str, Any]:
    """Learning curves [P] of env_steps and [P, S] of returns, and what is there at the
    end, by seed [S]."""
    env, module = envs.make(name), RUNGS[rung][1]
    algorithm = module.make(env)
    curve: dict[str, list] = {"env_steps": [], "return": []}

    def log(step: int, metrics: dict[str, Any]) -> None:
        curve["env_steps"].append(int(np.mean(metrics["env_steps"])))
        curve["return"].append(np.asarray(metrics["eval/return_mean"]).tolist())

    result = train.run(
        train.seeds(FIRST_SEED, NUM_SEEDS),
        algorithm,
        env,
        num_steps,
        eval_every=1,
        eval_episodes=NUM_EPISODES,
        log=log,
    )
    one = jax.tree.map(lambda x: x[0], result.state)
    return {
        **curve,
        "end": _at_the_end(env, algorithm, result.state),
        "seconds": _seconds_of_an_action(env, algorithm, one),
        **run_folder.surroundings(),
    }


def _at_the_end(
    env: Env, algorithm: Algorithm, states: PyTree
) -> dict[str, list[float]]:
    """Of each seed [S]: model errors of one step, in stds of what a random policy
    changes in a step, and returns if the same model is planned in otherwise."""

    def measure(key: Key, state: PyTree) -> dict[str, Any]:
        predict = partial(algorithm.predict, state)
        run = lambda policy: rollout.evaluate(key, env, policy, NUM_EPISODES)
        own, random = run(algorithm.policy(state)), run(policies.uniform(env))
        scale = _change(random[1]).std(axis=0, where=_valid(random[1]))
        result = {
            "error where it goes": _error(predict, own[1], scale),
            "error of random actions": _error(predict, random[1], scale),
        }
        if isinstance(state, aggregation.State):
            for word, module in (("blindly", mbrl_v10), ("anew", mbrl_v15)):
                policy = module.make(env).policy
                result[f"return, {word}"] = run(policy(state))[0]["eval/return_mean"]
        return result

    keys = jax.random.split(jax.random.key(1_000_000), NUM_SEEDS)
    found = jax.jit(lambda x: jax.lax.map(lambda x: measure(*x), x))((keys, states))
    return {name: np.asarray(x).tolist() for name, x in found.items()}


def _change(episodes: rollout.Episode) -> Array:
    """Of obs in a step, [E T, O]."""
    data = episodes.transitions
    change = data.next_obs - data.obs
    return change.reshape(-1, change.shape[-1])


def _valid(episodes: rollout.Episode) -> Array:
    return episodes.valid.reshape(-1, 1)


def _error(predict: Any, episodes: rollout.Episode, scale: Array) -> Array:
    """Root mean square [] of one step, over the entries of obs, in units of `scale`."""
    data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), episodes.transitions)
    mean = jax.vmap(predict)(data.obs, data.action).mean.mean(axis=1)
    error = (mean[:, : scale.size] - data.next_obs) / scale[None]
    return jnp.sqrt(jnp.square(error).mean(where=_valid(episodes)))


def _seconds_of_an_action(env: Env, algorithm: Algorithm, state: PyTree) -> float:
    """Median, by the device's clock, within a compiled loop in the environment."""

    @jax.jit
    def act(key: Key) -> Array:
        policy = algorithm.policy(state)
        running = rollout.start(key, env, policy)
        return rollout.rollout(key, env, policy, running, NUM_ACTIONS)[1].action

    key = jax.random.key(0)
    measured = timing.measure(lambda: act(key), num_calls=5, num_repeats=7)
    return measured.seconds / NUM_ACTIONS


def picture(found: dict[str, Any]) -> None:
    made, axes = plots.new_figure(2 * len(ENVS), width=15)
    rng = np.random.default_rng(0)
    for i, name in enumerate(ENVS):
        curves, errors = axes[2 * i : 2 * i + 2]
        for j, (rung, (meaning, _)) in enumerate(RUNGS.items()):
            case, colour = found[f"{name}/{rung}"], plots.COLOURS[j]
            steps = np.asarray(case["env_steps"]) / 1000
            points = [
                statistics.bootstrap(rng, statistics.iqm, [np.asarray(row)])
                for row in case["return"]
            ]
            value, low, high = np.array(points).T
            label = f"{rung}: {meaning}"
            curves.plot(steps, value, "o-", ms=3, color=colour, label=label)
            curves.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
            for k, where in enumerate(
                ("error of random actions", "error where it goes")
            ):
                values = case["end"][where]
                errors.bar(
                    j + 0.4 * k - 0.2,
                    np.median(values),
                    0.36,
                    color=colour,
                    alpha=1.0 if k else 0.4,
                )
                errors.plot(
                    np.full(len(values), j + 0.4 * k - 0.2),
                    values,
                    ".",
                    color=plots.INK,
                    ms=4,
                )
        curves.set_title(f"{name}: return", loc="left", fontsize=11)
        curves.set(xlabel="real steps of the environment, thousands")
        errors.set_title("error of the model", loc="left", fontsize=11)
        errors.set_yscale("log")
        labels = [f"{rung}\n{_time(found[f'{name}/{rung}'])}" for rung in RUNGS]
        errors.set_xticks(range(len(RUNGS)), labels)
        errors.set_xlabel("version, and time of an action\n(pale: random actions)")
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    plots.save(made, PICTURE)


def _time(case: dict[str, Any]) -> str:
    microseconds = case["seconds"] * 1e6
    small = microseconds < 100
    return f"{microseconds:.0f} µs" if small else f"{microseconds / 1000:.1f} ms"


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
