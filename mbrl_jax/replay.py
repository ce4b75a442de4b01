"""A ring buffer of transitions: fixed shapes, on the device, part of the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import finite
from mbrl_jax.types import Array, Key, Transition


class Replay(NamedTuple):
    data: Transition  # [C, ...]
    position: Array  # [] int32, where the next transition goes
    size: Array  # [] int32, how many are in
    number: Array  # [C] int32, each row's among all that were offered
    offered: Array  # [] int32, how many were, those that were left out too

    @property
    def capacity(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]


def init(
    obs_size: int, action_size: int, capacity: int, *, discrete: bool = False
) -> Replay:
    """Empty.  Discrete actions are numbers [C], and `action_size` is not used."""
    flag = jnp.zeros(capacity, bool)
    obs = jnp.zeros((capacity, obs_size))
    action = jnp.zeros((capacity, action_size))
    if discrete:
        action = jnp.zeros(capacity, jnp.int32)
    data = Transition(obs, action, jnp.zeros(capacity), obs, flag, flag)
    zero = jnp.zeros((), jnp.int32)
    return Replay(data, zero, zero, jnp.zeros(capacity, jnp.int32), zero)


def valid(replay: Replay) -> Array:
    """Which rows are in, [C] bool."""
    return jnp.arange(replay.capacity) < replay.size


def insert(replay: Replay, transitions: Transition, valid: Array) -> Replay:
    """Appends the transitions [T, ...] where `valid` [T], oldest out first.

    A transition that is not finite, as of a simulator that blew up, or next to that
    (`finite.usable`), is left out; the numbers of its neighbours tell that they do not
    follow each other.
    Raises ValueError if T exceeds the capacity, and TypeError for complex numbers.
    """
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(transitions)):
        raise TypeError("replay.insert takes real numbers, not complex ones")
    if valid.shape[0] > replay.capacity:
        raise ValueError(
            f"{valid.shape[0]} transitions do not fit a capacity of {replay.capacity}"
        )
    number = replay.offered + jnp.cumsum(valid, dtype=jnp.int32)  # 1 for the first
    valid = valid & finite.usable(transitions, num_batch_axes=1)
    slot = (replay.position + jnp.cumsum(valid) - 1) % replay.capacity
    slot = jnp.where(valid, slot, replay.capacity)  # out of range, hence dropped
    data, numbers = jax.tree.map(
        lambda old, new: old.at[slot].set(new, mode="drop"),
        (replay.data, replay.number),
        (transitions, number),
    )
    count = valid.sum(dtype=jnp.int32)
    return Replay(
        data,
        (replay.position + count) % replay.capacity,
        jnp.minimum(replay.size + count, replay.capacity),
        numbers,
        number[-1],
    )


def newest(replay: Replay, number: int) -> Replay:
    """A buffer of the last `number` transitions alone."""
    size = jnp.minimum(replay.size, number)
    index = replay.position - size + jnp.arange(number)
    data, numbers = jax.tree.map(
        lambda x: x[index % replay.capacity], (replay.data, replay.number)
    )
    return Replay(data, size % number, size, numbers, replay.offered)


def times(replay: Replay) -> Array:
    """How many steps of its episode came before each row, [C] int32, for those of one
    environment.

    They are counted from the oldest row, and from one after a row that was left out;
    where nothing is, they mean nothing.
    """
    order = jnp.arange(replay.capacity, dtype=jnp.int32)
    index = (replay.position - replay.size + order) % replay.capacity  # oldest first
    number = replay.number[index]
    ended = (replay.data.terminal | replay.data.truncated)[index]
    follows = jnp.diff(number) == 1
    begins = jnp.pad(ended[:-1] | ~follows, (1, 0), constant_values=True)
    first = jax.lax.cummax(jnp.where(begins, order, 0))
    return jnp.zeros_like(order).at[index].set(order - first)


def sample(
    key: Key, replay: Replay, batch_size: int, newest: Array | int | None = None
) -> Transition:
    """A batch [B, ...], uniform with replacement, of all or of the `newest` ones."""
    size = replay.size if newest is None else jnp.minimum(replay.size, newest)
    oldest = replay.position - size
    index = oldest + jax.random.randint(key, (batch_size,), 0, size)
    return jax.tree.map(lambda x: x[index % replay.capacity], replay.data)


def mixed(
    keys: tuple[Key, Key],
    real: Replay,
    imagined: Replay,
    batch_size: int,
    real_share: float | Array,
    newest: Array | int | None = None,
) -> Transition:
    """A batch [B, ...] of which `real_share`, rounded to rows, is real, and the rest of
    the `newest` imagined ones, each drawn with a key of its own."""
    drawn = sample(keys[0], real, batch_size)
    if isinstance(real_share, int | float) and real_share == 1:
        return drawn
    others = sample(keys[1], imagined, batch_size, newest)
    is_real = jnp.arange(batch_size) < jnp.round(real_share * batch_size)

    def mix(x: Array, y: Array) -> Array:
        return jnp.where(is_real.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(mix, drawn, others)


def sample_sequences(
    key: Key, replay: Replay, batch_size: int, length: int, stride: int = 1
) -> tuple[Transition, Array]:
    """Consecutive transitions [B, length, ...], and which of them are `valid`.

    A sequence that meets the end of an episode is valid up to and including it, and
    one that meets a transition which was left out, up to that.
    Those of `stride` environments side by side take turns in the buffer.  It must hold
    at least `length` transitions of each.
    """
    oldest, span = replay.position - replay.size, (length - 1) * stride
    start = jax.random.randint(key, (batch_size,), 0, replay.size - span)
    index = oldest + start[:, None] + stride * jnp.arange(length)[None]  # [B, length]
    sequences, number = jax.tree.map(
        lambda x: x[index % replay.capacity], (replay.data, replay.number)
    )
    follows = jnp.diff(number, axis=1) == stride
    ended = (sequences.terminal | sequences.truncated)[:, :-1]
    goes_on = jnp.cumprod(follows & ~ended, axis=1) > 0  # [B, length - 1]
    return sequences, jnp.pad(goes_on, ((0, 0), (1, 0)), constant_values=True)
