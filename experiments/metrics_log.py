"""Metrics on disk: JSON lines for programs, TensorBoard for eyes."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments import run_folder
from mbrl_jax.train import Log

Line = dict[str, Any]


@contextlib.contextmanager
def writer(folder: Path) -> Iterator[Log]:
    """A log of the run in `folder`, which goes on where the run was resumed.

    The first step logged replaces all lines from that step on: those that a killed
    process wrote after its last checkpoint.  A line is one write, so that a kill
    leaves at most the last one cut.
    """
    path = folder / "metrics.jsonl"
    with contextlib.ExitStack() as stack:
        writers: list[Any] = []

        def log(step: int, metrics: Line) -> None:
            if not writers:
                # Here because it is slow to import, and not needed until now.
                from tensorboardX import SummaryWriter

                _cut(path, step)
                board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
                stack.callback(board.close)
                writers.extend([board, stack.enter_context(open(path, "ab", 0))])
            board, lines = writers
            record = run_folder.plain({"step": step, **metrics})
            text = json.dumps(record, allow_nan=False)
            lines.write(text.encode() + b"\n")
            for name, value in metrics.items():
                if np.isfinite(value).all():
                    board.add_scalar(name, np.mean(value), step)
            board.flush()

        yield log


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
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(temporary, path)
