"""Gradient steps per second of all members, as `Model.fit` takes them."""

import jax

from benchmarks import timing
from benchmarks.setting import Setting, full_replay, gradient_flop, make_model
from benchmarks.timing import Call, Row


def measure(
    setting: Setting = Setting(),
    cases: tuple[tuple[int, int], ...] = ((32, 150), (256, 50)),
    num_repeats: int = 5,
) -> list[Row]:
    """`cases` are batch sizes and numbers of gradient steps."""
    rows = []
    for batch_size, num_updates in cases:
        took = timing.measure(epoch(setting, batch_size, num_updates), 1, num_repeats)
        figure, unit = num_updates / took.seconds, "gradient steps per"
        num_rows = num_updates * setting.num_members * batch_size
        rows.append(
            timing.row(
                "fitting",
                f"batch {batch_size}",
                figure,
                f"{unit} {timing.seconds_unit()}",
                took,
                num_rows * gradient_flop(setting),
            )
        )
    return rows


def epoch(setting: Setting, batch_size: int, num_updates: int) -> Call:
    """A fit of one epoch, without a holdout, compiled."""
    model, state = make_model(setting, batch_size)
    data = full_replay(jax.random.key(2), batch_size * num_updates)
    fit, key = jax.jit(model.fit), jax.random.key(3)
    return lambda: fit(key, state, data)
