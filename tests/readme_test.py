"""The README says what is there.  Its examples run as doctests, see pyproject.toml."""

import pkgutil
import re
from pathlib import Path

from experiments import report
from experiments.reports import results
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


def test_the_results_are_those_of_the_ledger():
    lines = results.read_ledgers([ROOT / "benchmarks" / "results" / "ledger.jsonl"])
    rows = results.rows(lines, results.read_references(None))
    assert report.with_table(TEXT, report.table(rows)) == TEXT
    measured = {line["algorithm"] for row in rows for line in row.lines}
    names = {module.name for module in pkgutil.iter_modules(algorithms.__path__)}
    said = set(re.findall(r"/(\w+)\.py\) \| complete; not measured yet \|", TEXT))
    assert names - measured == said
    for row in rows:
        assert len(row.lines) >= 5
        assert row.num_lost == 0
