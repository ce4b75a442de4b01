"""The programs of a sweep: which runs share one, and how many fit into memory.

Runs that differ in seeds and float hyperparameters only are one program.  A program
that the memory of a device would not hold is cut into several, by what its compiler
says it needs.
"""

import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs import jax_settings, ledger, memory, registry, run_folder
from experiments.sweeps import domains
from mbrl_jax import envs
from mbrl_jax.training import train

Record = dict[str, Any]
Fields = dict[str, Any]  # what a run has of its own: seed, hyperparameters, env
SPARE = 0.9  # of the memory is used


class Needs(NamedTuple):
    """Of a program, on each device, in bytes."""

    taken: int  # by the program, as its compiler counts
    free: int
    alone: bool  # the environment takes one run at a time


def product(values: Mapping[str, Sequence[Any]]) -> list[Fields]:
    """Every combination."""
    combinations = itertools.product(*values.values())
    return [dict(zip(values, combination, strict=True)) for combination in combinations]


def grouped(base: Record, config: Any, runs: Iterable[Fields]) -> list[Record]:
    """The records of programs; `runs` have a seed and all the same other names."""
    groups: dict[str, tuple[Fields, list[Fields]]] = {}
    for run in runs:
        floats = {x: run[x] for x in run if domains.is_float(config, x)}
        fixed = {x: run[x] for x in run if x not in floats and x != "seed"}
        _, rows = groups.setdefault(ledger.digest(fixed), (fixed, []))
        row = {"seed": run["seed"], **floats}
        if row not in rows:
            rows.append(row)
    return [_program(base, fixed, rows) for fixed, rows in groups.values()]


def split(record: Record, num_parts: int) -> list[Record]:
    """Programs of the same runs, as equal in size as can be."""
    rows = run_folder.rows(record)
    ends = [len(rows) * i // num_parts for i in range(num_parts + 1)]
    return [
        _program(record, {}, rows[start:end])
        for start, end in itertools.pairwise(ends)
        if end > start
    ]


def missing(wanted: Iterable[Record], known: set[str]) -> list[Record]:
    """The programs without the runs that are known, by `ledger.run_id`."""
    left = []
    for record in wanted:
        rows = run_folder.rows(record)
        new = [row for row in rows if ledger.run_id(record, row) not in known]
        if new:
            left.append(_program(record, {}, new))
    return left


def spread(parts: Sequence[Record], num_hosts: int) -> list[Record]:
    """The programs, cut so that every host has a share of each."""
    return [x for part in parts for x in split(part, num_hosts)]


def described(record: Record, needs: Needs) -> str:
    """A line for people."""
    rows = run_folder.rows(record)
    varied = {name: {row[name] for row in rows} for name in rows[0]}
    what = ", ".join(f"{len(values)} {name}" for name, values in varied.items())
    return (
        f"  {record['env']}: {len(rows)} runs ({what}), {record['num_steps']} steps, "
        f"{needs.taken / 1e9:.2f} of {needs.free / 1e9:.2f} GB per device, "
        f"program {ledger.digest(record['config'])[:6]}"
    )


def fitting(
    record: Record, limit: int = 0, in_process: bool = False
) -> tuple[list[Record], Needs]:
    """The program, or the parts of it that fit, and what the largest of them needs.

    `limit` is in bytes, or 0 for most of what is free.  Raises ValueError if not even
    one run fits.
    """
    measured = measure if in_process else _measured
    num_runs = len(run_folder.rows(record))
    needs = measured(record)
    limit = limit or int(SPARE * needs.free)
    num_parts = num_runs if needs.alone else 1
    while needs.taken > limit:
        if num_parts == num_runs:
            raise ValueError(
                f"a run needs {needs.taken / 1e9:,.3f} GB, a device has "
                f"{limit / 1e9:,.3f} GB"
            )
        wanted = -(-num_parts * needs.taken // limit)
        num_parts = min(num_runs, max(num_parts + 1, wanted))
        needs = measured(split(record, num_parts)[-1])  # none is larger
    return split(record, num_parts), needs._replace(free=limit)


def _program(base: Record, fixed: Fields, rows: Sequence[Fields]) -> Record:
    own = {name: x for name, x in fixed.items() if name in domains.OF_RUN}
    config = {name: x for name, x in fixed.items() if name not in own}
    return {
        **base,
        **own,
        "seed": rows[0]["seed"],
        "num_seeds": len(rows),
        "varied": {name: [row[name] for row in rows] for name in rows[0]},
        "config": {**base["config"], **config},
    }


def _measured(record: Record) -> Needs:
    """In a process of its own, so that this one never holds a device.

    What is compiled there is in the cache when the program runs.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(measure, record).result()


def measure(record: Record) -> Needs:
    jax_settings.apply(record["precision"])
    rows = run_folder.rows(record)
    jax_settings.use_cores(len(rows))
    if envs.make(record["env"]).host:
        registry.assemble(split(record, len(rows))[0])  # complains if it cannot be
        return Needs(0, jax_settings.device_memory(), alone=True)
    memory.check(split(record, len(rows))[0])  # says which flag, where one is too much
    run = registry.assemble(record)
    taken = train.memory(run.loop(record["eval_episodes"] or 1), run.key)
    return Needs(taken, jax_settings.device_memory(), alone=False)


def prepare(folder: Path, record: Record) -> None:
    """Makes the run folder of a program; it is there as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write(folder, record)


def prepared(folder: Path) -> dict[Path, Record]:
    """The run folders in `folder`, in the order in which they were made."""
    found = sorted(folder.glob("*/config.json"), key=lambda path: int(path.parent.name))
    return {path.parent: run_folder.read(path.parent) for path in found}


def next_name(folder: Path) -> Path:
    """A run folder that is not there yet."""
    numbers = [int(path.parent.name) for path in folder.glob("*/config.json")]
    return folder / f"{max(numbers, default=-1) + 1:03d}"
