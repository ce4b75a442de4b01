"""Runs the programs of a sweep as an array of Slurm jobs, by submitit.

The nodes share the file system and the Python environment with this machine.  A job
that is preempted, or whose time is up, goes back into Slurm's queue and then goes on
from the last checkpoint of its run.
"""

import importlib
import json
import os
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from experiments.sweeps import launchers
from experiments.sweeps.launchers import Ended, Job

TIMEOUT = 60  # minutes
GRACE = 10.0  # seconds for cancelled jobs to end


class Run(NamedTuple):
    """What submitit calls with a job; `checkpoint` is its protocol for requeuing."""

    def __call__(self, job: Job) -> str:
        return launchers.execute(job)

    def checkpoint(self, job: Job) -> Any:
        return _import().helpers.DelayedSubmission(self, job)


def launch(
    jobs: Sequence[Job], options: Mapping[str, Any]
) -> Generator[Ended, None, None]:
    """A job array; its logs are in `submitit/` beside the ledger.

    Options: `slurm`, a sequence of NAME=VALUE for AutoExecutor.update_parameters, such
    as timeout_min=60 or slurm_partition=gpu, where VALUE is JSON or else text;
    `num_workers`, how many run at a time; `cluster`, "" for Slurm, or "local" for
    processes of this machine, all at once, which serves tests.

    When this generator is closed, the jobs are cancelled.  Raises ImportError if there
    is no submitit, OSError if there is no Slurm, ValueError for a bad NAME=VALUE.
    """
    submitit = _import()
    parameters = _parameters(submitit, options["slurm"])
    cluster = options["cluster"] or "slurm"
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise OSError("this machine does not submit to Slurm: it has no sbatch or srun")
    folder = jobs[0].ledger.parent / "submitit"
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    try:
        executor.update_parameters(
            **{
                "timeout_min": TIMEOUT,
                "slurm_array_parallelism": options["num_workers"],
                **parameters,
            }
        )
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise ValueError(" ".join(f"slurm parameters: {error}".split())) from error
    path = [str(launchers.ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, path)))
    submitted = executor.map_array(Run(), jobs)
    running = dict(zip(submitted, jobs, strict=True))
    try:
        while running:
            time.sleep(0.5)
            for one in [one for one in running if one.done()]:
                yield running.pop(one), _death(one)
    finally:
        _cancel([*running])


def _cancel(running: Sequence[Any]) -> None:
    for one in running:
        one.cancel(check=False)
    deadline = time.monotonic() + GRACE
    while not all(one.done() for one in running) and time.monotonic() < deadline:
        time.sleep(0.1)


def _death(one: Any) -> str:
    try:
        return one.result()
    except Exception:  # of a job that left no result, or could not start
        return f"job {one.job_id} ended as {one.state}, see {one.paths.stderr}"


def _parameters(submitit: ModuleType, texts: Sequence[str]) -> dict[str, Any]:
    known = [
        *submitit.AutoExecutor._typed_parameters(),
        *(f"slurm_{name}" for name in submitit.SlurmExecutor._valid_parameters()),
    ]
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"{text!r} is no NAME=VALUE of submitit; "
                f"names are: {', '.join(sorted(known))}"
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _import() -> ModuleType:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise ImportError(
            "this launcher needs submitit: pip install submitit"
        ) from error
