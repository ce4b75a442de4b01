"""Gradient steps per second of all members, as `Model.fit` takes them."""

import jax

from benchmarks import timing
from benchmarks.setting import Setting, full_replay, gradient_flop, make_model
from benchmarks.timing import Row


def measure(
    setting: Setting = Setting(),
    cases: tuple[tuple[int, int], ...] = ((32, 150), (256, 50)),
    num_repeats: int = 5,
) -> list[Row]:
    """`cases` are batch sizes and numbers of gradient steps: one epoch each."""
    rows = []
    for batch_size, num_updates in cases:
        model, state = make_model(setting, batch_size)
        data = full_replay(jax.random.key(2), batch_size * num_updates)
        fit, key = jax.jit(model.fit), jax.random.key(3)
        took = timing.measure(
            lambda f=fit, s=state, d=data: f(key, s, d), 1, num_repeats
        )
        num_rows = num_updates * setting.num_members * batch_size
        rows.append(
            timing.row(
                "fitting",
                f"batch {batch_size}",
                num_updates / took.seconds,
                f"gradient steps per {timing.seconds_unit()}",
                took,
                num_rows * gradient_flop(setting),
            )
        )
    return rows
