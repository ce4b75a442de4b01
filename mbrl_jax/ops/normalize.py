"""Affine normalisation by statistics that a state carries."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.types import Array, Gaussian, Params


class Statistics(NamedTuple):
    mean: Array  # [D]
    std: Array  # [D], 1 where the data are constant, or what `statistics` is given


def identity(size: int) -> Statistics:
    return Statistics(jnp.zeros(size), jnp.ones(size))


def statistics(x: Array, valid: Array, constant_std: float = 1.0) -> Statistics:
    """Mean and standard deviation of the rows of `x` [C, D] where `valid` [C].

    A column that is constant up to rounding has `constant_std`: with 1, noise is not
    blown up; with 0, `denormalise` gives the constant, whatever it is given.
    """
    mask, count = valid[:, None], jnp.maximum(valid.sum(), 1)
    # relative to a valid row, a constant column is exactly 0, however many are summed
    origin = jnp.where(mask, x, 0)[jnp.argmax(valid)]
    shifted = jnp.where(mask, x - origin[None], 0)
    shift = shifted.sum(axis=0) / count
    centred = jnp.where(mask, shifted - shift[None], 0)
    # in units of the largest one, whose square neither overflows nor vanishes
    largest = jnp.abs(centred).max(axis=0)
    centred = centred / jnp.where(largest > 0, largest, 1)[None]
    std = largest * jnp.sqrt((centred**2).sum(axis=0) / count)
    return _scaled(origin + shift, std, constant_std)


def normalise(stats: Statistics, x: Array) -> Array:
    return (x - stats.mean) / stats.std


def denormalise(stats: Statistics, x: Gaussian) -> Gaussian:
    return Gaussian(x.mean * stats.std + stats.mean, x.std * stats.std)


class RunningStats(NamedTuple):
    """Statistics that grow with the data."""

    number: Array  # [] of rows
    mean: Array  # [D]
    squares: Array  # [D], summed squared distances from the mean


def running_stats(size: int) -> RunningStats:
    return RunningStats(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size))


def update(old: RunningStats, x: Array, valid: Array) -> RunningStats:
    """With the rows of `x` [N, D] where `valid` [N], merged (Chan et al., 1983)."""
    mask, added = valid[:, None], valid.sum(dtype=x.dtype)
    x = jnp.where(mask, x, 0)
    mean = x.sum(axis=0) / jnp.maximum(added, 1)
    squares = jnp.where(mask, (x - mean[None]) ** 2, 0).sum(axis=0)
    count = old.number + added
    share, change = added / jnp.maximum(count, 1), mean - old.mean
    squares = old.squares + squares + change**2 * old.number * share
    return RunningStats(count, old.mean + share * change, squares)


def so_far(data: RunningStats) -> Statistics:
    """Mean and std; 0 and 1 without data, and a std of 1 where they are constant."""
    return _scaled(data.mean, jnp.sqrt(data.squares / jnp.maximum(data.number, 1)))


def units(old: RunningStats, new: RunningStats) -> tuple[Statistics, Statistics]:
    """Those of before and those of now; where there were no data, they are the same:
    the first choose the units of what knows nothing yet."""
    after = so_far(new)
    pick = lambda old_stats, new_stats: jnp.where(old.number > 0, old_stats, new_stats)
    return Statistics(*map(pick, so_far(old), after)), after


def folded(
    params: Params, layers: list[tuple[str, ...]], old: Statistics, new: Statistics
) -> Params:
    """The same function of inputs that `new` normalises in place of `old`.

    `layers` are the paths of the linear layers that take the inputs, each with a kernel
    [D, ...] and a bias.
    """
    scale, shift = new.std / old.std, (new.mean - old.mean) / old.std

    def change(kernel: Array, bias: Array) -> tuple[Array, Array]:
        return scale[:, None] * kernel, bias + shift @ kernel

    for path in layers:
        params = _with_layer(params, path, change)
    return params


def outputs_folded(
    params: Params, layer: tuple[str, ...], old: Statistics, new: Statistics
) -> Params:
    """The same function where `new` denormalises its outputs [D] in place of `old`.

    `layer` is the path of the linear layer that gives them (van Hasselt et al., 2016,
    "Learning values across many orders of magnitude", Prop. 1).
    """
    scale, shift = old.std / new.std, (old.mean - new.mean) / new.std
    change = lambda kernel, bias: (kernel * scale[None], bias * scale + shift)
    return _with_layer(params, layer, change)


def _with_layer(
    tree: Params,
    path: tuple[str, ...],
    change: Callable[[Array, Array], tuple[Array, Array]],
) -> Params:
    """With the kernel and the bias at `path` changed."""
    if path:
        return {**tree, path[0]: _with_layer(tree[path[0]], path[1:], change)}
    kernel, bias = change(tree["kernel"], tree["bias"])
    return {"kernel": kernel, "bias": bias}


def _scaled(mean: Array, std: Array, constant_std: float = 1.0) -> Statistics:
    """With `constant_std` in place of rounding errors, which grow with the mean.

    In any unit: small is not constant.
    """
    rounding = 1e-6 * jnp.abs(mean)
    return Statistics(mean, jnp.where(std > rounding, std, constant_std))
