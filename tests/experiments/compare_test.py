"""Comparison of two sets of runs, and how they are named on a command line."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import compare
from experiments.runs import command_flags
from experiments.sweeps import selection

Line = dict[str, Any]


def make_lines(
    returns: Sequence[float], env: str = "pendulum", **hyperparameters: Any
) -> list[Line]:
    """Ledger lines of finished runs."""
    return [
        {
            "run": f"{env} {hyperparameters} {seed}",
            "status": "finished",
            "algorithm": "pets",
            "env": env,
            "seed": seed,
            "num_steps": 10,
            "hyperparameters": hyperparameters,
            "config_digest": str(hyperparameters),
            "return": value,
        }
        for seed, value in enumerate(returns)
    ]


def write(path: Path, *groups: list[Line]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(x) + "\n" for lines in groups for x in lines))
    return path


def normal(mean: float, num: int = 8) -> list[float]:
    return list(np.random.default_rng(0).normal(mean, 1.0, num))


@pytest.fixture
def ledgers(tmp_path: Path) -> dict[str, Path]:
    """Sets of runs in one environment, and one in two."""
    return {
        "low": write(tmp_path / "low.jsonl", make_lines(normal(0))),
        "middle": write(tmp_path / "middle.jsonl", make_lines(normal(0.2))),
        "high": write(tmp_path / "high.jsonl", make_lines(normal(5))),
        "two": write(
            tmp_path / "two.jsonl",
            make_lines(normal(0)),
            make_lines(normal(0), "gridworld"),
        ),
        "few": write(tmp_path / "few.jsonl", make_lines(normal(0, 2))),
    }


@pytest.mark.parametrize(
    ("a", "b", "fail_on", "code", "words"),
    [
        ("low", "low", "worse", 0, "No real difference"),
        ("low", "middle", "different", 0, "No real difference"),
        ("low", "high", "worse", 0, "B is really better than A"),
        ("low", "high", "different", 3, "B is really better than A"),
        ("high", "low", "worse", 3, "B is really worse than A"),
        ("high", "low", "different", 3, "B is really worse than A"),
        ("high", "low", "never", 0, "B is really worse than A"),
    ],
)
def test_the_exit_code_says_what_b_is(
    ledgers: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    a: str,
    b: str,
    fail_on: str,
    code: int,
    words: str,
) -> None:
    argv = ["compare", str(ledgers[a]), str(ledgers[b]), f"--fail_on={fail_on}"]
    if code:
        with pytest.raises(SystemExit) as stopped:
            compare.main(argv)
        assert stopped.value.code == code
    else:
        compare.main(argv)
    assert words in capsys.readouterr().out.splitlines()[-1]


def test_as_a_command(ledgers: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "experiments.compare", "--fail_on", "worse"]
    arguments = [ledgers["high"], ledgers["low"]]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert run.returncode == 3
    assert run.stderr == ""
    first, second, header, row, verdict = run.stdout.splitlines()
    assert first == f"A: {ledgers['high']}: 8 finished runs"
    assert second == f"B: {ledgers['low']}: 8 finished runs"
    assert header.split()[:2] == ["environment", "n"]
    # The same noise on both sides: the difference of the means is exactly 5.
    assert row.split()[:3] == ["pendulum", "8,", "8"]
    assert float(row.split()[5]) == -5
    assert row.split()[-1] == "worse"
    assert verdict.startswith("B is really worse")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{low}"], 2, "two sets of runs are needed"),
        (["{low}", "{low}", "{low}"], 2, "two sets of runs are needed"),
        (["{low}", "{low}", "--fail_on=maybe"], 2, "fail_on"),
        (["{low}", "{low}", "--fail_no=never"], 2, "did you mean --fail_on"),
        (["{low}", "/nowhere"], 1, "cannot read the ledger /nowhere"),
        (["{low}", "{few}"], 1, "B has 2 finished runs in pendulum; 3 are the least"),
        (
            ["{low}", "{two}"],
            1,
            "environments differ: pendulum, and gridworld, pendulum",
        ),
        (["{two}", "{two}"], 1, "gridworld has no --references"),
        (["{two}", "{two}", "--references=/nowhere"], 1, "/nowhere"),
        (["{low}", "{low}:plan.horizon=7"], 1, "no run has plan.horizon=7; it is 20"),
        (["{low}", "{low}:plan.horizn=7"], 1, "did you mean plan.horizon"),
        (["{low}", "{low}:num_elites=7"], 1, "model.ensemble.num_elites or plan.num_"),
        (["{low}", "{low}:horizon"], 1, "'horizon' in a selection is not NAME=VALUE"),
    ],
)
def test_mistakes_are_one_line(
    ledgers: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *(x.format(**ledgers) for x in arguments)])
    with pytest.raises(SystemExit) as stopped:
        command_flags.command(compare.main)
    assert stopped.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_several_environments_are_judged_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Better by 5 in both, of which one counts in tens and one in thousands."""
    big = [1000 * x for x in normal(0)]
    a = write(tmp_path / "a.jsonl", make_lines(normal(0)), make_lines(big, "maze"))
    big = [1000 * x for x in normal(5)]
    b = write(tmp_path / "b.jsonl", make_lines(normal(5)), make_lines(big, "maze"))
    references = tmp_path / "references.json"
    ends = {"pendulum": (0, 10), "maze": (0, 10_000)}
    references.write_text(
        json.dumps({env: {"random": x, "best": y} for env, (x, y) in ends.items()})
    )
    compare.main(["compare", str(a), str(b), f"--references={references}"])
    *_, maze, pendulum, together, verdict = capsys.readouterr().out.splitlines()
    assert maze.startswith("maze ")
    assert pendulum.startswith("pendulum ")
    assert together.startswith("all, normalised")
    assert float(together.split("  ")[-3].split()[0]) == pytest.approx(0.5)
    assert verdict.startswith("B is really better")


def test_only_finished_runs_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = make_lines([1.0, 1, 1, 99, 99, 99])
    for line, status in zip(lines[3:5], ("failed", "pruned"), strict=True):
        line["status"] = status
    lines[5]["return"] = None
    path = write(tmp_path / "a.jsonl", lines)
    compare.main(["compare", str(path), str(path)])
    out = capsys.readouterr().out
    assert "3 finished runs, 3 others left out" in out
    assert " 99" not in out


def test_settings_that_are_pooled_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [make_lines(normal(0, 3), **{"plan.horizon": h}) for h in (5, 10)]
    path = write(tmp_path / "a.jsonl", *groups)
    compare.main(["compare", str(path), f"{path}:horizon=5"])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("6 finished runs, of 2 settings together")
    assert second.endswith("3 finished runs")


def test_colons_and_commas_of_paths(tmp_path: Path) -> None:
    book = write(tmp_path / "a:b,c" / "ledger.jsonl", make_lines([1.0, 2.0]))
    for source, expected in ((f"{book}", [1, 2]), (f"{book.parent}:seed=1", [2])):
        assert [line["return"] for line in selection.read(source)] == expected


def test_selections(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ledger.jsonl",
        make_lines([1, 2]),
        make_lines([3], **{"plan.horizon": 5, "model.ensemble.hidden_sizes": [8, 8]}),
        make_lines([4], "maze", **{"model.ensemble.learning_rate": 1e-4}),
    )

    def returns(source: str) -> list[float]:
        return [line["return"] for line in selection.read(source)]

    assert returns(str(path)) == returns(str(tmp_path)) == [1, 2, 3, 4]
    assert returns(f"{path}:plan.horizon=5") == returns(f"{tmp_path}:horizon=5") == [3]
    assert returns(f"{path}:horizon=20") == [1, 2, 4]  # the default
    assert returns(f"{path}:learning_rate=0.0001") == [4]
    assert returns(f"{path}:hidden_sizes=8,8,env=pendulum") == [3]
    assert returns(f"{path}:warm_start=true,env=pendulum,seed=1") == [2]
    assert returns(f"{path}:seed=0") == [1, 3, 4]


def test_a_run_folder_is_looked_up_in_the_ledger_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = make_lines([1, 2, 3])
    root = tmp_path / "runs"
    for line, folder in zip(lines, (root / "x", "y", "runs/z"), strict=True):
        line["folder"] = str(folder)
    write(root / "ledger.jsonl", lines)
    for name in "xyzw":
        (root / name).mkdir()
        (root / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name, value in zip("xyz", (1, 2, 3), strict=True):
        (line,) = selection.read(str(root / name))
        assert line["return"] == value
    with pytest.raises(ValueError, match="has no run of"):
        selection.read(str(root / "w"))
