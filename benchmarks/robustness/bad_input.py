"""Senseless values for every flag of every command and every algorithm, in process.

A command ends where its work would start: what comes to that was accepted.
"""

import contextlib
import functools
import importlib
import io
import itertools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks.robustness import tiny
from experiments import run
from experiments.runs import command_flags, memory, registry
from tests.experiments import conftest

ABOUT = (
    "every flag of every command, and of every algorithm, set to each of `{}`: refused "
    "in one line that names the flag, the value, or what it does not go with, or, "
    "where it can be meant, accepted; sizes that are accepted can be traced; never a "
    "traceback"
)
VALUES = ("0", "-1", "inf", "nan", str(2**31), "x", "")
ABOUT = ABOUT.format(" ".join(x or "''" for x in VALUES))
OPENED = "runs.run_folder.opened"
MPC = tuple(conftest.FLAGS.split())
FOLDER = "--run_dir=made"
FITTED = ("--env=pendulum", "--parameters=mass", "--output=new")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # arguments, and the functions that do the work
    "run": (MPC, (OPENED,)),
    "sweep": ((*MPC, "--num_seeds=2"), ("sweep._programs", "sweep._optuna")),
    "evaluate": ((FOLDER,), ("evaluate.evaluate",)),
    "render": ((FOLDER,), ("reports.animation.episode",)),
    "plot": ((FOLDER,), ("reports.plots.save",)),
    "report": (("--ledger=ledger.jsonl",), ("runs.files.write_text",)),
    "compare": (("ledger.jsonl", "ledger.jsonl"), ("compare.compare",)),
    "gradients": (("--env=pendulum", "--output=new"), ("gradients.measure",)),
    "identify": (FITTED, ("runs.recordings.record", "identify.identify")),
}


class Accepted(Exception):
    """The work of a command would start."""


def names() -> list[str]:
    return [*COMMANDS, *(f"run --algorithm={name}" for name in registry.names())]


def attempt(name: str, folder: Path) -> dict[str, Any]:
    command, _, algorithm = name.partition(" --algorithm=")
    counts, failures = {"tried": 0, "refused": 0, "accepted": 0}, []
    with contextlib.chdir(made(folder)):
        if algorithm:
            arguments = tuple(tiny.arguments(algorithm))
            kinds = kinds_of(registry.module(algorithm).Config())
        else:
            arguments = COMMANDS[command][0]
            kinds = dict.fromkeys(flags_of(command), str)
        for flag, value in itertools.product(kinds, VALUES):
            traced = bool(algorithm) and kinds[flag] is not float
            kind, told = outcome(command, (*arguments, f"--{flag}={value}"), traced)
            counts["tried"] += 1
            if kind in counts:
                counts[kind] += 1
            if wrong := complaint(flag, value, kind, told, kinds):
                failures.append(f"--{flag}={value}: {wrong}"[:300])
    return {**counts, "failures": failures}


def kinds_of(config: Any) -> dict[str, type]:
    """The flags of an algorithm, and of what kind their values are; float: finite."""
    kinds: dict[str, type] = {}
    for flag, x in command_flags.flat(config).items():
        infinite = isinstance(x, float) and math.isinf(x)
        kinds[flag] = str if infinite else type(x)
    return kinds


@functools.cache
def made(folder: Path) -> Path:
    """A folder with a finished run, and a ledger of it."""
    jax.devices()  # before a command chooses how many
    arguments = [*conftest.FLAGS.split(), f"--run_dir={folder / 'made'}"]
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        run.main(["run", *arguments, "--nopictures"])
    return folder


@functools.cache
def flags_of(command: str) -> list[str]:
    """Those in its help, but for an algorithm's."""
    main = importlib.import_module(f"experiments.{command}").main
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main([command, "--help"])
    return re.findall(r"^  --(\w+)", out.getvalue().split("\nFlags of pets")[0], re.M)


def outcome(
    command: str, arguments: Sequence[str], traced: bool = False
) -> tuple[str, str]:
    """`accepted`, `refused` or `traceback`, and what was said.  What is `traced` is
    accepted only if the programs of a run can be traced."""

    def start(*arguments: Any, **options: Any) -> None:
        if traced:
            memory.least(arguments[1])  # the record
        raise Accepted

    module = importlib.import_module(f"experiments.{command}")
    err = io.StringIO()
    with (
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(sys, "argv", [command, *arguments]),
        contextlib.ExitStack() as stack,
    ):
        for work in COMMANDS[command][1]:
            stack.enter_context(mock.patch(f"experiments.{work}", start))
        try:
            command_flags.command(module.main)
        except Accepted:
            return "accepted", ""
        except SystemExit:
            return "refused", err.getvalue()
        except BaseException as error:
            return "traceback", repr(error)
    return "accepted", ""  # there was nothing to do


def complaint(
    flag: str, value: str, kind: str, told: str, kinds: Mapping[str, type]
) -> str:
    """What is wrong with an outcome; nothing if it is as it should be."""
    if kind == "traceback":
        return told
    if kind == "accepted":
        limits = {float: ("inf", "nan"), int: ("inf", "nan", str(2**31), "x", "")}
        return "accepted" if value in limits.get(kinds[flag], ()) else ""
    if len(told.splitlines()) != 1 or not told.startswith("error: "):
        return f"{len(told.splitlines())} lines: {told}"
    last = [x.rpartition(".")[2] for x in kinds]
    right = (flag.rpartition(".")[2], value or "''", *(x for x in last if "_" in x))
    named = any(re.search(rf"(?<!\w){re.escape(x)}(?!\w)", told) for x in right)
    return "" if named else f"names nothing: {told}"
