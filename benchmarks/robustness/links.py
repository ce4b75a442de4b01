"""Links and pipes planted in the folder of a run, at every name that it has or had."""

import contextlib
import functools
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from experiments import evaluate, run
from experiments.runs import command_flags
from mbrl_jax.algorithms import mpc
from tests.experiments import conftest

ABOUT = (
    "links to a file, to a folder, to nothing, second names of a file, and pipes, "
    "planted at each name, lock or temporary of a run folder that is then gone on with "
    "and evaluated: what they lead to is unchanged, and no command waits for ever or "
    "ends in a traceback"
)
NAMES = (
    ".lock",
    "config.json",
    "status.json",
    "metrics.jsonl",
    "tensorboard",
    "learning_curve.png",
    "episode.gif",
    "evaluation.json",
    "checkpoints",
    "checkpoints/5",
    "checkpoints/5.orbax-checkpoint-tmp",
    "checkpoints/1.deleted",
    ".config.json.tmp",
    ".status.json.tmp",
    ".metrics.jsonl.tmp",
    ".learning_curve.png.tmp",
    ".episode.gif.tmp",
    ".evaluation.json.tmp",
    "../.ledger.jsonl.lock",
    "../.ledger.jsonl.tmp",
)
READ = ("config", "status", "metrics", "checkpoints", "evaluation", ".evaluation")
PICTURES = (".png", ".png.tmp", ".gif", ".gif.tmp")
PATIENCE = 40  # seconds


class Waiting(BaseException):
    """No command takes it for an error of its own."""


def names() -> list[str]:
    return [*KINDS]


def attempt(name: str, folder: Path) -> dict[str, Any]:
    failures = []
    for number, where in enumerate(NAMES):
        own = folder / name / str(number)
        if told := planted(KINDS[name], made(folder), own, where):
            failures.append(f"{where}: {told}"[:300])
    return {"tried": len(NAMES), "failures": failures}


def planted(
    plant: Callable[[Path, Path], None], source: Path, own: Path, where: str
) -> str:
    """What is wrong after a run with that, if anything."""
    target = own / "run" / where
    shutil.copytree(source, own / "run")
    victim = own / "victim"
    victim.mkdir()
    if target.is_file():
        shutil.copy(target, victim / "file")
    else:
        (victim / "file").write_text("mine")
    (victim / "3").mkdir()  # as a checkpoint would be
    (victim / "3" / "mine").write_text("mine")
    remove(target)
    plant(target, victim)
    before = state(victim)
    said = used(own / "run", where)
    return said if state(victim) == before else f"what it leads to has changed; {said}"


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is in it, when it was changed, and what it says."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        about = path.stat()
        text = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (about.st_ino, about.st_mtime_ns, text)
    return found


def used(folder: Path, where: str = "") -> str:
    """Goes on with the run and evaluates it; what is wrong with how that ends.

    Without what has nothing to do with the name `where`.
    """
    argument = f"--run_dir={folder}"
    pictures = [] if where.endswith(PICTURES) else ["--nopictures"]
    commands = [(run.main, ["run", argument, "--num_steps=5", *pictures])]
    if where.startswith(READ):
        commands.append((evaluate.main, ["evaluate", argument]))
    with mock.patch.object(mpc, "make", conftest.light_mpc), impatient():
        for main, argv in commands:
            try:
                command(main, argv)
            except Waiting:
                return f"{argv[0]} waits for ever"
            except Exception as error:
                return f"{argv[0]} ends in a traceback: {error!r}"
    return ""


def command(main: Callable[..., None], argv: list[str]) -> None:
    """An error in one line is fine."""
    with (
        contextlib.suppress(SystemExit),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        mock.patch.object(sys, "argv", argv),
    ):
        command_flags.command(main)


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Raises Waiting where something takes too long."""

    def stop(*arguments: Any) -> None:
        raise Waiting

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1)  # again while it cleans up
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@functools.cache
def made(folder: Path, *more: str) -> Path:
    """A finished run, and a ledger beside it."""
    jax.devices()  # before a command chooses how many
    with mock.patch.object(mpc, "make", conftest.light_mpc):
        arguments = [*conftest.FLAGS.split(), f"--run_dir={folder / 'source'}", *more]
        command(run.main, ["run", *arguments])
    return folder / "source"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "link to a file": lambda path, victim: path.symlink_to(victim / "file"),
    "link to a folder": lambda path, victim: path.symlink_to(victim),
    "link to nothing": lambda path, victim: path.symlink_to(victim / "new"),
    "second name of a file": lambda path, victim: path.hardlink_to(victim / "file"),
    "pipe": lambda path, victim: os.mkfifo(path),
}
