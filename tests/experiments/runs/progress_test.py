"""Progress."""

import io
import sys

import numpy as np
import pytest

from experiments.runs import progress

METRICS = {"env_steps": np.array([100, 300]), "episode/return": np.array([1.0, 2.0])}
EVALUATION = {**METRICS, "eval/return_mean": np.array([5.0, 6.0])}


def show() -> None:
    with progress.shown(4) as (log, report):
        log(1, METRICS)
        log(2, EVALUATION)
        log(3, METRICS)
        report("a line [for people]")


def test_without_a_terminal_there_is_a_line_per_evaluation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step 2/4  env steps 200  return 1.5  eval return 5.5",
        "a line [for people]",
    ]


def test_on_a_terminal_there_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    show()
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "compiling" in text
    assert "3/4" in text
    last = [line for line in text.splitlines() if "3/4" in line][-1]
    assert "env steps 200  return 1.5  eval return 5.5" in last  # it stays on show
    assert "a line [for people]" in text
    assert capsys.readouterr().out == ""
