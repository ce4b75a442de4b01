"""Runs that start with the networks of others, `--init_from`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from experiments import evaluate, run, sweep
from experiments.reports import results
from experiments.runs import command_flags, ledger, registry, run_folder
from mbrl_jax import networks, policies
from mbrl_jax.algorithms import dqn
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, PyTree

FLAGS = ["--algorithm=dqn", "--num_steps=2", "--eval_episodes=1", "--nopictures"]


class State(NamedTuple):
    params: PyTree
    target: PyTree
    env_steps: Array


def light_dqn(env: Env, config: Any) -> Algorithm:
    """What compiles at once in place of DQN; its target lags behind."""
    network = networks.MLP(config.learn.hidden_sizes, env.num_actions)

    def init(key: Key) -> State:
        params = network.init(key, jnp.zeros(env.obs_size))
        return State(params, params, jnp.int32(0))

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        params = jax.tree.map(lambda x: x + 1, state.params)
        state = State(params, state.params, state.env_steps + 10)
        seen = {"env_steps": state.env_steps, "episode/return": jax.random.normal(key)}
        return state, seen

    return Algorithm(init, step, lambda state: policies.uniform(env))


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn, "make", light_dqn)


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run in a folder of this name."""

    def main(name: str, *more: str, env: str = "detour1") -> Path:
        folder = tmp_path / name
        fixed = (f"--env={env}", "--learn.hidden_sizes=8", f"--run_dir={folder}")
        run.main(["run", *FLAGS, *fixed, *more])
        return folder

    return main


def params(folder: Path) -> Any:
    loaded = registry.load(folder, print)
    return loaded.state.params["params"]["Dense_0"]["kernel"]


def complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> str:
    """The only line on stderr."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["run", *FLAGS, *argv])
    with pytest.raises(SystemExit):
        command_flags.command(run.main)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_goes_on_where_another_ended(
    begin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old = begin("old")
    new = begin("new", f"--init_from={old}", "--seed=7", env="detour4")
    err = capsys.readouterr().err
    assert f"starts from {old}, step 2:" in err
    assert "  target: Dense_0, Dense_1 of params\n" in err
    # two steps there, two here, each of which adds one
    np.testing.assert_array_equal(params(new), params(old) + 1 + 1)
    record = json.loads((new / "config.json").read_text())
    assert record["init_from"] == str(old)
    assert record["inherited"]["step"] == 2
    taken = record["inherited"]["networks"]["target"]
    assert (taken["place"], len(taken["names"]), taken["left"]) == ("params", 4, [])
    evaluate.main(["evaluate", f"--run_dir={new}"])


def test_a_resumed_run_does_not_start_again(
    begin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old = begin("old")
    whole = begin("whole", f"--init_from={old}", "--seed=7", "--num_steps=3")
    new = begin("new", f"--init_from={old}", "--seed=7")
    old.rename(old.with_name("away"))
    capsys.readouterr()
    run.main(["run", f"--run_dir={new}", "--num_steps=3", "--nopictures"])
    assert "starts from" not in capsys.readouterr().err
    np.testing.assert_array_equal(params(new), params(whole))


def test_several_runs_start_from_one_or_each_from_its_own(
    begin: Callable[..., Path],
) -> None:
    one, two = begin("one"), begin("two", "--num_seeds=2")
    of_one = begin("of_one", "--num_seeds=2", "--seed=5", f"--init_from={one}")
    np.testing.assert_array_equal(params(of_one), jnp.stack([params(one) + 1 + 1] * 2))
    of_two = begin("of_two", "--num_seeds=2", "--seed=5", f"--init_from={two}")
    np.testing.assert_array_equal(params(of_two), params(two) + 1 + 1)


def test_it_is_part_of_what_a_run_is(begin: Callable[..., Path]) -> None:
    old = begin("old")
    begin("plain", "--seed=7")
    new = begin("new", f"--init_from={old}", "--seed=7")
    lines = ledger.read(new.parent / "ledger.jsonl")
    assert len({line["run"] for line in lines}) == 3
    assert results.labels(lines) == [
        "dqn init_from=default",
        "dqn init_from=default",
        f"dqn init_from={old}",
    ]
    (again,) = ledger.lines(new)
    assert again in lines
    with pytest.raises(ValueError, match="another run: init_from is None there"):
        begin("plain", f"--init_from={old}", "--seed=7")
    assert run_folder.read(new)["init_from"] == str(old)


def test_what_cannot_be_is_one_line_and_leaves_nothing(
    begin: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, two = begin("old"), begin("two", "--num_seeds=2")
    broken, damaged = begin("broken"), begin("damaged")
    (broken / "config.json").write_text("{")
    for path in (damaged / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    before = {*tmp_path.rglob("*")}
    other = f"--run_dir={tmp_path / 'other'}"
    for folder, more, words in (
        (
            old,
            "--env=cartpole",
            "fits: first layers are params [25, 8], target [25, 8]",
        ),
        (tmp_path / "none", "--env=detour1", "there is no run folder"),
        (broken, "--env=detour1", "config.json is not JSON"),
        (two, "--env=detour1", "two holds 2 runs, must hold 1"),
        (two, "--num_seeds=3", "two holds 2 runs, must hold 1, or 3 as here"),
        (old, "--precision=x64", "has precision fast, but this run x64"),
    ):
        argv = ["--env=detour1", f"--init_from={folder}", more, other]
        line = complaint(monkeypatch, capsys, *argv)
        assert words in line, line
        assert {*tmp_path.rglob("*")} == before
    with pytest.raises(OSError, match=r"every checkpoint in .* is damaged"):
        run.main(["run", *FLAGS, "--env=detour1", f"--init_from={damaged}", other])
    assert {*tmp_path.rglob("*")} == before
    argv = ["sweep", *FLAGS, "--env=detour1", f"--init_from={old}", "--plan_only"]
    with pytest.raises(flags.Error, match="--init_from is for"):
        sweep.main([*argv, f"--sweep_dir={tmp_path / 'sweep'}"])
