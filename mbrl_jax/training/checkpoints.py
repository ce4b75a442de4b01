"""Checkpoints: a state on disk, whole or not at all.

A checkpoint is a folder named after its step.  Orbax writes it under another name and
renames it when it is complete.  It holds the leaves of the state as plain arrays, and
a JSON record: the step, the configuration, name, shape and dtype of every leaf, and a
SHA-256 digest of them all.  Nothing is pickled, so reading runs no code.
"""

import contextlib
import hashlib
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.ops import root_logger
from mbrl_jax.types import PyTree

Config = Mapping[str, Any]  # whatever JSON can say
Arrays = dict[str, np.ndarray]
Upgrade = Callable[[Config], Config]
# the record of a checkpoint, or of an older one -> what it would be today


def as_it_is(record: Config) -> Config:
    return record


def save(folder: Path, step: int, state: PyTree, config: Config, keep: int = 3) -> None:
    """Writes checkpoint `step` and deletes all but the last `keep`.

    Checkpoints of later steps, which a resumed run has given up, are deleted first.
    Raises OSError, naming the last checkpoint that is complete, if anything fails.
    """
    ocp, arrays = _orbax(), _arrays(state)
    record = {
        "step": step,
        "config": config,
        "leaves": _leaves(state),
        "sha256": _digest(arrays),
    }
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
    )
    try:
        _delete(folder, [old for old in steps(folder) if old >= step])
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.resolve() / str(step), args=args)
        _delete(folder, steps(folder)[:-keep])
    except Exception as error:  # tensorstore reports a full disk as a ValueError
        tidy(folder)
        good = steps(folder)
        last = f"the last good one is of step {good[-1]}" if good else "there is none"
        raise OSError(
            f"checkpoint {step} cannot be written to {folder}: {_line(error)}; {last}"
        ) from error


def restore(
    folder: Path,
    template: PyTree,
    config: Config,
    report: Callable[[str], None],
    upgrade: Upgrade = as_it_is,
) -> tuple[int, PyTree] | None:
    """The step and the state of the last undamaged checkpoint; None if there is none.

    The leaves are on the host and have the shapes and dtypes of `template`.  Damaged
    checkpoints are passed over and reported.  Raises ValueError if the checkpoint
    belongs to another configuration or state, OSError if all are damaged.
    """
    tried: set[int] = set()
    damaged = False
    # listed anew each time: a run that goes on beside us saves new ones, deletes old
    while left := [step for step in steps(folder) if step not in tried]:
        step = left[-1]
        tried.add(step)
        try:
            arrays, record = _read(folder, step)
        except Exception as error:  # damage shows as almost any exception
            if step in steps(folder):  # else it was deleted meanwhile
                report(f"checkpoint {step} in {folder} is damaged: {_line(error)}")
                damaged = True
            continue
        record = upgrade(record)
        if differing := differences(record["config"], config):
            raise ValueError(f"{folder} holds another run: {differing}")
        return step, _fill(template, arrays, record, f"checkpoint {step} in {folder}")
    if damaged:
        raise OSError(f"every checkpoint in {folder} is damaged")
    return None


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in `folder`, in ascending order."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.name.isdigit()]
    return sorted(int(path.name) for path in named if path.is_dir())


def prepare(folder: Path, template: PyTree, keep: int = 3) -> None:
    """Raises OSError unless `folder` can be written and has room for `keep`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        tidy(folder)
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}") from error
    data = jax.tree.leaves(jax.eval_shape(_plain, template))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in data)
    need = size * max(1, keep + 1 - len(steps(folder)))  # one more while it is written
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            f"{folder}: the disk has {free / 1e6:,.1f} MB free, checkpoints need "
            f"{need / 1e6:,.1f} MB ({size / 1e6:,.1f} MB each)"
        )


def tidy(folder: Path) -> None:
    """Deletes what a killed process left: halves, written or deleted."""
    for pattern in ("*.deleted", "*.orbax-checkpoint-tmp*"):
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:  # a pipe would be opened, and waited for, here or by Orbax
                with contextlib.suppress(OSError):
                    path.unlink()


def differences(old: Config, new: Config) -> str:
    """Names the fields in which two configurations differ, with both values."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    both = {name: (old.get(name), new.get(name)) for name in sorted({*old, *new})}
    found = [
        f"{name} is {there} there and {here} here"
        for name, (there, here) in both.items()
        if there != here
    ]
    more = [f"and {len(found) - 5} more"] if len(found) > 5 else []
    return ", ".join(found[:5] + more)


def _delete(folder: Path, unwanted: Iterable[int]) -> None:
    """Deletes checkpoints, whole or not at all, and what a killed process left."""
    for step in unwanted:
        (folder / str(step)).rename(folder / f"{step}.deleted")
    tidy(folder)


def _orbax() -> Any:
    """Here because it is slow to import."""
    with root_logger.kept():
        import orbax.checkpoint as ocp
    return ocp


def _read(folder: Path, step: int) -> tuple[Arrays, Config]:
    ocp = _orbax()
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore()
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(folder.resolve() / str(step), args=args)
    arrays, record = restored["state"], restored["record"]
    if record["step"] != step or record["sha256"] != _digest(arrays):
        raise OSError("its digest does not match its content")
    return arrays, record


def _fill(template: PyTree, arrays: Arrays, record: Config, name: str) -> PyTree:
    leaves, structure = jax.tree.flatten(template)
    expected = _leaves(template)
    for old, new in itertools.zip_longest(record["leaves"], expected):
        if old != new:
            raise ValueError(f"{name} does not fit: {old} there, {new} here")
    filled = []
    for i, leaf in enumerate(leaves):
        data = arrays.get(f"{i:05d}")
        if data is None:
            data = np.zeros(leaf.shape, leaf.dtype)  # an empty one, which is not saved
        elif _is_key(leaf):
            impl = jax.random.key_impl(jnp.zeros((), leaf.dtype))
            data = jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
        filled.append(data)
    return jax.tree.unflatten(structure, filled)


def _arrays(state: PyTree) -> Arrays:
    """The leaves on the host, numbered; without empty ones, which Orbax refuses."""
    leaves = jax.tree.leaves(jax.device_get(_plain(state)))
    return {f"{i:05d}": np.asarray(x) for i, x in enumerate(leaves) if np.size(x)}


def _leaves(tree: PyTree) -> list[list[Any]]:
    """[name, shape, dtype] of every leaf."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return [[name(path), list(x.shape), str(x.dtype)] for path, x in paths]


def _plain(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(arrays.items()):
        digest.update(f"{name} {x.dtype} {x.shape} ".encode())
        digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
