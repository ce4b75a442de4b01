"""Evaluation of a run folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import evaluate
from experiments.runs import metrics_log

NAMES = [f"eval/{name}" for name in evaluate.COLUMNS]


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


def test_other_episodes_can_be_asked_for(finished: Path) -> None:
    evaluate.main(["evaluate", f"--run_dir={finished}", "--seed=7", "--num_episodes=3"])
    record = json.loads((finished / "evaluation.json").read_text())
    assert record["num_episodes"] == 3
    assert record["seed"] == 7
    assert record[NAMES[0]] != metrics_log.read(finished)[-1][NAMES[0]]


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
