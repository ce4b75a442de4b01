"""Affine normalisation by statistics that a state carries."""

from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.types import Array, Gaussian


class Statistics(NamedTuple):
    mean: Array  # [D]
    std: Array  # [D], 1 where the data are constant


def identity(size: int) -> Statistics:
    return Statistics(jnp.zeros(size), jnp.ones(size))


def statistics(x: Array, valid: Array) -> Statistics:
    """Mean and standard deviation of the rows of `x` [C, D] where `valid` [C].

    A column that is constant up to rounding keeps the scale 1, so that noise is not
    blown up.
    """
    mask, count = valid[:, None], jnp.maximum(valid.sum(), 1)
    # relative to a valid row, a constant column is exactly 0, however many are summed
    origin = jnp.where(mask, x, 0)[jnp.argmax(valid)]
    shifted = jnp.where(mask, x - origin[None], 0)
    shift = shifted.sum(axis=0) / count
    centred = jnp.where(mask, shifted - shift[None], 0)
    mean, std = origin + shift, jnp.sqrt((centred**2).sum(axis=0) / count)
    floor = 1e-6 * jnp.maximum(jnp.abs(mean), 1e-2)
    return Statistics(mean, jnp.where(std > floor, std, 1.0))


def normalise(stats: Statistics, x: Array) -> Array:
    return (x - stats.mean) / stats.std


def denormalise(stats: Statistics, x: Gaussian) -> Gaussian:
    return Gaussian(x.mean * stats.std + stats.mean, x.std * stats.std)
