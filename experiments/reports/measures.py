"""How methods compare, section by section of a report.

The measures are those of `statistics`; methods beyond the best few are not drawn.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.reports import figures as report_figures
from experiments.reports import results, statistics
from experiments.reports.figures import Look
from experiments.reports.html import (
    Cell,
    Section,
    figure,
    figures,
    legend,
    paragraph,
    right,
    table,
)
from experiments.reports.results import Row
from experiments.reports.statistics import Curve
from experiments.reports.text import NOTHING, interval, number, span
from experiments.runs import ledger

NO_REFERENCE = "No environment here has a random and a best reference to normalise by."


class Data(NamedTuple):
    """What the sections are about."""

    lines: Sequence[ledger.Line]
    rows: Sequence[Row]
    looks: Mapping[str, Look]  # of the methods in the figures, best first
    threshold: float  # of normalised return


def _scores(data: Data) -> dict[str, list[np.ndarray]]:
    """Normalised returns of the methods that are drawn, [N] for each environment."""
    found = {
        method: [
            row.normalised
            for row in data.rows
            if row.method == method and row.normalised is not None
        ]
        for method in data.looks
    }
    return {method: tasks for method, tasks in found.items() if tasks}


def aggregates(data: Data) -> Section:
    """IQM of normalised returns."""
    title, scores = "All environments together", _scores(data)
    if not scores:
        return Section(title, paragraph(NO_REFERENCE))
    rng, iqm = np.random.default_rng, statistics.iqm
    found = {x: statistics.bootstrap(rng(0), iqm, y) for x, y in scores.items()}
    estimates = dict(sorted(found.items(), key=lambda item: -item[1].value))
    rows: list[list[str | Cell]] = [
        [
            method,
            Cell(interval(estimate, "{:.3f}".format), "number strong"),
            right(str(len(scores[method]))),
            right(str(sum(map(len, scores[method])))),
        ]
        for method, estimate in estimates.items()
    ]
    text = (
        "IQM of normalised returns, over runs and environments: 0 is the random "
        "policy, 1 the best reference. Compare methods that cover the same ones."
    )
    headings = ("method", "IQM [95 % interval]", "environments", "runs")
    picture = report_figures.intervals(estimates, data.looks, "iqm")
    parts = (figure(picture, "Dots: IQM. Bars: 95 % intervals."),)
    return Section(
        title,
        paragraph(text) + table(title, headings, rows) + figures(parts),
    )


def learning_curves(data: Data) -> Section:
    """A figure for each environment."""
    parts = []
    for i, env in enumerate(sorted({row.env for row in data.rows})):
        rows = [row for row in data.rows if row.env == env and row.method in data.looks]
        if any(len(results.curve(line).steps) for row in rows for line in row.lines):
            picture = report_figures.learning_curves(rows, data.looks, f"curve{i}")
            parts.append(figure(picture, _runs_of(rows), env))
    text = (
        "IQM over runs, with its pointwise 95 % interval. Dots are evaluations, pale "
        "lines the episodes trained on."
    )
    if not parts:
        return Section("Learning curves", paragraph("No run has a curve."))
    return Section(
        "Learning curves", paragraph(text) + legend(data.looks) + figures(parts)
    )


def _runs_of(rows: Sequence[Row]) -> str:
    return "n = " + span([len(row.lines) for row in rows]) + " runs per method"


def sample_efficiency(data: Data) -> Section:
    """A figure over environments."""
    title, tasks = "Sample efficiency", _curves_of_tasks(data)
    shown = {
        method: curves
        for method, curves in tasks.items()
        if report_figures.grid([x for task in curves for x in task]) is not None
    }
    if not shown:
        reason = "No method has normalised curves over a range of steps in common."
        return Section(title, paragraph(reason))
    text = (
        "IQM of normalised return, over runs and environments, of evaluations, or of "
        "training episodes where fewer than two evaluations were made; with its "
        "pointwise 95 % interval, where all environments were measured."
    )
    missing = [x for x in tasks if x not in shown]
    note = f"No range in common: {', '.join(missing)}." if missing else ""
    picture = report_figures.sample_efficiency(shown, data.looks, "efficiency")
    keys = {method: data.looks[method] for method in shown}
    return Section(title, paragraph(text) + legend(keys) + figure(picture, note))


def _curves_of_tasks(data: Data) -> dict[str, list[list[Curve]]]:
    """Of each method that is drawn, a list per environment."""
    found: dict[str, list[list[Curve]]] = {}
    for method in data.looks:
        for row in data.rows:
            if row.method == method and (curves := normalised_curves(row)):
                found.setdefault(method, []).append(curves)
    return found


def normalised_curves(row: Row) -> list[Curve]:
    """Of its runs that have a curve; none without a reference."""
    found = []
    for curve in map(results.curve, row.lines):
        values = results.normalise(curve.values, row.reference)
        if values is not None and len(values):
            found.append(Curve(curve.steps, values))
    return found


def profiles(data: Data) -> Section:
    """A figure over environments."""
    title, scores = "Performance profiles", _scores(data)
    if not scores:
        return Section(title, paragraph(NO_REFERENCE))
    text = (
        "The fraction of runs whose normalised return is above τ, mean over "
        "environments, with its pointwise 95 % interval. Higher is better; where two "
        "curves cross, neither method is better throughout."
    )
    picture = report_figures.profiles(scores, data.looks, "profile")
    keys = {method: data.looks[method] for method in scores}
    return Section(title, paragraph(text) + legend(keys) + figure(picture, ""))


def thresholds(data: Data) -> Section:
    """Time to threshold of every method, in every environment with a reference."""
    title = "Time to threshold"
    rows = [_time(x, data.threshold) for x in data.rows if normalised_curves(x)]
    if not rows:
        return Section(title, paragraph(NO_REFERENCE))
    text = (
        "Environment steps at which a run's curve first reached a normalised return of "
        f"{data.threshold:g}: median over all runs, with its 95 % interval. Curves are "
        "those of sample efficiency; what was not measured in between is not seen."
    )
    headings = ["method", "environment", "return to reach", "runs that reached it"]
    headings.append("median env steps [95 % interval]")
    return Section(title, paragraph(text) + table(title, headings, rows))


def _time(row: Row, threshold: float) -> list[str | Cell]:
    assert row.reference is not None
    assert row.reference.best is not None
    random, best = row.reference.random, row.reference.best
    curves = normalised_curves(row)
    rng = np.random.default_rng(0)
    estimate, reached = statistics.time_to_threshold(rng, curves, threshold)
    return [
        row.method,
        row.env,
        right(number(random + threshold * (best - random))),
        right(f"{reached} of {len(curves)}"),
        Cell(interval(estimate), "number strong"),
    ]


def improvements(data: Data) -> Section:
    """A matrix, of the methods that are drawn."""
    title = "Probability of improvement"
    methods = list(data.looks)
    if len(methods) < 2:
        return Section(title, paragraph("This compares methods; there are not two."))
    rows: list[list[str | Cell]] = [
        [x, *(_improvement(data, x, y) for y in methods)] for x in methods
    ]
    text = (
        "The probability that a run of the method on the left is better than one of "
        "the method above, mean over the environments both were run in, with its 95 % "
        "interval. Bold: the interval leaves out 0.5."
    )
    return Section(
        title, paragraph(text) + table(title, ("better than", *methods), rows)
    )


def _improvement(data: Data, x: str, y: str) -> Cell:
    of = [{r.env: r.returns for r in data.rows if r.method == m} for m in (x, y)]
    shared = sorted(of[0].keys() & of[1].keys())
    if x == y or not shared:
        return right(NOTHING)
    sets = [[returns[env] for env in shared] for returns in of]
    rng = np.random.default_rng(0)
    estimate = statistics.bootstrap(rng, statistics.improvement, *sets)
    text = interval(estimate, "{:.2f}".format)
    if np.isnan(estimate.low):
        return right(text)
    sure = estimate.low > 0.5 or estimate.high < 0.5
    kind = "number strong" if sure else "number"
    return Cell(text, kind, tint=2 * float(estimate.value) - 1)
