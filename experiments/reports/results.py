"""Ledger lines as results: which runs belong together, and what they reached.

A method is an algorithm with its settings.  References, for normalised returns, are
JSON: {environment: {"random": 1.0, "best": 9.0, "best_is": "what that is"}}; a return
may also be {"return": 1.0} with more beside it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.reports import statistics
from experiments.reports.plots import EVALUATION, TRAINING
from experiments.reports.statistics import Curve, Estimate
from experiments.runs import ledger, run_folder

REFERENCES = Path(__file__).parents[2] / "benchmarks" / "results" / "references.json"
# beside hyperparameters
SETTINGS = ("num_steps", "episode_length", "precision", "init_from")


class Reference(NamedTuple):
    """Returns in an environment: normalised, `random` is 0 and `best` is 1."""

    random: float
    best: float | None
    best_is: str
    best_at_starts: float | None = None  # of `best`, where all evaluations start

    @property
    def beside(self) -> float | None:
        """What a return is to be compared with: on the same starts, or a bound."""
        return self.best if self.best_at_starts is None else self.best_at_starts


class Row(NamedTuple):
    """A method in an environment."""

    method: str
    env: str
    lines: list[ledger.Line]  # N finished runs
    num_lost: int  # runs of it that failed, or have no finite return
    returns: np.ndarray  # [N]
    iqm: Estimate
    reference: Reference | None
    normalised: np.ndarray | None  # [N], where there is a reference


def rows(
    lines: Sequence[ledger.Line], references: Mapping[str, Reference]
) -> list[Row]:
    """A row for each method and environment with finished runs; best first."""
    groups: dict[tuple[str, str], list[ledger.Line]] = {}
    for line, method in zip(lines, labels(lines), strict=True):
        groups.setdefault((line["env"], method), []).append(line)
    found = [
        _row(method, env, group, references.get(env))
        for (env, method), group in groups.items()
        if any(finished(line) for line in group)
    ]
    return sorted(found, key=lambda row: (row.env, -row.iqm.value, row.method))


def _row(
    method: str, env: str, group: list[ledger.Line], reference: Reference | None
) -> Row:
    lines = sorted(filter(finished, group), key=lambda line: line["seed"])
    returns = np.array([float(line["return"]) for line in lines])
    return Row(
        method,
        env,
        lines,
        sum(lost(line) for line in group),
        returns,
        statistics.bootstrap(np.random.default_rng(0), statistics.iqm, [returns]),
        reference,
        normalise(returns, reference),
    )


def normalise(values: np.ndarray, reference: Reference | None) -> np.ndarray | None:
    """The scores of returns; None without a reference."""
    if reference is None or reference.best is None:
        return None
    return (values - reference.random) / (reference.best - reference.random)


def finished(line: ledger.Line) -> bool:
    """Whether the run came to its end with a finite return."""
    value = line.get("return")
    number = isinstance(value, int | float) and math.isfinite(value)
    return line["status"] == "finished" and number


def lost(line: ledger.Line) -> bool:
    """Whether the run should have come to its end, and has not."""
    return line["status"] != "pruned" and not finished(line)


def labels(lines: Sequence[ledger.Line]) -> list[str]:
    """The method of each line: its algorithm, and the settings in which lines of that
    algorithm in one environment differ."""
    facts = [settings(line) for line in lines]
    seen: dict[tuple[str, str, str], set[str]] = {}
    for line, fact in zip(lines, facts, strict=True):
        for name, value in fact.items():
            seen.setdefault((line["algorithm"], line["env"], name), set()).add(
                text(value)
            )
    differing = {(key[0], key[2]) for key, values in seen.items() if len(values) > 1}
    return [
        " ".join(
            [line["algorithm"]]
            + [
                f"{name}={text(value)}"
                for name, value in fact.items()
                if (line["algorithm"], name) in differing
            ]
        )
        for line, fact in zip(lines, facts, strict=True)
    ]


def settings(line: ledger.Line) -> dict[str, Any]:
    """All hyperparameters of a run, those at their default too; and SETTINGS."""
    own = {name: line.get(name) for name in SETTINGS}
    if line.get("population"):
        own["population"] = line["population"]["ranges"]
    return {**own, **ledger.config(line)}


def text(value: Any) -> str:
    """A setting, as it is written on the command line; of several, all."""
    if isinstance(value, dict):
        return " ".join(f"{name}={text(x)}" for name, x in value.items()) or "none"
    if isinstance(value, list):
        return ",".join(text(x) for x in value)
    return "default" if value is None else str(value)


def seconds(line: ledger.Line) -> float | None:
    """The run's share of the time that its program took."""
    wall = line.get("wall_seconds")
    return None if wall is None else wall / (line.get("num_runs") or 1)


def curve(line: ledger.Line, names: Iterable[str] = (EVALUATION, TRAINING)) -> Curve:
    """The first of the curves `names` that has two points or more; or an empty one.

    Raises ValueError for what is no curve.
    """
    for name in names:
        points = (line.get("curves") or {}).get(name)
        if points is None:
            continue
        try:
            steps = np.array(points["env_steps"], float)
            values = np.array(points["return"], float)  # null becomes NaN
            good = np.isfinite(values)
            found = Curve(steps[good], values[good])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"run {line['run']}: bad curve {name}: {error}") from error
        if len(found.steps) > 1:
            return found
    return Curve(np.array([]), np.array([]))


def read_ledgers(paths: Iterable[Path]) -> list[ledger.Line]:
    """The lines of ledgers, or of folders that hold one; each run once, the last wins.

    Raises OSError if there is no such ledger, ValueError if one is broken or empty.
    """
    lines = {}
    for path in paths:
        file = path / "ledger.jsonl" if path.is_dir() else path
        found = ledger.read(file)
        if not found:
            raise ValueError(f"there is no run in {file}")
        lines.update({line["run"]: line for line in found})
    return list(lines.values())


def read_references(path: Path | None) -> dict[str, Reference]:
    """Those in a file; without one, the project's own, where there are any.

    Raises OSError if it cannot be read, ValueError for what is no reference.
    """
    if path is None and not REFERENCES.exists():
        return {}
    file = path or REFERENCES
    try:
        entries = run_folder.read_json(file)
    except OSError as error:
        raise OSError(f"cannot read the references {file}: {error}") from error
    return {env: _reference(file, env, entry) for env, entry in entries.items()}


def _return(measured: Any) -> float:
    return float(measured["return"] if isinstance(measured, dict) else measured)


def _reference(file: Path, env: str, entry: Any) -> Reference:
    try:
        known = {
            name: None if entry.get(name) is None else _return(entry[name])
            for name in ("best", "best_at_starts")
        }
        best_is = str(entry.get("best_is") or "not described")
        reference = Reference(_return(entry["random"]), best_is=best_is, **known)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {env} is no reference: {error!r}") from error
    if reference.random == reference.best:
        raise ValueError(f"{file}: {env}: random and best are both {reference.best:g}")
    return reference
