"""Pictures of run folders: learning curves and model diagnostics; their style."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from experiments.runs import files, metrics_log, run_folder

COLOURS = (
    "#2c71b0",
    "#e87834",
    "#3aa36e",
    "#b04a7e",
    "#7a6cc4",
    "#8a6d3b",
    "#4fb3c8",
    "#c9a227",
)
ON_DARK = (  # the same, lighter
    "#5fa5e6",
    "#f0935a",
    "#55c48b",
    "#d873a6",
    "#a294ee",
    "#c2a064",
    "#7ccfe1",
    "#e0bd4e",
)
INK = "#2b3442"
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#e4e2dc",
    "xtick.color": INK,
    "ytick.color": INK,
}
TRAINING, EVALUATION = "episode/return", "eval/return_mean"


class Curve(NamedTuple):
    steps: np.ndarray  # [T] environment steps, or steps ahead
    values: np.ndarray  # [T, S]


def learning_curve(folders: Sequence[Path], path: Path) -> None:
    """Return against real environment steps; of several seeds, mean and 95 % interval.

    Dots are evaluations, pale lines the episodes trained on.  Raises OSError or
    ValueError if a folder cannot be read.
    """
    runs = [_read(folder) for folder in folders]
    figure, (axis,) = new_figure(1, width=6.4)
    for i, (_, lines) in enumerate(runs):
        training, evaluation = _curve(lines, TRAINING), _curve(lines, EVALUATION)
        if not len(training.steps) and not len(evaluation.steps):
            raise ValueError(f"{folders[i]} holds no returns yet")
        colour = COLOURS[i % len(COLOURS)]
        name = "" if len(runs) == 1 else f"{folders[i].name}, "
        label, alone = f"{name}training episodes", not len(evaluation.steps)
        _draw(axis, training, colour, band=alone, label=label, alpha=0.5)
        _draw(axis, evaluation, colour, label=f"{name}evaluation", marker="o")
    titles = {f"{record['algorithm']} on {record['env']}" for record, _ in runs}
    seeds = sorted({record["num_seeds"] for record, _ in runs})
    text = " and ".join(f"{n} seed" + "s" * (n > 1) for n in seeds)
    if seeds[-1] > 1:
        text += ", mean and 95 % interval"
    if lost := sum(_num_lost(lines) for _, lines in runs):
        text += f" without {lost} not finite"
    axis.set_title("; ".join(sorted(titles)), loc="left", fontsize=11)
    axis.set_title(text, loc="right", fontsize=9)
    axis.set(xlabel="environment steps", ylabel="return of an episode")
    axis.set_xlim(left=0)
    axis.legend(frameon=False)
    save(figure, path)


def _read(folder: Path) -> tuple[run_folder.Record, list[metrics_log.Line]]:
    record = run_folder.read(folder)
    num_runs = len(run_folder.rows(record))
    return record, metrics_log.read(folder, num_runs, ("env_steps",))


def diagnostics(folder: Path, path: Path) -> None:
    """The curves of diagnostics.json; of several seeds, mean and 95 % interval.

    Raises OSError or ValueError if it cannot be read.
    """
    several = run_folder.read(folder)["num_seeds"] > 1
    file = folder / "diagnostics.json"
    try:
        data = {
            name.removeprefix("model/"): np.array(value, float)
            for name, value in run_folder.read_json(file).items()
        }
        data = {name: x if several else x[None] for name, x in data.items()}
        figure, axes = new_figure(3, width=11)
        _model_error(axes[0], data)
        _calibration(axes[1], data)
        _optimism(axes[2], data)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{file} is not what was expected: {error}") from error
    save(figure, path)


def _model_error(axis: Any, data: dict[str, np.ndarray]) -> None:
    error, spread = data["open_loop_rmse"], data["open_loop_disagreement"]
    horizon = np.arange(1, error.shape[1] + 1)
    _draw(axis, Curve(horizon, error.T), COLOURS[0], label="error")
    _draw(axis, Curve(horizon, spread.T), COLOURS[1], label="spread of the members")
    axis.set_title("open-loop prediction", loc="left", fontsize=11)
    axis.set(xlabel="steps ahead", ylabel="root mean square, in stds of obs")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


def _calibration(axis: Any, data: dict[str, np.ndarray]) -> None:
    level = data["coverage_level"][0]
    axis.plot([0, 1], [0, 1], color=INK, linestyle=":", label="calibrated")
    curve = Curve(level, data["coverage"].T)
    _draw(axis, curve, COLOURS[0], label="one-step prediction", marker="o")
    text = f"NLL {data['nll'].mean():.2f}, error {data['one_step_rmse'].mean():.3f}"
    axis.set_title("calibration", loc="left", fontsize=11)
    axis.set_title(text, loc="right", fontsize=9)
    axis.set(xlabel="nominal coverage", ylabel="measured coverage")
    axis.legend(frameon=False)


def _optimism(axis: Any, data: dict[str, np.ndarray]) -> None:
    excess = data["predicted_minus_real_return"]
    axis.axhline(0, color=INK, linestyle=":")
    _draw(axis, Curve(np.arange(1, excess.shape[1] + 1), excess.T), COLOURS[0])
    axis.set_title("predicted minus real return", loc="left", fontsize=11)
    axis.set(xlabel="steps ahead", ylabel="sum of rewards")


def _num_lost(lines: Sequence[dict[str, Any]]) -> int:
    """Seeds of which some return is not finite."""
    curves = [_curve(lines, name).values for name in (TRAINING, EVALUATION)]
    bad = [~np.isfinite(x).all(axis=0) for x in curves if x.size]
    return int(np.logical_or.reduce(bad).sum()) if bad else 0


def _curve(lines: Sequence[dict[str, Any]], name: str) -> Curve:
    """A metric, where it was measured."""
    lines = [line for line in lines if line.get(name) is not None]
    values = [np.array(line[name], float) for line in lines]  # null becomes NaN
    return Curve(
        np.array([np.mean(line["env_steps"]) for line in lines]),
        np.array([np.atleast_1d(x) for x in values]),
    )


def _draw(axis: Any, curve: Curve, colour: str, band: bool = True, **how: Any) -> None:
    if not len(curve.steps):
        return
    mean = _over_seeds(np.nanmean, curve.values)
    axis.plot(curve.steps, mean, color=colour, **how)
    if band and curve.values.shape[1] > 1:
        low, high = mean - interval(curve.values), mean + interval(curve.values)
        axis.fill_between(curve.steps, low, high, color=colour, alpha=0.15, lw=0)


def interval(values: np.ndarray) -> np.ndarray:
    """Half the 95 % interval of the mean over S > 1 seeds of [T, S] (Student's t).

    Of those that are finite; NaN where there are fewer than two.
    """
    finite = np.isfinite(values)
    num_seeds = np.where(finite.sum(axis=1) > 1, finite.sum(axis=1), np.nan)
    spread = _over_seeds(lambda x, axis: np.nanstd(x, axis, ddof=1), values)
    return scipy.special.stdtrit(num_seeds - 1, 0.975) * spread / np.sqrt(num_seeds)


def _over_seeds(statistic: Callable[..., Any], values: np.ndarray) -> Any:
    """[T] of [T, S], without what is not finite: one seed does not cut all curves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where none is finite: NaN
        return statistic(np.where(np.isfinite(values), values, np.nan), axis=1)


def new_figure(
    num_axes: int, width: float, num_rows: int = 1, height: float = 3.8
) -> tuple[Any, list[Any]]:
    """`num_axes` in each row; the axes row by row."""
    import matplotlib
    from matplotlib.figure import Figure  # slow to import; this needs no display

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(width, height), dpi=150, layout="constrained")
        return made, list(np.ravel(made.subplots(num_rows, num_axes)))


def save(figure: Any, path: Path) -> None:
    """In the format that its name says.  A link in its place is not followed."""
    with files.replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:] or None)
