"""Sweeps: what runs with what, what a kill leaves, and that nothing is done twice."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import (
    command_flags,
    evaluate,
    launchers,
    ledger,
    metrics_log,
    programs,
    registry,
    render,
    run,
    run_folder,
    sweep,
)

ROOT = Path(__file__).parents[2]
GRID = ("--grid=learning_rate=1e-3,3e-3", "--grid", "horizon=2,3", "--num_seeds=2")
NUM_STEPS = 4


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *arguments],
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
    assert horizons == [2, 3]
    for record in found.values():
        rows = run_folder.rows(record)
        assert [(row["model.learning_rate"], row["seed"]) for row in rows] == [
            *itertools.product((1e-3, 3e-3), (0, 1))
        ]
    lines = lines_of(swept).values()
    assert {line["status"] for line in lines} == {"finished"}
    ran = {
        (
            line["hyperparameters"].get("plan.horizon"),
            line["hyperparameters"].get("model.learning_rate", 1e-3),
            line["seed"],
        )
        for line in lines
    }
    assert ran == {*itertools.product((2, 3), (1e-3, 3e-3), (0, 1))}
    assert len({line["curve_digest"] for line in lines}) == 8
    assert "<table" in (swept / "report.html").read_text()


@pytest.mark.slow
def test_a_run_of_a_sweep_is_that_run_alone(
    swept: Path, tiny: str, tmp_path: Path
) -> None:
    """But for rounding, which the first episodes have not blown up yet."""
    alone = tmp_path / "alone"
    flags = ("--seed=1", "--plan.horizon=3", "--model.learning_rate=3e-3")
    run.main(["run", tiny, *flags, "--nopictures", f"--run_dir={alone}"])
    (line,) = ledger.read(tmp_path / "ledger.jsonl")
    same = lines_of(swept)[line["run"]]
    assert line["hyperparameters"] == same["hyperparameters"]
    assert line["config_digest"] == same["config_digest"]
    for name, curve in line["curves"].items():
        assert curve["env_steps"] == same["curves"][name]["env_steps"]
    left, right = (x["curves"]["episode/return"]["return"] for x in (line, same))
    np.testing.assert_allclose(left[:2], right[:2], rtol=1e-3)


def test_a_program_is_a_run_folder_like_others(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept / "programs" / "001"
    evaluate.main(["evaluate", f"--run_dir={folder}", "--num_episodes=2"])
    _, head, *rows, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["seed", "model.learning_rate"]
    assert [row.split()[:2] for row in rows] == [
        ["0", "0.001"],
        ["1", "0.001"],
        ["0", "0.003"],
        ["1", "0.003"],
    ]
    assert len({row.split()[2] for row in rows}) == 4
    loaded = registry.load(folder, print)
    assert loaded.hyperparameters["model.learning_rate"].shape == (4,)
    path = tmp_path / "episode.gif"
    render.episode(loaded, path, which=3)
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
def test_a_sweep_is_extended(swept: Path, tmp_path: Path) -> None:
    """By values and seeds, which are new runs, and by steps, with which all go on."""
    folder = Path(shutil.copytree(swept, tmp_path / "longer"))
    before = files(folder)
    flags = ("--grid=horizon=4", "--num_seeds=3")
    sweep.main(["sweep", f"--sweep_dir={folder}", *flags])
    lines = lines_of(folder)
    assert len(lines) == 2 * 3 * 3
    assert lines.keys() > lines_of(swept).keys()
    assert before.items() <= files(folder).items()
    sweep.main(["sweep", f"--sweep_dir={folder}", "--num_steps=5"])
    assert lines_of(folder).keys() == lines.keys()
    assert {line["env_steps"] for line in lines_of(folder).values()} == {500}
    for path, text in before.items():
        assert (folder / path).read_bytes().startswith(text)


def killed(
    tiny: str, folder: Path, kill: Callable[[subprocess.Popen[str]], None]
) -> None:
    """Starts the sweep, kills something in the middle, and starts it again."""
    process = start(tiny, *GRID, f"--sweep_dir={folder}")
    metrics = folder / "programs" / "000" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    kill(process)
    output, _ = process.communicate()
    if process.returncode:
        again = start(tiny, *GRID, f"--sweep_dir={folder}")
        output, _ = again.communicate()
        assert again.returncode == 0, output
    assert "8 of 8 runs are good" in output


def pid_of_the_worker(folder: Path) -> int:
    words = f"--run_dir={folder / 'programs' / '000'}"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().decode().split("\0"):
                return int(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError("there is no worker")


@pytest.mark.slow
def test_a_worker_that_is_killed_goes_on(
    swept: Path, tiny: str, tmp_path: Path
) -> None:
    folder = tmp_path / "worker"
    killed(
        tiny,
        folder,
        lambda driver: os.kill(pid_of_the_worker(folder), signal.SIGKILL),
    )
    assert_same(folder, swept)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_goes_on(
    swept: Path, tiny: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Its worker, which a SIGKILL leaves alone, is waited for and not doubled."""
    folder = tmp_path / "driver"
    killed(tiny, folder, lambda driver: driver.send_signal(number))
    assert_same(folder, swept)


@pytest.mark.slow
def test_two_hosts_do_what_one_does(tiny: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (tiny, *GRID, f"--sweep_dir={tmp_path / 'two'}")
    hosts = [
        start(
            *flags,
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    outputs = [host.communicate()[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    ran = programs.prepared(tmp_path / "two" / "programs")
    assert [len(run_folder.rows(record)) for record in ran.values()] == [2] * 4
    one = start(*flags[:-1], f"--sweep_dir={tmp_path / 'one'}")
    output = one.communicate()[0]
    assert one.returncode == 0, output
    both = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert both[0].keys() == both[1].keys()
    for name, line in both[0].items():
        for curve, points in line["curves"].items():
            np.testing.assert_allclose(
                points["return"], both[1][name]["curves"][curve]["return"], rtol=1e-6
            )


@pytest.mark.slow
def test_too_large_a_program_is_cut(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["sweep", tiny, "--num_seeds=6", f"--sweep_dir={tmp_path / 'cut'}"]
    sweep.main([*flags, "--plan_only"])
    (line,) = capsys.readouterr().out.splitlines()
    needed = float(line.partition(" of ")[0].split()[-1])
    with pytest.raises(ValueError, match=r"a run needs .* GB, a device has 0\.000 GB"):
        sweep.main([*flags, "--memory_gb=1e-6"])
    capsys.readouterr()
    assert needed > 0
    sweep.main([*flags, f"--memory_gb={needed / 2}"])
    sizes = [
        len(run_folder.rows(record))
        for record in programs.prepared(tmp_path / "cut" / "programs").values()
    ]
    assert len(sizes) > 1
    assert max(sizes) - min(sizes) <= 1
    assert len(lines_of(tmp_path / "cut")) == sum(sizes) == 6


@pytest.mark.slow
def test_random_search_and_population_based_training_run(
    tiny: str, tmp_path: Path
) -> None:
    for search, more in (
        ("random", ["--num_samples=3", "--sample=horizon=2,3"]),
        ("pbt", ["--population.num_members=4", "--population.exploit_every=2"]),
    ):
        folder = tmp_path / search
        sample = "--sample=learning_rate=1e-4:1e-2:log"
        flags = [tiny, f"--search={search}", sample, *more, f"--sweep_dir={folder}"]
        sweep.main(["sweep", *flags])
    drawn = [
        line["hyperparameters"]["model.learning_rate"]
        for line in lines_of(tmp_path / "random").values()
    ]
    assert len(set(drawn)) == 3
    assert all(1e-4 <= x <= 1e-2 for x in drawn)
    (line,) = lines_of(tmp_path / "pbt").values()
    assert line["population"]["config"]["num_members"] == 4
    assert line["env_steps"] == 4 * NUM_STEPS * 100
    metrics = metrics_log.read(tmp_path / "pbt" / "programs" / "000")
    assert any(step["population/num_exploited"] for step in metrics)


@pytest.mark.slow
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


BAD = [
    (["--grid=learning_rat=1"], 1, "'learning_rat'; did you mean model.learning_rate?"),
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
    tiny: str,
    argv: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr(programs, "_measured", programs.measure)  # no process
    argv = [tiny, f"--sweep_dir={tmp_path / 'bad'}", *argv]
    found, line = complain(monkeypatch, capsys, *argv)
    assert words in line
    assert found == code
    assert not (tmp_path / "bad" / "programs").exists()


def test_one_driver_at_a_time(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with sweep._locked(swept):
        code, line = complain(monkeypatch, capsys, f"--sweep_dir={swept}")
    assert code == 1
    assert "is running in another process" in line


def test_a_grid_from_a_file(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    values = {"hidden_sizes": [[8], [4, 4]], "model.learning_rate": [0.001, 0.01]}
    path.write_text(json.dumps(values))
    argv = ["sweep", tiny, f"--grid_file={path}", "--num_seeds=2"]
    values, config = run.parse(argv, sweep.define)
    wanted, _ = sweep.programs_of(values, config, run.record_of(values, config))
    assert [record["config"]["model.hidden_sizes"] for record in wanted] == [
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
