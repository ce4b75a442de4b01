"""How many environment steps per second PPO makes, acting and learning.

    python -m benchmarks.ppo_speed --rejax_python=peers/rejax/bin/python \
        --brax_python=peers/brax/bin/python

`peer_rejax_ppo.py` and `peer_brax_ppo.py` say how these are made; a peer that is not
given is left out.  Ours and the peer train on the same task, with the same numbers of
environments, steps, minibatches and epochs, and for policy and critic a network of
2 x 64 tanh units each.  Compiled, they take turns, so that whatever else the machine
does slows both; ratios are of neighbours in time, CPU seconds of all threads and
seconds on the wall.  Nothing is evaluated.

Ours normalises observations and returns.  rejax does neither unless it is told to,
which is measured, too; brax.training normalises observations, computes the advantages
anew in each minibatch, minibatches being windows, and starts each episode of an
environment where its first one started, while ours starts each from a key of its own.

Then 16 seeds in one program, vmapped or one after the other, against one seed 16 times;
and whether anything is compiled after the first step.  Writes results/ppo_speed.json.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging

from benchmarks import peers, timing
from experiments.runs import run_folder
from mbrl_jax import envs
from mbrl_jax.algorithms import ppo
from mbrl_jax.policy_gradient import ppo as learner
from mbrl_jax.training import train
from mbrl_jax.types import Key, PyTree

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "ppo_speed.json"
NUM_REPEATS, NUM_SEEDS = 9, 16
COMPILING = "/jax/core/compile/backend_compile_duration"  # what jax calls it


class Sizes(NamedTuple):
    num_envs: int
    num_steps: int
    num_epochs: int
    num_minibatches: int
    num_iterations: int  # of a turn


class Case(NamedTuple):
    env: str
    sizes: Sizes
    peer: str  # rejax or brax
    arguments: tuple[str, ...] = ()  # of the peer's script


class Spent(NamedTuple):
    """In one turn."""

    steps: int
    cpu: float  # s
    wall: float  # s


Turn = Callable[[], Spent]

DEFAULTS, LARGER = Sizes(64, 64, 8, 16, 20), Sizes(64, 128, 4, 8, 20)
BRAX = Sizes(512, 20, 4, 8, 4)
CASES = {
    "pendulum, rejax's default sizes": Case("pendulum", DEFAULTS, "rejax"),
    "pendulum": Case("pendulum", LARGER, "rejax"),
    "pendulum, rejax normalises": Case("pendulum", LARGER, "rejax", ("--normalise",)),
    "inverted_pendulum": Case(
        "brax/inverted_pendulum", BRAX, "brax", ("--env=inverted_pendulum",)
    ),
    "reacher": Case(
        "brax/reacher", BRAX._replace(num_iterations=2), "brax", ("--env=reacher",)
    ),
}
SEEDS = Sizes(16, 128, 4, 8, 1)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    pythons = {"rejax": flags.FLAGS.rejax_python, "brax": flags.FLAGS.brax_python}
    found: dict[str, Any] = {"cases": {}}
    for name, case in CASES.items():
        if python := pythons[case.peer]:
            found["cases"][name] = compare(case, python)
            print(name, found["cases"][name], flush=True)
    found["seeds"] = seeds()
    print(found["seeds"], flush=True)
    run_folder.write_json(RESULTS, found | run_folder.surroundings())


def compare(case: Case, python: str) -> dict[str, Any]:
    with compilations() as counted, peer(case, python) as theirs:
        ours = trainer(jax.random.key(0), case.env, case.sizes)
        before = len(counted)
        rows = [(theirs(), ours()) for _ in range(NUM_REPEATS)]
    return {
        "ratio": spread([x.cpu / y.cpu for x, y in rows]),
        "ratio_wall": spread([x.wall / y.wall for x, y in rows]),
        "ours": rates([y for _, y in rows]),
        "theirs": rates([x for x, _ in rows]),
        "compilations_later": len(counted) - before,
        **case.sizes._asdict(),
    }


def seeds() -> dict[str, Any]:
    """Seconds of one seed 16 times, over those of 16 seeds in one program."""
    keys = train.seeds(0, NUM_SEEDS)
    alone = trainer(keys[0], "pendulum", SEEDS._replace(num_iterations=NUM_SEEDS))
    ways = {"vmapped": True, "one after the other": False}
    together = {
        name: trainer(keys, "pendulum", SEEDS, way) for name, way in ways.items()
    }
    with compilations() as counted:
        rows = [
            (alone(), {name: turn() for name, turn in together.items()})
            for _ in range(NUM_REPEATS)
        ]
    return {
        name: {
            "ratio": spread([one.cpu / all_[name].cpu for one, all_ in rows]),
            "ratio_wall": spread([one.wall / all_[name].wall for one, all_ in rows]),
            **rates([all_[name] for _, all_ in rows]),
        }
        for name in ways
    } | {"compilations_later": len(counted)}


def trainer(
    key: Key, env_name: str, sizes: Sizes, side_by_side: bool | None = None
) -> Turn:
    """Compiled; each turn goes on from where the last one ended."""
    env = envs.make(env_name)
    learn = learner.Config(
        num_epochs=sizes.num_epochs, num_minibatches=sizes.num_minibatches
    )
    config = ppo.Config(sizes.num_envs, sizes.num_steps, learn=learn)
    loop = train.build(key, ppo.make(env, config), env, side_by_side=side_by_side)
    state, done = loop.init(key), 0
    size = sizes.num_envs * sizes.num_steps * sizes.num_iterations * max(key.size, 1)

    def go_on() -> PyTree:
        nonlocal state, done
        for _ in range(sizes.num_iterations):
            state, metrics = loop.step(key, done, state)
            done += 1
        return metrics

    def turn() -> Spent:
        return Spent(size, *timing.time_calls(go_on))

    turn()
    return turn


@contextlib.contextmanager
def peer(case: Case, python: str) -> Iterator[Turn]:
    """The peer, compiled; each turn lets it go on."""
    sizes = [f"--{name}={value}" for name, value in case.sizes._asdict().items()]
    script = str(FOLDER / f"peer_{case.peer}_ppo.py")
    with peers.running([python, script, *sizes, *case.arguments]) as theirs:

        def turn() -> Spent:
            theirs.ask("")
            return Spent(**theirs.answer())

        theirs.answer()  # when it is ready
        yield turn


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Grows by the seconds of each compilation in this process."""
    found: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILING:
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def rates(turns: Sequence[Spent]) -> dict[str, float]:
    """Medians."""
    return {
        "steps_per_cpu_second": statistics.median(x.steps / x.cpu for x in turns),
        "steps_per_second": statistics.median(x.steps / x.wall for x in turns),
    }


if __name__ == "__main__":
    flags.DEFINE_string("rejax_python", None, "of rejax's environment")
    flags.DEFINE_string("brax_python", None, "of brax.training's environment")
    app.run(main)
