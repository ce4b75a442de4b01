"""The README says what is there.  Its examples run as doctests, see pyproject.toml."""

import json
import pkgutil
import re
from pathlib import Path

import pytest

from benchmarks import returns
from mbrl_jax import algorithms

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_every_algorithm_has_a_row():
    rows = re.findall(r"\]\(mbrl_jax/algorithms/(\w+)\.py\)", TEXT)
    assert rows == [module.name for module in pkgutil.iter_modules(algorithms.__path__)]


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_results_are_those_of_the_results_file():
    results = json.loads(returns.RESULTS.read_text())
    assert set(results) == set(returns.TASKS)
    assert returns.with_table(TEXT, results) == TEXT


def test_the_reported_seeds_are_all_there():
    results = json.loads(returns.RESULTS.read_text())
    for name, result in results.items():
        seeds = sorted(run["seed"] for run in result["runs"])
        assert seeds == list(returns.REPORTED_SEEDS), name


def test_interval_of_the_mean():
    low, high = returns.interval([1.0, 2.0, 3.0, 4.0])
    assert 1.0 <= low < 2.5 < high <= 4.0
    assert returns.interval([7.0] * 5) == (7.0, 7.0)


@pytest.mark.parametrize("name", returns.TASKS)
def test_a_task_passes_and_fails(name: str):
    random = -40.0 if name == "brax_reacher" else 5.0
    reference = {"random": random, "true_dynamics": 170.0}
    good = {"returns": [0.0, *[200.0] * 10], "eval": 200.0}
    bad = {"returns": [0.0] * 11, "eval": -400.0}
    assert returns.TASKS[name].passed(good, reference)
    assert not returns.TASKS[name].passed(bad, reference)
