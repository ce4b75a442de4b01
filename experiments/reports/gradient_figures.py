"""The pictures of `experiments.gradients`, from what its JSON says."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.reports import plots
from experiments.runs import run_folder

LOOK = {
    "pathwise": ("pathwise", plots.COLOURS[1], "o"),
    "windowed": ("pathwise, windowed", plots.COLOURS[3], "s"),
    "likelihood_ratio": ("likelihood ratio", plots.COLOURS[0], "^"),
    "total_propagation": ("total propagation", plots.COLOURS[2], "D"),
    "finite_difference": ("finite differences", plots.INK, "."),
}
WIDE: Any = {"lw": 3.0, "markersize": 6}  # others may lie exactly on it
NARROW: Any = {"lw": 1.5, "markersize": 4}
LINES = ("-", "--", ":")
PANELS = (
    ("variance", "total variance of one sample", "log"),
    ("signal_to_noise", "signal-to-noise ratio", "log"),
    ("bias", "relative distance to finite differences", "log"),
    ("cosine", "cosine with finite differences", "linear"),
    ("num_non_finite", "samples that are not finite", "linear"),
)


def health(record: run_folder.Record) -> Any:
    """A panel for each measure; a kind of line for each precision."""
    figure, axes = _grid(2, 3, (13, 7.2))
    num = record["num_samples"]
    for axis, (measure, title, scale) in zip(axes, PANELS, strict=False):
        for line, result in zip(LINES, record["precisions"].values(), strict=False):
            for name in result["estimators"]:
                _draw(axis, record, result, name, measure, line)
        _frame(axis, record, title, scale)
    if record["closed_form"]:
        _closed_forms(axes[0], record)
    axes[1].axhline(1 / np.sqrt(num), color=plots.INK, lw=0.8)
    axes[1].annotate(
        "noise alone", (0.02, 1 / np.sqrt(num)), (0, 3), _AXIS, "offset points", size=8
    )
    axes[3].set_ylim(-1.05, 1.05)
    axes[4].set_ylim(-0.03 * num, 1.03 * num)
    for line, (precision, result) in zip(
        LINES, record["precisions"].items(), strict=False
    ):
        growth = _numbers(result["log_growth"]) / np.log(10)
        label = f"{precision}, {result['lyapunov_exponent'] or np.nan:.3g} per step"
        axes[5].plot(record["horizons"], growth, line, color=plots.INK, label=label)
    _frame(axes[5], record, "growth of errors, powers of ten", "linear")
    axes[5].legend(frameon=False, fontsize=8, title="precision, exponent")
    axes[0].legend(frameon=False, fontsize=8)
    what = f"{record['env']}, {record['system']}: {record['policy']}, {num} samples"
    figure.suptitle(what, x=0.01, ha="left", fontsize=12)
    return figure


def variances(
    records: Sequence[run_folder.Record], titles: Sequence[str], names: Sequence[str]
) -> Any:
    """A panel each: the variance of some estimators in the last precision.

    Closed forms are broad pale lines.
    """
    columns = 2 if len(records) == 2 else 4
    rows = -(-len(records) // columns)
    figure, axes = _grid(rows, columns, ((9.6, 3.8) if rows == 1 else (13, 3 * rows)))
    for axis, record, title in zip(axes, records, titles, strict=False):
        result = [*record["precisions"].values()][-1]
        for name in names:
            if name in result["estimators"]:
                _draw(axis, record, result, name, "variance", "-")
        if record["closed_form"]:
            _closed_forms(axis, record)
        _frame(axis, record, title, "log")
    for axis in axes[::columns]:
        axis.set_ylabel("variance of one sample")
    for axis in axes[len(records) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


_AXIS: Any = ("axes fraction", "data")


def _grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    import matplotlib
    from matplotlib.figure import Figure  # slow to import; this needs no display

    with matplotlib.rc_context(plots.STYLE):
        made = Figure(figsize=size, dpi=150, layout="constrained")
        return made, list(np.ravel(made.subplots(rows, columns)))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, float)  # null becomes NaN


def _draw(
    axis: Any,
    record: run_folder.Record,
    result: run_folder.Record,
    name: str,
    measure: str,
    line: str,
) -> None:
    values = result["estimators"][name][measure]
    if measure == "cosine":
        values = values.get("finite_difference", [])
    if len(values) and not (measure == "bias" and name == "finite_difference"):
        label, colour, marker = LOOK[name]
        axis.plot(
            record["horizons"],
            _numbers(values),
            line,
            color=colour,
            marker=marker,
            **(WIDE if name == "pathwise" else NARROW),
            label=label if line == LINES[0] else None,
        )


def _closed_forms(axis: Any, record: run_folder.Record) -> None:
    for i, (name, values) in enumerate(record["closed_form"].items()):
        _, colour, _ = LOOK[name]
        label = "closed form" if i == 0 else None
        how = {"color": colour, "lw": 8, "alpha": 0.25, "zorder": 0}
        axis.plot(record["horizons"], _numbers(values), label=label, **how)


def _frame(axis: Any, record: run_folder.Record, title: str, scale: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel("horizon, steps")
    shown = [x for line in axis.lines for x in np.ravel(line.get_ydata())]
    if scale == "linear" or any(x > 0 for x in shown if np.isfinite(x)):
        axis.set_yscale(scale)
    horizons = record["horizons"]
    if horizons[-1] > 32:
        axis.set_xscale("log", base=2)
    axis.set_xticks(horizons, map(str, horizons))
    axis.minorticks_off()
