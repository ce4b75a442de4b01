"""Metrics on disk: JSON lines for programs, TensorBoard for eyes."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import files, run_folder
from mbrl_jax.training.train import Log

Line = dict[str, Any]

FINITE = (  # whatever becomes of a run
    "env_steps",
    "state/non_finite",
    "time/step",
    "time/evaluate",
    "compile/seconds",
)


@contextlib.contextmanager
def writer(folder: Path) -> Iterator[Log]:
    """A log of the run in `folder`, which goes on where the run was resumed.

    The first step logged replaces all lines from that step on: those that a killed
    process wrote after its last checkpoint.  A line is one write, so that a kill
    leaves at most the last one cut.  Raises OSError if it cannot be written.
    """
    path = folder / "metrics.jsonl"
    with contextlib.ExitStack() as stack:
        logs: list[Any] = []

        def log(step: int, metrics: Line) -> None:
            record = run_folder.plain({"step": step, **metrics})
            text = json.dumps(record, allow_nan=False) + "\n"
            if not logs:
                _cut(path, step)
            try:
                if not logs:
                    logs.append(stack.enter_context(files.appending(path)))
                    board = _board(folder / "tensorboard", step)
                    logs.append(stack.enter_context(board))
                if logs[0].write(text.encode()) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                logs[1](step, metrics)
            except OSError as error:
                raise OSError(f"cannot write {path}: {error.strerror}") from error

        yield log


@contextlib.contextmanager
def _board(folder: Path, step: int) -> Iterator[Log]:
    """A log for TensorBoard; what it has from `step` on is forgotten.

    Not tensorboardX's SummaryWriter: it writes in a thread, and when that fails, as on
    a full disk, the process waits for it for ever.
    """
    from tensorboardX.event_file_writer import EventsWriter  # slow to import
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    folder.mkdir(exist_ok=True)
    if folder.is_symlink():  # to a folder of somebody else
        raise OSError(errno.ELOOP, f"{folder.name} is a symbolic link", str(folder))
    file = EventsWriter(str(folder / "events"), f".{step}")
    start = SessionLog(status=SessionLog.START)
    file.write_event(Event(wall_time=time.time(), step=step, session_log=start))

    def log(step: int, metrics: Line) -> None:
        means = {name: float(np.mean(x)) for name, x in metrics.items()}
        values = [Summary.Value(tag=name, simple_value=x) for name, x in means.items()]
        summary = Summary(value=values)
        file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        file.flush()

    try:
        yield log
    finally:
        with contextlib.suppress(OSError):  # a full disk has been reported
            file.close()


def read(
    folder: Path, num_runs: int | None = None, needed: Sequence[str] = ()
) -> list[Line]:
    """The lines of metrics.jsonl; a last line that is cut is left out.

    Raises OSError if there is no file, ValueError if another line is no step, or
    without what is `needed`, or with lists that are not of `num_runs`.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise OSError(f"{folder} holds no metrics.jsonl")
    *texts, _ = files.read_text(path).split("\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        lines.append(_line(f"{path}, line {number}", text))
        if wrong := _lacks(lines[-1], num_runs, needed):
            raise ValueError(f"{path}, line {number}: {wrong}")
    return lines


def _line(where: str, text: str) -> Line:
    """Numbers, or lists of them; they are null where they were not finite."""
    try:
        line = files.parse(text, "it")
        if type(line["step"]) is not int:
            raise TypeError("step is no int")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where} is no record of a step: {error}") from error
    for name, x in line.items():
        kinds = (int, float) if name in FINITE else (int, float, type(None))
        for y in x if isinstance(x, list) else (x,):
            if type(y) not in kinds:
                raise ValueError(f"{where}: {name} is {y!r:.40}, which is no number")
    return line


def _lacks(line: Line, num_runs: int | None, needed: Sequence[str]) -> str:
    """What is wrong with it; nothing if it has all."""
    if missing := [name for name in needed if name not in line]:
        return f"there is no {missing[0]}"
    if num_runs is not None:
        for name, x in line.items():
            if isinstance(x, list) and len(x) != num_runs:
                return f"{name} has {len(x)} values for {num_runs} runs"
    return ""


def _cut(path: Path, step: int) -> None:
    """Leaves only the lines of steps before `step`."""
    if not path.exists():
        return
    kept = [line for line in read(path.parent) if line["step"] < step]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
