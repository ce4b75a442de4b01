"""Jobs of submitit: its local executor, a job that is preempted, clear complaints."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.runs import ledger, metrics_log, run_folder
from experiments.sweeps import submitit_launcher
from experiments.sweeps.launchers import Job

LOCAL = {"slurm": [], "cluster": "local", "num_workers": 2}
SLURM = {**LOCAL, "cluster": ""}


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell has its background processes, and theirs, ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def prepared(tiny: str, path: Path, *flags: str) -> Job:
    """A job whose folder is what a sweep would leave."""
    path.mkdir()
    record = run.record_of(*run.parse(["run", tiny, *flags]))
    run_folder.write_json(path / "config.json", record)
    return Job(path, path.parent / "ledger.jsonl")


def ended(jobs: list[Job], options: Mapping[str, Any]) -> dict[str, str]:
    """How the jobs ended, by the names of their folders."""
    found = [*submitit_launcher.launch(jobs, options)]
    assert len(found) == len(jobs)
    return {job.folder.name: reason for job, reason in found}


def steps(job: Job) -> list[int]:
    path = job.folder / "metrics.jsonl"
    return [x["step"] for x in metrics_log.read(job.folder)] if path.exists() else []


def processes(job: Job) -> list[int]:
    """Those that have the lock of its folder open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(job.folder / ".lock"):
                found.append(int(link.parts[2]))
        except OSError:
            pass  # it has ended
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_failure_is_told_and_the_others_finish(tiny: str, tmp_path: Path) -> None:
    jobs = [
        prepared(tiny, tmp_path / "first", "--seed=1"),
        prepared(tiny, tmp_path / "impossible", "--plan.horizon=0"),
        prepared(tiny, tmp_path / "second", "--seed=2"),
    ]
    reasons = ended(jobs, LOCAL)
    assert reasons["first"] == reasons["second"] == ""
    assert "horizon is 0" in reasons["impossible"]
    assert "\n" not in reasons["impossible"]
    lines = ledger.read(jobs[0].ledger)
    assert sorted(line["seed"] for line in lines) == [1, 2]
    assert {line["status"] for line in lines} == {"finished"}
    logs = [path.read_text() for path in (tmp_path / "submitit").glob("*_log.err")]
    assert any("ValueError" in text for text in logs)


@pytest.mark.slow
def test_a_preempted_run_goes_on_until_the_sweep_is_stopped(
    tiny: str, tmp_path: Path
) -> None:
    job = prepared(tiny, tmp_path / "long", "--num_steps=100000", "--eval_every=0")
    impossible = prepared(tiny, tmp_path / "impossible", "--plan.horizon=0")
    launched = submitit_launcher.launch([impossible, job], LOCAL)
    assert next(launched)[0] == impossible
    wait_for(lambda: len(steps(job)) >= 2)
    (before,) = processes(job)
    os.kill(before, signal.SIGUSR2)  # what Slurm sends to who has to leave
    wait_for(lambda: before not in processes(job))
    reached = len(steps(job))
    wait_for(lambda: len(steps(job)) >= reached + 2)
    assert processes(job)
    launched.close()
    assert not processes(job)
    assert steps(job) == [*range(1, len(steps(job)) + 1)]


def test_without_slurm_nothing_is_submitted(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = prepared(tiny, tmp_path / "run")
    with pytest.raises(OSError, match=r"^this machine does not submit to Slurm") as e:
        ended([job], SLURM)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "submitit").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slurm_partitoin=gpu", ["'slurm_partitoin=gpu'", "slurm_partition"]),
        ("timeout_min", ["'timeout_min' is no NAME=VALUE", "gpus_per_node"]),
        ("timeout_min=soon", ["timeout_min", "soon"]),
    ],
)
def test_a_bad_parameter_is_one_line(
    tiny: str, tmp_path: Path, text: str, words: list[str]
) -> None:
    job = prepared(tiny, tmp_path / "run")
    with pytest.raises(ValueError, match="timeout_min") as e:
        ended([job], {**LOCAL, "slurm": [text]})
    assert "\n" not in str(e.value)
    assert all(word in str(e.value) for word in words)


def test_slurm_gets_an_array_with_the_parameters(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for Slurm's commands keep what they are given; nothing ever runs."""
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    for name, text in {
        "sbatch": f'cp "$1" {slurm}/script; echo Submitted batch job 12',
        "srun": "",
        "sacct": "printf 'JobID|State|NodeList\\n12_0|TIMEOUT|a\\n12_1|RUNNING|b\\n'",
        "scancel": f'echo "$@" >> {slurm}/cancelled',
    }.items():
        (slurm / name).write_text(f"#!/bin/sh\n{text}\n")
        (slurm / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{slurm}:{os.environ['PATH']}")
    monkeypatch.setattr(submitit_launcher, "GRACE", 0.1)
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)
    jobs = [prepared(tiny, tmp_path / f"run{i}") for i in range(2)]
    given = ["slurm_partition=gpu", "timeout_min=7", "gpus_per_node=1", "mem_gb=2.5"]
    launched = submitit_launcher.launch(jobs, {**SLURM, "slurm": given})
    job, reason = next(launched)
    assert job == jobs[0]
    assert reason.startswith("job 12_0 ended as TIMEOUT, see ")
    launched.close()
    assert {
        "#SBATCH --array=0-1%2",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=7",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --mem=2560MB",
    } <= {*(slurm / "script").read_text().splitlines()}
    assert (slurm / "cancelled").read_text().split() == ["12_1"]


def test_without_submitit_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny: str, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match="needs submitit: pip install"):
        ended([prepared(tiny, tmp_path / "run")], LOCAL)
