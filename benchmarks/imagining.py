"""Imagined transitions per second: one step of the model from each of many states."""

from typing import Any

import jax

from benchmarks import timing
from benchmarks.setting import Setting, env, forward_flop, make_model, transitions
from benchmarks.timing import Call, Row
from mbrl_jax import imagine
from mbrl_jax.types import Array, Key, PyTree


def measure(
    setting: Setting = Setting(),
    cases: tuple[int, ...] = (10_000, 80_000),
    num_repeats: int = 5,
) -> list[Row]:
    """`cases` are numbers of start states."""
    rows = []
    for num_starts in cases:
        took = timing.measure(one_step(setting, num_starts), 1, num_repeats)
        rows.append(
            timing.row(
                "imagining",
                f"{num_starts} starts",
                num_starts / took.seconds,
                f"transitions per {timing.seconds_unit()}",
                took,
                num_starts * forward_flop(setting),
            )
        )
    return rows


def one_step(setting: Setting, num_starts: int) -> Call:
    """Random actions, the starts dealt to the elites at random (TS1), compiled."""
    task = env()
    model, state = make_model(setting)
    read = imagine.outcome(task, learn_reward=False, learn_terminal=False)
    starts = transitions(jax.random.key(2), num_starts).obs

    def step(key: Key, state: PyTree, obs: Array) -> Any:
        deal_key, action_key, noise_key = jax.random.split(key, 3)
        obs = jax.random.permutation(deal_key, obs)
        shape = (num_starts, task.action_size)
        action = jax.random.uniform(action_key, shape, minval=-1.0)
        deal = lambda x: x.reshape(setting.num_elites, -1, x.shape[-1])
        group = jax.vmap(model.predict, in_axes=(None, 0, 0))
        y = jax.vmap(group)(model.members(state), deal(obs), deal(action))
        noise = jax.random.normal(noise_key, y.mean.shape)
        outcome = (y.mean + y.std * noise).reshape(num_starts, -1)
        return obs, action, jax.vmap(read)(obs, action, outcome)

    jitted, key = jax.jit(step), jax.random.key(3)
    return lambda: jitted(key, state, starts)
