"""Do sampled motions approach the shortest?  RRT* and PRM* against samples.

    python -m benchmarks.motion              # about two minutes on two cores

A point among boxes, whose shortest path the visibility graph gives, ten seeds vmapped;
next to them RRT, which ends with the first path, and what random shortcuts make of it.
Also an arm of two links among discs.  Writes results/motion.json and docs/motion.png.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import visibility
from experiments.reports import plots
from experiments.runs import jax_settings, run_folder
from mbrl_jax.ops import obstacles, paths
from mbrl_jax.planners import prm, rrt
from mbrl_jax.types import Key

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "motion.json"
PICTURE = ROOT / "docs" / "motion.png"

BOXES = [(2, 3.5, 3, 11), (2, -1, 3, 1), (4.5, 1, 6, 7), (4.5, 8.5, 6, 11)]
BOXES += [(7.5, 5, 8.5, 11), (7.5, -1, 8.5, 2)]  # beyond the bounds, as walls
LOW, HIGH, START, GOAL = (0, 0), (10, 10), (0.7, 9), (9.3, 9)
STEP, NUM_TRIES = 1.5, 200
TREE_SAMPLES = 2000  # of the picture
SIZES, NUM_SEEDS = (500, 1000, 2000, 4000, 8000), 10

LENGTHS = (1.0, 1.0)
DISCS = [(1.2, 0.9, 0.3), (-1.0, 0.8, 0.3), (0.9, -1.1, 0.25), (0.1, 1.6, 0.15)]
ARM_START, ARM_GOAL = (-0.6, -0.3), (2.4, 0.5)
ARM_SAMPLES = 1500

Search = Callable[[Key, int], paths.Path]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found = measure(SIZES, NUM_SEEDS)
    tree, arm = point_tree(TREE_SAMPLES), arm_motion(ARM_SAMPLES)
    found["arm"] = {
        "num_samples": ARM_SAMPLES,
        "distance": float(np.linalg.norm(np.subtract(ARM_GOAL, ARM_START))),
        "PRM*": arm[0].cost,
        "PRM*, shortcuts": arm[1].cost,
    }
    run_folder.write_json(RESULTS, found | run_folder.surroundings())
    draw(found, tree, arm[1], PICTURE)


def space() -> obstacles.Space:
    return obstacles.point(obstacles.shapes(boxes=BOXES), LOW, HIGH)


def planners() -> dict[str, Search]:
    """From a key and the number of samples to a path."""
    task = space(), jnp.array(START, float), jnp.array(GOAL, float)

    def first(key: Key, num_samples: int) -> paths.Path:
        return rrt.rrt(key, *task, num_samples=num_samples, step=STEP).path

    def shortened(key: Key, num_samples: int) -> paths.Path:
        path = first(key, num_samples)
        return paths.shortcut(
            jax.random.fold_in(key, 0), task[0].clear, path, NUM_TRIES
        )

    def star(key: Key, num_samples: int) -> paths.Path:
        return rrt.rrt_star(key, *task, num_samples=num_samples, step=STEP).path

    def roadmap(key: Key, num_samples: int) -> paths.Path:
        return prm.prm_star(key, *task, num_samples=num_samples).path

    return {
        "RRT*": star,
        "PRM*": roadmap,
        "RRT": first,
        "RRT, shortcuts": shortened,
    }


def measure(sizes: Sequence[int], num_seeds: int) -> dict[str, Any]:
    """Costs [sizes, seeds] of each planner, inf where it found nothing.

    Those of RRT, which does not go on, have one size: the largest.
    """
    best, _ = visibility.shortest_path(BOXES, START, GOAL, LOW, HIGH)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    found: dict[str, Any] = {"optimum": best, "num_samples": sizes, "costs": {}}
    for name, search in planners().items():
        rows = []
        for size in sizes if name.endswith("*") else sizes[-1:]:
            cost = jax.jit(jax.vmap(lambda key, n=size, go=search: go(key, n).cost))
            rows.append(np.asarray(cost(keys), float))
            print(name, size, (rows[-1] / best).round(3), flush=True)
        found["costs"][name] = np.array(rows)
    return found


def point_tree(num_samples: int) -> rrt.Search:
    task = space(), jnp.array(START, float), jnp.array(GOAL, float)
    search = lambda key: rrt.rrt_star(key, *task, num_samples=num_samples, step=STEP)
    return jax.jit(search)(jax.random.split(jax.random.key(0), NUM_SEEDS)[0])


def arm_motion(num_samples: int) -> tuple[paths.Path, paths.Path]:
    """The path of PRM*, and after shortcuts."""
    arm = obstacles.two_link_arm(LENGTHS, obstacles.shapes(DISCS))

    def search(key: Key) -> tuple[paths.Path, paths.Path]:
        ends = jnp.array(ARM_START), jnp.array(ARM_GOAL)
        path = prm.prm_star(key, arm, *ends, num_samples=num_samples).path
        key = jax.random.fold_in(key, 0)
        return path, paths.shortcut(key, arm.clear, path, NUM_TRIES)

    return jax.jit(search)(jax.random.key(0))


def draw(found: dict[str, Any], tree: rrt.Search, arm: paths.Path, path: Path) -> None:
    figure, (point_axis, arm_axis, cost_axis) = plots.new_figure(3, width=13)
    draw_point(point_axis, tree)
    draw_arm(arm_axis, arm)
    draw_costs(cost_axis, found)
    plots.save(figure, path)


def draw_point(axis: Any, search: rrt.Search) -> None:
    from matplotlib.patches import Rectangle

    for a, b, c, d in BOXES:
        axis.add_patch(Rectangle((a, b), c - a, d - b, color="#c9cdd4", lw=0))
    tree = jax.tree.map(np.asarray, search.tree)
    nodes, parents = tree.nodes[: tree.num_nodes], tree.parents[: tree.num_nodes]
    edges = np.stack([nodes, nodes[parents]], axis=1)  # [n, 2, 2]
    axis.plot(*edges.T, color=plots.COLOURS[0], lw=0.3, alpha=0.6)
    axis.plot(*search.path.points.T, color=plots.COLOURS[1], lw=2, label="its path")
    _, best = visibility.shortest_path(BOXES, START, GOAL, LOW, HIGH)
    axis.plot(*best.T, color=plots.INK, lw=1, linestyle="--", label="the shortest")
    axis.plot(*np.array([START, GOAL]).T, "o", color=plots.INK, ms=5)
    _frame(axis, (LOW[0], HIGH[0]), (LOW[1], HIGH[1]))
    axis.set_title(f"tree of RRT*, {TREE_SAMPLES} samples", loc="left")
    axis.legend(loc="lower left", fontsize=8)


def draw_arm(axis: Any, path: paths.Path, num_places: int = 14) -> None:
    """Pale where it begins."""
    from matplotlib.patches import Circle

    for x, y, radius in DISCS:
        axis.add_patch(Circle((x, y), radius, color="#c9cdd4", lw=0))
    for part in np.linspace(0, 1, num_places):
        angles = paths.at(path.points, jnp.asarray(part * path.cost))
        joints = np.asarray(obstacles.arm_joints(LENGTHS, angles))
        how = {"color": plots.COLOURS[0], "alpha": 0.2 + 0.8 * part}
        axis.plot(*joints.T, marker="o", ms=3, lw=1.5, **how)
    reach = 1.1 * sum(LENGTHS)
    _frame(axis, (-reach, reach), (-reach, reach))
    axis.set_title("an arm among discs: PRM*, shortcuts", loc="left")


def draw_costs(axis: Any, found: dict[str, Any]) -> None:
    """Mean and 95 % interval, where all seeds found a path."""
    sizes, best = np.array(found["num_samples"]), found["optimum"]
    for i, (name, costs) in enumerate(found["costs"].items()):
        costs = np.broadcast_to(costs, (len(sizes), costs.shape[1]))
        there = np.isfinite(costs).all(axis=1)
        x, y = sizes[there], costs[there] / best
        mean, half = y.mean(axis=1), plots.interval(y)
        how = {"color": plots.COLOURS[i]}
        marker = "o" if name.endswith("*") else ""
        axis.plot(x, mean, marker=marker, label=name, **how)
        axis.fill_between(x, mean - half, mean + half, alpha=0.15, lw=0, **how)
    axis.axhline(1, color=plots.INK, linestyle="--", label="visibility graph")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, map(str, sizes))
    axis.minorticks_off()
    axis.set(xlabel="samples", ylabel="cost relative to the shortest path")
    axis.set_title(f"{costs.shape[1]} seeds, mean and 95 % interval", loc="left")
    axis.legend(frameon=False)


def _frame(axis: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    axis.set(xlim=x, ylim=y, aspect="equal", xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[["top", "right"]].set_visible(True)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
