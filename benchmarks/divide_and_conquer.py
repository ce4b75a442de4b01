"""Divide and conquer next to its ablations, at equal samples.

    python -m benchmarks.divide_and_conquer    # trains what is missing, and draws it

Settings are those of the preset, but for the coupling, and half as many steps; five
seeds that nothing was chosen on, evaluated by the centre's most likely action.
"central" is TRPO on all starts at once.  Writes
results/divide_and_conquer.json and docs/divide_and_conquer.png.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import app

from benchmarks.policy_gradients import Case, draw, learn
from experiments.reports import plots
from experiments.runs import jax_settings, run_folder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "divide_and_conquer.json"
PICTURE = ROOT / "docs" / "divide_and_conquer.png"
ENV, NUM_STEPS = "turned_point_mass", 40
CASES = tuple(
    Case(label, "divide_and_conquer", (("coupling", coupling),))
    for label, coupling in (
        ("divide and conquer", "dnc"),
        ("TRPO, one policy", "central"),
        ("without a coupling", "none"),
        ("Distral's coupling", "distral"),
    )
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for case in CASES:
        if case.label not in found:
            found[case.label] = learn(ENV, case, num_steps=NUM_STEPS, every=10)
            run_folder.write_json(RESULTS, found)
        print(case.label, found[case.label]["return"][-1], flush=True)
    made, (axis,) = plots.new_figure(1, width=7)
    draw(axis, {case.label: found[case.label] for case in CASES})
    axis.set(title=ENV, ylabel="return, IQM of 5 seeds")
    axis.set_yscale("symlog", linthresh=50)
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
