"""Where the programs of a sweep run: a launcher starts jobs and says how they ended.

Every job is `python -m experiments.run` on a run folder that is prepared.  Whatever
becomes of it, the folder tells what is left to do: a launcher need not remember.
"""

import contextlib
import importlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs import faults, files, run_folder

ROOT = Path(__file__).parents[2]
NAMES = ("local", "ray", "submitit")
OPTIONS = (  # flags of the sweep, which each launcher takes what it needs of
    "cluster",
    "max_retries",
    "num_cpus",
    "num_gpus",
    "num_workers",
    "ray_address",
    "slurm",
)


class Job(NamedTuple):
    folder: Path  # of the run, absolute
    ledger: Path  # absolute
    env: str = ""  # where it is a module, which a folder alone must not name


Ended = tuple[Job, str]  # the second is how it died; empty if it did not
Launcher = Callable[[Sequence[Job], Mapping[str, Any]], Generator[Ended, None, None]]


def launcher(name: str) -> Launcher:
    """The launcher; others than the local one are in files of their own."""
    if name == "local":
        return local
    return importlib.import_module(f"experiments.sweeps.{name}_launcher").launch


def outcome(job: Job) -> str:
    """What the folder says of how the job ended; empty if it does not, or was stopped.

    Such a job can go on.
    """
    there = (job.folder / "status.json").exists()
    status = run_folder.read_status(job.folder) if there else {"status": "missing"}
    if status["status"] == "failed":
        return f"failed: {status.get('reason')}"
    return "finished" if run_folder.finished(job.folder) else ""


def arguments(job: Job) -> list[str]:
    """Of `experiments.run`.  It waits for a process that a killed sweep has left."""
    return [
        f"--run_dir={job.folder}",
        f"--ledger={job.ledger}",
        "--wait",
        "--nopictures",
        *([f"--env={job.env}"] if job.env else []),
    ]


def execute(job: Job) -> str:
    """Runs a job in this process, and prints as that does.

    Returns why it failed, in a line; else nothing.
    """
    from experiments import run

    try:
        run.main(["run", *arguments(job)])
    except Exception as error:  # the other jobs go on
        traceback.print_exc()
        return faults.line(error)
    return ""


def local(
    jobs: Sequence[Job], options: Mapping[str, Any]
) -> Generator[Ended, None, None]:
    """A process for each job, `num_workers` at a time; what they print is in log.txt.

    When this generator is closed, the processes finish their step, save and stop.
    """
    waiting = list(jobs)
    running: dict[Job, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < options["num_workers"]:
                job = waiting.pop(0)
                running[job] = _start(job)
            time.sleep(0.1)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    yield job, _death(process.returncode)
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in running.values():
            process.wait()


def _start(job: Job) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.run", *arguments(job)]
    with open(job.folder / "log.txt", "ab", opener=files.regular) as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # of its own group, so that one Ctrl-C asks it to stop once, by us
            start_new_session=True,
            # modules that lie here are found there too
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_places())},
        )


def _places() -> list[str]:
    return [*filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()]


def _death(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    return f"exit code {code}" if code else ""
