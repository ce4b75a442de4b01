"""Progress on the terminal; without one, a line for each evaluation."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mbrl_jax.training.train import Log

Report = Callable[[str], None]


@contextlib.contextmanager
def shown(num_steps: int) -> Iterator[tuple[Log, Report]]:
    """Functions that show a step's metrics, and a line of text, on stderr."""
    if sys.stderr.isatty():
        with _bar(num_steps) as functions:
            yield functions
    else:
        yield lambda step, metrics: _line(step, num_steps, metrics), report


@contextlib.contextmanager
def _bar(num_steps: int) -> Iterator[tuple[Log, Report]]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[text]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console) as shown:
        task = shown.add_task("compiling", total=num_steps, text="")
        first = True
        last_eval: dict[str, Any] = {}

        def log(step: int, metrics: dict[str, Any]) -> None:
            nonlocal first
            if first:  # it took the compilation: time left is judged by the others
                shown.update(task, description="training", completed=step)
                first = False
            last_eval.update({k: v for k, v in metrics.items() if k[:5] == "eval/"})
            text = summary({**metrics, **last_eval})
            shown.update(task, completed=step, text=text)

        yield log, lambda line: console.print(line, markup=False, highlight=False)


def summary(metrics: dict[str, Any]) -> str:
    """The figures people watch, averaged over seeds."""
    watched = {
        "env steps": "env_steps",
        "return": "episode/return",
        "eval return": "eval/return_mean",
    }
    return "  ".join(
        f"{name} {np.mean(metrics[key]):.5g}"
        for name, key in watched.items()
        if key in metrics
    )


def _line(step: int, num_steps: int, metrics: dict[str, Any]) -> None:
    if "eval/return_mean" in metrics:
        report(f"step {step}/{num_steps}  {summary(metrics)}")


def note(line: str) -> None:
    """Says what takes time, to those who wait."""
    if sys.stderr.isatty():
        report(line)


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
