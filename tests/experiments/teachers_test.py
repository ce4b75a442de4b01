"""Runs whose teachers are other runs."""

import json
import sys
from pathlib import Path

import pytest

from experiments import evaluate, run
from experiments.runs import command_flags

STUDENT = """
--algorithm=policy_distillation
--hidden_sizes=8
--distil.interval=5
--distil.num_updates=2
--distil.batch_size=4
--num_steps=1
--eval_episodes=1
--nopictures
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    flags = "--algorithm=dyna_q --env=detour1 --interval=4 --num_planning=1 "
    flags += "--num_steps=1 --eval_episodes=0 --nopictures"
    run.main(["run", *flags.split(), f"--run_dir={folder}"])
    return folder


def complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> str:
    """The only line on stderr."""
    monkeypatch.setattr(sys, "argv", ["run", *STUDENT.split(), *argv])
    with pytest.raises(SystemExit):
        command_flags.command(run.main)
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_their_environments_are_the_tasks(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    teachers = f"--teachers={teacher},{teacher}"
    run.main(["run", *STUDENT.split(), teachers, f"--run_dir={folder}"])
    record = json.loads((folder / "config.json").read_text())
    assert record["env"] == "detour1+detour1"
    assert record["config"]["teachers"] == [str(teacher), str(teacher)]
    evaluate.main(["evaluate", f"--run_dir={folder}", "--num_episodes=1"])
    assert (folder / "evaluation.json").exists()


@pytest.mark.slow
def test_one_that_does_not_fit_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    teacher: Path,
    whole: Path,
) -> None:
    for folder, more, error in (
        (teacher, "--env=maze", "the teachers are of detour1, but env is maze"),
        (teacher, "--precision=x64", "has precision fast, but this run x64"),
        (whole, "--seed=1", "mpc does not tell what it ranks actions by"),
        (teacher / "none", "--seed=1", "there is no run folder"),
    ):
        line = complaint(monkeypatch, capsys, f"--teachers={folder}", more)
        assert error in line, line
