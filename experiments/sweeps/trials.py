"""The trials of a search, from their settings to their end."""

import datetime
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.runs import jax_settings, ledger, registry, run_folder
from experiments.sweeps import programs
from experiments.sweeps.domains import Domain
from mbrl_jax.training import train
from mbrl_jax.types import Env, PyTree

Study = Any  # optuna.Study: Optuna is optional, so it is imported where it is used


class Search(NamedTuple):
    """What all trials share."""

    study: Study
    record: run_folder.Record
    env: Env
    config: Any  # the algorithm's
    domains: Mapping[str, Domain]
    folder: Path
    ledger_path: Path


class Trial(NamedTuple):
    asked: Any  # optuna.Trial
    settings: dict[str, Any]  # hyperparameters by full name
    curves: list[list[ledger.Line]]  # a growing one for each seed: metrics of each step


class Program(NamedTuple):
    """Trials that train together: all seeds of the first, then those of the second."""

    trials: Sequence[Trial]
    record: run_folder.Record
    run: registry.Run
    loop: train.Loop
    state: PyTree


def train_together(shared: Search, trials: Sequence[Trial]) -> None:
    """Trains trials that differ in floats only, each until it has ended."""
    program = _program(shared, trials)
    alive = [*range(len(trials))]  # of program.trials
    for step in range(1, shared.record["num_steps"] + 1):
        state, rows = _step(program, step)
        program = program._replace(state=state)
        ended = {}
        for i in alive:
            trial = program.trials[i]
            for k, curve in enumerate(trial.curves):
                curve.append(rows[i * len(trial.curves) + k])
            value = _value(shared.record, trial, step)
            if value is not None:
                ended[i] = value
        _conclude(shared, program, ended)
        alive = [i for i in alive if i not in ended]
        if not alive:
            return
        if 2 * len(alive) <= len(program.trials):
            program = _kept(program, alive)
            alive = [*range(len(alive))]


def _program(shared: Search, trials: Sequence[Trial]) -> Program:
    runs = [run for trial in trials for run in _runs(shared, trial)]
    (record,) = programs.grouped(dict(shared.record), shared.config, runs)
    run = registry.assemble(record)
    loop = run.loop(record["eval_episodes"])
    return Program(trials, record, run, loop, loop.init(run.key))


def _runs(shared: Search, trial: Trial) -> list[programs.Fields]:
    """Those of a trial: one for each seed."""
    first = shared.record["seed"]
    return [{"seed": first + k, **trial.settings} for k in range(len(trial.curves))]


def _step(program: Program, step: int) -> tuple[PyTree, list[ledger.Line]]:
    """Makes step number `step`: the state, and for each run what the ledger needs."""
    record, key, loop = program.record, program.run.key, program.loop
    clock, compiled = time.perf_counter(), jax_settings.compile_seconds()
    state, metrics = loop.step(key, step - 1, program.state)
    if record["eval_episodes"] and _is_due(record, step):
        evaluation, _ = loop.evaluate(key, step, state)
        metrics = {**metrics, **evaluation}
    names = ("env_steps", "state/non_finite", *ledger.CURVES, *ledger.BESIDE)
    found = jax.device_get({name: metrics[name] for name in names if name in metrics})
    columns = {name: np.atleast_1d(x) for name, x in found.items()}  # one run: a number
    common = {
        "step": step,
        "time/step": time.perf_counter() - clock,
        "compile/seconds": jax_settings.compile_seconds() - compiled,
    }
    num_rows = len(columns["env_steps"])
    return state, [
        run_folder.plain({**common, **{name: x[i] for name, x in columns.items()}})
        for i in range(num_rows)
    ]


def _is_due(record: run_folder.Record, step: int) -> bool:
    """Whether there is an evaluation after a step."""
    every = record["eval_every"]
    return step == record["num_steps"] or (every > 0 and step % every == 0)


def _value(record: run_folder.Record, trial: Trial, step: int) -> float | None:
    """With what the trial ends here: None if it goes on, NaN if it is given up.

    Reports its return, where one is due, to the pruner.
    """
    latest = [curve[-1] for curve in trial.curves]
    if any(x["state/non_finite"] for x in latest):
        return math.nan
    if record["eval_every"] and not _is_due(record, step):
        return None
    name = [name for name in ledger.CURVES if name in latest[0]][-1]
    returns = [math.nan if x[name] is None else x[name] for x in latest]
    value = statistics.fmean(returns)
    if step == record["num_steps"] or not math.isfinite(value):
        return value
    trial.asked.report(value, step)
    return math.nan if trial.asked.should_prune() else None


def _conclude(shared: Search, program: Program, ended: Mapping[int, float]) -> None:
    """Adds the runs of trials to the ledger, and then tells the study.

    A kill in between has them run again: each gives the same line, which replaces it.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lines = []
    for i, value in ended.items():
        status = "finished" if math.isfinite(value) else "pruned"
        told = {"status": status, "time": now}
        trial = program.trials[i]
        for row, curve in zip(_runs(shared, trial), trial.curves, strict=True):
            lines.append(ledger.line(program.record, row, curve, told, shared.folder))
    if lines:
        ledger.add(shared.ledger_path, lines)
    for i, value in ended.items():
        tell(shared.study, program.trials[i], value)


def _kept(program: Program, alive: Sequence[int]) -> Program:
    """The program of the trials that are left, where the others stop to cost time.

    It is compiled anew, so it is only worth it when many have gone: called at each
    halving, there are at most log2 of the trials such compilations.
    """
    num_seeds = len(program.trials[0].curves)
    rows = np.concatenate([np.arange(num_seeds) + i * num_seeds for i in alive])
    pick = lambda tree: jax.tree.map(lambda x: x[rows], tree)
    run = program.run._replace(
        key=program.run.key[rows], hyperparameters=pick(program.run.hyperparameters)
    )
    loop = run.loop(program.record["eval_episodes"])
    return program._replace(
        trials=[program.trials[i] for i in alive],
        run=run,
        loop=loop,
        state=loop.place(pick(program.state)),
    )


def tell(study: Study, trial: Trial, value: float) -> None:
    """The final value, or not a finite one for a trial that is given up."""
    from optuna.trial import TrialState

    if math.isfinite(value):
        study.tell(trial.asked, value)
    else:
        study.tell(trial.asked, state=TrialState.PRUNED)
