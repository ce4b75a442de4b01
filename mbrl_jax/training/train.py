"""The training loop: run, log, evaluate, checkpoint, resume; seeds are a batch axis.

    state = init(key)
    for i in range(num_steps):
        state, metrics = step(key, i, state)

What is random in iteration i depends on the run's key and on i only, so a run that was
interrupted and resumed ends where an uninterrupted one ends.  Evaluations start where
they always do, whatever the key.  With keys [S], and float hyperparameters [S], many
runs are one program, sharded over the devices.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mbrl_jax import rollout
from mbrl_jax.training import checkpoints
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, PyTree

EVALUATION_SEED = 2**31 - 1  # of where episodes start: the same for all
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


def build(
    key: Key,
    algorithm: Algorithm | Callable[[PyTree], Algorithm],
    env: Env,
    eval_episodes: int = 5,
    *,
    hyperparameters: PyTree | None = None,
    side_by_side: bool | None = None,
    devices: Sequence[jax.Device] = (),
    eval_seed: int = EVALUATION_SEED,
) -> Loop:
    """Prepares the run of one key [], or of keys [S] together.

    With `hyperparameters`, a pytree of floats with the leading axis of `key`,
    `algorithm` is a function of one run's.  The runs are sharded over the `devices`, by
    default all of this process.  Each device computes its own side by side (vmap) or
    one after the other (map); the default is the latter on a CPU, where side by side
    is no quicker, and what a run gives would depend, by rounding, on how many others
    there are.  Where evaluations start depends on `eval_seed` alone: what differs then
    is what was learned.  Raises ValueError if the environment steps outside jax.
    """
    if key.ndim and env.host:
        raise ValueError(f"{env.name} steps outside jax: it takes one seed at a time")
    make: Any = algorithm
    if hyperparameters is None:
        make, hyperparameters = lambda nothing: algorithm, ()

    def init(varied: PyTree, key: Key, i: Array, state: PyTree) -> PyTree:
        return make(varied).init(jax.random.split(key, 3)[0])

    def step(
        varied: PyTree, key: Key, i: Array, state: PyTree
    ) -> tuple[PyTree, Metrics]:
        key = jax.random.fold_in(jax.random.split(key, 3)[1], i)
        state, metrics = make(varied).step(key, state)
        return state, {**metrics, "state/non_finite": _num_non_finite(state)}

    def evaluate(
        varied: PyTree, key: Key, i: Array, state: PyTree
    ) -> tuple[Metrics, rollout.Episode]:
        key = jax.random.fold_in(jax.random.split(key, 3)[2], i)
        starts = jax.random.key(eval_seed)
        policy = make(varied).policy(state)
        return rollout.evaluate(key, env, policy, eval_episodes, starts)

    jit: Any = jax.jit
    place: Any = jax.device_put
    if key.ndim:
        jit, place = _over_devices(
            len(key), side_by_side, devices or jax.local_devices()
        )
    start = partial(jit(init), hyperparameters)
    return Loop(
        lambda key: start(key, 0, ()),
        partial(jit(step, donate_argnums=3), hyperparameters),
        partial(jit(evaluate), hyperparameters),
        place,
    )


def memory(loop: Loop, key: Key) -> int:
    """Bytes that a run of `loop` takes on each device, as its compiler counts them."""
    state = jax.eval_shape(loop.init, key)

    def needed(function: Any) -> int:
        compiled = function.func.lower(*function.args, key, 0, state).compile()
        size = compiled.memory_analysis()
        return (
            size.argument_size_in_bytes
            + size.output_size_in_bytes
            - size.alias_size_in_bytes
            + size.temp_size_in_bytes
        )

    return max(needed(loop.step), needed(loop.evaluate))


def run(
    key: Key,
    algorithm: Algorithm | Callable[[PyTree], Algorithm],
    env: Env,
    num_steps: int,
    *,
    hyperparameters: PyTree | None = None,
    side_by_side: bool | None = None,
    eval_every: int = 0,
    eval_episodes: int = 5,
    folder: Path | None = None,
    config: Mapping[str, Any] | None = None,
    upgrade: checkpoints.Upgrade = checkpoints.as_it_is,
    checkpoint_every: int = 1,
    keep: int = 3,
    begin: Callable[[PyTree], PyTree] = lambda state: state,
    log: Log = lambda step, metrics: None,
    report: Callable[[str], None] = warnings.warn,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Steps `algorithm` until `num_steps` are done, from the last checkpoint if any.

    `hyperparameters` and `side_by_side` are those of `build`.
    Evaluates after every `eval_every` steps (0: never) and at the end (0 episodes:
    never), and saves after every `checkpoint_every` and at the end, in `folder` if
    there is one.  `config` says what run this is: a folder that holds another one
    raises ValueError, unless `upgrade` makes the same of its older record.  `begin` is
    what becomes of a first state, never of one that is resumed.  `log` gets the metrics
    of each step, `report` a line for people.  If `should_stop` is true
    after a step, the run saves and returns.  Raises OSError if a checkpoint cannot be
    written and FloatingPointError, without saving, once the states of all seeds hold
    non-finite values.
    """
    config = dict(config or {})
    loop = build(
        key,
        algorithm,
        env,
        eval_episodes,
        hyperparameters=hyperparameters,
        side_by_side=side_by_side,
    )
    saved = restore(key, loop, folder, config, report, upgrade) if folder else None
    if folder:
        checkpoints.prepare(folder, jax.eval_shape(loop.init, key), keep)
    step, state = saved or (0, loop.place(begin(loop.init(key))))
    episodes, known_bad = None, np.zeros(key.shape, bool)
    while step < num_steps:
        clock = time.perf_counter()
        state, metrics = loop.step(key, step, state)
        record = {**jax.device_get(metrics), "time/step": _since(clock)}
        step += 1
        last, bad = step == num_steps, record["state/non_finite"] > 0
        if eval_episodes and (last or _due(step, eval_every)) and not bad.all():
            clock = time.perf_counter()
            found, episodes = loop.evaluate(key, step, state)
            record |= {**jax.device_get(found), "time/evaluate": _since(clock)}
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
    upgrade: checkpoints.Upgrade = checkpoints.as_it_is,
) -> tuple[int, PyTree] | None:
    """Steps done and state of the last good checkpoint of this run; None if none.

    Raises ValueError if `folder` holds another run, OSError if all are damaged.
    """
    template = {"key": key, "state": jax.eval_shape(loop.init, key)}
    saved = checkpoints.restore(folder, template, config, report, upgrade)
    if saved is None:
        return None
    step, tree = saved
    if not np.array_equal(jax.random.key_data(tree["key"]), jax.random.key_data(key)):
        raise ValueError(f"{folder} holds the run of another key")
    return step, loop.place(tree["state"])


def _over_devices(
    num_runs: int, side_by_side: bool | None, devices: Sequence[jax.Device]
) -> tuple[Callable[..., Any], Callable[[PyTree], PyTree]]:
    """`jax.jit` for functions (varied, key, i, state) of one run, and `Loop.place`.

    What is jitted takes and returns a leading axis of runs, but for i, sharded over the
    devices.  Where these do not divide the runs, copies of the last run fill up, and
    every device keeps all states.
    """
    devices = devices[:num_runs]
    if side_by_side is None:
        side_by_side = devices[0].platform != "cpu"
    each: Any = jax.vmap if side_by_side else lambda one: partial(jax.lax.map, one)
    num_on_each = -(-num_runs // len(devices))
    filled = num_on_each * len(devices) > num_runs
    mesh, runs = Mesh(np.asarray(devices), "run"), PartitionSpec("run")
    where = NamedSharding(mesh, PartitionSpec() if filled else runs)

    def own(x: Array) -> Array:
        first = num_on_each * jax.lax.axis_index("run")
        return x[jnp.minimum(first + jnp.arange(num_on_each), num_runs - 1)]

    def jit(function: Callable[..., PyTree], **options: Any) -> Any:
        def on_device(varied: PyTree, key: Key, i: Array, state: PyTree) -> PyTree:
            one = lambda x: function(x[0], x[1], i, x[2])
            given = varied, key, state
            return each(one)(jax.tree.map(own, given) if filled else given)

        given = PartitionSpec() if filled else runs
        sharded = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(given, given, PartitionSpec(), given),
            out_specs=runs,
            check_vma=False,  # nothing goes from one device to another
        )
        shardings = where, where, None, where
        if not filled:
            return jax.jit(
                sharded, in_shardings=shardings, out_shardings=where, **options
            )
        first = lambda results: jax.tree.map(lambda x: x[:num_runs], results)
        return _Gathered(
            jax.jit(sharded, in_shardings=shardings),
            jax.jit(first, out_shardings=where),
        )

    return jit, lambda state: jax.device_put(state, where)


class _Gathered(NamedTuple):
    """A jitted function, and another that gathers its results from all devices, once
    each of them has its own: within one program a device waits for the others, and XLA
    ends the process if that takes 40 seconds."""

    function: Any
    gather: Callable[[PyTree], PyTree]

    def __call__(self, *args: Any) -> PyTree:
        return self.gather(jax.block_until_ready(self.function(*args)))

    def lower(self, *args: Any) -> Any:
        return self.function.lower(*args)

    def trace(self, *args: Any) -> Any:
        return self.function.trace(*args)


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
