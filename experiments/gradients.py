"""How well is the gradient of a policy known?  Every estimator against the horizon.

    python -m experiments.gradients --env=pendulum --output=FOLDER
    python -m experiments.gradients --run_dir=RUN --model --output=FOLDER

--env: any environment through which there is a gradient, or doubling_map, the one-line
task on which closed forms are known (Parmas et al., 2018).  --run_dir: a finished run,
its environment and its policy; with --model in the model that it has learned.  Where
there is no run, or where its policy has no parameters, a random tanh network acts.

The estimators are those of `mbrl_jax.gradients.estimators`: pathwise, windowed
(pathwise, cut between windows), likelihood_ratio, total_propagation, finite_difference.
Measured are norm, variance of one sample, signal-to-noise ratio, bias and cosine
against finite differences on the same noise, samples that were not finite; and the
growth of errors.

Writes gradients.json, in which null is not finite or unknown, and gradients.png.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.reports import gradient_figures, plots
from experiments.runs import (
    command_flags,
    files,
    gradient_problems,
    jax_settings,
    paths,
    progress,
    registry,
    run_folder,
)
from experiments.runs.gradient_problems import Task
from mbrl_jax import envs
from mbrl_jax.gradients import estimators
from mbrl_jax.gradients.closed_loop import ExpectedReturn
from mbrl_jax.ops import estimate
from mbrl_jax.ops.estimate import Estimate
from mbrl_jax.types import Env, Key, Params

DOUBLING_MAP = "doubling_map"
REFEREE = "finite_difference"
NUM_GROWTHS = 4  # rollouts over which the growth of errors is averaged


def main(argv: Sequence[str]) -> None:
    values = _flags()
    if command_flags.parse_or_help(values, argv, __doc__, required="output"):
        return
    if bool(values.env) == bool(values.run_dir) and not (
        values.run_dir and envs.names_a_module(values.env)
    ):
        raise flags.Error("one of --env and --run_dir is needed, and only one")
    if values.model and not values.run_dir:
        raise flags.Error("--model needs the --run_dir of a run that has learned one")
    horizons = _numbers("horizons", values.horizons)
    hidden_sizes = _numbers("hidden_sizes", values.hidden_sizes)
    folder = paths.expanded(values.output)
    measured, task = {}, None
    for precision in values.precision:
        jax_settings.apply(precision)
        task = _task(values, horizons[-1], hidden_sizes, precision)
        files.make_folder(folder)  # before what takes long, and would be lost
        measured[precision] = measure(
            task, horizons, values.num_samples, values.window, values.seed, print
        )
    if task is None:
        raise flags.Error("--precision is needed")
    names = ("num_samples", "window", "std", "seed")
    report = {
        "env": values.env or run_folder.read(_run_dir(values))["env"],
        "system": task.system,
        "policy": task.policy,
        **{name: values[name].value for name in names},
        "horizons": horizons,
        "closed_form": task.variance(np.array(horizons)) if task.variance else {},
        "precisions": measured,
    }
    record = run_folder.plain(report | run_folder.surroundings())
    run_folder.write_json(folder / "gradients.json", record)
    plots.save(gradient_figures.health(record), folder / "gradients.png")
    print(folder / "gradients.png")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    meaning = "environment, or doubling_map; of a --run_dir only where it is a module"
    flags.DEFINE_string("env", "", meaning, flag_values=values)
    meaning = "finished run, in place of --env"
    flags.DEFINE_string("run_dir", "", meaning, flag_values=values)
    meaning = "in the model that the run has learned, not in its simulator"
    flags.DEFINE_boolean("model", False, meaning, flag_values=values)
    flags.DEFINE_string("output", None, "folder to write to", flag_values=values)
    meaning = "steps of a rollout"
    horizons = ["1", "2", "4", "8", "16", "32", "64"]
    flags.DEFINE_list("horizons", horizons, meaning, flag_values=values)
    meaning = "rollouts of each estimator, the same at every horizon"
    flags.DEFINE_integer("num_samples", 256, meaning, 2, flag_values=values)
    meaning = "steps through which `windowed` goes back; 0: leave it out"
    flags.DEFINE_integer("window", 8, meaning, 0, flag_values=values)
    meaning = "of the noise on actions, in units of their limit; 0: none"
    flags.DEFINE_float("std", 0.1, meaning, 0.0, flag_values=values)
    meaning = "of the random network; empty: linear, squashed"
    flags.DEFINE_list("hidden_sizes", ["16"], meaning, flag_values=values)
    meaning = "of its weights, in units of 1 / sqrt(inputs)"
    flags.DEFINE_float("gain", 1.0, meaning, 0.0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of network and noise", 0, flag_values=values)
    meaning = f"one or more of {', '.join(jax_settings.PRECISIONS)}"
    flags.DEFINE_list("precision", ["x64"], meaning, flag_values=values)
    return values


def _numbers(name: str, texts: Sequence[str]) -> list[int]:
    """Distinct ones in order, but layers as they are."""
    try:
        numbers = [int(x) for x in texts]
    except ValueError as error:
        raise flags.Error(f"flag --{name}: {error}") from error
    if any(x < 1 for x in numbers):
        raise flags.Error(f"flag --{name}: {min(numbers)} is not positive")
    if any(x > command_flags.LARGEST_INT for x in numbers):
        most = command_flags.LARGEST_INT
        raise flags.Error(f"flag --{name}: {max(numbers)} is more than {most}")
    if name == "horizons" and not numbers:
        raise flags.Error("flag --horizons: at least one is needed")
    return sorted(set(numbers)) if name == "horizons" else numbers


def _run_dir(values: flags.FlagValues) -> Path:
    return paths.expanded(values.run_dir)


def _task(
    values: flags.FlagValues, horizon: int, hidden_sizes: list[int], precision: str
) -> Task:
    if values.env == DOUBLING_MAP:
        return gradient_problems.doubling_map(horizon)
    make_network = functools.partial(
        gradient_problems.network,
        hidden_sizes=hidden_sizes,
        gain=values.gain,
        seed=values.seed,
    )
    if values.env and not values.run_dir:
        env = _continuous(envs.make(values.env))
        policy = make_network(env)
        return gradient_problems.in_simulator(env, policy, horizon, values.std)
    run = registry.load(_run_dir(values), progress.report, values.env)
    _continuous(run.env)
    jax_settings.apply(precision)  # not that of the run
    run = registry.assemble(run.record)._replace(step=run.step, state=run.state)
    state = gradient_problems.first_state(run)
    policy = gradient_problems.trained(run, state) or make_network(run.env)
    if values.model:
        return gradient_problems.in_model(run, state, policy, horizon, values.std)
    return gradient_problems.in_simulator(run.env, policy, horizon, values.std)


def _continuous(env: Env) -> Env:
    if env.num_actions:
        raise ValueError(f"{env.name} has discrete actions: they have no gradient")
    return env


def chosen_estimators(task: Task, window: int) -> dict[str, Callable[..., Estimate]]:
    """Those that there are for the task; without a density there is no score."""
    problem = task.problem(1)
    found: dict[str, Callable[..., Estimate]] = {"pathwise": estimators.pathwise}
    if 0 < window < problem.horizon:
        found["windowed"] = functools.partial(_windowed, window=window)
    if problem.actor.log_prob is not None or problem.system.log_prob is not None:
        found["likelihood_ratio"] = estimators.likelihood_ratio
        found["total_propagation"] = estimators.total_propagation
    return {**found, REFEREE: estimators.finite_difference}


def _windowed(
    key: Key, params: Params, problem: ExpectedReturn, num_samples: int, window: int
) -> Estimate:
    """The last window may be longer than what is left: episodes end of themselves."""
    whole = problem._replace(horizon=math.ceil(problem.horizon / window) * window)
    return estimators.pathwise(key, params, whole, num_samples, window=window)


def measure(
    task: Task,
    horizons: Sequence[int],
    num_samples: int,
    window: int,
    seed: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """What gradients.json says of one precision: lists over the horizons."""
    key, found = jax.random.key(seed), {}
    for name, estimator in chosen_estimators(task, window).items():
        begin = time.perf_counter()

        @jax.jit
        def find(end: jax.Array, estimator: Any = estimator) -> Estimate:
            return estimator(key, task.params, task.problem(end), num_samples)

        found[name] = [jax.device_get(find(horizon)) for horizon in horizons]
        report(f"{name} in {time.perf_counter() - begin:.1f} s")
    begin = time.perf_counter()
    keys, problem = jax.random.split(key, NUM_GROWTHS), task.problem(horizons[-1])
    growths = jax.vmap(lambda key: estimators.log_growth(key, task.params, problem))
    growth = np.asarray(jax.jit(growths)(keys)).mean(axis=0)
    report(f"growth of errors in {time.perf_counter() - begin:.1f} s")
    return {
        "estimators": {name: statistics(name, found) for name in found},
        "log_growth": growth[np.array(horizons) - 1],
        "lyapunov_exponent": growth[-1] / len(growth),  # per step
    }


def statistics(
    name: str, found: dict[str, list[Estimate]]
) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
    """Of one of the estimators, at each horizon."""
    own, true = found[name], [x.gradient for x in found[REFEREE]]
    over = lambda measure, *columns: np.array(
        [float(jax.jit(measure)(*x)) for x in zip(*columns, strict=True)]
    )
    own_gradients = [x.gradient for x in own]
    return {
        "norm": over(estimate.norm, own_gradients),
        "variance": over(estimate.total_variance, own),
        "signal_to_noise": over(estimate.signal_to_noise, own),
        "bias": over(estimate.bias, own_gradients, true),
        "num_non_finite": np.array([int(x.num_non_finite) for x in own]),
        "mean_return": np.array([float(x.mean_return) for x in own]),
        "cosine": {
            other: over(estimate.cosine, own_gradients, [x.gradient for x in theirs])
            for other, theirs in found.items()
            if other != name
        },
    }


if __name__ == "__main__":
    command_flags.command(main)
