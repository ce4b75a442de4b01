"""Ledger lines as results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.reports import results
from experiments.reports.results import Reference

Line = dict[str, Any]


def make_line(env: str = "pendulum", seed: int = 0, **more: Any) -> Line:
    line = {
        "run": f"{env} {seed} {more}",
        "status": "finished",
        "algorithm": "pets",
        "env": env,
        "seed": seed,
        "num_steps": 10,
        "hyperparameters": {},
        "config_digest": "0",
        "return": 1.0,
    }
    return line | more


def horizon(value: int) -> dict[str, Any]:
    return {"hyperparameters": {"plan.horizon": value}}


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ([make_line(), make_line(seed=1)], ["pets", "pets"]),
        ([make_line(), make_line("maze", **horizon(5))], ["pets", "pets"]),
        (
            [make_line(), make_line(**horizon(5)), make_line("maze", **horizon(5))],
            ["pets plan.horizon=20", "pets plan.horizon=5", "pets plan.horizon=5"],
        ),
        (
            [make_line(), make_line(num_steps=20), make_line(algorithm="new")],
            ["pets num_steps=10", "pets num_steps=20", "new"],
        ),
        (
            [
                make_line(hyperparameters={"model.ensemble.hidden_sizes": [64, 64]}),
                make_line(hyperparameters={"model.ensemble.hidden_sizes": [8]}),
                make_line(),
            ],
            [f"pets model.ensemble.hidden_sizes={x}" for x in ("64,64", "8", "64,64")],
        ),
    ],
)
def test_methods_are_told_by_what_differs_within_an_environment(
    lines: Sequence[Line], labels: Sequence[str]
) -> None:
    assert results.labels(lines) == labels


def test_rows_are_of_finished_runs_best_first() -> None:
    lines = [
        make_line(seed=1, **{"return": 3.0}),
        make_line(seed=0, **{"return": 1.0}),
        make_line(seed=2, status="failed", **{"return": 99.0}),
        make_line(seed=3, **{"return": None}),
        make_line(seed=4, status="pruned"),
        make_line(seed=0, **horizon(5), **{"return": 7.0}),
        make_line("maze", status="failed"),
    ]
    better, worse = results.rows(lines, {"pendulum": Reference(1.0, 5.0, "all")})
    assert (better.method, worse.method) == (
        "pets plan.horizon=5",
        "pets plan.horizon=20",
    )
    np.testing.assert_array_equal(worse.returns, [1, 3])  # in the order of seeds
    np.testing.assert_array_equal(worse.normalised, [0, 0.5])
    assert worse.iqm == (2, 1, 3)
    assert (better.num_lost, worse.num_lost) == (0, 2)
    assert better.normalised == 1.5
    assert np.isnan(better.iqm.low)


def test_without_references_nothing_is_normalised() -> None:
    assert results.normalise(np.ones(2), None) is None
    assert results.normalise(np.ones(2), Reference(1.0, None, "")) is None


def test_the_curve_is_of_evaluations_where_there_are_two() -> None:
    training = {"env_steps": [10, 20, 30], "return": [1, None, 3]}
    evaluation = {"env_steps": [20, 30], "return": [5, 6]}
    curves = {"episode/return": training, "eval/return_mean": evaluation}
    line = make_line(curves=curves)
    np.testing.assert_array_equal(results.curve(line).values, [5, 6])
    evaluation["return"][0] = None
    np.testing.assert_array_equal(results.curve(line).steps, [10, 30])
    np.testing.assert_array_equal(results.curve(line).values, [1, 3])
    assert not len(results.curve(make_line()).steps)
    training["env_steps"].pop()
    with pytest.raises(ValueError, match="bad curve episode/return"):
        results.curve(line)


def test_the_time_of_a_program_is_shared() -> None:
    assert results.seconds(make_line(wall_seconds=12.0, num_runs=4)) == 3
    assert results.seconds(make_line(wall_seconds=12.0)) == 12
    assert results.seconds(make_line()) is None


def test_a_run_in_two_ledgers_is_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "ledger.jsonl"
    for path, values in ((first, (1.0, 2.0)), (second, (3.0,))):
        lines = [make_line(run=str(i), **{"return": x}) for i, x in enumerate(values)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = results.read_ledgers([first, tmp_path])
    assert [line["return"] for line in lines] == [3, 2]
    second.write_text("")
    with pytest.raises(ValueError, match=r"no run in .*ledger\.jsonl"):
        results.read_ledgers([second])


def test_references_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "references.json"
    path.write_text(
        '{"a": {"random": 1, "best": 2, "best_is": "x"}, "b": {"random": 1}}'
    )
    found = results.read_references(path)
    assert found["a"] == Reference(1.0, 2.0, "x")
    assert found["b"].best is None
    monkeypatch.setattr(results, "REFERENCES", path)
    assert results.read_references(None) == found
    monkeypatch.setattr(results, "REFERENCES", tmp_path / "none.json")
    assert results.read_references(None) == {}
    with pytest.raises(OSError, match="cannot read the references"):
        results.read_references(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("3", "a is no reference"),
        ('{"best": 3}', "a is no reference"),
        ('{"random": "x", "best": 3}', "a is no reference"),
        ('{"random": 3, "best": 3.0}', "a: random and best are both 3"),
    ],
)
def test_bad_references_are_named(tmp_path: Path, entry: str, words: str) -> None:
    path = tmp_path / "references.json"
    path.write_text(f'{{"a": {entry}}}')
    with pytest.raises(ValueError, match=words):
        results.read_references(path)
