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

    @property
    def capacity(self) -> int:
        return self.data.reward.shape[0]


def init(obs_size: int, action_size: int, capacity: int) -> Replay:
    flag = jnp.zeros(capacity, bool)
    obs = jnp.zeros((capacity, obs_size))
    action = jnp.zeros((capacity, action_size))
    data = Transition(obs, action, jnp.zeros(capacity), obs, flag, flag)
    return Replay(data, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def valid(replay: Replay) -> Array:
    """Which rows are in, [C] bool."""
    return jnp.arange(replay.capacity) < replay.size


def insert(replay: Replay, transitions: Transition, valid: Array) -> Replay:
    """Appends the transitions [T, ...] where `valid` [T], oldest out first.

    A transition that is not finite, as of a simulator that blew up, is left out.
    Raises ValueError if T exceeds the capacity.
    """
    if valid.shape[0] > replay.capacity:
        raise ValueError(
            f"{valid.shape[0]} transitions do not fit a capacity of {replay.capacity}"
        )
    valid = valid & finite.all_finite(transitions, num_batch_axes=1)
    slot = (replay.position + jnp.cumsum(valid) - 1) % replay.capacity
    slot = jnp.where(valid, slot, replay.capacity)  # out of range, hence dropped
    data = jax.tree.map(
        lambda old, new: old.at[slot].set(new, mode="drop"), replay.data, transitions
    )
    count = valid.sum(dtype=jnp.int32)
    return Replay(
        data,
        (replay.position + count) % replay.capacity,
        jnp.minimum(replay.size + count, replay.capacity),
    )


def sample(key: Key, replay: Replay, batch_size: int) -> Transition:
    """A batch [B, ...], uniform with replacement."""
    index = jax.random.randint(key, (batch_size,), 0, replay.size)
    return jax.tree.map(lambda x: x[index], replay.data)


def sample_sequences(
    key: Key, replay: Replay, batch_size: int, length: int
) -> tuple[Transition, Array]:
    """Consecutive transitions [B, length, ...], and which of them are `valid`.

    A sequence that meets the end of an episode is valid up to and including it.
    The buffer must hold at least `length` transitions.
    """
    oldest = replay.position - replay.size
    start = jax.random.randint(key, (batch_size,), 0, replay.size - length + 1)
    index = oldest + start[:, None] + jnp.arange(length)[None]  # [B, length]
    sequences = jax.tree.map(lambda x: x[index % replay.capacity], replay.data)
    end = sequences.terminal | sequences.truncated
    ended_before = jnp.cumsum(end, axis=1) - end  # [B, length]
    return sequences, ended_before == 0
