"""The page of presets: which algorithm has which environment, and what it reaches."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.reports import statistics
from experiments.reports.text import NOTHING, count, interval
from experiments.runs import ledger, presets

HEAD = """# Presets

Settings that worked, a file for each algorithm and environment in
[experiments/presets](../experiments/presets). `--preset` takes them:

    python -m experiments.run --algorithm=ALGORITHM --env=ENVIRONMENT --preset

This page is made from the ledger by

    python -m experiments.report --ledger=benchmarks/results/ledger.jsonl \\
        --presets=docs/presets.md

Returns are the interquartile mean of the last evaluations [95 % interval], on seeds
that the settings were not chosen on; behind them, how many runs pass the criterion
below.
"""


def markdown(lines: Sequence[ledger.Line]) -> str:
    names = presets.names()
    algorithms = sorted({algorithm for algorithm, _ in names})
    table = [["environment", *algorithms], ["---"] * (len(algorithms) + 1)]
    for env in sorted({env for _, env in names}):
        cells = [
            _reached(algorithm, env, lines) if (algorithm, env) in names else NOTHING
            for algorithm in algorithms
        ]
        table.append([env, *cells])
    rows = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    return f"{HEAD}\n{rows}{''.join(_details(*pair) for pair in names)}"


def _reached(algorithm: str, env: str, lines: Sequence[ledger.Line]) -> str:
    found = presets.found(algorithm, env, lines)
    if not found:
        return "not measured"
    returns = np.array([line["return"] for line in found])
    iqm = statistics.bootstrap(np.random.default_rng(0), statistics.iqm, [returns])
    num = sum(presets.passes(env, line) for line in found)
    steps = max(line["env_steps"] for line in found)
    return (
        f"{interval(iqm)} after {count(steps, 'env step')}; "
        f"{num} of {len(found)} seeds pass"
    )


def _details(algorithm: str, env: str) -> str:
    preset = presets.load(algorithm, env)
    settings = " ".join(
        f"--{name}={_as_flag(x)}" for name, x in preset["settings"].items()
    )
    return (
        f"\n## {algorithm}, {env}\n\n"
        f"- settings: `{settings}`, chosen on {preset['chosen_on']}\n"
        f"- criterion: {presets.criterion(env)}\n"
    )


def _as_flag(x: Any) -> str:
    if isinstance(x, tuple):
        return ",".join(map(str, x))
    return x if isinstance(x, str) else json.dumps(x)
