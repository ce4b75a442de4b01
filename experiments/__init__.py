"""Commands: run, evaluate, render, plot.  `python -m experiments.run --help`.

Ctrl-C ends a command at once, from here on: what a command imports takes seconds, and
an exception in the middle of that, or of a compilation, is a long traceback, is lost or
crashes.  Whatever has to be saved or stopped first sets a handler of its own.
"""

import multiprocessing
import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    if multiprocessing.parent_process() is None:  # else that says it
        os.write(2, b"interrupted\n")
    os._exit(130)


def _is_command() -> bool:
    """While `python -m` looks for one of them here, or in a process of one."""
    return sys.argv[:1] == ["-m"] or multiprocessing.parent_process() is not None


# LAPACK's threads spin where cores are busy: a Cholesky factor of 50 rows cost 60 times
# the CPU time that it does with one.  To be known before jax loads it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
