"""Runs the programs of a sweep as tasks of Ray, on this machine or on a cluster.

A worker that dies is tried again, and goes on from the last checkpoint of its run.
The nodes of a cluster share the file system and the Python environment with this
machine, which is one of them.  What a run prints is in log.txt of its folder.
"""

import contextlib
import importlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from types import ModuleType
from typing import Any

from experiments.runs import files
from experiments.sweeps import launchers
from experiments.sweeps.launchers import Ended, Job

OBJECT_STORE = 100 * 2**20  # bytes; only names of folders pass through it
PATIENCE = 5.0  # seconds for a head to answer
GRACE = 30.0  # seconds for the runs to finish their step when the sweep is stopped


def launch(
    jobs: Sequence[Job], options: Mapping[str, Any]
) -> Generator[Ended, None, None]:
    """A Ray task for each job, in a fresh process.

    Options: `ray_address`, "auto" or HOST:PORT of a running cluster, or "" for a Ray of
    our own, which nobody outside this machine can reach; `max_retries` of a run whose
    worker dies; `num_cpus` and `num_gpus` of each run, by default 1 and 0.  A Ray that
    this process has joined already is used as it is.

    When this generator is closed, the runs finish their step, save and stop; after
    `GRACE` seconds they are killed.  Raises ImportError if there is no Ray, OSError if
    the cluster is not reached, ValueError if no run can be placed on this machine.
    """
    address = options["ray_address"]
    ray = _import()
    initialised = ray.is_initialized()
    try:
        if not initialised and address:
            _join(ray, address)
        elif not initialised:
            _start(ray, options)
        yield from _run(ray, jobs, options)
    finally:
        if not initialised:
            ray.shutdown()


def _run(
    ray: ModuleType, jobs: Sequence[Job], options: Mapping[str, Any]
) -> Generator[Ended, None, None]:
    path = [str(launchers.ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    task = ray.remote(
        max_calls=1,  # what jax is told once holds for the whole process
        max_retries=options["max_retries"],
        **_resources(options),
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, path))}},
    )(_work)
    running = {task.remote(job): job for job in jobs}
    try:
        while running:
            (done, *_), _ = ray.wait([*running])
            yield running.pop(done), _death(ray, done)
    finally:
        if running:
            for one in running:
                ray.cancel(one)  # what Ctrl-C is to a process
            _, left = ray.wait([*running], num_returns=len(running), timeout=GRACE)
            # to cancel one that has just ended can abort this process
            for one in left:
                ray.cancel(one, force=True)


def _work(job: Job) -> str:
    """Runs a job in a worker.  Returns why it failed, in a line; else nothing."""
    with open(job.folder / "log.txt", "a", 1, opener=files.regular) as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):  # of this process, which does nothing else afterwards
            os.dup2(log.fileno(), number)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            return launchers.execute(job)


def _death(ray: ModuleType, task: Any) -> str:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:  # such as a module that is not there
        return str(error).splitlines()[-1]
    except ray.exceptions.RayError as error:
        return str(error).splitlines()[0]


def _start(ray: ModuleType, options: Mapping[str, Any]) -> None:
    """A Ray of our own, bound to the loopback interface; it ends with this process."""
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise OSError("Ray was imported too early: it would not stay on this machine")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    _init(
        ray,
        address="local",  # whatever RAY_ADDRESS says
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
    )
    there = ray.cluster_resources()
    for name, asked in _resources(options).items():
        kind = name.removeprefix("num_")[:-1].upper()
        if asked > there.get(kind, 0):
            raise ValueError(
                f"{name} is {asked:g}, more than the {there.get(kind, 0):g} there are"
            )


def _join(ray: ModuleType, address: str) -> None:
    """Joins a cluster.  Ray itself would try for minutes, and then end the process."""
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), PATIENCE).close()
        _init(ray, address=address)
    except (OSError, ValueError, OverflowError, RuntimeError, SystemExit) as error:
        text = f"cannot join a Ray cluster at {address!r} from this machine: {error}"
        raise OSError(" ".join(text.split())) from error


def _init(ray: ModuleType, **arguments: Any) -> None:
    """ray.init, quietly.  A handler of SIGTERM stays, though Ray sets its own."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _import() -> ModuleType:
    # Despite its name it is for Linux, too: with it Ray takes 127.0.0.1 for the address
    # of this machine, and binds no other.  It is read when Ray is imported.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("this launcher needs Ray: pip install ray") from error


def _resources(options: Mapping[str, Any]) -> dict[str, float]:
    return {
        "num_cpus": options.get("num_cpus", 1),
        "num_gpus": options.get("num_gpus", 0),
    }
