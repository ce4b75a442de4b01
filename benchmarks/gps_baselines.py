"""Guided policy search next to what knows no model: real steps until the task is done.

    python -m benchmarks.gps_baselines    # trains what is missing, draws both pictures

On `arm` and on `peg_insertion`, five seeds that nothing was chosen on: GPS with its
presets, 12 steps of 20 episodes, from 4 starts; LQR-FLM, of which one controller is for
all starts, with its preset of the peg; SAC and PPO with their presets of the pendulum,
which are not tuned to these tasks.  SAC and PPO draw a start for each episode; all know
the reward's value, GPS and LQR-FLM its derivatives too.  Success is the share of 20
other starts from which the hand is within 5 cm of the goal, or the peg within 5 mm of
its place, during the last half second, without noise (idle: from none); of GPS also
that from the starts that it learns from.  Writes
results/gps_baselines.json, docs/gps_baselines.png and, of where the first seed leads
the peg, docs/peg_insertion.png.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from matplotlib import patches

from benchmarks import gps as on_arm
from experiments.reports import plots
from experiments.runs import command_flags, jax_settings, presets, run_folder
from mbrl_jax import envs, policies, rollout
from mbrl_jax.algorithms import gps, lqr_flm, ppo, sac
from mbrl_jax.envs import arm, peg_insertion
from mbrl_jax.training import train
from mbrl_jax.types import Array, Env, EnvState, Policy, PyTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gps_baselines.json"
PICTURE = ROOT / "docs" / "gps_baselines.png"
WAYS = ROOT / "docs" / "peg_insertion.png"
TASKS: dict[str, Callable[[Array], Array]] = {  # whether it is done where obs are seen
    "arm": lambda obs: jnp.linalg.norm(arm.hand(obs) - jnp.array(arm.GOAL)) < 0.05,
    "peg_insertion": peg_insertion.inserted,
}
NUM_SHOWN = 10  # ways of the peg
ENOUGH = 0.9  # of the starts, for a count of steps


class Method(NamedTuple):
    module: Any
    tasks: tuple[str, ...]
    preset: str  # of which environment; "": of the task
    num_steps: int
    every: int  # steps from one evaluation to the next


METHODS = {
    "gps": Method(gps, ("arm", "peg_insertion"), "", 12, 1),
    "lqr_flm": Method(lqr_flm, ("peg_insertion",), "", 12, 1),
    "sac": Method(sac, ("arm", "peg_insertion"), "pendulum", 60, 4),
    "ppo": Method(ppo, ("arm", "peg_insertion"), "pendulum", 50, 2),
}


class Measured(NamedTuple):
    success: Array  # []
    mean_return: Array  # []
    ways: Array  # [NUM_SHOWN, T, O] the observations of some episodes


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for task in TASKS:
        cases = found.setdefault(task, {})
        if "idle" not in cases:
            env = envs.make(task)
            idle = jax.jit(lambda env=env: measure(env, policies.constant(env)))()
            cases["idle"] = {"success": float(idle.success)}
        for name, method in METHODS.items():
            if task in method.tasks and name not in cases:
                cases[name] = learn(task, name, method)
                run_folder.write_json(RESULTS, found)
            if task in method.tasks:
                case = cases[name]
                print(task, name, "at the end", case["success"][-1])
                print(" steps until it is done", steps_until_done(case))
                print(" until the return is good", steps_until_good(task, case))
    curves(found)
    ways(found["peg_insertion"])


def learn(task: str, name: str, method: Method) -> dict[str, Any]:
    """A curve: real steps [P], success and return [P, S]; ways of the first seed."""
    env = envs.make(task)
    record = presets.record(name, method.preset or task)
    config = command_flags.unflat(method.module.Config(), record["config"])
    algorithm = method.module.make(env, config)
    keys = train.seeds(on_arm.FIRST_SEED, on_arm.NUM_SEEDS)
    loop = train.build(keys, algorithm, env)

    @jax.jit
    def measured(states: PyTree) -> Measured:
        return jax.lax.map(lambda x: measure(env, algorithm.policy(x)), states)

    @jax.jit
    def at_own_starts(states: gps.State) -> Array:
        own = lambda x: jax.vmap(lambda start: arrives(env, algorithm.policy(x), start))
        return jax.lax.map(lambda x: own(x)(x.starts).mean(), states)

    state = loop.init(keys)
    curve: dict[str, list] = {"env_steps": [], "success": [], "return": []}
    if name == "gps":
        curve["own_success"] = []
    for i in range(method.num_steps):
        state, metrics = loop.step(keys, i, state)
        if (i + 1) % method.every:
            continue
        now = measured(state)
        curve["env_steps"].append(int(np.asarray(metrics["env_steps"])[0]))
        curve["success"].append(np.asarray(now.success).round(4).tolist())
        curve["return"].append(np.asarray(now.mean_return).round(3).tolist())
        if name == "gps":
            share = np.asarray(at_own_starts(state)).round(4)
            curve["own_success"].append(share.tolist())
        print(task, name, *(x[-1] for x in curve.values()), flush=True)
    shown: dict[str, Any] = {}
    if task == "peg_insertion":
        ends = jax.vmap(jax.vmap(peg_insertion.end))(now.ways[0])
        shown["ends"] = np.asarray(ends, float).round(4).tolist()
    return {**curve, **shown, **run_folder.surroundings()}


def measure(env: Env, policy: Policy) -> Measured:
    """From starts that none has learned from."""
    key = jax.random.key(on_arm.STARTS_SEED)
    _, episodes = rollout.evaluate(key, env, policy, on_arm.NUM_STARTS)
    steps = episodes.transitions
    done = jax.vmap(lambda obs: stays(env, obs))(steps.next_obs)
    mean_return = steps.reward.sum(axis=1).mean()
    return Measured(done.mean(), mean_return, steps.obs[:NUM_SHOWN])


def arrives(env: Env, policy: Policy, start: EnvState) -> Array:
    """Whether an episode from there ends where it should, [] bool."""
    own = env._replace(reset=lambda key: start)
    steps = rollout.episode(jax.random.key(0), own, policy).transitions
    return stays(env, steps.next_obs)


def stays(env: Env, obs: Array) -> Array:
    """Whether it is done where the last obs of an episode [T, O] are seen, [] bool."""
    return jax.vmap(TASKS[env.name])(obs[-on_arm.NUM_LAST :]).all()


def steps_until_done(case: dict[str, Any]) -> list[int | None]:
    """By seed, real steps before it is first done from `ENOUGH` of the starts."""
    return _first(case, np.array(case["success"]) >= ENOUGH)


def steps_until_good(task: str, case: dict[str, Any]) -> list[int | None]:
    """By seed, real steps before the return first meets the task's criterion."""
    least = presets.criteria()[task]["at_least"]
    return _first(case, np.array(case["return"]) >= least)


def _first(case: dict[str, Any], good: np.ndarray) -> list[int | None]:
    return [case["env_steps"][x.argmax()] if x.any() else None for x in good.T]


def curves(found: dict[str, Any]) -> None:
    panels = [(task, what) for task in TASKS for what in ("success", "return")]
    made, axes = plots.new_figure(len(panels), width=16)
    for axis, (task, what) in zip(axes, panels, strict=True):
        for colour, name in zip(plots.COLOURS, METHODS, strict=False):
            if name not in found[task]:
                continue
            case = found[task][name]
            values = np.array(case[what]) * (1 if what == "success" else -1)
            steps, middle = case["env_steps"], np.median(values, axis=1)
            axis.plot(steps, middle, "o-", ms=3, color=colour, label=name)
            low, high = values.min(axis=1), values.max(axis=1)
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        labels = {"success": "share of starts", "return": "cost of an episode"}
        axis.set_title(f"{task}: {labels[what]}", loc="left", fontsize=11)
        axis.set(xlabel="real steps", xscale="log")
        axis.set_yscale("log" if what == "return" else "linear")
    axes[-1].legend(frameon=False)
    plots.save(made, PICTURE)


def ways(cases: dict[str, Any]) -> None:
    shown = [name for name in METHODS if name in cases]
    made, axes = plots.new_figure(len(shown), width=13)
    x, y = peg_insertion.MOUTH
    wide, deep = peg_insertion.HALF_WIDTH, peg_insertion.DEPTH
    style: dict[str, Any] = {"fill": False, "lw": 0.8, "color": plots.COLOURS[1]}
    for axis, name in zip(axes, shown, strict=True):
        for sign in (-1, 1):  # the table
            across = [x + sign * wide, x + sign * 0.3]
            axis.fill_between(across, y - 0.16, y, color="0.75", lw=0)
        axis.fill_between([x - wide, x + wide], y - 0.16, y - deep, color="0.75", lw=0)
        for end in np.array(cases[name]["ends"]):
            axis.plot(*end.T, lw=0.8, color=plots.COLOURS[0])
            axis.add_patch(patches.Circle(end[-1], peg_insertion.RADIUS, **style))
        axis.set_title(name, loc="left", fontsize=11)
        axis.set(xlim=(x - 0.25, x + 0.2), ylim=(y - 0.16, y + 0.4), aspect="equal")
        axis.set_xlabel("x, m")
    axes[0].set_ylabel("y, m")
    plots.save(made, WAYS)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
