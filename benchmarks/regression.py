"""Do the methods still learn as they did?  Of four families, three seeds, short.

    python -m benchmarks.regression            # exit code 1 if one left its band
    python -m benchmarks.regression --make     # measures the bands anew, on ten seeds

Planning in a model, learning values, policy gradients, back-propagation through a
simulator; compiled as users compile, which the tests are not.

A band is what ten other seeds reached, from the least to the largest return, and on
either side half of that width again: the same code on another CPU rounds differently,
and after an episode that is as good as another seed.  No band goes beyond the largest
return there can be.  The interval of the IQM of the three seeds has to lie within it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.reports import results
from experiments.reports.statistics import Estimate
from experiments.reports.text import interval
from experiments.runs import ledger, run_folder

ROOT = Path(__file__).parents[1]
BANDS = ROOT / "benchmarks" / "results" / "regression_bands.json"
COMMON = ("--eval_every=0", "--eval_episodes=3")
PETS = ("--env=pendulum", "--num_steps=3")
METHODS: dict[str, tuple[str, ...]] = {
    "PETS: probabilistic ensemble, TS-infinity, iCEM": PETS,
    "deterministic ensemble, mean, CEM": (
        *PETS,
        "--nomodel.ensemble.probabilistic",
        "--propagation=expectation",
        "--planner=cem",
    ),
    "one network, mean, random shooting": (
        *PETS,
        "--nomodel.ensemble.probabilistic",
        "--model.ensemble.num_members=1",
        "--propagation=expectation",
        "--planner=random_shooting",
        "--plan.num_samples=300",
    ),
    "SAC": ("--algorithm=sac", "--env=pendulum", "--preset", "--num_steps=24"),
    "PPO": ("--algorithm=ppo", "--env=cartpole", "--preset", "--num_steps=4"),
    "APG": ("--algorithm=apg", "--env=pendulum", "--preset"),
}
MOST = {"pendulum": 0.0, "cartpole": 500.0}  # return that there can be
TESTED, MEASURED = (0, 3), (100, 10)  # the first seed, and how many


def run(method: str, first_seed: int, num_seeds: int) -> list[ledger.Line]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.sweep", *COMMON, *METHODS[method]]
        command += [f"--seed={first_seed}", f"--num_seeds={num_seeds}"]
        command += [f"--sweep_dir={folder}/sweep"]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return ledger.read(Path(folder) / "sweep" / "ledger.jsonl")


def band(returns: Sequence[float], most: float) -> tuple[float, float]:
    margin = 0.5 * (max(returns) - min(returns))
    high = min(max(returns) + margin, most)
    return round(min(returns) - margin, 1), round(high, 1)


def within(found: Estimate, low: float, high: float) -> bool:
    return bool(np.isfinite(found.value) and low <= found.low and found.high <= high)


def make() -> None:
    made: dict[str, Any] = json.loads(BANDS.read_text()) if BANDS.exists() else {}
    for method, own in METHODS.items():
        if flags.FLAGS.only and method not in flags.FLAGS.only:
            continue
        lines = run(method, *MEASURED)
        returns = [line["return"] for line in lines]
        low, high = band(returns, MOST[lines[0]["env"]])
        made[method] = {"low": low, "high": high, "returns": returns}
        made[method] |= {"flags": [*COMMON, *own], "seeds": [x["seed"] for x in lines]}
        made[method] |= {"commit": lines[0]["commit"], "device": lines[0]["device"]}
        print(f"{method}: {low} to {high}", flush=True)
    run_folder.write_json(BANDS, made)


def check() -> bool:
    """Prints a line for each method; whether all are within their bands."""
    good, bands = True, json.loads(BANDS.read_text())
    with ThreadPoolExecutor(2) as pool:  # while one compiles, on one core
        found = pool.map(lambda method: run(method, *TESTED), bands)
        for (method, known), lines in zip(bands.items(), found, strict=True):
            (row,) = results.rows(lines, {})
            fine = within(row.iqm, known["low"], known["high"])
            good &= fine
            says = "is within" if fine else "LEFT"
            bounds = f"{known['low']} to {known['high']}"
            print(f"{method}: {interval(row.iqm)} {says} {bounds}", flush=True)
    return good


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if flags.FLAGS.make:
        make()
    elif not check():
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_boolean("make", False, "measure the bands anew")
    flags.DEFINE_list("only", [], "those of these methods only")
    app.run(main)
