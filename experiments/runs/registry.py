"""The algorithms there are, and runs made from what their folder says."""

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.runs import command_flags, jax_settings, paths, renamed, run_folder
from mbrl_jax import algorithms, envs
from mbrl_jax.envs import multi_task, simulator
from mbrl_jax.training import population, train
from mbrl_jax.types import Algorithm, Env, Key, Policy, PyTree

SHOWN_EVERYTHING = {"mpc"}  # that plan with the simulator, from the state it is in
Floats = Mapping[str, float | jax.Array]  # hyperparameters


class Run(NamedTuple):
    record: run_folder.Record
    env: Env
    algorithm: Callable[[Floats], Algorithm]  # of the hyperparameters of one run
    key: Key  # [], or [S] of S > 1 runs
    hyperparameters: Floats  # each [] or [S]; those in which the runs differ, if any
    step: int = 0  # steps done
    state: PyTree = None  # after them

    def loop(
        self, eval_episodes: int = 5, eval_seed: int = train.EVALUATION_SEED
    ) -> train.Loop:
        return train.build(
            self.key,
            self.algorithm,
            self.env,
            eval_episodes,
            hyperparameters=self.hyperparameters,
            eval_seed=eval_seed,
        )


def names() -> list[str]:
    """The modules of mbrl_jax.algorithms."""
    return [module.name for module in pkgutil.iter_modules(algorithms.__path__)]


def title(name: str) -> str:
    """The first line of an algorithm's docstring; the module is not imported."""
    spec = importlib.util.find_spec(f"{algorithms.__name__}.{name}")
    assert spec is not None
    assert spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    return text.partition("\n")[0]


def module(name: str) -> ModuleType:
    """The module of an algorithm: Config, State, make.  ValueError if unknown."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"unknown algorithm {name!r}; {hint}known are: {', '.join(known)}"
        )
    return importlib.import_module(f"{algorithms.__name__}.{name}")


def assemble(record: run_folder.Record) -> Run:
    """The run that `record` describes, before its first step.

    Raises ValueError for what cannot be.
    """
    source = module(record["algorithm"])
    config = command_flags.unflat(source.Config(), record["config"])
    env = envs.make(record["env"], record["episode_length"] or None)
    if record["algorithm"] in SHOWN_EVERYTHING and not env.host:
        env = simulator.observe_all(env)

    teachers = _teachers(getattr(config, "teachers", ()), record)

    def algorithm(varied: Floats) -> Algorithm:
        own = command_flags.replace(config, varied)
        return source.make(env, own, *([teachers] if teachers else []))

    rows = run_folder.rows(record)
    several = len(rows) > 1
    columns = {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
    seeds = columns.pop("seed")
    floats = {name: x.astype(float) for name, x in columns.items()}
    _check_varied(source.Config(), record, floats)
    for i in range(len(rows) if floats else 1):  # traced values are not looked at
        algorithm({name: float(x[i]) for name, x in floats.items()})
    run = Run(
        record,
        env,
        _populated(algorithm, record),
        jax.vmap(jax.random.key)(seeds) if several else jax.random.key(seeds[0]),
        {name: jax.numpy.asarray(x if several else x[0]) for name, x in floats.items()},
    )
    run.loop()
    return run


def check_env(folder: Path, stored: str, given: str | None) -> None:
    """Raises ValueError if what a folder names is not what the command line `given`.

    A module is imported only if the command line names it: folders come from others.
    """
    if given and given != stored:
        raise ValueError(f"{folder} is of the environment {stored}, not {given}")
    if not given and envs.names_a_module(stored):
        raise ValueError(
            f"{folder} names a module for its environment, which is only imported if "
            f"you name it too: --env={stored}"
        )


def load(folder: Path, report: Callable[[str], None], env: str | None = None) -> Run:
    """The run in `folder` at its last good checkpoint.

    Nothing in the folder is run: it holds JSON and arrays.  `env`, which the command
    line names, is needed if that imports a module.  Raises OSError or ValueError if the
    folder cannot be read.
    """
    record = run_folder.read(folder)
    check_env(folder, record["env"], env)
    try:
        jax_settings.apply(record["precision"])
        run = assemble(record)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    loop = run.loop()
    config = run_folder.identity(record)
    saved = train.restore(
        run.key, loop, folder / "checkpoints", config, report, renamed.checkpoint
    )
    if saved is None:
        raise OSError(f"{folder} holds no checkpoint yet")
    step, state = saved
    return run._replace(step=step, state=state)


def env_of(teachers: Sequence[str]) -> str:
    """The environment whose tasks are those of these run folders.

    Raises OSError or ValueError if one cannot be read.
    """
    records = [run_folder.read(paths.expanded(folder)) for folder in teachers]
    return multi_task.SIGN.join(record["env"] for record in records)


def _teachers(folders: Sequence[str], record: run_folder.Record) -> list[Policy]:
    """The policies in run folders, for a run of theirs as `record` describes it.

    Raises ValueError, naming the folder, for one that does not fit.
    """
    found = []
    if folders and (tasks := env_of(folders)) != record["env"]:
        raise ValueError(f"the teachers are of {tasks}, but env is {record['env']}")
    for name in folders:
        folder = paths.expanded(name)
        own = run_folder.read(folder)
        check_precision(folder, own, record)
        if (number := len(run_folder.rows(own))) > 1:
            raise ValueError(f"{folder} holds {number} runs, a teacher is one")
        run = load(folder, warnings.warn)
        policy = run.algorithm(run.hyperparameters).policy(run.state)
        if policy.values is None:
            raise ValueError(
                f"{folder}: {own['algorithm']} does not tell what it ranks actions by, "
                "and cannot teach"
            )
        found.append(policy)
    return found


def check_precision(
    folder: Path, own: run_folder.Record, record: run_folder.Record
) -> None:
    """Raises ValueError if a run folder's is not that of the run that needs it."""
    if own["precision"] != record["precision"]:
        raise ValueError(
            f"{folder} has precision {own['precision']}, but this run "
            f"{record['precision']}"
        )


def _check_varied(
    default: Any, record: run_folder.Record, floats: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError for what its flag would refuse; it may be at either end."""
    for end in (np.min, np.max):  # of which either is NaN if one is
        varied = {name: float(end(x)) for name, x in floats.items()}
        command_flags.unflat(default, {**record["config"], **varied})


def _populated(
    algorithm: Callable[[Floats], Algorithm], record: run_folder.Record
) -> Callable[[Floats], Algorithm]:
    """Population-based training of the algorithm, if the record asks for it."""
    asked = record.get("population")
    if not asked:
        return algorithm
    try:
        ranges = {name: population.Range(*x) for name, x in asked["ranges"].items()}
        config = command_flags.unflat(population.Config(), asked["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"population is not what was expected: {error!r}") from error
    return lambda varied: population.make(
        lambda own: algorithm({**varied, **own}), ranges, config
    )
