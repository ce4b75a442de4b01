"""What planning is worth in mazes: Dyna-Q, Dyna-Q+ and prioritised sweeping.

    python -m benchmarks.dyna_maze          # minutes; results and docs/dyna_maze.png

The lecture's figure, steps of each episode with 0, 5 and 50 planned updates a step;
rewards in the two mazes that change; updates until the way is nearly the shortest, in
mazes of growing size; and the speed of 1,000 runs as one program, next to a loop in
numpy.  Writes results/dyna_maze.json.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import timing
from experiments.reports import plots, statistics
from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.envs import grid
from mbrl_jax.ops import tabular
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, PyTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dyna_maze.json"
PICTURE = ROOT / "docs" / "dyna_maze.png"

SEEDS, CHOOSING, SIZE_SEEDS = range(10, 40), range(5), range(10, 20)
EPISODES = 50
# of each run by planned updates, enough for 50 episodes
REAL_STEPS = {0: 16_000, 5: 6000, 50: 5000}
# means of 30 runs of another implementation, in numpy, by episode
SHOWN = (1, 2, 3, 4, 5, 6, 10, 20, 50)
REFERENCE = {
    0: (921, 475, 546, 367, 222, 177, 131, 45.6, 17.8),
    5: (803, 165.7, 55.1, 33.8, 22.9, 17.6, 17.6, 17.1, 15.7),
    50: (793, 39.5, 17.8, 17.0, 17.3, 16.7, 16.6, 17.3, 16.4),
}
CHANGING = {"blocking_maze": 1000, "shortcut_maze": 3000}  # steps before the change
NUM_PLANNING, EVERY = 10, 10  # in these; and real steps between two points
RATES, KAPPAS = (0.5, 1.0), (1e-4, 3e-4, 1e-3)
PLANNING = {
    "Dyna-Q": "uniform",
    "Dyna-Q+": "uniform",
    "prioritised sweeping": "prioritised",
}
SIZED = ("Dyna-Q", "prioritised sweeping")
SIZES, SWEEPS = (1, 2, 3), {"num_planning": 5, "learning_rate": 0.5}
NEARLY = 1.2  # times the shortest way: the rest is exploration's matter
SPEED_SEEDS, SPEED_STEPS, PLAIN_STEPS, SPEED_PLANNING = 1000, 1000, 3000, 5


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found: dict[str, Any] = {}
    parts = {"maze": maze, "changing": changing, "sizes": sizes, "speed": speed}
    for name, part in parts.items():
        start = time.perf_counter()
        found[name] = part()
        print(name, round(time.perf_counter() - start, 1), "s", flush=True)
    picture(found)
    run_folder.write_json(RESULTS, summary(found) | run_folder.surroundings())


def keys_of(seeds: Sequence[int]) -> Key:
    return jax.vmap(jax.random.key)(jnp.array(seeds))


def trace(
    algorithm: Algorithm,
    num_steps: int,
    read: Callable[[PyTree, Metrics], PyTree],
    key: Key,
) -> PyTree:
    """What is read after each step of a run, [num_steps, ...]."""
    init_key, key = jax.random.split(key)

    def step(state: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        state, metrics = algorithm.step(key, state)
        return state, read(state, metrics)

    keys = jax.random.split(key, num_steps)
    return jax.lax.scan(step, algorithm.init(init_key), keys)[1]


# --- The lecture's figure.


def endless(text: str) -> Env:
    """A maze in which an episode ends at the goal only."""
    return grid.make("maze", grid.parse(text), episode_length=10**6)


def maze() -> dict[str, Any]:
    """Steps of each episode [seeds, episodes], by planned updates a step."""
    found = {}
    for number, num_steps in REAL_STEPS.items():
        config = dyna_q.Config(interval=1, num_planning=number)
        algorithm = dyna_q.make(endless(grid.MAZE), config)
        read = lambda state, metrics: state.num_episodes
        run = jax.vmap(functools.partial(trace, algorithm, num_steps, read))
        finished = np.asarray(jax.jit(run)(keys_of(SEEDS)))
        if finished[:, -1].min() < EPISODES:
            raise RuntimeError(f"{num_steps} steps are too few for {number} updates")
        episodes = np.arange(1, EPISODES + 1)
        ends = [np.searchsorted(row, episodes) + 1 for row in finished]
        found[number] = np.diff(ends, axis=1, prepend=0)
    return found


# --- The mazes that change.


def changing() -> dict[str, Any]:
    """By maze and method the rewards so far [seeds, time], with what was chosen."""
    found: dict[str, Any] = {}
    for name in CHANGING:
        found[name] = {}
        for method in PLANNING:
            kappas = KAPPAS if method == "Dyna-Q+" else (0.0,)
            tried = [(rate, kappa) for rate in RATES for kappa in kappas]
            totals = rewards(name, method, tried, CHOOSING)[..., -1].mean(axis=1)
            rate, kappa = tried[int(totals.argmax())]
            found[name][method] = {
                "learning_rate": rate,
                "kappa": kappa,
                "rewards": rewards(name, method, [(rate, kappa)], SEEDS)[0],
            }
    return found


def rewards(
    name: str, method: str, tried: Sequence[tuple[float, float]], seeds: Sequence[int]
) -> np.ndarray:
    """So far, every `EVERY` steps, [tried, seeds, time]."""
    env = envs.make(name)
    config = dyna_q.Config(EVERY, NUM_PLANNING, planning=PLANNING[method])

    def one(values: Array, key: Key) -> Array:
        bonus = {"kappa": values[1]} if method == "Dyna-Q+" else {}
        own = dataclasses.replace(config, learning_rate=values[0], **bonus)
        read = lambda state, metrics: metrics["episode/return"]
        return trace(dyna_q.make(env, own), env.episode_length // EVERY, read, key)

    each = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
    return np.asarray(jax.jit(each)(jnp.array(tried), keys_of(seeds)))


# --- Updates until the way is nearly the shortest.


def enlarged(size: int) -> str:
    """The maze with `size` x `size` cells for one; start and goal remain one cell, the
    upper right one of theirs."""
    rows = []
    for row in grid.MAZE.split():
        plain = "".join(x * size for x in row.replace("S", ".").replace("G", "."))
        first = "".join(
            "." * (size - 1) + x if x in "SG" else x * size for x in row
        )  # of the rows of this row
        rows += [first, *[plain] * (size - 1)]
    return "\n".join(rows)


def sizes() -> list[dict[str, Any]]:
    found = []
    for size in SIZES:
        text = enlarged(size)
        tables = grid.tables(grid.parse(text))
        values = tabular.value_iteration(tables, 0.95, tolerance=1e-9).values
        start = grid.parse(text).starts[0]
        length = 1 + round(float(np.log(values[start]) / np.log(0.95)))
        row = {"states": int((~grid.parse(text).walls).sum()), "length": length}
        for method in SIZED:
            config = dyna_q.Config(interval=10, planning=PLANNING[method], **SWEEPS)
            row[method] = until_good(text, int(NEARLY * length), config)
        print(row, flush=True)
        found.append(row)
    return found


def until_good(text: str, length: int, config: dyna_q.Config) -> np.ndarray:
    """Updates of Q [seeds], real and planned, until the greedy way is at most `length`
    long, to the end of the interval that it first was in."""
    env, layout = endless(text), grid.parse(text)
    algorithm, ways = dyna_q.make(env, config), jnp.asarray(grid._neighbours(layout))

    def arrives(q_values: Array) -> Array:
        go = lambda i, cell: ways[cell, q_values[cell].argmax()]
        last = jax.lax.fori_loop(0, length, go, jnp.int32(layout.starts[0]))
        return jnp.asarray(layout.terminal)[last]

    def going(carry: tuple[Key, PyTree, Array]) -> Array:
        return ~arrives(carry[1].q_values)

    def more(carry: tuple[Key, PyTree, Array]) -> tuple[Key, PyTree, Array]:
        key, state, number = carry
        step_key, key = jax.random.split(key)
        state, metrics = algorithm.step(step_key, state)
        planned = jnp.round(config.interval * metrics["q/num_planned"])
        return key, state, number + config.interval + planned

    def one(key: Key) -> Array:
        init_key, key = jax.random.split(key)
        start = key, algorithm.init(init_key), jnp.zeros(())
        return jax.lax.while_loop(going, more, start)[2]

    return np.asarray(jax.jit(jax.vmap(one))(keys_of(SIZE_SEEDS)))


# --- Speed.


def speed() -> dict[str, Any]:
    """Real steps per second, with their planning; compiled before."""
    config = dyna_q.Config(SPEED_STEPS, SPEED_PLANNING)
    algorithm = dyna_q.make(endless(grid.MAZE), config)
    read = lambda state, metrics: state.num_episodes
    run = jax.jit(jax.vmap(functools.partial(trace, algorithm, 1, read)))
    keys = keys_of(range(SPEED_SEEDS))
    jax.block_until_ready(run(keys))
    ours, plain = [], []
    for _ in range(3):  # in turn
        ours.append(timing.time_calls(lambda: run(keys)))
        plain.append(timing.time_calls(lambda: plain_loop(PLAIN_STEPS)))
    our_rate = SPEED_SEEDS * SPEED_STEPS / np.median(ours, axis=0)
    plain_rate = PLAIN_STEPS / np.median(plain, axis=0)
    names = f"per {timing.seconds_unit()}", "per s on the wall"
    return {
        "num_planning": SPEED_PLANNING,
        "seeds": SPEED_SEEDS,
        "ours": dict(zip(names, our_rate, strict=True)),
        "numpy": dict(zip(names, plain_rate, strict=True)),
        "ratio": dict(zip(names, our_rate / plain_rate, strict=True)),
    }


def plain_loop(num_steps: int, seed: int = 0) -> np.ndarray:
    """Dyna-Q as one writes it in numpy; Q [S, A]."""
    config, layout = dyna_q.Config(), grid.parse(grid.MAZE)
    ways, rng = grid._neighbours(layout), np.random.default_rng(seed)
    q, s = np.zeros((54, 4)), int(layout.starts[0])
    model: dict[int, dict[int, tuple[float, int]]] = {}

    def update(s: int, a: int, reward: float, after: int) -> None:
        # Q of the goal stays 0
        target = reward + config.discount * q[after].max()
        q[s, a] += config.learning_rate * (target - q[s, a])

    for _ in range(num_steps):
        if rng.random() < config.epsilon:
            a = int(rng.integers(4))
        else:
            a = int(rng.choice(np.flatnonzero(q[s] == q[s].max())))
        after = int(ways[s, a])
        reward = float(layout.prizes[after])
        update(s, a, reward, after)
        model.setdefault(s, {})[a] = reward, after
        states = list(model)
        for _ in range(SPEED_PLANNING):
            before = states[rng.integers(len(states))]
            actions = list(model[before])
            action = actions[rng.integers(len(actions))]
            update(before, action, *model[before][action])
        s = int(layout.starts[0]) if layout.terminal[after] else after
    return q


# --- What is kept, and drawn.


def interval(values: np.ndarray, num_samples: int = 5000) -> dict[str, float]:
    """Mean and 95 % bootstrap interval over seeds."""
    mean = lambda scores: np.mean(scores[0], axis=-1)
    scores, rng = [np.asarray(values, float)], np.random.default_rng(0)
    found = statistics.bootstrap(rng, mean, scores, num_samples=num_samples)
    return {name: round(float(x), 1) for name, x in found._asdict().items()}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    lengths = {number: x.mean(axis=0) for number, x in found["maze"].items()}
    shown = np.array(SHOWN) - 1
    passed = {
        "50: episode 3 at most 20": lengths[50][2] <= 20,
        "5: episode 6 at most 25": lengths[5][5] <= 25,
        "0: episode 6 at least 100": lengths[0][5] >= 100,
    }
    table = {
        number: {"ours": mean[shown].round(1), "reference": REFERENCE[number]}
        for number, mean in lengths.items()
    }
    return {
        "episodes": SHOWN,
        "steps": {str(number): x for number, x in table.items()},
        "passed": {name: bool(x) for name, x in passed.items()},
        "all episodes": {str(number): x.round(2) for number, x in lengths.items()},
        "changing": {
            name: {
                method: chosen_summary(name, chosen) for method, chosen in own.items()
            }
            for name, own in found["changing"].items()
        },
        "updates until the way is nearly the shortest": [
            {k: interval(x) if k in SIZED else x for k, x in row.items()}
            for row in found["sizes"]
        ],
        "real steps": {
            name: {unit: float(f"{rate:.3g}") for unit, rate in x.items()}
            if isinstance(x, dict)
            else x
            for name, x in found["speed"].items()
        },
    }


def chosen_summary(name: str, chosen: dict[str, Any]) -> dict[str, Any]:
    total, change = chosen["rewards"], CHANGING[name] // EVERY
    return {
        "learning_rate": chosen["learning_rate"],
        "kappa": chosen["kappa"],
        "before": interval(total[:, change - 1]),
        "after": interval(total[:, -1] - total[:, change - 1]),
    }


def picture(found: dict[str, Any]) -> None:
    figure, axes = plots.new_figure(4, width=15)
    for (number, lengths), colour in zip(
        found["maze"].items(), plots.COLOURS, strict=False
    ):
        axes[0].plot(
            np.arange(1, EPISODES + 1),
            lengths.mean(axis=0),
            color=colour,
            label=f"{number} planned updates",
        )
        axes[0].plot(SHOWN, REFERENCE[number], ".", color=colour)
    axes[0].axhline(14, color=plots.INK, lw=0.8, linestyle="--")
    axes[0].set(xlabel="episode", ylabel="steps", yscale="log")
    axes[0].set_title("maze; dots: the reference", loc="left", fontsize=11)
    for axis, (name, own) in zip(axes[1:3], found["changing"].items(), strict=True):
        draw_rewards(axis, own)
        axis.axvline(CHANGING[name], color=plots.INK, lw=0.8, linestyle="--")
        axis.set_title(name.replace("_", " "), loc="left", fontsize=11)
        axis.set(xlabel="steps", ylabel="rewards so far")
    draw_sizes(axes[3], found["sizes"])
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    plots.save(figure, PICTURE)


def draw_rewards(axis: Any, own: dict[str, Any]) -> None:
    for (method, chosen), colour in zip(own.items(), plots.COLOURS, strict=False):
        columns = chosen["rewards"].T
        draw(axis, EVERY * np.arange(1, len(columns) + 1), columns, method, colour)


def draw_sizes(axis: Any, rows: list[dict[str, Any]]) -> None:
    states = [row["states"] for row in rows]
    for method, colour in zip(SIZED, plots.COLOURS[::2], strict=False):
        draw(axis, states, [row[method] for row in rows], method, colour)
    axis.set(xlabel="cells", ylabel="updates of Q", xscale="log", yscale="log")
    axis.set_xticks(states, map(str, states))
    axis.minorticks_off()
    axis.set_title("until the way is nearly the shortest", loc="left", fontsize=11)


def draw(axis: Any, x: Any, columns: Any, label: str, colour: str) -> None:
    """Means and bootstrap intervals of columns [seeds], one for each x."""
    found = [interval(column, num_samples=1000) for column in columns]
    value, low, high = ([row[k] for row in found] for k in ("value", "low", "high"))
    axis.plot(x, value, color=colour, label=label)
    axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
