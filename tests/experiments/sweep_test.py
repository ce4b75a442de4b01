"""Sweeps: what runs with what, what a kill leaves, and that nothing is done twice."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import evaluate, run, sweep
from experiments.reports import animation
from experiments.runs import command_flags, ledger, metrics_log, registry, run_folder
from experiments.sweeps import domains, launchers, programs
from mbrl_jax.algorithms import mpc
from mbrl_jax.training.population import Range

ROOT = Path(__file__).parents[2]
# The second of each is the tiny run's own.
STDS = "--grid=init_std=0.3,0.5"
GRID = (STDS, "--grid", "horizon=3,2", "--num_seeds=2")
NUM_STEPS = 4
PROCESSES, MEASURED = launchers.local, programs._measured


@pytest.fixture(scope="module", autouse=True)
def _in_this_process() -> Iterator[None]:
    """To start one takes longer than a program: `start` is for those that need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "_measured", little)
        patch.setattr(launchers, "local", in_this_process)
        yield


def little(record: programs.Record) -> programs.Needs:
    """Of what can be and fits; to count them compiles the program once more."""
    registry.assemble(record)
    return programs.Needs(100 * len(run_folder.rows(record)), 10_000, alone=False)


def in_this_process(
    jobs: Sequence[launchers.Job], options: Mapping[str, Any]
) -> Iterator[launchers.Ended]:
    """A launcher."""
    for job in jobs:
        with (
            (job.folder / "log.txt").open("a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            reason = launchers.execute(job)
        yield job, reason


LIGHT = """
from experiments import sweep
from experiments.runs import command_flags
from tests.experiments import conftest

conftest.mpc.make = conftest.light_mpc
sweep.report_page.html = lambda *arguments: ""
command_flags.command(sweep.main)
"""


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_of(folder: Path) -> dict[str, ledger.Line]:
    """By run; every run is there once."""
    lines = ledger.read(folder / "ledger.jsonl")
    found = {line["run"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def assert_same(left: Path, right: Path) -> None:
    """Two sweeps have the same runs, with the same curves to the bit."""
    both = lines_of(left), lines_of(right)
    assert both[0].keys() == both[1].keys()
    for name, line in both[0].items():
        assert line["status"] == "finished"
        for key in ("curve_digest", "return", "env_steps", "hyperparameters"):
            assert line[key] == both[1][name][key]


def files(folder: Path) -> dict[Path, bytes]:
    return {x: x.read_bytes() for x in folder.rglob("metrics.jsonl")}


def complain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, str]:
    """The exit code and the only line on stderr."""
    monkeypatch.setattr(sys, "argv", ["sweep", *argv])
    with pytest.raises(SystemExit) as stop:
        command_flags.command(sweep.main)
    (line,) = capsys.readouterr().err.splitlines()
    return int(str(stop.value.code)), line


@pytest.fixture(scope="module")
def swept(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep.  Read only."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    sweep.main(["sweep", tiny, *GRID, f"--sweep_dir={folder}"])
    return folder


@pytest.mark.slow
def test_every_combination_is_run_once_and_floats_share_a_program(swept: Path) -> None:
    found = programs.prepared(swept / "programs")
    horizons = [record["config"]["plan.horizon"] for record in found.values()]
    assert horizons == [3, 2]
    for record in found.values():
        rows = run_folder.rows(record)
        assert [(row["plan.init_std"], row["seed"]) for row in rows] == [
            *itertools.product((0.3, 0.5), (0, 1))
        ]
    lines = lines_of(swept).values()
    assert {line["status"] for line in lines} == {"finished"}
    ran = {
        (
            line["hyperparameters"].get("plan.horizon"),
            line["hyperparameters"].get("plan.init_std", 0.5),
            line["seed"],
        )
        for line in lines
    }
    assert ran == {*itertools.product((2, 3), (0.3, 0.5), (0, 1))}
    assert len({line["curve_digest"] for line in lines}) == 8
    assert "<table" in (swept / "report.html").read_text()


@pytest.mark.slow
def test_a_run_of_a_sweep_is_that_run_alone(swept: Path, whole: Path) -> None:
    """But for rounding, which the first episodes have not blown up yet."""
    (line,) = ledger.lines(whole)
    same = lines_of(swept)[line["run"]]
    assert line["hyperparameters"] == same["hyperparameters"]
    assert line["config_digest"] == same["config_digest"]
    for name, curve in line["curves"].items():
        assert curve["env_steps"] == same["curves"][name]["env_steps"]
    left, right = (x["curves"]["episode/return"]["return"] for x in (line, same))
    np.testing.assert_allclose(left[:2], right[:2], rtol=1e-3)


@pytest.mark.slow
def test_a_program_is_a_run_folder_like_others(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept / "programs" / "001"
    evaluate.main(["evaluate", f"--run_dir={folder}", "--num_episodes=2"])
    _, head, *rows, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["seed", "plan.init_std"]
    assert [row.split()[:2] for row in rows] == [
        ["0", "0.3"],
        ["1", "0.3"],
        ["0", "0.5"],
        ["1", "0.5"],
    ]
    assert len({row.split()[2] for row in rows}) == 4
    loaded = registry.load(folder, print)
    assert loaded.hyperparameters["plan.init_std"].shape == (4,)
    path = tmp_path / "episode.gif"
    animation.episode(loaded, path, which=3)
    assert path.stat().st_size > 0


def test_a_sweep_that_is_started_again_repeats_nothing(
    swept: Path, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "again"))
    before, lines = files(folder), (folder / "ledger.jsonl").read_bytes()
    sweep.main(["sweep", f"--sweep_dir={folder}"])
    assert "0 programs to run" in capsys.readouterr().out
    sweep.main(["sweep", tiny, *GRID, f"--sweep_dir={folder}"])
    assert "0 programs to run" in capsys.readouterr().out
    assert files(folder) == before
    assert (folder / "ledger.jsonl").read_bytes() == lines


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_a_sweep_is_extended(tiny: str, tmp_path: Path) -> None:
    """By values and seeds, which are new runs, and by steps, with which all go on."""
    folder = tmp_path / "longer"
    flags = (tiny, "--grid=horizon=3", "--eval_episodes=0")
    sweep.main(["sweep", *flags, f"--sweep_dir={folder}"])
    before, first = files(folder), lines_of(folder)
    flags = ("--grid=horizon=4", "--num_seeds=2")
    sweep.main(["sweep", f"--sweep_dir={folder}", *flags])
    lines = lines_of(folder)
    assert len(lines) == 2 * 2
    assert lines.keys() > first.keys()
    assert len(before) == 1
    assert before.items() <= files(folder).items()
    sweep.main(["sweep", f"--sweep_dir={folder}", "--num_steps=5"])
    assert lines_of(folder).keys() == lines.keys()
    assert {line["env_steps"] for line in lines_of(folder).values()} == {500}
    for path, text in before.items():
        assert (folder / path).read_bytes().startswith(text)


def wait_for_steps(folder: Path) -> None:
    """Until two more are done."""
    path = folder / "metrics.jsonl"
    count = lambda: path.read_bytes().count(b"\n") if path.exists() else 0
    before = count()
    wait_for(lambda: count() >= before + 2)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers(folder: Path) -> list[int]:
    """The processes of the run in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"--run_dir={folder}" in path.read_bytes().decode().split("\0"):
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def _processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs are run and measured in processes, with one device as this one has: for
    several the program is another, and rounds otherwise."""
    one = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    monkeypatch.setenv("XLA_FLAGS", one)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setattr(launchers, "local", PROCESSES)
    monkeypatch.setattr(programs, "_measured", MEASURED)
    # what measures need not import pytest, which is our main module
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    # only a sweep is to be ended by it
    handler = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("_processes")
def test_a_sweep_outlives_its_worker_and_its_drivers(
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "killed"
    program = folder / "programs" / "000"
    flags = (tiny, STDS, "--num_seeds=2", "--num_steps=60", "--eval_every=20")
    disturbed = []

    def disturb() -> None:
        try:
            # A worker that dies is started again.
            wait_for_steps(program)
            (worker,) = workers(program)
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: {*workers(program)} - {worker})
            wait_for_steps(program)
            disturbed.append(worker)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    # A driver, which is this process, that is asked to stop stops its worker.
    disturber = threading.Thread(target=disturb)
    disturber.start()
    with pytest.raises(KeyboardInterrupt):
        sweep.main(["sweep", *flags, f"--sweep_dir={folder}"])
    disturber.join()
    assert disturbed
    said = "".join(capsys.readouterr())
    assert "000: killed by signal 9" in said
    assert "again: 1 whose process died" in said
    assert said.splitlines()[-1].endswith(f"--sweep_dir={folder} goes on")
    assert not workers(program)
    assert run_folder.read_json(program / "status.json")["status"] == "stopped"
    # A driver that is killed leaves its worker, which is waited for and not doubled.
    second = start("-m", "experiments.sweep", *flags, f"--sweep_dir={folder}")
    wait_for_steps(program)
    second.kill()
    second.communicate()
    assert len(workers(program)) == 1
    monkeypatch.setattr(launchers, "local", in_this_process)
    sweep.main(["sweep", f"--sweep_dir={folder}"])
    assert "4 of 4 runs are good" in capsys.readouterr().out
    monkeypatch.setattr(programs, "_measured", little)
    sweep.main(["sweep", *flags, f"--sweep_dir={tmp_path / 'whole'}"])
    assert_same(folder, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_two_hosts_do_what_one_does(tiny: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (tiny, STDS, "--num_seeds=2", "--eval_episodes=0")
    sweep.main(["sweep", *flags, f"--sweep_dir={tmp_path / 'one'}"])
    folder = tmp_path / "two"
    hosts = [
        start(
            *("-c", LIGHT, *flags, f"--sweep_dir={folder}"),
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    try:
        outputs = [host.communicate(timeout=240)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], outputs
    ran = programs.prepared(folder / "programs")
    assert [len(run_folder.rows(record)) for record in ran.values()] == [2] * 2
    two, one = lines_of(folder), lines_of(tmp_path / "one")
    assert len(two) == len({line["curve_digest"] for line in two.values()}) == 4
    for name, line in two.items():
        for curve, points in line["curves"].items():
            np.testing.assert_allclose(
                points["return"], one[name]["curves"][curve]["return"], rtol=1e-6
            )


@pytest.mark.slow
def test_too_large_a_program_is_cut(
    tiny: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "cut"
    flags = ["sweep", tiny, STDS, "--num_seeds=2", f"--sweep_dir={folder}"]
    values, config = run.parse(flags, sweep.define)
    (record,), _ = sweep.programs_of(values, config, run.record_of(values, config))
    (part,), needs = programs.fitting(record, in_process=True)
    assert len(run_folder.rows(part)) == 4
    assert needs.taken > 4 * 6 * 100  # the observations of the episodes

    def measured(record: programs.Record) -> programs.Needs:
        """In proportion; what a compiler counts of the parts takes it long to say."""
        return needs._replace(taken=needs.taken * len(run_folder.rows(record)) // 4)

    monkeypatch.setattr(programs, "_measured", measured)
    request.getfixturevalue("light")
    with pytest.raises(ValueError, match=r"a run needs .* GB, a device has 0\.000 GB"):
        sweep.main([*flags, "--memory_gb=1e-9"])
    capsys.readouterr()
    limit = f"--memory_gb={needs.taken * 0.6e-9}"
    sweep.main([*flags, limit, "--plan_only"])
    planned = capsys.readouterr().out.splitlines()
    assert not (folder / "programs").exists()
    sweep.main([*flags, limit])
    assert capsys.readouterr().out.splitlines()[: len(planned)] == planned
    sizes = [
        len(run_folder.rows(record))
        for record in programs.prepared(folder / "programs").values()
    ]
    assert sizes == [2, 2]
    assert len(lines_of(folder)) == 4


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(700, [7]), (699, [3, 4]), (399, [2, 2, 3]), (100, [1] * 7), (300, [3, 3])],
)
def test_parts_are_as_few_and_as_equal_as_can_be(
    tiny: str, limit: int, sizes: list[int]
) -> None:
    record = run.record_of(*run.parse(["run", tiny, f"--num_seeds={sum(sizes)}"]))
    parts, needs = programs.fitting(record, limit)
    assert [len(run_folder.rows(part)) for part in parts] == sizes
    assert [row["seed"] for x in parts for row in run_folder.rows(x)] == [
        *range(sum(sizes))
    ]
    assert needs == (100 * max(sizes), limit, False)


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_random_search_and_population_based_training_run(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_measured", programs.measure)
    for search, more in (
        ("random", ["--num_samples=4"]),
        ("pbt", ["--population.num_members=4", "--population.exploit_every=2"]),
    ):
        folder = tmp_path / search
        sample = "--sample=init_std=0.1:1:log"
        flags = [f"--search={search}", sample, *more, f"--sweep_dir={folder}"]
        sweep.main(["sweep", tiny, "--eval_episodes=0", *flags])
        # as a job that is put into the queue again
        before = files(folder), (folder / "sweep.json").read_text()
        sweep.main(["sweep", tiny, "--eval_episodes=0", *flags])
        assert (files(folder), (folder / "sweep.json").read_text()) == before
    drawn = [
        line["hyperparameters"]["plan.init_std"]
        for line in lines_of(tmp_path / "random").values()
    ]
    assert len(set(drawn)) == 4
    assert all(0.1 <= x <= 1 for x in drawn)
    (line,) = lines_of(tmp_path / "pbt").values()
    assert line["population"]["config"]["num_members"] == 4
    assert line["env_steps"] == 4 * NUM_STEPS * 100
    metrics = metrics_log.read(tmp_path / "pbt" / "programs" / "000")
    assert any(step["population/num_exploited"] for step in metrics)


def test_what_is_drawn_from_a_list_makes_programs(tiny: str) -> None:
    samples = ("--sample=init_std=0.1:1", "--sample=horizon=2,3", "--num_samples=9")
    values, config = run.parse(
        ["sweep", tiny, "--search=random", *samples], sweep.define
    )
    base = run.record_of(values, config)
    wanted, tried = sweep.programs_of(values, config, base)
    drawn = [(x["plan.horizon"], x["plan.init_std"]) for x in sweep._draws(tried, 0, 9)]
    assert {horizon for horizon, _ in drawn} == {2, 3}
    there = [
        (record["config"]["plan.horizon"], row["plan.init_std"])
        for record in wanted
        for row in run_folder.rows(record)
    ]
    assert len(wanted) == 2
    assert sorted(there) == sorted(drawn)


def test_a_program_that_fails_says_so_and_the_others_go_on(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "failing"))
    for name in ("metrics.jsonl", "status.json"):
        (folder / "programs" / "000" / name).unlink()
    shutil.rmtree(folder / "programs" / "000" / "checkpoints")
    (folder / "programs" / "000" / "checkpoints").write_text("no folder")
    with pytest.raises(SystemExit) as stop:
        sweep.main(["sweep", f"--sweep_dir={folder}"])
    assert stop.value.code == 1
    output, errors = capsys.readouterr()
    assert "000: failed: cannot write to" in errors
    assert "4 of 8 runs are good" in output
    status = [line["status"] for line in lines_of(folder).values()]
    assert sorted(status) == ["failed"] * 4 + ["finished"] * 4
    (folder / "programs" / "000" / "checkpoints").unlink()
    sweep.main(["sweep", f"--sweep_dir={folder}"])
    assert_same(folder, swept)


def test_what_did_not_end_is_counted(
    swept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A worker that is killed says nothing, and its runs are in no ledger."""
    folder = Path(shutil.copytree(swept, tmp_path / "killed"))
    program = folder / "programs" / "000"
    killed = {line["run"] for line in ledger.lines(program)}
    for name in ("metrics.jsonl", "status.json"):
        (program / name).unlink()
    kept = [x for x in ledger.read(folder / "ledger.jsonl") if x["run"] not in killed]
    (folder / "ledger.jsonl").unlink()
    ledger.add(folder / "ledger.jsonl", kept)
    die = lambda jobs, options: ((job, "killed by signal 9") for job in jobs)
    monkeypatch.setattr(launchers, "local", die)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["sweep", f"--sweep_dir={folder}", "--max_retries=0"])
    assert stop.value.code == 1
    output, errors = capsys.readouterr()
    assert "000: killed by signal 9" in errors
    assert "not finished: 4; the same command goes on" in output
    assert "4 of 8 runs are good" in output


def test_fewer_steps_leave_what_is_done_on_record(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "fewer"))
    sweep.main(["sweep", f"--sweep_dir={folder}", "--num_steps=1"])
    assert "8 of 8 runs are good" in capsys.readouterr().out
    assert_same(folder, swept)
    for path, record in programs.prepared(folder / "programs").items():
        assert record == run_folder.read(swept / "programs" / path.name)


def test_a_folder_of_a_sweep_names_no_module(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "envs_to_sweep.py").write_text(
        "from mbrl_jax.envs import point_mass\nmake = point_mass.make\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(programs, "_measured", little)
    seen: list[launchers.Job] = []
    note = lambda jobs, options: (seen.append(job) or (job, "stopped") for job in jobs)
    monkeypatch.setattr(launchers, "local", note)
    folder = f"--sweep_dir={tmp_path / 'sweep'}"
    command = ["sweep", folder, "--max_retries=0"]
    env, grid = "--env=envs_to_sweep:make", "--grid=env=envs_to_sweep:make,pendulum"
    for argument, more in ((env, "--num_seeds=2"), (grid, "--num_seeds=1")):
        with pytest.raises(OSError, match="no run has come to an end"):
            sweep.main([*command, tiny, argument, more])
    assert env in launchers.arguments(seen[0])
    assert [job.env for job in seen] == ["envs_to_sweep:make"] * 2 + [""]
    with pytest.raises(ValueError, match="only imported if you name it too"):
        sweep.main(command)
    assert len(seen) == 3


def test_one_domain_may_be_said_again_and_not_another() -> None:
    config = mpc.Config()
    texts = ["init_std=0.1:1", "plan.init_std=0.1:1"]
    assert domains.domains(config, texts) == {"plan.init_std": Range(0.1, 1.0)}
    with pytest.raises(ValueError, match=r"plan\.init_std comes twice, with another"):
        domains.domains(config, [*texts, "init_std=0.1:2"])


BAD = [
    (["--grid=learning_rat=1"], 1, "'learning_rat'; did you mean model.ensemble.learn"),
    (["--grid=learning_rate=fast"], 1, "learning_rate=fast"),
    (["--grid=horizon=2.5"], 1, "plan.horizon=2.5"),
    (["--grid=learning_rate="], 1, "'learning_rate=' has an empty value"),
    (["--grid=learning_rate"], 1, "'learning_rate' is not NAME=VALUE"),
    (["--grid=learning_rate=-1"], 1, "learning_rate is -1.0, must be positive"),
    (["--grid=planner=best"], 1, "planner is 'best', must be one of"),
    (["--grid=env=nowhere"], 1, "unknown environment 'nowhere'"),
    ([], 1, "nothing to sweep"),
    (["--grid_file=/nowhere"], 1, "cannot read /nowhere"),
    (["--sample=learning_rate=1:2"], 1, "need each other"),
    (["--search=pbt"], 1, "need each other"),
    (["--search=pbt", "--sample=horizon=1,2"], 1, "pbt tunes floats only"),
    (["--search=random", "--sample=horizon=1:2"], 1, "plan.horizon is not a float"),
    (["--search=random", "--sample=momentum=2:1"], 1, "2 is not below 1"),
    (["--search=random", "--sample=momentum=0:1:log"], 1, "starts above 0"),
    (["--grid=momentum=0", "--search=random", "--sample=momentum=0:1"], 1, "in --gri"),
    (["--launcher=cloud"], 2, "<local|ray|submitit>"),
    (["--num_seeds=2", "--process_id=1"], 2, "need a --coordinator"),
    (["--num_seeds=2", "--run_dir=a"], 2, "a sweep has a --sweep_dir"),
    (["--num_seeds=2", "--sweep_dir=/proc/a"], 1, "cannot write to /proc/a"),
]


@pytest.mark.parametrize(("argv", "code", "words"), BAD, ids=lambda x: str(x)[:40])
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: str,
    argv: list[str],
    code: int,
    words: str,
) -> None:
    argv = [tiny_model, f"--sweep_dir={tmp_path / 'bad'}", *argv]
    found, line = complain(monkeypatch, capsys, *argv)
    assert words in line
    assert found == code
    assert not (tmp_path / "bad" / "programs").exists()


@pytest.mark.slow
def test_one_driver_at_a_time(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with sweep._locked(swept):
        code, line = complain(monkeypatch, capsys, f"--sweep_dir={swept}")
    assert code == 1
    assert "is running in another process" in line


def test_a_grid_from_a_file(tiny_model: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    values = {
        "hidden_sizes": [[8], [4, 4]],
        "model.ensemble.learning_rate": [0.001, 0.01],
    }
    path.write_text(json.dumps(values))
    argv = ["sweep", tiny_model, f"--grid_file={path}", "--num_seeds=2"]
    values, config = run.parse(argv, sweep.define)
    wanted, _ = sweep.programs_of(values, config, run.record_of(values, config))
    assert [record["config"]["model.ensemble.hidden_sizes"] for record in wanted] == [
        (8,),
        (4, 4),
    ]
    assert [len(run_folder.rows(record)) for record in wanted] == [4, 4]
    path.write_text('{"hidden_sizes": 8}')
    with pytest.raises(ValueError, match="hidden_sizes is not a list"):
        sweep.programs_of(values, config, run.record_of(values, config))


def test_random_draws_do_not_depend_on_their_number() -> None:
    def draws(num: int) -> list[dict[str, Any]]:
        tried = {"a": sweep.population.Range(1.0, 100.0, True), "b": ["x", "y"]}
        return list(sweep._draws(tried, 3, num))

    assert draws(10)[:4] == draws(4)
    logs = np.log10([x["a"] for x in draws(500)])
    np.testing.assert_allclose([logs.mean(), logs.std()], [1, 2 / 12**0.5], atol=0.1)
    assert abs(sum(x["b"] == "x" for x in draws(500)) - 250) < 60


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(["sweep", "--help"])
    text = capsys.readouterr().out
    for words in ("--grid", "--launcher=local", "--coordinator", "--population."):
        assert words in text


def test_a_worker_that_says_why_it_failed_is_not_tried_again(tmp_path: Path) -> None:
    job = launchers.Job(tmp_path, tmp_path / "ledger.jsonl")
    assert launchers.outcome(job) == ""
    run_folder.write_status(tmp_path, "failed", reason="the disk is full")
    assert launchers.outcome(job) == "failed: the disk is full"
