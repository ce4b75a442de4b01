"""Evaluation of a run folder."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import evaluate
from experiments.runs import metrics_log, registry, run_folder
from mbrl_jax import rollout
from mbrl_jax.training import train
from mbrl_jax.types import Env, Key, Policy

NAMES = [f"eval/{name}" for name in evaluate.COLUMNS]


@pytest.mark.slow
def test_the_evaluation_in_training_is_reproduced(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(["evaluate", f"--run_dir={finished}"])
    record = json.loads((finished / "evaluation.json").read_text())
    last = metrics_log.read(finished)[-1]
    assert [record[name] for name in NAMES] == [last[name] for name in NAMES]
    assert record["step"] == 4
    header, _, row = capsys.readouterr().out.splitlines()
    assert header == f"{finished}, step 4, 2 episodes"
    np.testing.assert_allclose(
        [float(x) for x in row.split()], [0, *(last[name] for name in NAMES)], rtol=1e-4
    )


def test_a_disk_that_cannot_be_written_takes_nothing_away(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, record: Any) -> None:
        raise OSError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(run_folder, "write_json", full)
    evaluate.main(["evaluate", f"--run_dir={whole}"])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    path = whole / "evaluation.json"
    assert err == f"cannot write {path}: Read-only file system: only printed\n"


def test_other_episodes_can_be_asked_for(finished: Path) -> None:
    evaluate.main(["evaluate", f"--run_dir={finished}", "--seed=7", "--num_episodes=3"])
    record = json.loads((finished / "evaluation.json").read_text())
    assert record["num_episodes"] == 3
    assert record["seed"] == 7
    assert record[NAMES[0]] != metrics_log.read(finished)[-1][NAMES[0]]


def test_another_seed_is_that_of_the_starts_too(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[np.ndarray] = []
    of_policies = rollout.evaluate

    def spy(key: Key, env: Env, policy: Policy, number: int, starts: Key) -> Any:
        jax.debug.callback(found.append, jax.random.key_data(starts))
        return of_policies(key, env, policy, number, starts)

    monkeypatch.setattr(rollout, "evaluate", spy)
    run = registry.load(finished, print)
    for seed, expected in ((None, train.EVALUATION_SEED), (7, 7)):
        evaluate.evaluate(run, seed, 1)
        jax.effects_barrier()
        expected_key = jax.random.key_data(jax.random.key(expected))
        np.testing.assert_array_equal(found[-1], expected_key)
    assert len(found) == 2


def test_the_table_has_a_row_per_seed_and_their_mean() -> None:
    metrics = {name: np.array([1.0, 2.0]) + i for i, name in enumerate(NAMES)}
    _, first, second, mean = evaluate.table(
        metrics, [{"seed": 5}, {"seed": 6}]
    ).splitlines()
    assert first.split() == ["5", "1", "2", "3", "4", "5"]
    assert second.split() == ["6", "2", "3", "4", "5", "6"]
    assert mean.split() == ["mean", "1.5", "2.5", "3.5", "4.5", "5.5"]


def test_missing_folders_are_named() -> None:
    with pytest.raises(OSError, match="no run folder /nowhere"):
        evaluate.main(["evaluate", "--run_dir=/nowhere"])
