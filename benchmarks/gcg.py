"""A car among pillars: what a computation graph predicts, and how far ahead.

    python -m benchmarks.gcg    # trains what is missing, draws it

Settings are those of the preset, but for what a label says; five seeds that nothing was
chosen on.  A return is how many of 100 steps go by without a collision.  Writes
results/gcg.json and docs/gcg.png.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import app

from benchmarks.policy_gradients import Case, draw, learn
from experiments.reports import plots
from experiments.runs import jax_settings, run_folder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gcg.json"
PICTURE = ROOT / "docs" / "gcg.png"
ENV, EVERY = "driving", 4
VALUES = (
    ("learn.predict", "reward"),
    ("learn.bootstrap", True),
    ("learn.discount", 0.95),
    ("learn.plan.num_samples", 64),
)
CASES = (
    Case("collisions, 8 steps ahead", "gcg"),
    Case("Q-learning", "gcg", (*VALUES, ("learn.plan.horizon", 1))),
    Case("Q-learning, 8 steps", "gcg", VALUES),
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for case in CASES:
        if case.label not in found:
            found[case.label] = learn(ENV, case, every=EVERY)
            run_folder.write_json(RESULTS, found)
        print(case.label, found[case.label]["return"][-1], flush=True)
    made, (axis,) = plots.new_figure(1, width=7)
    draw(axis, {case.label: found[case.label] for case in CASES})
    axis.set(title=ENV, ylabel="steps without a collision, IQM of 5 seeds")
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
