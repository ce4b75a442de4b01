"""The algorithms there are, and runs made from what their folder says."""

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from experiments import command_flags, jax_settings, run_folder
from mbrl_jax import algorithms, envs, train
from mbrl_jax.types import Algorithm, Env, Key, PyTree


class Run(NamedTuple):
    record: run_folder.Record
    env: Env
    algorithm: Algorithm
    key: Key  # [], or [S] with several seeds
    step: int = 0  # steps done
    state: PyTree = None  # after them


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
    env = envs.make(record["env"])
    algorithm = source.make(env, config)
    key = train.seeds(record["seed"], record["num_seeds"])
    train.build(key, algorithm, env)
    return Run(record, env, algorithm, key)


def load(folder: Path, report: Callable[[str], None]) -> Run:
    """The run in `folder` at its last good checkpoint.

    Nothing in the folder is run: it holds JSON and arrays.  Raises OSError or
    ValueError if it cannot be read.
    """
    record = run_folder.read(folder)
    jax_settings.apply(record["precision"])
    run = assemble(record)
    loop = train.build(run.key, run.algorithm, run.env)
    config = run_folder.identity(record)
    saved = train.restore(run.key, loop, folder / "checkpoints", config, report)
    if saved is None:
        raise OSError(f"{folder} holds no checkpoint yet")
    step, state = saved
    return run._replace(step=step, state=state)
