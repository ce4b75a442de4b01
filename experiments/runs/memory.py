"""Does a run fit into the memory?  Asked before it starts, and answered with a flag.

What a sweep plans with is what its compiler counts.  Here nothing is compiled: what a
run needs at least are its state and the largest array that a step or an evaluation
makes.  Where sizes are as usual, there is nothing to ask.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax

from experiments.runs import command_flags, jax_settings, registry, run_folder

USUAL = 4096  # a size up to which no setting takes much memory
OF_RUN = {"num_seeds": 1, "eval_episodes": 5, "episode_length": 0}  # with defaults


def check(record: run_folder.Record) -> None:
    """Raises ValueError, naming the flag that asks for most, where a device has not
    what the run needs."""
    large = _large(record)
    if not large:
        return
    free, needed = jax_settings.device_memory(), least(record)
    if needed <= free:
        return
    without = {name: _least_with(record, name, x) for name, x in large.items()}
    name = min(without, key=lambda name: without[name])
    value = {**record["config"], **record}[name]
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    raise ValueError(
        f"--{name}={text} is too large: the run needs {needed / 1e9:,.1f} GB at least, "
        f"a device has {free / 1e9:,.1f} GB free"
    )


def least(record: run_folder.Record) -> float:
    """Bytes that a run takes on each device at least; inf if no array can be so large.

    Raises ValueError for what cannot be.
    """
    try:
        run = registry.assemble(record)
        loop = run.loop(record["eval_episodes"] or 1)
        state = jax.eval_shape(loop.init, run.key)
        sizes = [sum(map(_size, jax.tree.leaves(state)))]
        if not run.env.host:
            functions: Any = (loop.step, loop.evaluate)
            for function in functions:
                traced = function.func.trace(*function.args, run.key, 0, state)
                sizes += _arrays(traced.jaxpr.jaxpr)
    except OverflowError:
        return math.inf
    return max(sizes)


def _large(record: run_folder.Record) -> dict[str, Any]:
    """The settings with sizes above the usual and their default: and that default."""
    default = command_flags.flat(registry.module(record["algorithm"]).Config())
    known = {**default, **OF_RUN}
    asked = {**record["config"], **{name: record[name] for name in OF_RUN}}
    return {
        name: known[name]
        for name, x in asked.items()
        if _largest(x) > max(USUAL, _largest(known[name]))
    }


def _largest(value: Any) -> int:
    values = value if isinstance(value, list | tuple) else (value,)
    return max((x for x in values if isinstance(x, int)), default=0)


def _least_with(record: run_folder.Record, name: str, value: Any) -> float:
    """With another value of one setting; inf if that does not go with the others."""
    own = {name: value} if name in OF_RUN else {}
    config = record["config"] if own else {**record["config"], name: value}
    try:
        return least({**record, **own, "config": config})
    except ValueError:
        return math.inf


def _arrays(jaxpr: Any) -> Iterator[int]:
    """The sizes in bytes of all that a program computes, within loops too."""
    for equation in jaxpr.eqns:
        yield from (_size(x.aval) for x in equation.outvars)
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):  # of a loop, or of a function in it
                yield from _arrays(inner)


def _size(x: Any) -> int:
    """In bytes; what is no array has none."""
    shape, dtype = getattr(x, "shape", ()), getattr(x, "dtype", None)
    return math.prod(shape) * getattr(dtype, "itemsize", 0)
