"""Episodes of pictures, the newest first, and what learns from them takes: triples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import normalize
from mbrl_jax.ops.normalize import Statistics
from mbrl_jax.types import Array, Key

LEAST_STD = 1e-3  # of pixels: what hardly varies is not blown up


class Footage(NamedTuple):
    image: Array  # [E, T, H, W, C] in [0, 1]
    action: Array  # [E, T, A] what was done then, in units of its limit
    valid: Array  # [E, T] bool, the others do not count


def none(
    num_episodes: int, length: int, image_shape: tuple[int, ...], action_size: int
) -> Footage:
    """None of it valid yet."""
    shape = num_episodes, length
    return Footage(
        jnp.zeros((*shape, *image_shape)),
        jnp.zeros((*shape, action_size)),
        jnp.zeros(shape, bool),
    )


def append(old: Footage, new: Footage) -> Footage:
    """With the new episodes, without as many of the oldest."""
    number = len(old.valid)
    both = lambda x, y: jnp.concatenate([x.astype(y.dtype), y])[:number]
    return jax.tree.map(both, new, old)


def statistics(footage: Footage) -> Statistics:
    """Mean and std [C] of all pixels."""
    channels = footage.image.shape[-1]
    weight = jnp.broadcast_to(
        footage.valid[..., None, None], footage.image.shape[:-1]
    ).ravel()
    return normalize.statistics(footage.image.reshape(-1, channels), weight, LEAST_STD)


def in_a_row(footage: Footage) -> Array:
    """[E, T - 2]: whether three valid pictures begin there."""
    valid = footage.valid
    return valid[:, :-2] & valid[:, 1:-1] & valid[:, 2:]


def triples(key: Key, footage: Footage, number: int) -> Array:
    """Three pictures in a row, `number` times, at random: [number, 3, H, W, C].

    There must be some.
    """
    begins = in_a_row(footage)
    index = jax.random.choice(
        key, begins.size, (number,), p=begins.ravel() / jnp.maximum(begins.sum(), 1)
    )
    episode, time = index // begins.shape[1], index % begins.shape[1]
    return jnp.stack([footage.image[episode, time + i] for i in range(3)], axis=1)
