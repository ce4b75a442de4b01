"""Updates of SAC per second, batches drawn from a replay; one seed, and several."""

from functools import partial

import jax

from benchmarks import timing
from benchmarks.setting import env, full_replay
from benchmarks.timing import Call, Row
from mbrl_jax import replay
from mbrl_jax.types import Key, PyTree
from mbrl_jax.value_learning import parts, sac

HIDDEN, BATCH = 256, 256  # two layers of each network, as in MBPO's paper
NUM_UPDATES = 50  # of a call


def measure(
    cases: tuple[int, ...] = (1, 4, 16),
    num_updates: int = NUM_UPDATES,
    num_repeats: int = 5,
) -> list[Row]:
    """`cases` are numbers of seeds side by side."""
    rows = []
    for num_seeds in cases:
        took = timing.measure(updates(num_seeds, num_updates), 1, num_repeats)
        total = num_seeds * num_updates
        rows.append(
            timing.row(
                "updating",
                f"SAC, {num_seeds} seeds" if num_seeds > 1 else "SAC, 1 seed",
                total / took.seconds,
                f"updates per {timing.seconds_unit()}",
                took,
                total * update_flop(),
            )
        )
    return rows


def update_flop() -> float:
    """Of the matrix products of one update."""
    task = env()
    first = 2.0 * (task.obs_size + task.action_size) * HIDDEN
    critic = first + 2.0 * HIDDEN * (HIDDEN + 1)
    actor_first = 2.0 * task.obs_size * HIDDEN
    actor = actor_first + 2.0 * HIDDEN * (HIDDEN + 2 * task.action_size)
    targets = actor + 2 * critic
    critics = 2 * (3 * critic - first)
    policy = 3 * actor - actor_first + 2 * 2 * critic  # through the critics' inputs
    return BATCH * (targets + critics + policy)


def updates(num_seeds: int, num_updates: int) -> Call:
    """Compiled; every call goes on from the same state."""
    task = env()
    config = sac.Config(hidden_sizes=(HIDDEN, HIDDEN))
    learner = parts.learner(sac.make(task, config))
    data = full_replay(jax.random.key(2), 10_000)

    def update(state: PyTree, key: Key) -> tuple[PyTree, None]:
        batch_key, key = jax.random.split(key)
        batch = replay.sample(batch_key, data, BATCH)
        return learner.update(key, state, batch)[0], None

    def run(key: Key) -> PyTree:
        init_key, key = jax.random.split(key)
        return jax.lax.scan(
            update, learner.init(init_key), jax.random.split(key, num_updates)
        )[0]

    keys = jax.vmap(jax.random.key)(jax.numpy.arange(num_seeds))
    compiled = jax.jit(jax.vmap(run) if num_seeds > 1 else lambda keys: run(keys[0]))
    return partial(compiled, keys)
