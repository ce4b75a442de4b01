"""Distral in the two rooms, next to learners that do not know of each other.

    python -m benchmarks.distral    # trains what is missing, and draws it

Five seeds that nothing was chosen on, evaluated as they act.  The settings are those of
the preset, but for what a label says; those of the independent learners were chosen on
the same other seeds.  How many steps, of all tasks together, until the return has come
nine tenths of the way from acting at random to the best; and what the centroid does in
the corridor, having come from one side or the other.  Writes results/distral.json and
docs/distral.png.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks.policy_gradients import Case, draw, learn
from experiments.reports import plots, statistics
from experiments.runs import jax_settings, presets, run_folder
from mbrl_jax.algorithms import distral
from mbrl_jax.envs import grid
from mbrl_jax.networks import MLP
from mbrl_jax.types import Array, PyTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "distral.json"
PICTURE = ROOT / "docs" / "distral.png"
ENV = "+".join(f"two_rooms{i}" for i in range(1, 5))
NUM_STEPS, EVERY, NUM_EPISODES = 150, 5, 100
AT_RANDOM, BEST = -2.769, 0.476  # by the tables, see tests/envs/grid_test.py
ENOUGH = AT_RANDOM + 0.9 * (BEST - AT_RANDOM)
DISTRAL, INDEPENDENT = "KL + entropy, two columns", "independent"
CASES = (
    Case(DISTRAL, "distral"),
    Case(
        INDEPENDENT,
        "distral",
        (("alpha", 0.0), ("beta", 50.0), ("exploration", 0.05)),
    ),
)
LEFT, RIGHT = 2, 3


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    curves = found.get("curves", {})
    for case in CASES:
        if case.label not in curves:
            curves[case.label] = learn(
                ENV,
                case,
                num_steps=NUM_STEPS,
                every=EVERY,
                num_episodes=NUM_EPISODES,
                look=lambda state: {"goes on": goes_on(state)},
            )
            run_folder.write_json(RESULTS, {**summary(curves), "curves": curves})
    print(json.dumps(run_folder.plain(summary(curves)), indent=2), flush=True)
    picture(curves)


def goes_on(state: distral.State) -> list[float]:
    """How likely it is by the centroid of each seed [S] to go on in the corridor as
    one came, from either side, on average over its cells."""
    config = presets.record("distral", ENV)["config"]
    network: Any = MLP(tuple(config["hidden_sizes"]), len(grid.MOVES), jax.nn.relu)
    walls = grid.parse(grid.TWO_ROOMS[0]).walls
    (row,) = np.flatnonzero(~walls.any(axis=1))
    cells = row * walls.shape[1] + np.flatnonzero(walls.any(axis=0))

    def one(centroid: PyTree) -> Array:
        def share(cell: Array, action: Array) -> Array:
            place = jax.nn.one_hot(cell, walls.size)
            obs = jnp.concatenate([place, jax.nn.one_hot(action, len(grid.MOVES))])
            return jax.nn.softmax(network.apply(centroid, obs))[action]

        each = jax.vmap(jax.vmap(share, in_axes=(None, 0)), in_axes=(0, None))
        return each(jnp.array(cells), jnp.array([LEFT, RIGHT])).mean()

    return np.asarray(jax.vmap(one)(state.centroid)).tolist()


def until_enough(curve: dict[str, Any]) -> np.ndarray:
    """Steps [S] of the first evaluation that was good enough; inf if none was."""
    good = np.asarray(curve["return"]) >= ENOUGH  # [P, S]
    first = np.asarray(curve["env_steps"])[good.argmax(axis=0)]
    return np.where(good.any(axis=0), first, np.inf)


def summary(curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    steps = {label: until_enough(curve) for label, curve in curves.items()}
    last = {label: max(curve["env_steps"]) for label, curve in curves.items()}
    found = {
        "enough": ENOUGH,
        "steps": {
            label: {
                "seeds": [
                    int(x) if np.isfinite(x) else f"> {last[label]}" for x in own
                ],
                "mean": _interval(own.clip(max=last[label])),  # where cut: at least
                "last return": _interval(np.asarray(curves[label]["return"][-1])),
                "goes on": _interval(np.asarray(curves[label]["goes on"])),
            }
            for label, own in steps.items()
        },
    }
    if steps.keys() >= {DISTRAL, INDEPENDENT}:
        ours, other = steps[DISTRAL], steps[INDEPENDENT].clip(max=last[INDEPENDENT])
        rng, ratio = np.random.default_rng(0), lambda x: x[0].mean(-1) / x[1].mean(-1)
        # what was cut counts as if it had arrived then: the ratio is a bound
        found["ratio"] = statistics.bootstrap(rng, ratio, [ours, other])._asdict()
    return found


def _interval(values: np.ndarray) -> dict[str, float]:
    mean = lambda scores: np.mean(scores[0], axis=-1)
    rng = np.random.default_rng(0)
    return statistics.bootstrap(rng, mean, [np.asarray(values, float)])._asdict()


def picture(curves: dict[str, dict[str, Any]]) -> None:
    made, (axis,) = plots.new_figure(1, width=7)
    draw(axis, {case.label: curves[case.label] for case in CASES})
    axis.axhline(ENOUGH, color=plots.INK, lw=0.8, linestyle="--")
    axis.axhline(BEST, color=plots.INK, lw=0.8)
    axis.set_title("two rooms, four tasks", loc="left", fontsize=11)
    axis.set(ylabel="return, IQM of 5 seeds")
    plots.save(made, PICTURE)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
