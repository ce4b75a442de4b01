"""What a step of PETS costs with several seeds in one program, next to one seed.

Default networks and planner, short episodes, and a fixed number of epochs, so that
every seed does the same work.
"""

import jax

from benchmarks import timing
from benchmarks.timing import Call, Row
from mbrl_jax import envs, simulator, train
from mbrl_jax.algorithms import pets
from mbrl_jax.models import ensemble
from mbrl_jax.types import Algorithm, Env

ENDLESS = 1_000_000  # epochs of patience


def measure(
    nums_seeds: tuple[int, ...] = (1, 4, 16),
    episode_length: int = 10,
    config: pets.Config = pets.Config(
        capacity=1000, model=ensemble.Config(num_epochs=20, patience=ENDLESS)
    ),
    num_repeats: int = 3,
) -> list[Row]:
    env = simulator.time_limit(envs.make("cartpole_swingup"), episode_length)
    algorithm = pets.make(env, config)
    rows, one = [], None
    for num_seeds in nums_seeds:
        call = second_step(algorithm, env, num_seeds)
        took = timing.measure(call, 1, num_repeats)
        one = one or took.seconds / num_seeds
        case = f"{num_seeds} seed{'s' * (num_seeds > 1)}"
        figure, unit = took.seconds / one, f"times the {timing.seconds_unit()} of one"
        rows.append(Row("seeds", case, figure, unit, took.wall))
    return rows


def second_step(algorithm: Algorithm, env: Env, num_seeds: int) -> Call:
    """The step that plans for the first time; each call goes on from the last."""
    loop = train.build(train.seeds(0, num_seeds), algorithm, env)
    state = loop.init(train.seeds(0, num_seeds))
    state, _ = loop.step(train.seeds(0, num_seeds), 0, state)

    def step() -> jax.Array:
        nonlocal state  # `loop.step` gives its argument away
        state, metrics = loop.step(train.seeds(0, num_seeds), 1, state)
        return metrics["env_steps"]

    return step
