"""What was found, on disk and on a page of the documentation."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.runs import files, run_folder

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "robustness.json"
PAGE = ROOT / "docs" / "robustness.md"
LOCK = ROOT / ".cache" / "robustness.lock"
MARKS = ("<!-- found -->", "<!-- end -->")

Outcome = Mapping[str, Any]  # tried, failures; more counts, by class


def found() -> dict[str, dict[str, Outcome]]:
    """Outcomes by class and case."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(name: str, case: str, outcome: Outcome) -> None:
    """Adds an outcome; several commands may be at work on different classes."""
    LOCK.parent.mkdir(exist_ok=True)
    with files.locked(LOCK):
        new = found()
        new[name] = dict(sorted({**new.get(name, {}), case: outcome}.items()))
        run_folder.write_json(RESULTS, dict(sorted(new.items())))


def written(text: str, classes: Mapping[str, ModuleType]) -> str:
    """The page with today's table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return "\n".join([f"{before}{MARKS[0]}", *lines(classes), f"{MARKS[1]}{after}"])


def lines(classes: Mapping[str, ModuleType]) -> list[str]:
    table = [
        "| class | what is tried, and what has to come | cases | tried | failures |",
        "|---|---|--:|--:|--:|",
    ]
    for name, tried in classes.items():
        outcomes = found().get(name, {})
        failures = sum(len(x["failures"]) for x in outcomes.values())
        row = (
            name,
            tried.ABOUT,
            f"{len(outcomes)} of {len(tried.names())}",
            f"{total(outcomes.values(), 'tried'):,}",
            str(failures),
        )
        table.append(f"| {' | '.join(row)} |")
    return [*table, "", *notes(found())]


def notes(outcomes: Mapping[str, Mapping[str, Outcome]]) -> list[str]:
    """More counts of each class, what was left out, and every failure."""
    told = []
    for name, cases in outcomes.items():
        counts = {key for x in cases.values() for key, n in x.items() if type(n) is int}
        for key in sorted(counts - {"tried"}):
            told.append(f"- {name}: {total(cases.values(), key):,} {key}")
        for case, outcome in cases.items():
            if "note" in outcome:
                told.append(f"- {name}, {case}: {outcome['note']}")
            told += [f"- {name}, {case}: FAILED: {x}" for x in outcome["failures"]]
    return told


def total(outcomes: Iterable[Outcome], key: str) -> int:
    return sum(x.get(key, 0) for x in outcomes)
