"""What PILCO expects of a policy, and what then happens, trial by trial.

    python -m benchmarks.predicted    # trains if that is missing, draws the pictures

PILCO with its preset learns cartpole_pilco.  Before each trial by a policy, what the
belief expects of it is kept: mean and std of every entry of the observation, and the
reward; then what was measured.  `within` is the share of the measured entries, the
first ones left out, that lie within two stds of what was expected, 0.954 if it were
calibrated.  Writes results/predicted.json, docs/predicted.png and, of the seeds in the
ledger, docs/pilco_seconds.png: returns over the seconds of experience.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app

from experiments.reports import plots, results
from experiments.runs import command_flags, jax_settings, ledger, presets, run_folder
from mbrl_jax import envs, moment_policies
from mbrl_jax.algorithms import pilco
from mbrl_jax.envs import cartpole
from mbrl_jax.gradients import beliefs
from mbrl_jax.models import policy_search
from mbrl_jax.training import train
from mbrl_jax.types import Env, PyTree

ROOT = Path(__file__).parents[1]
FOLDER, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
RESULTS, LEDGER = FOLDER / "predicted.json", FOLDER / "ledger.jsonl"
ENV, SEED = "cartpole_pilco", 10
DT = cartpole.PILCO_DT  # s, of a step
SHOWN = {"position of the cart, m": 0, "angle of the pole, rad": 2}  # entries of obs
TRIALS = 2, 3, 5, 9  # shown; the first is at random
Trial = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if not RESULTS.exists():
        record = presets.record("pilco", ENV)
        config = command_flags.unflat(pilco.Config(), record["config"])
        trials = learn(envs.make(ENV), config, record["num_steps"])
        found = {"seed": SEED, "trials": trials, **run_folder.surroundings()}
        run_folder.write_json(RESULTS, found)
    trials = run_folder.read_json(RESULTS)["trials"]
    for trial in trials:
        print(trial["trial"], trial["return"], trial["expected"], trial["within"])
    picture(trials)
    over_seconds(presets.found("pilco", ENV, ledger.read(LEDGER)))


def learn(env: Env, config: pilco.Config, num_trials: int) -> list[Trial]:
    """Of the trials that are not at random."""
    key = train.seeds(SEED)
    loop = train.build(key, pilco.make(env, config), env)
    imagine = jax.jit(partial(believed, env, config))
    state, trials = loop.init(key), []
    expected = None
    for i in range(num_trials):
        state, metrics = loop.step(key, i, state)
        print(i + 1, {name: float(x) for name, x in metrics.items()}, flush=True)
        if expected is not None:
            rows = slice(i * env.episode_length, (i + 1) * env.episode_length)
            data = jax.tree.map(lambda x, rows=rows: x[rows], state.replay.data)
            obs = np.concatenate([data.obs, data.next_obs[-1:]])
            trials.append(compared(i + 1, expected, obs, np.asarray(data.reward)))
        if i + 1 >= config.num_random_episodes:
            expected = jax.tree.map(np.asarray, imagine(state))
    return trials


def believed(env: Env, config: pilco.Config, state: policy_search.State) -> PyTree:
    """Mean and covariance of the observations [H + 1, ...] and rewards [H] to come."""
    belief, kernels = policy_search.belief_of(env, "pilco"), state.model.kernels
    made = moment_policies.make(env, belief, config.policy, config.num_basis)
    args = belief, kernels, made, state.params, env.episode_length
    _, (final, _, steps) = beliefs.rollout(*args)
    add = lambda x, last: jax.numpy.concatenate([x, last[None]])
    return *jax.tree.map(add, steps.obs, final), steps.reward


def compared(number: int, expected: PyTree, obs: np.ndarray, reward: Any) -> Trial:
    """`expected` as by `believed`; what was measured are obs [H + 1, O], reward [H]."""
    mean, cov, expected_reward = expected
    std = np.sqrt(np.maximum(np.diagonal(cov, axis1=1, axis2=2), 0))
    inside = np.abs(obs - mean)[1:] <= 2 * std[1:]
    short = lambda x: np.round(x, 5).tolist()
    return {
        "trial": number,
        "return": float(reward.sum()),
        "expected": float(expected_reward.sum()),
        "within": float(inside.mean()),
        "believed": {
            "mean": short(mean),
            "std": short(std),
            "reward": short(expected_reward),
        },
        "measured": {"obs": short(obs), "reward": short(reward)},
    }


def picture(trials: Sequence[Trial]) -> None:
    shown = [trial for trial in trials if trial["trial"] in TRIALS]
    num_columns = len(SHOWN) + 1
    made, axes = plots.new_figure(num_columns, 11, len(shown), height=8.0)
    for i, trial in enumerate(shown):
        row = axes[i * num_columns : (i + 1) * num_columns]
        expected, measured = trial["believed"], trial["measured"]
        mean, std = np.array(expected["mean"]), np.array(expected["std"])
        seconds = DT * np.arange(len(mean))
        for axis, at in zip(row, SHOWN.values(), strict=False):
            middle, two = mean[:, at], 2 * std[:, at]
            how = {"color": plots.COLOURS[0]}
            axis.plot(seconds, middle, label="expected, with 2 std", **how)
            axis.fill_between(seconds, middle - two, middle + two, alpha=0.2, **how)
            real = np.array(measured["obs"])[:, at]
            axis.plot(seconds, real, color=plots.COLOURS[1], label="measured")
        row[-1].plot(seconds[1:], expected["reward"], color=plots.COLOURS[0])
        row[-1].plot(seconds[1:], measured["reward"], color=plots.COLOURS[1])
        row[-1].set_ylim(-1.05, 0.05)
        row[0].set_ylabel(f"trial {trial['trial']}")
    for axis, name in zip(axes, [*SHOWN, "reward"], strict=False):
        axis.set_title(name, loc="left", fontsize=11)
    for axis in axes[-num_columns:]:
        axis.set_xlabel("s")
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    plots.save(made, DOCS / "predicted.png")


def over_seconds(lines: Sequence[ledger.Line]) -> None:
    """A line for each seed, and their median."""
    curves = [results.curve(line, [plots.TRAINING]) for line in lines]
    made, (axis,) = plots.new_figure(1, width=6.4)
    for curve in curves:
        axis.plot(DT * curve.steps, curve.values, color=plots.COLOURS[0], alpha=0.35)
    median = np.median([curve.values for curve in curves], axis=0)
    label = f"median of {len(curves)} seeds"
    axis.plot(DT * curves[0].steps, median, color=plots.COLOURS[0], lw=2, label=label)
    axis.set_title(f"pilco on {ENV}", loc="left", fontsize=11)
    axis.set(xlabel="experience, s", ylabel="return of a trial", xlim=(0, None))
    axis.legend(frameon=False)
    plots.save(made, DOCS / "pilco_seconds.png")


if __name__ == "__main__":
    jax_settings.apply("x64")
    app.run(main)
