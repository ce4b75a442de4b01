"""Evaluates a run's last checkpoint.

    python -m experiments.evaluate --run_dir=FOLDER

Prints the returns, and writes them to evaluation.json in the run folder if it can.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.runs import command_flags, paths, progress, registry, run_folder
from mbrl_jax.training import train

COLUMNS = ("return_mean", "return_std", "return_min", "return_max", "length_mean")


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("run_dir", None, "folder of the run", flag_values=values)
    meaning = "of the episodes; default: those of the evaluation in training"
    flags.DEFINE_integer("seed", None, meaning, 0, flag_values=values)
    meaning = "default: as in training"
    flags.DEFINE_integer("num_episodes", None, meaning, 1, flag_values=values)
    meaning = "that of the run again: needed if it is a module, as MODULE:FUNCTION"
    flags.DEFINE_string("env", "", meaning, flag_values=values)
    if command_flags.parse_or_help(values, argv, __doc__, required="run_dir"):
        return
    folder = paths.expanded(values.run_dir)
    run = registry.load(folder, progress.report, values.env)
    num_episodes = values.num_episodes or run.record["eval_episodes"] or 5
    metrics = evaluate(run, values.seed, num_episodes)
    record = {"step": run.step, "seed": values.seed, "num_episodes": num_episodes}
    print(f"{folder}, step {run.step}, {num_episodes} episodes")
    print(table(metrics, run_folder.rows(run.record)), flush=True)
    try:
        run_folder.write_json(folder / "evaluation.json", {**record, **metrics})
    except OSError as error:  # what was asked for has been said
        progress.report(f"{error}: only printed")


def evaluate(run: registry.Run, seed: int | None, num_episodes: int) -> dict[str, Any]:
    """The metrics of `rollout.evaluate`, each [] or [S]."""
    key, loop = run.key, run.loop(num_episodes)
    if seed is not None:
        key = train.seeds(seed, max(1, run.key.size))
        loop = run.loop(num_episodes, seed)
    return jax.device_get(loop.evaluate(key, run.step, run.state)[0])


def table(metrics: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """A row per run: what it differs in from the others, and its figures."""
    rows = np.stack([np.ravel(metrics[f"eval/{name}"]) for name in COLUMNS], axis=1)
    widths = {name: max(6, len(name) + 2) for name in runs[0]}
    first = "".join(f"{name:>{width}}" for name, width in widths.items())
    lines = [first + "".join(f"{name.replace('_', ' '):>14}" for name in COLUMNS)]
    for run, row in zip(runs, rows, strict=True):
        left = "".join(f"{run[name]:>{width}.6g}" for name, width in widths.items())
        lines.append(left + "".join(f"{x:14.5g}" for x in row))
    if len(rows) > 1:
        left = f"{'mean':>6}".ljust(sum(widths.values()))
        lines.append(left + "".join(f"{x:14.5g}" for x in rows.mean(axis=0)))
    return "\n".join(lines)


if __name__ == "__main__":
    command_flags.command(main)
