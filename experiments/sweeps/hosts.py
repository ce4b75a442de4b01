"""Several processes, one on each host, that share a sweep by jax's own runtime.

    sweep ... --coordinator=HOST:PORT --num_processes=2 --process_id=0  # on one
    sweep ... --coordinator=HOST:PORT --num_processes=2 --process_id=1  # on the other
    srun python -m experiments.sweep ... --coordinator=auto

`auto` takes all three from the cluster's environment (Slurm, Open MPI, Kubernetes, TPU
pods); the first process then listens as jax does, to the whole network, unless
JAX_COORDINATOR_BIND_ADDRESS says where.  The hosts share a file system.  The first one
makes the plan; each runs its share of every program on its own devices, and nothing but
the plan and the end is waited for together.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
from absl import flags

from experiments.runs import files, jax_settings, progress
from experiments.sweeps import launchers, meeting

FLAGS = ("coordinator", "join_timeout", "num_processes", "process_id")
MANY = 1024  # runs that a process might have


class Host(NamedTuple):
    number: int  # from 0
    num_hosts: int


def define(values: flags.FlagValues) -> None:
    meaning = "HOST:PORT where process 0 listens; auto: from the cluster's environment"
    flags.DEFINE_string("coordinator", "", meaning, flag_values=values)
    meaning = "that run this command"
    flags.DEFINE_integer("num_processes", None, meaning, 1, flag_values=values)
    meaning = "which of them this is, from 0"
    flags.DEFINE_integer("process_id", None, meaning, 0, flag_values=values)
    meaning = "seconds to wait for the others"
    flags.DEFINE_integer("join_timeout", 300, meaning, 1, flag_values=values)


def join(values: flags.FlagValues) -> Host:
    """Waits for the others.  Raises flags.Error or OSError if that cannot be."""
    if not values.coordinator:
        if values.num_processes is not None or values.process_id is not None:
            raise flags.Error("--num_processes and --process_id need a --coordinator")
        return Host(0, 1)
    jax_settings.use_cores(MANY)
    auto = values.coordinator == "auto"
    if not auto and (values.num_processes is None or values.process_id is None):
        raise flags.Error("--coordinator needs --num_processes and --process_id")
    if not auto and values.process_id >= values.num_processes:
        raise flags.Error(
            f"--process_id is {values.process_id}, the last of "
            f"--num_processes={values.num_processes} is {values.num_processes - 1}"
        )
    try:
        if not auto:
            who = values.num_processes, values.process_id
            meeting.meet(values.coordinator, *who, values.join_timeout)
        jax.distributed.initialize(
            coordinator_address=None if auto else values.coordinator,
            # its default is to listen to the whole network
            coordinator_bind_address=None if auto else values.coordinator,
            num_processes=values.num_processes,
            process_id=values.process_id,
            initialization_timeout=values.join_timeout,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(f"cannot join {values.coordinator}: {error}") from error
    return Host(jax.process_index(), jax.process_count())


def wait(host: Host, what: str) -> None:
    """Until all hosts have come here."""
    if host.num_hosts > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def execute(host: Host, jobs: Sequence[launchers.Job]) -> None:
    """This host's share of the jobs, in this process; what they print is in log.txt."""
    for job in jobs[host.number :: host.num_hosts]:
        with (
            open(job.folder / "log.txt", "a", opener=files.regular) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            reason = launchers.execute(job)
        said = launchers.outcome(job) or reason or "stopped"
        progress.report(f"host {host.number}, {job.folder.name}: {said}")
