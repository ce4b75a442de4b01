"""What a report says, in reading order.  Its measures are those of `statistics`."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.reports import figures as report_figures
from experiments.reports import measures as report_measures
from experiments.reports import results, statistics
from experiments.reports.html import Cell, Section, page, paragraph, right, table
from experiments.reports.measures import Data
from experiments.reports.results import Row
from experiments.reports.text import NOTHING, count, interval, number, span
from experiments.runs import ledger

MAX_DRAWN = 12  # methods: the best; more lines are no picture
FEW = 5  # runs; fewer are marked
THRESHOLD = 0.9  # normalised return, whose time is told
RESULTS = (
    "method",
    "environment",
    "env steps",
    "seeds",
    "IQM [95 % interval]",
    "mean",
    "min to max",
    "random",
    "best",
    "normalised",
    "s per run",
)
RUNS = (
    "method",
    "environment",
    "seed",
    "status",
    "return",
    "env steps",
    "s per run",
    "s to compile",
    "curve digest",
    "settings off default",
    "config digest",
    "commit",
    "device",
    "versions",
    "time",
    "folder",
)


def html(
    lines: Sequence[ledger.Line],
    references: Mapping[str, results.Reference],
    threshold: float = THRESHOLD,
) -> str:
    """The whole page."""
    rows = results.rows(lines, references)
    drawn = ranked(rows)[:MAX_DRAWN]
    data = Data(lines, rows, report_figures.looks(drawn), threshold)
    sections = [
        _results(data),
        report_measures.aggregates(data),
        report_measures.learning_curves(data),
        report_measures.sample_efficiency(data),
        report_measures.profiles(data),
        report_measures.thresholds(data),
        report_measures.improvements(data),
        _failures(data),
        _runs(data),
    ]
    return page("Report", summary(lines), _remarks(data), sections)


def ranked(rows: Sequence[Row]) -> list[str]:
    """The methods, by their mean rank within environments; best first."""
    places: dict[str, list[float]] = {}
    for env in dict.fromkeys(row.env for row in rows):
        here = [row.method for row in rows if row.env == env]
        for place, method in enumerate(here):
            places.setdefault(method, []).append(place / len(here))
    return sorted(places, key=lambda method: (np.mean(places[method]), method))


def summary(lines: Sequence[ledger.Line]) -> str:
    """One line: how much there is, and what became of it."""
    status = collections.Counter(line["status"] for line in lines)
    num_methods, num_envs = (
        len(set(x)) for x in (results.labels(lines), [line["env"] for line in lines])
    )
    known = ("finished", "failed", "pruned")
    parts = [f"{status[name]} {name}" for name in known]
    parts.append(f"{sum(n for x, n in status.items() if x not in known)} unfinished")
    counts = (
        count(len(lines), "run"),
        count(num_methods, "method"),
        count(num_envs, "environment"),
    )
    return f"{', '.join(counts)}: {', '.join(parts)}."


def _remarks(data: Data) -> str:
    bare = sorted({row.env for row in data.rows if row.normalised is None})
    remarks = []
    if bare:
        remarks.append(
            f"Without references, and so in no aggregate over environments: "
            f"{', '.join(bare)}."
        )
    num = len({row.method for row in data.rows})
    if num > MAX_DRAWN:
        remarks.append(
            f"Figures and comparisons of methods show the {MAX_DRAWN} of {num} that "
            f"rank best on average; the tables of results show all."
        )
    return " ".join(remarks)


def _results(data: Data) -> Section:
    if not data.rows:
        return Section("Results", paragraph("No run has finished."))
    what = sorted(
        {
            f"{row.env}: {row.reference.best_is}"
            for row in data.rows
            if row.reference and row.reference.best is not None
        }
    )
    text = (
        "Return of the last evaluation of each run, or else of its last episode. IQM: "
        "mean of the middle half of the runs; its interval is from a stratified "
        f"bootstrap. Fewer than {FEW} seeds are marked: their intervals are too narrow."
    )
    best = f"Best, {'; '.join(what)}." if what else ""
    return Section(
        "Results",
        paragraph(text)
        + table("Results", RESULTS, [_result(row) for row in data.rows])
        + paragraph(best, "note"),
    )


def _result(row: Row) -> list[str | Cell]:
    reference, normalised = row.reference, row.normalised
    score = None if normalised is None else float(statistics.iqm([normalised]))
    spread = f"{number(row.returns.min())} to {number(row.returns.max())}"
    best = reference.best if reference else None
    return [
        row.method,
        row.env,
        right(span([line.get("env_steps") for line in row.lines])),
        _seeds(row),
        Cell(interval(row.iqm), "number strong"),
        right(number(row.returns.mean())),
        right(number(row.returns[0]) if len(row.returns) == 1 else spread),
        right(NOTHING if reference is None else number(reference.random)),
        right(NOTHING if best is None else number(best)),
        right(NOTHING if score is None else f"{score:.3f}"),
        right(_mean([results.seconds(line) for line in row.lines])),
    ]


def _mean(values: Sequence[float | None]) -> str:
    known = [x for x in values if x is not None]
    return number(float(np.mean(known))) if known else NOTHING


def _seeds(row: Row) -> Cell:
    num, lost = len(row.lines), f" + {row.num_lost} failed" if row.num_lost else ""
    if num < FEW:
        return Cell(f"n = {num}{lost}", "number marked")
    return Cell(f"{num}{lost}", "number marked" if lost else "number")


def _failures(data: Data) -> Section:
    title = "What failed, and why"
    rows: list[list[str | Cell]] = [
        [
            method,
            line["env"],
            right(str(line["seed"])),
            line["status"],
            Cell(_reason(line), "long"),
            right(span([line.get("env_steps")])),
            str(line.get("folder") or NOTHING),
        ]
        for line, method in zip(data.lines, results.labels(data.lines), strict=True)
        if not results.finished(line)
    ]
    if not rows:
        return Section(title, paragraph("Nothing: every run has finished."))
    headings = ("method", "environment", "seed", "status", "reason", "env steps")
    text = "These runs are in no number above, other than the count of failed seeds."
    return Section(title, paragraph(text) + table(title, (*headings, "folder"), rows))


def _reason(line: ledger.Line) -> str:
    if line["status"] == "finished":
        return "its return is not finite"
    return str(line.get("reason") or "none given")


def _runs(data: Data) -> Section:
    title = "Every run"
    versions = [results.text(line.get("versions")) for line in data.lines]
    known = list(dict.fromkeys(versions))
    labels = results.labels(data.lines)
    every = zip(data.lines, labels, versions, strict=True)
    rows = [
        _run(line, method, f"[{known.index(x) + 1}]")
        for line, method, x in sorted(
            every, key=lambda x: (x[0]["env"], x[1], x[0]["seed"])
        )
    ]
    notes = [paragraph(f"[{i}] {x}", "note") for i, x in enumerate(known, start=1)]
    return Section(title, table(title, RUNS, rows) + "".join(notes))


def _run(line: ledger.Line, method: str, versions: str) -> list[str | Cell]:
    value = line.get("return")
    digests = [
        str(line.get(x) or NOTHING)[:16] for x in ("curve_digest", "config_digest")
    ]
    return [
        method,
        line["env"],
        right(str(line["seed"])),
        line["status"],
        right(NOTHING if value is None else number(value)),
        right(span([line.get("env_steps")])),
        right(span([results.seconds(line)])),
        right(span([line.get("compile_seconds")])),
        digests[0],
        results.text(line["hyperparameters"]),
        digests[1],
        str(line.get("commit") or NOTHING),
        results.text(line.get("device") or NOTHING),
        versions,
        str(line.get("time") or NOTHING),
        str(line.get("folder") or NOTHING),
    ]
