"""What a step of PETS costs with several seeds in one program, next to one seed.

`measure`: default networks and planner, short episodes, and a fixed number of epochs,
so that every seed does the same work.  `main_job`: the default main job as it is, its
first step at random and its second one planned.  `sharded`: whether its numbers are the
same on several devices.
"""

import contextlib

import jax
import numpy as np

from benchmarks import timing
from benchmarks.timing import Call, Row
from experiments.runs import jax_settings
from mbrl_jax import envs
from mbrl_jax.algorithms import pets
from mbrl_jax.envs import simulator
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.training import train
from mbrl_jax.types import Algorithm, Env

ENDLESS = 1_000_000  # epochs of patience


def measure(
    nums_seeds: tuple[int, ...] = (1, 4, 16),
    episode_length: int = 10,
    config: pets.Config = pets.Config(
        capacity=1000,
        model=models.Config(ensemble=ensemble.Config(num_epochs=20, patience=ENDLESS)),
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


def main_job(
    num_seeds: int,
    episode_length: int = 0,
    config: pets.Config = pets.Config(),
) -> list[Row]:
    """A core of a CPU is a device here; each computes one seed after the other."""
    jax_settings.use_cores(num_seeds)
    algorithm, env = _job(episode_length, config)
    key = train.seeds(0, num_seeds)
    loop = train.build(key, algorithm, env)
    state, before = loop.init(key), jax_settings.compile_seconds()
    state, _ = jax.block_until_ready(loop.step(key, 0, state))
    compiling = jax_settings.compile_seconds() - before
    seconds, wall = timing.time_calls(lambda: loop.step(key, 1, state))
    figures = {
        "a planned step": (seconds / num_seeds, f"{timing.seconds_unit()} per seed"),
        "a planned step, wall": (wall / num_seeds, "s per seed"),
        "compilation": (compiling, "s"),
        "most memory": (timing.peak_memory(), "MB"),
        "memory by the compiler": (train.memory(loop, key) / 1e6, "MB per device"),
    }
    title = f"{num_seeds} seed{'s' * (num_seeds > 1)}"
    return [Row("sweep", f"{title}: {case}", *x) for case, x in figures.items()]


def sharded(
    num_steps: int = 3,
    episode_length: int = 50,
    config: pets.Config = pets.Config(),
    num_seeds: int = 4,
) -> list[Row]:
    """The main job, in short episodes, on 4 forced devices of a CPU, on 2 and on one.

    XLA compiles for one device in another way than for several, and so rounds in
    another way, which the second planned episode in float32 has blown up; in float64
    there is room for that.
    """
    with contextlib.suppress(RuntimeError):  # there are devices already
        jax.config.update("jax_num_cpu_devices", 4)
    key = train.seeds(0, num_seeds)

    def returns(num_devices: int) -> np.ndarray:
        algorithm, env = _job(episode_length, config)
        devices = jax.devices()[:num_devices]
        loop = train.build(key, algorithm, env, devices=devices)
        state = loop.init(key)
        for i in range(num_steps):
            state, metrics = loop.step(key, i, state)
        return np.asarray(metrics["episode/return"])

    def row(num_devices: int, precision: str) -> Row:
        difference = float(np.abs(returns(4) / returns(num_devices) - 1).max())
        case = f"{precision}, {num_seeds} seeds: 4 devices next to {num_devices}"
        unit = f"largest relative difference of returns of step {num_steps}"
        return Row("sweep", case, difference, unit)

    rows = [row(2, "float32")]
    with jax.enable_x64(True):
        return [*rows, row(1, "float64")]


def _job(episode_length: int, config: pets.Config) -> tuple[Algorithm, Env]:
    env = envs.make("cartpole_swingup")
    if episode_length:
        env = simulator.time_limit(env, episode_length)
    return pets.make(env, config), env
