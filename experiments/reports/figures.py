"""The figures of a report: SVG, to be put into its page, whose colours they take."""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any, NamedTuple

import numpy as np

from experiments.reports import plots, results, statistics
from experiments.reports.results import Row
from experiments.reports.statistics import Curve, Estimate

NUM_POINTS = 50  # of a curve that is interpolated
DASHES = {"solid": "-", "dashed": "--", "dotted": ":"}  # in CSS, in matplotlib
MUCH_LONGER = 10  # so many times
GRID = plots.STYLE["grid.color"]


class Look(NamedTuple):
    """How a method is drawn in all figures."""

    colour: int  # of plot.COLOURS
    dash: str  # of DASHES


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Different ones, as far as there are: 24."""
    num, dashes = len(plots.COLOURS), list(DASHES)
    return {
        method: Look(i % num, dashes[i // num % len(dashes)])
        for i, method in enumerate(methods)
    }


def learning_curves(rows: Sequence[Row], look: Mapping[str, Look], name: str) -> str:
    """IQM over the runs of each of `rows`, of one environment.

    Dots with a band are evaluations, pale lines the episodes trained on; these have the
    band where there are no evaluations.
    """

    def draw(axis: Any) -> None:
        for row in rows:
            evaluation, training = (
                _measured([results.curve(line, [x]) for line in row.lines])
                for x in (plots.EVALUATION, plots.TRAINING)
            )
            how, pale = _how(look[row.method]), {"alpha": 0.45, "linewidth": 1}
            if (steps := grid(training)) is not None:
                _band(axis, steps, training, how | pale, band=not evaluation)
            if (steps := grid(evaluation)) is not None:
                _band(axis, steps, evaluation, how | {"marker": "o", "markersize": 4})
        curves = [results.curve(line) for row in rows for line in row.lines]
        _steps_axis(axis, curves)
        axis.set(ylabel="return of an episode")

    return _svg(draw, name, f"Learning curves in {rows[0].env}, {_finals(rows)}")


def _steps_axis(axis: Any, curves: Sequence[Curve]) -> None:
    """Logarithmic where some curves are much shorter than others."""
    ends = [curve.steps[-1] for curve in curves if len(curve.steps)]
    if max(ends) >= MUCH_LONGER * min(ends):
        axis.set(xlabel="environment steps, logarithmic", xscale="log")
    else:
        axis.set(xlabel="environment steps", xlim=(0, None))


def _finals(rows: Sequence[Row]) -> str:
    return "final IQM: " + ", ".join(f"{x.method} {x.iqm.value:.4g}" for x in rows)


def _band(
    axis: Any, steps: np.ndarray, curves: Sequence[Curve], how: Any, band: bool = True
) -> None:
    if band:
        rng = np.random.default_rng(0)
        _draw(axis, steps, statistics.sample_efficiency(rng, [curves], steps), how)
    else:
        values = statistics.iqm([statistics.interpolate(curves, steps)])
        axis.plot(steps, values, **how)


def sample_efficiency(
    curves: Mapping[str, Sequence[Sequence[Curve]]], look: Mapping[str, Look], name: str
) -> str:
    """IQM of the normalised curves of each method's tasks."""

    def draw(axis: Any) -> None:
        for method, tasks in curves.items():
            steps = grid([curve for task in tasks for curve in task])
            assert steps is not None
            rng = np.random.default_rng(0)
            estimate = statistics.sample_efficiency(rng, tasks, steps)
            _draw(axis, steps, estimate, _how(look[method]))
        every = [x for tasks in curves.values() for task in tasks for x in task]
        _steps_axis(axis, every)
        axis.set(ylabel="IQM of normalised return")

    return _svg(draw, name, "Sample efficiency: normalised return by environment steps")


def profiles(
    scores: Mapping[str, Sequence[np.ndarray]], look: Mapping[str, Look], name: str
) -> str:
    """Performance profiles of each method's normalised scores, a list of tasks."""
    every = np.concatenate([x for tasks in scores.values() for x in tasks])
    taus = np.linspace(np.clip(every.min(), -1, 0), np.clip(every.max(), 1, 2), 101)

    def draw(axis: Any) -> None:
        for method, tasks in scores.items():
            estimate = statistics.profile(np.random.default_rng(0), tasks, taus)
            _draw(axis, taus, estimate, _how(look[method]))
        axis.set(xlabel="normalised return τ", ylabel="fraction of runs above τ")
        axis.set_ylim(-0.03, 1.03)

    return _svg(draw, name, "Performance profiles: fraction of runs above a return")


def intervals(
    estimates: Mapping[str, Estimate], look: Mapping[str, Look], name: str
) -> str:
    """A dot and a bar for each method, the first on top."""

    def draw(axis: Any) -> None:
        for place, (method, (value, low, high)) in enumerate(estimates.items()):
            how = _how(look[method])
            axis.plot([low, high], [place, place], **how | {"linewidth": 4})
            axis.plot(value, place, marker="o", markersize=9, **how)
        axis.set_yticks(range(len(estimates)), list(estimates), parse_math=False)
        axis.set_ylim(len(estimates) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="IQM of normalised return")

    return _svg(draw, name, "IQM of normalised return, with 95 % intervals")


def grid(curves: Sequence[Curve]) -> np.ndarray | None:
    """Where to draw their mean: where they were measured, if that is at the same steps.

    None if they have no range in common.
    """
    if not curves or any(not len(curve.steps) for curve in curves):
        return None
    if all(np.array_equal(curve.steps, curves[0].steps) for curve in curves):
        return curves[0].steps
    first, last = statistics.shared_range(curves)
    return np.linspace(first, last, NUM_POINTS) if first < last else None


def _measured(curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if len(curve.steps)]


def _how(look: Look) -> dict[str, Any]:
    return {"color": plots.COLOURS[look.colour], "linestyle": DASHES[look.dash]}


def _draw(axis: Any, x: np.ndarray, estimate: Estimate, how: Any) -> None:
    axis.plot(x, estimate.value, **how)
    colour = how["color"]
    axis.fill_between(x, estimate.low, estimate.high, color=colour, alpha=0.15, lw=0)


def _svg(draw: Callable[[Any], None], name: str, label: str) -> str:
    """The figure that `draw` draws on an axis; `name` sets its ids apart."""
    import matplotlib  # slow to import

    style: Any = {"text.color": plots.INK, "svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context({**plots.STYLE, **style}):
        figure, (axis,) = plots.new_figure(1, width=6.4)
        draw(axis)
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True)
    return _inline(file.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """Without what only a file of its own needs; with the colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(plots.INK, "currentColor").replace(GRID, "var(--grid)")
    for i, colour in enumerate(plots.COLOURS):
        svg = svg.replace(colour, f"var(--c{i})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
