"""Tasks of Ray: a worker that is killed, who can reach our Ray, clear complaints."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.runs import ledger, metrics_log, run_folder
from experiments.sweeps import launchers, ray_launcher
from experiments.sweeps.launchers import Job

# Ray starts its processes by fork and exec; jax fears for what comes between.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

OWN = {"ray_address": "", "max_retries": 1}
MARK = "MBRL_JAX_TEST_MARK"  # in the environment of a driver and of all that it starts
DRIVER = """
import json, signal, sys
from pathlib import Path
from experiments.sweeps import launchers, ray_launcher

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
folders = [Path(x) for x in sys.argv[2:]]
jobs = [launchers.Job(x, x.parent / "ledger.jsonl") for x in folders]
try:
    for job, reason in ray_launcher.launch(jobs, json.loads(sys.argv[1])):
        print(job.folder.name, reason, sep=": ", flush=True)
except (KeyboardInterrupt, ValueError) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes with a processor each."""
    node = {
        "num_cpus": 1,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
        "object_store_memory": ray_launcher.OBJECT_STORE,
    }
    ray_launcher._import()
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args=node)
    try:
        nodes.add_node(**node)
        yield nodes.address
    finally:
        nodes.shutdown()


def prepared(tiny: str, path: Path, *flags: str) -> Job:
    """A job whose folder is what a sweep would leave."""
    path.mkdir()
    record = run.record_of(*run.parse(["run", tiny, *flags]))
    run_folder.write_json(path / "config.json", record)
    return Job(path, path.parent / "ledger.jsonl")


@contextlib.contextmanager
def driver(
    mark: str, options: dict[str, Any], *jobs: Job
) -> Iterator[subprocess.Popen[str]]:
    """A process that launches the jobs."""
    folders = [str(job.folder) for job in jobs]
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(options), *folders],
        cwd=launchers.ROOT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def num_steps(job: Job) -> int:
    path = job.folder / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def deterministic(job: Job) -> list[dict[str, Any]]:
    clocks = ("time/", "compile/")
    return [
        {name: x for name, x in line.items() if not name.startswith(clocks)}
        for line in metrics_log.read(job.folder)
    ]


def processes(job: Job) -> list[int]:
    """Those that have the lock of its folder open."""
    lock = str(job.folder / ".lock")
    return [int(link.parts[2]) for link, target in open_files() if target == lock]


def open_files() -> Iterator[tuple[Path, str]]:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has ended
            yield link, os.readlink(link)


def marked(mark: str) -> list[int]:
    """The processes, but zombies, with `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parts[2]))
    return found


def listening(pids: list[int]) -> set[str]:
    """The addresses, in hexadecimal, where these processes accept connections."""
    inodes = {
        target.removeprefix("socket:[").removesuffix("]")
        for link, target in open_files()
        if target.startswith("socket:") and int(link.parts[2]) in pids
    }
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(
    tiny: str, tmp_path: Path, cluster: str
) -> None:
    undisturbed = prepared(tiny, tmp_path / "undisturbed", "--num_steps=40")
    assert launchers.execute(undisturbed) == ""
    (tmp_path / "sweep").mkdir()
    jobs = [
        prepared(tiny, tmp_path / "sweep" / "short", "--seed=1"),
        prepared(tiny, tmp_path / "sweep" / "long", "--num_steps=40"),
        prepared(tiny, tmp_path / "sweep" / "impossible", "--plan.horizon=0"),
    ]
    killed = []

    def kill() -> None:
        wait_for(lambda: num_steps(jobs[1]) >= 3)
        (pid,) = processes(jobs[1])
        os.kill(pid, signal.SIGKILL)
        killed.append(num_steps(jobs[1]))

    killer = threading.Thread(target=kill)
    killer.start()
    handler = signal.signal(signal.SIGTERM, stop := lambda number, frame: None)
    options = {"ray_address": cluster, "max_retries": 1}
    ended = {x.folder.name: why for x, why in ray_launcher.launch(jobs, options)}
    killer.join()
    assert signal.signal(signal.SIGTERM, handler) is stop
    assert 3 <= killed[0] < 40
    assert "horizon is 0" in ended.pop("impossible")
    assert ended == {"short": "", "long": ""}
    assert deterministic(jobs[1]) == deterministic(undisturbed)
    lines = ledger.read(jobs[0].ledger)
    assert sorted(line["seed"] for line in lines) == [0, 1]
    assert {line["status"] for line in lines} == {"finished"}
    assert "ValueError" in (jobs[2].folder / "log.txt").read_text()
    assert ", at step " in (jobs[1].folder / "log.txt").read_text()  # it went on


@pytest.mark.slow
def test_a_ray_of_our_own_is_private_and_ends_with_the_sweep(
    tiny: str, tmp_path: Path
) -> None:
    """Once in a while Ray itself aborts, or never tells of a killed worker."""
    for attempt in range(4):
        (folder := tmp_path / str(attempt)).mkdir()
        fault = privately(tiny, folder)
        for pid in marked(str(folder)):
            os.kill(pid, signal.SIGKILL)
        if not fault:
            return
    pytest.fail(fault)


def privately(tiny: str, folder: Path) -> str:
    """Two runs, of which one is killed and one stopped.  Returns a fault of Ray."""
    endless = ("--num_steps=100000", "--eval_every=0")
    jobs = [prepared(tiny, folder / name, *endless) for name in ("dies", "stops")]
    mark = str(folder)
    with driver(mark, {**OWN, "max_retries": 0}, *jobs) as process:
        wait_for(lambda: all(num_steps(job) >= 2 for job in jobs))
        pids = marked(mark)
        assert {processes(job)[0] for job in jobs} < {*pids}
        mapped = "0000000000000000FFFF00000100007F"  # ::ffff:127.0.0.1
        assert listening(pids)
        assert listening(pids) <= {"0100007F", mapped}
        os.kill(processes(jobs[0])[0], signal.SIGKILL)
        end = line_of(process, "dies: ", 90)
        if end is None:
            return "no word of the killed worker"
        assert "died" in end
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    if "An unexpected system state has occurred" in err:
        return err
    # Ray tells of the killed worker when it likes, before or after our last line.
    assert "KeyboardInterrupt" in [line.strip() for line in out.splitlines()], err
    assert err == ""
    wait_for(lambda: not marked(mark))
    assert run_folder.read_json(jobs[1].folder / "status.json")["status"] == "stopped"
    return ""


def line_of(process: subprocess.Popen[str], start: str, seconds: float) -> str | None:
    """The next line of its output that begins so; None if there is none in time."""
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        found.put(next((line for line in lines if line.startswith(start)), ""))

    threading.Thread(target=read, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return found.get(timeout=seconds)
    return None


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_one_line(tiny: str, tmp_path: Path) -> None:
    job = prepared(tiny, tmp_path / "run")
    with driver(str(tmp_path), {**OWN, "num_cpus": 10_000}, job) as process:
        out, err = process.communicate(timeout=240)
    assert out.startswith("ValueError num_cpus is 10000, more than the ")
    assert (err, out.count("\n")) == ("", 1)


def test_an_unreachable_head_is_one_line(tiny: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    job = prepared(tiny, tmp_path / "run")
    for address in (f"127.0.0.1:{port}", "127.0.0.1:http", "nowhere.invalid:6379", "x"):
        start = time.monotonic()
        with pytest.raises(OSError, match="cannot join a Ray cluster at ") as error:
            next(ray_launcher.launch([job], {**OWN, "ray_address": address}))
        assert time.monotonic() - start < 15
        assert repr(address) in str(error.value)
        assert "\n" not in str(error.value)


def test_without_ray_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny: str, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="needs Ray: pip install ray"):
        next(ray_launcher.launch([prepared(tiny, tmp_path / "run")], OWN))
