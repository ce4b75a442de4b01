"""The training loop: run, log, evaluate, checkpoint, resume; seeds are a batch axis.

    state = init(key)
    for i in range(num_steps):
        state, metrics = step(key, i, state)

What is random in iteration i depends on the run's key and on i only, so a run that was
interrupted and resumed ends where an uninterrupted one ends.  With keys [S] the whole
run is vmapped over seeds, and the seeds are sharded over the devices.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mbrl_jax import checkpoints, rollout
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, PyTree

Log = Callable[[int, dict[str, Any]], None]  # (steps done, metrics on the host)


class Loop(NamedTuple):
    """An algorithm's functions, jitted; with keys [S], all have a leading axis S.

    `step` gives its `state` argument away: use only what it returns.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, int, PyTree], tuple[PyTree, Metrics]]  # (key, i, state)
    evaluate: Callable[[Key, int, PyTree], tuple[Metrics, rollout.Episode]]
    place: Callable[[PyTree], PyTree]  # from the host onto the devices


class Result(NamedTuple):
    state: PyTree
    step: int  # steps done; fewer than asked for if `should_stop` said so
    episodes: rollout.Episode | None  # of the last evaluation, [E, T] or [S, E, T]


def seeds(seed: int, num_seeds: int = 1) -> Key:
    """The key of `seed`, or the keys [S] of `seed`, `seed + 1`, ... if S > 1."""
    if num_seeds == 1:
        return jax.random.key(seed)
    return jax.vmap(jax.random.key)(seed + jnp.arange(num_seeds))


def build(key: Key, algorithm: Algorithm, env: Env, eval_episodes: int = 5) -> Loop:
    """Prepares the run of one key [], or of keys [S] together."""
    if key.ndim and env.host:
        raise ValueError(f"{env.name} steps outside jax: it takes one seed at a time")

    def init(key: Key) -> PyTree:
        return algorithm.init(jax.random.split(key, 3)[0])

    def step(key: Key, i: Array, state: PyTree) -> tuple[PyTree, Metrics]:
        key = jax.random.fold_in(jax.random.split(key, 3)[1], i)
        state, metrics = algorithm.step(key, state)
        return state, {**metrics, "state/non_finite": _num_non_finite(state)}

    def evaluate(key: Key, i: Array, state: PyTree) -> tuple[Metrics, rollout.Episode]:
        key = jax.random.fold_in(jax.random.split(key, 3)[2], i)
        return rollout.evaluate(key, env, algorithm.policy(state), eval_episodes)

    if key.ndim == 0:
        return Loop(
            jax.jit(init),
            jax.jit(step, donate_argnums=2),
            jax.jit(evaluate),
            jax.device_put,
        )
    batch = _over_devices(len(key))
    placed = (batch, None, batch)
    step = jax.vmap(step, in_axes=(0, None, 0))
    evaluate = jax.vmap(evaluate, in_axes=(0, None, 0))
    return Loop(
        jax.jit(jax.vmap(init), in_shardings=batch, out_shardings=batch),
        jax.jit(step, in_shardings=placed, out_shardings=batch, donate_argnums=2),
        jax.jit(evaluate, in_shardings=placed, out_shardings=batch),
        lambda state: jax.device_put(state, batch),
    )


def run(
    key: Key,
    algorithm: Algorithm,
    env: Env,
    num_steps: int,
    *,
    eval_every: int = 0,
    eval_episodes: int = 5,
    folder: Path | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoint_every: int = 1,
    keep: int = 3,
    log: Log = lambda step, metrics: None,
    report: Callable[[str], None] = warnings.warn,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Steps `algorithm` until `num_steps` are done, from the last checkpoint if any.

    Evaluates after every `eval_every` steps (0: never) and at the end (0 episodes:
    never), and saves after every `checkpoint_every` and at the end, in `folder` if
    there is one.  `config` says what run this is: a folder that holds another one
    raises ValueError.  `log` gets the metrics of each step, `report` a line for people.
    If `should_stop` is true after a step, the run saves and returns.  Raises OSError if
    a checkpoint cannot be written and FloatingPointError, without saving, once the
    states of all seeds hold non-finite values.
    """
    config = dict(config or {})
    loop = build(key, algorithm, env, eval_episodes)
    saved = restore(key, loop, folder, config, report) if folder else None
    if folder:
        checkpoints.prepare(folder, jax.eval_shape(loop.init, key), keep)
    step, state = saved or (0, loop.init(key))
    episodes, known_bad = None, np.zeros(key.shape, bool)
    while step < num_steps:
        clock = time.perf_counter()
        state, metrics = loop.step(key, step, state)
        record = {**jax.device_get(metrics), "time/step": _since(clock)}
        step += 1
        last, bad = step == num_steps, record["state/non_finite"] > 0
        if eval_episodes and (last or _due(step, eval_every)) and not bad.all():
            clock = time.perf_counter()
            evaluation, episodes = loop.evaluate(key, step, state)
            record |= {**jax.device_get(evaluation), "time/evaluate": _since(clock)}
        log(step, record)
        if bad.all():
            raise FloatingPointError(_diagnosis(step, state, folder))
        if (bad & ~known_bad).any():
            report(f"step {step}: not finite any more: seeds {np.flatnonzero(bad)}")
        known_bad |= bad
        stop = should_stop()
        if folder and (last or stop or _due(step, checkpoint_every)):
            checkpoints.save(folder, step, {"key": key, "state": state}, config, keep)
        if stop:
            return Result(state, step, episodes)
    if eval_episodes and episodes is None:  # nothing was left to do
        _, episodes = loop.evaluate(key, step, state)
    return Result(state, step, episodes)


def restore(
    key: Key,
    loop: Loop,
    folder: Path,
    config: Mapping[str, Any],
    report: Callable[[str], None] = warnings.warn,
) -> tuple[int, PyTree] | None:
    """Steps done and state of the last good checkpoint of this run; None if none.

    Raises ValueError if `folder` holds another run, OSError if all are damaged.
    """
    template = {"key": key, "state": jax.eval_shape(loop.init, key)}
    saved = checkpoints.restore(folder, template, config, report)
    if saved is None:
        return None
    step, tree = saved
    if not np.array_equal(jax.random.key_data(tree["key"]), jax.random.key_data(key)):
        raise ValueError(f"{folder} holds the run of another key")
    return step, loop.place(tree["state"])


def _over_devices(num_seeds: int) -> NamedSharding:
    """Shards a leading axis of seeds over as many devices as divide it."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return NamedSharding(
        Mesh(np.asarray(devices[:count]), "seed"), PartitionSpec("seed")
    )


def _num_non_finite(tree: PyTree) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return sum((~jnp.isfinite(x)).sum() for x in floats) + jnp.zeros((), int)


def _diagnosis(step: int, state: PyTree, folder: Path | None) -> str:
    """Says where a state is not finite, and what is left of the run."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, x in leaves
        if _num_non_finite(x)
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    good = checkpoints.steps(folder) if folder else []
    return f"step {step} left non-finite values in {', '.join(names[:3])}{more}; " + (
        f"the last good checkpoint is of step {good[-1]}" if good else "none saved"
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _since(clock: float) -> float:
    return time.perf_counter() - clock
