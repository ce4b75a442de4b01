"""Imagined transitions per second: one step of the model from each of many states."""

from functools import partial

import jax

from benchmarks import timing
from benchmarks.setting import Setting, env, forward_flop, make_model, transitions
from benchmarks.timing import Call, Row
from mbrl_jax import policies
from mbrl_jax.models import imagine, outcomes
from mbrl_jax.types import Key, Transition


def measure(
    setting: Setting = Setting(),
    cases: tuple[tuple[int, int], ...] = (
        (1, 10_000),
        (1, 80_000),
        (4, 10_000),
        (16, 10_000),
    ),
    num_repeats: int = 5,
) -> list[Row]:
    """`cases` are numbers of seeds side by side, and of start states of each."""
    rows = []
    for num_seeds, num_starts in cases:
        call = one_step(setting, num_seeds, num_starts)
        took = timing.measure(call, 1, num_repeats)
        total = num_seeds * num_starts
        name = f"{num_starts} starts"
        rows.append(
            timing.row(
                "imagining",
                name if num_seeds == 1 else f"{num_seeds} seeds, {name}",
                total / took.seconds,
                f"transitions per {timing.seconds_unit()}",
                took,
                total * forward_flop(setting),
            )
        )
    return rows


def one_step(setting: Setting, num_seeds: int, num_starts: int) -> Call:
    """Random actions, the starts dealt to the elites at random (TS1), compiled."""
    task = env()
    model, state = make_model(setting)
    read = outcomes.decoder(task, learn_reward=False, learn_terminal=False)
    starts = transitions(jax.random.key(2), num_starts).obs
    act = policies.uniform(task).act

    def step(key: Key) -> Transition:
        act_key, key = jax.random.split(key)
        keys = jax.random.split(act_key, num_starts)
        action = jax.vmap(lambda key, obs: act(key, obs, ())[0])(keys, starts)
        sample = imagine.sample_ts1(model, model.members(state))
        return imagine.advance(key, sample, read, starts, action)

    keys = jax.random.split(jax.random.key(3), num_seeds)
    compiled = jax.jit(jax.vmap(step) if num_seeds > 1 else lambda keys: step(keys[0]))
    return partial(compiled, keys)
