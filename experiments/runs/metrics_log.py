"""Metrics on disk: JSON lines for programs, TensorBoard for eyes."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import files, run_folder
from mbrl_jax.training.train import Log

Line = dict[str, Any]


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


def read(folder: Path) -> list[Line]:
    """The lines of metrics.jsonl; a last line that is cut is left out.

    Raises OSError if there is no file, ValueError if another line is not JSON.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise OSError(f"{folder} holds no metrics.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no record of a step") from error
    return records


def _cut(path: Path, step: int) -> None:
    """Leaves only the lines of steps before `step`."""
    if not path.exists():
        return
    kept = [line for line in read(path.parent) if line["step"] < step]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
