"""Are two sets of runs really different?

    python -m experiments.compare A B

A and B are each a ledger, a folder with a ledger.jsonl, or the folder of a run in one;
behind a colon, a selection: `runs/ledger.jsonl:plan.horizon=10,env=pendulum`.  What
differs is the interquartile mean of the return; really, if 0 is not in the 95 %
bootstrap interval of the difference.  With several environments, returns are normalised
and B is judged over all of them.  Exit code 3: B is really worse.
"""

import collections
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.reports import results, statistics
from experiments.reports.results import Reference
from experiments.reports.statistics import Estimate, Scores
from experiments.runs import command_flags, ledger, paths
from experiments.sweeps import selection

MIN_RUNS = 3
FAILURE = 3  # exit code
FAIL_ON = {"worse": ("worse",), "different": ("worse", "better"), "never": ()}


class Comparison(NamedTuple):
    name: str  # of the environment, or all of them
    num_runs: tuple[int, int]
    iqms: tuple[float, float]
    difference: Estimate  # B - A
    improvement: Estimate  # P(B > A)


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_enum(
        "fail_on", "worse", FAIL_ON, "exit with 3 if B is that", flag_values=values
    )
    meaning = "file of random and best returns; default: the project's, if there are"
    flags.DEFINE_string("references", "", meaning, flag_values=values)
    values.set_gnu_getopt()  # flags may come last
    rest = values(argv, known_only=True)
    unknown = [x for x in rest[1:] if x.startswith("--")]
    sets = [x for x in rest[1:] if not x.startswith("--")]
    if command_flags.parse_or_help(values, [argv[0], *unknown], __doc__, "fail_on"):
        return
    if len(sets) != 2:
        raise flags.Error(f"two sets of runs are needed, A and B; there are {sets}")
    path = paths.expanded(values.references) if values.references else None
    a, b = (selection.read(x) for x in sets)
    comparisons = compare(a, b, results.read_references(path))
    for name, source, lines in zip("AB", sets, (a, b), strict=True):
        print(f"{name}: {source}: {_contents(lines)}")
    print(table(comparisons))
    outcome = verdict(comparisons[-1])
    print(_sentence(outcome))
    if outcome in FAIL_ON[values.fail_on]:
        sys.exit(FAILURE)


def compare(
    a: Sequence[ledger.Line],
    b: Sequence[ledger.Line],
    references: Mapping[str, Reference],
) -> list[Comparison]:
    """For each environment, and, if there are several, last over all of them.

    Raises ValueError for too few runs, sets of environments that differ, or no
    reference where one is needed.
    """
    envs, others = (sorted({line["env"] for line in lines}) for lines in (a, b))
    if envs != others:
        raise ValueError(
            f"the environments differ: {', '.join(envs)}, and {', '.join(others)}"
        )
    scores = [(_returns("A", a, env), _returns("B", b, env)) for env in envs]
    found = [_compare(env, [x], [y]) for env, (x, y) in zip(envs, scores, strict=True)]
    if len(envs) == 1:
        return found
    sides: list[list[np.ndarray]] = [[], []]
    for env, pair in zip(envs, scores, strict=True):
        for side, returns in zip(sides, pair, strict=True):
            values = results.normalise(returns, references.get(env))
            if values is None:
                raise ValueError(f"{env} has no --references: nothing to normalise by")
            side.append(values)
    return [*found, _compare("all, normalised", *sides)]


def _returns(name: str, lines: Sequence[ledger.Line], env: str) -> np.ndarray:
    here = [line for line in lines if line["env"] == env and results.finished(line)]
    if len(here) < MIN_RUNS:
        raise ValueError(
            f"{name} has {len(here)} finished runs in {env}; {MIN_RUNS} are the least"
        )
    return np.array([float(line["return"]) for line in here])


def _compare(name: str, a: Scores, b: Scores) -> Comparison:
    return Comparison(
        name,
        (sum(map(len, a)), sum(map(len, b))),
        (float(statistics.iqm(a)), float(statistics.iqm(b))),
        statistics.difference(np.random.default_rng(0), b, a),
        statistics.bootstrap(np.random.default_rng(0), statistics.improvement, b, a),
    )


def verdict(comparison: Comparison) -> str:
    """What B is: worse, better, or the same as far as can be told."""
    if comparison.difference.high < 0:
        return "worse"
    return "better" if comparison.difference.low > 0 else "same"


def table(comparisons: Sequence[Comparison]) -> str:
    """A row each."""
    cells = [["environment", "n", "IQM A", "IQM B", "B - A", "P(B > A)", "B is"]]
    for x in comparisons:
        iqms = (f"{value:.4g}" for value in x.iqms)
        estimates = (
            f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"
            for e in (x.difference, x.improvement)
        )
        runs = "{}, {}".format(*x.num_runs)
        cells.append([x.name, runs, *iqms, *estimates, verdict(x)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _contents(lines: Sequence[ledger.Line]) -> str:
    num = sum(results.finished(line) for line in lines)
    methods = {
        (line["env"], x) for line, x in zip(lines, results.labels(lines), strict=True)
    }
    most = max(collections.Counter(env for env, _ in methods).values())
    mixed = f", of {most} settings together" if most > 1 else ""
    left_out = f", {len(lines) - num} others left out" if num < len(lines) else ""
    return f"{num} finished runs{left_out}{mixed}"


def _sentence(outcome: str) -> str:
    if outcome == "same":
        return (
            "No real difference: 0 is in the 95 % interval of the difference. "
            "More runs would narrow it."
        )
    return f"B is really {outcome} than A: 0 is outside the interval of the difference."


if __name__ == "__main__":
    command_flags.command(main)
