"""Errors in one line."""

import sys

import jax
import pytest

from experiments.runs import command_flags, faults
from mbrl_jax.envs.gymnasium import HostFault

HIDDEN = """INTERNAL: CpuCallback error calling callback: Traceback (...):
  File "gymnasium.py", line 259, in _explained
mbrl_jax.envs.gymnasium.HostFault: robot failed: KeyError: 'joint_3'"""
ERRORS = (HostFault("robot failed: KeyError: 'joint_3'"), jax.errors.JaxRuntimeError)


def test_what_an_error_says_is_one_line() -> None:
    assert faults.line(ValueError("two\nlines ")) == "two lines"
    assert faults.line(ValueError()) == "ValueError"


@pytest.mark.parametrize("error", [ERRORS[0], ERRORS[1](HIDDEN)])
def test_a_simulator_that_fails_ends_a_command_with_what_it_said(
    error: RuntimeError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(argv: object) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["run"])
    with pytest.raises(SystemExit) as stop:
        command_flags.command(main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: robot failed: KeyError: 'joint_3'\n"


def test_errors_of_ours_keep_their_traceback() -> None:
    def main(argv: object) -> None:
        raise RuntimeError("HostFault: no")

    with pytest.raises(RuntimeError, match="no"):
        command_flags.command(main)
