"""Hyperparameter search by Optuna (Akiba et al., 2019), many trials in one program.

    until there are `num_trials`:
        ask for the settings of `trials_at_once` trials: a generation
        trials that differ in floats only are one program, of trials x seeds runs
        while a program trains: report each trial's return, drop trials that are poor
        tell the study how the trials ended

The sampler is TPE.  The pruner drops a trial whose best return so far is below the
median, at the same step, of the trials that came to their end: once there are five of
these, and not in the first quarter of a run, where curves say little.  So the trials of
one program are not compared with each other, and the first generation is whole.

The study is in study.journal.  What is asked and what is dropped depends on the seed
and on the trials that have ended, never on time or on the process: a search that was
killed goes on as if it had not been.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.runs import command_flags, ledger, registry, run_folder
from experiments.sweeps import trials
from experiments.sweeps.domains import OF_RUN, Domain, is_float
from experiments.sweeps.trials import Search, Study, Trial
from mbrl_jax.training import checkpoints
from mbrl_jax.training.population import Range
from mbrl_jax.types import Env

Settings = dict[str, Any]  # hyperparameters by full name


class Found(NamedTuple):
    value: float  # mean over seeds of the last evaluation
    settings: Settings
    num_complete: int
    num_pruned: int  # poor, not finite, or impossible


def search(
    record: run_folder.Record,
    domains: Mapping[str, Domain],
    *,
    num_trials: int,
    trials_at_once: int,
    num_seeds: int,
    folder: Path,
    ledger_path: Path,
    report: Callable[[str], None],
) -> Found:
    """Maximises the return over `domains`, or goes on with the search in `folder`.

    `record` is that of a run with all other settings.  The runs of every trial that has
    ended are in the ledger, as finished or pruned.  The caller sees to it that no other
    process uses `folder`.  Raises ImportError without Optuna, OSError, and ValueError
    for what cannot be, if `folder` holds another search or no trial came to its end.
    """
    record = {**record, "num_seeds": num_seeds, "varied": None}
    base = registry.assemble({**record, "num_seeds": 1})
    _validate(base.env, domains, trials_at_once, num_seeds)
    default = registry.module(record["algorithm"]).Config()
    study = _study(folder, record, domains)
    shared = Search(
        study,
        {**record, **run_folder.surroundings()},
        base.env,
        command_flags.unflat(default, record["config"]),
        domains,
        folder,
        ledger_path,
    )
    while (num_done := len(_ended(study))) < num_trials:
        # up to a multiple: what is left of a generation that was interrupted
        num = min(trials_at_once - num_done % trials_at_once, num_trials - num_done)
        _generation(shared, range(num_done, num_done + num), report)
        report(_progress(study, domains, num_trials))
    found = _found(study, domains)
    if found is None:
        raise ValueError(f"none of {num_trials} trials came to its end with a return")
    return found


def _validate(
    env: Env, domains: Mapping[str, Domain], trials_at_once: int, num_seeds: int
) -> None:
    if not domains:
        raise ValueError("nothing to search: no hyperparameter has a domain")
    if wrong := [name for name in domains if name in OF_RUN]:
        raise ValueError(f"{wrong[0]} is no hyperparameter: a search cannot vary it")
    if env.host and (trials_at_once, num_seeds) != (1, 1):
        raise ValueError(
            f"{env.name} steps outside jax, one run at a time: there can be 1 trial at "
            f"once and 1 seed, not {trials_at_once} and {num_seeds}"
        )


def _study(
    folder: Path, record: run_folder.Record, domains: Mapping[str, Domain]
) -> Study:
    """That in `folder`, or a new one.  Trials cut short wait to be asked again."""
    try:
        import optuna
        from optuna.storages import JournalStorage, journal
    except ImportError as error:
        raise ImportError("a search needs Optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / "study.journal"
    folder.mkdir(parents=True, exist_ok=True)
    _mend(path)
    try:
        study = optuna.create_study(
            storage=JournalStorage(journal.JournalFileBackend(str(path))),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=5, n_warmup_steps=record["num_steps"] // 4
            ),
            study_name="search",
            direction="maximize",
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no study: {error}") from error
    asked = _identity(record, domains)
    if wrong := checkpoints.differences(study.user_attrs.get("search", asked), asked):
        raise ValueError(f"{folder} holds another search: {wrong}")
    study.set_user_attr("search", asked)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        if trial.params.keys() == domains.keys():  # else it will be drawn again
            study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _mend(path: Path) -> None:
    """Takes away what a killed process may have left: its lock, a line that is cut."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _identity(
    record: run_folder.Record, domains: Mapping[str, Domain]
) -> dict[str, Any]:
    """What makes two searches the same, but for how many trials there are."""
    schedule = ("num_steps", "eval_every", "eval_episodes")
    drawn = {f"domain of {name}": domain for name, domain in domains.items()}
    fixed = {name: record[name] for name in schedule}
    return run_folder.plain({**run_folder.identity(record), **fixed, **drawn})


def _generation(
    shared: Search, indices: Iterable[int], report: Callable[[str], None]
) -> None:
    """Asks for a trial of each index and sees them all to their end."""
    study = shared.study
    known = [trial.params for trial in _ended(study)]
    groups: dict[str, list[Trial]] = {}
    repeated = []
    for trial in [_ask(shared, index) for index in indices]:
        if trial.asked.params in known:
            repeated.append(trial)
        elif reason := _impossible(shared, trial.settings):
            report(f"trial {trial.asked.number} cannot be: {reason}")
            trials.tell(study, trial, math.nan)
        else:
            shapes = {
                name: x
                for name, x in trial.settings.items()
                if not is_float(shared.config, name)
            }
            groups.setdefault(ledger.digest(shapes), []).append(trial)
        known.append(trial.asked.params)
    for group in groups.values():
        trials.train_together(shared, group)
    for trial in repeated:  # the same settings and seeds would end the same
        same = next(x for x in _ended(study) if x.params == trial.asked.params)
        for step, value in same.intermediate_values.items():
            trial.asked.report(value, step)
        trials.tell(study, trial, same.value if _is_complete(same) else math.nan)


def _ask(shared: Search, index: int) -> Trial:
    """A trial that waits, or a new one: drawn by the seed and its own index.

    A sampler for each, because one that is made anew after a kill would draw what the
    first trials have had.
    """
    from optuna.samplers import TPESampler

    entropy = np.random.SeedSequence([shared.record["seed"], index])
    seed = int(entropy.generate_state(1)[0])
    shared.study.sampler = TPESampler(seed=seed, constant_liar=True)
    asked = shared.study.ask()
    for name, domain in shared.domains.items():
        if isinstance(domain, Range):
            asked.suggest_float(name, domain.low, domain.high, log=domain.log)
        else:
            asked.suggest_categorical(name, [*_choices(domain)])
    curves: list[list[ledger.Line]] = [[] for _ in range(shared.record["num_seeds"])]
    return Trial(asked, _settings(shared.domains, asked.params), curves)


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    """By the text that stands for each in the study, which takes no tuples."""
    return {str(x): x for x in values}


def _settings(domains: Mapping[str, Domain], params: Settings) -> Settings:
    """What the parameters of a trial in the study mean."""
    return {
        name: params[name]
        if isinstance(domain, Range)
        else _choices(domain)[params[name]]
        for name, domain in domains.items()
    }


def _impossible(shared: Search, settings: Settings) -> str:
    """Why there can be no such run; empty if there can."""
    source = registry.module(shared.record["algorithm"])
    try:
        source.make(shared.env, command_flags.replace(shared.config, settings))
    except ValueError as error:
        return str(error)
    return ""


def _ended(study: Study) -> list[Any]:
    """The trials in the study that need not be run any more, in their order."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def _is_complete(trial: Any) -> bool:
    return trial.state.name == "COMPLETE"


def _found(study: Study, domains: Mapping[str, Domain]) -> Found | None:
    """None if no trial is complete."""
    ended = _ended(study)
    complete = [trial for trial in ended if _is_complete(trial)]
    if not complete:
        return None
    best = max(complete, key=lambda trial: trial.value)
    settings = _settings(domains, best.params)
    return Found(best.value, settings, len(complete), len(ended) - len(complete))


def _progress(study: Study, domains: Mapping[str, Domain], num_trials: int) -> str:
    found, num_ended = _found(study, domains), len(_ended(study))
    if found is None:
        return f"{num_ended} of {num_trials} trials, none came to its end"
    settings = ", ".join(
        f"{name}={x:.4g}" if isinstance(x, float) else f"{name}={x}"
        for name, x in found.settings.items()
    )
    return (
        f"{num_ended} of {num_trials} trials, {found.num_pruned} pruned; "
        f"best {found.value:.5g} with {settings}"
    )
