"""How many updates per second our APG makes, next to brax.training's.

    python -m benchmarks.apg_throughput --peer_python=/tmp/peer_brax/bin/python

`peer_brax_apg.py` says how that Python is made.  Both train on the same task, with 64
environments, windows of 10 steps and a 4 x 32 network; compiled, they take turns, 50
updates each, so that whatever else the machine does slows both.  The ratio is the
median of those of neighbours in time.  Without --peer_python ours alone is measured,
and compared with what the peer's file says.  Writes results/apg_throughput.json.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from benchmarks import peers, timing
from experiments.runs import run_folder
from mbrl_jax import envs
from mbrl_jax.algorithms import apg
from mbrl_jax.types import Env, PyTree

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "apg_throughput.json"
PEER, PEER_RESULTS = "peer_brax_apg.py", FOLDER / "results" / "peer_brax_apg_cpu.json"
ENV = "brax/inverted_double_pendulum/generalized"
CONFIG = apg.Config(num_envs=64, horizon=10, hidden_sizes=(32,) * 4, num_updates=50)
NUM_REPEATS = 9
CPU, WALL = "updates_per_cpu_second", "updates_per_second"
Row = dict[str, float]
Measure = Callable[[], Row]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    ours = trainer(envs.make(ENV), CONFIG)
    if python := flags.FLAGS.peer_python:
        with peer(python, NUM_REPEATS, CONFIG.num_updates) as theirs:
            rows = [(theirs(), ours()) for _ in range(NUM_REPEATS)]
    else:
        known = run_folder.read_json(PEER_RESULTS)["median"]
        rows = [(known, ours()) for _ in range(NUM_REPEATS)]
    found = {**summary(rows), "in_turn": bool(python)}
    print(found)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())


def trainer(env: Env, config: apg.Config) -> Measure:
    """Compiled; each call is a step of the algorithm, from where the last one ended."""
    algorithm = apg.make(env, config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step).lower(jax.random.key(0), state).compile()
    key, metrics = jax.random.key(1), {}

    def train() -> PyTree:
        nonlocal key, state, metrics
        key, step_key = jax.random.split(key)
        state, metrics = step(step_key, state)
        return state

    def measure() -> Row:
        cpu, wall = timing.time_calls(train)
        return {
            CPU: config.num_updates / cpu,
            WALL: config.num_updates / wall,
            "gradient_norm": float(metrics["gradient/norm"]),
        }

    measure()
    return measure


@contextlib.contextmanager
def peer(python: str, num_repeats: int, num_updates: int) -> Iterator[Measure]:
    """The peer, compiled; each call lets it measure once."""
    command = [python, str(FOLDER / PEER), "--wait"]
    command += [f"--num_repeats={num_repeats}", f"--num_updates={num_updates}"]
    with peers.running(command) as theirs:

        def measure() -> Row:
            theirs.ask("")
            return theirs.answer()

        yield measure


def summary(rows: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """Of (theirs, ours)."""
    theirs, ours = zip(*rows, strict=True)
    middle = lambda rows, name: statistics.median(row[name] for row in rows)
    return {
        "ratio": statistics.median(y[CPU] / x[CPU] for x, y in rows),
        "ratio_wall": statistics.median(y[WALL] / x[WALL] for x, y in rows),
        "ours": {name: middle(ours, name) for name in (CPU, WALL)},
        "theirs": {name: middle(theirs, name) for name in (CPU, WALL)},
        "rows": {"ours": ours, "theirs": theirs},
    }


if __name__ == "__main__":
    flags.DEFINE_string("peer_python", None, "of the peer's environment")
    app.run(main)
