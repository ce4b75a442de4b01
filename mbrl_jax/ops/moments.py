"""Exact moments of functions of a Gaussian, for one example (moment matching).

    x ~ N(mean, cov) [D],   y = f(x) [E]   ->   mean and covariance of y, and its gain

The gain [D, E] is cov(x)^-1 cov(x, y), which exists where cov(x) is singular too.  What
is Gaussian in between is assumed to stay so: then gains multiply along a chain,
cov(x, z) = cov(x) gain(x, y) gain(y, z), see `chain` and `beside`.

By Deisenroth and Rasmussen, "PILCO: a model-based and data-efficient approach to policy
search", 2011, and Deisenroth, "Efficient reinforcement learning using Gaussian
processes", 2010, Sec. 2.3.2 and App. A.1.  All is differentiable, and meant for
float64: variances are differences of large numbers.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import definite
from mbrl_jax.types import Array

BLOCK = 64  # rows of processes that are looked at together


class Normal(NamedTuple):
    mean: Array  # [D]
    cov: Array  # [D, D]


class Moments(NamedTuple):
    """Of y = f(x)."""

    mean: Array  # [E]
    cov: Array  # [E, E]
    gain: Array  # [D, E], cov(x)^-1 cov(x, y)

    @property
    def normal(self) -> Normal:
        return Normal(self.mean, self.cov)


class Kernels(NamedTuple):
    """A Gaussian process in each output, or a network of radial basis functions.

    f_e(x) = sum_n weights_en k_e(x, inputs_n), for the squared exponential kernel
    k_e(x, x') = signal_var_e exp(-sum_d (x_d - x'_d)^2 / (2 lengthscales_ed^2)).
    Rows that count for nothing have weights of 0.
    """

    inputs: Array  # [N, D]
    weights: Array  # [E, N]
    lengthscales: Array  # [E, D]
    signal_var: Array  # [E]
    precision: Array | None = None  # [E, N, N], (K + noise)^-1; None: no uncertainty
    num_rows: Array | None = None  # [] int32, after which none counts; None: all do


Function = Callable[[Normal], Moments]


def linear(x: Normal, matrix: Array, offset: Array) -> Moments:
    """y = matrix [E, D] x + offset [E]."""
    cov = matrix @ x.cov @ matrix.T
    return Moments(matrix @ x.mean + offset, cov, matrix.T)


def cosines(x: Normal) -> Moments:
    """y = cos(x), of each."""
    var = jnp.diag(x.cov)
    shrink = jnp.exp(-var / 2)
    plus, minus = x.mean[:, None] + x.mean[None], x.mean[:, None] - x.mean[None]
    cov = _excess(x.cov, var) * jnp.cos(minus) + _excess(-x.cov, var) * jnp.cos(plus)
    cov = cov / 2
    gain = jnp.diag(-shrink * jnp.sin(x.mean))
    return Moments(shrink * jnp.cos(x.mean), cov, gain)


def _excess(c: Array, var: Array) -> Array:
    """(e^c_ij - 1) e^-(var_i + var_j)/2, where |c_ij| is at most that sum's half.

    Exact for small variances, and without overflow for those of angles that are as
    good as unknown.
    """
    half = (var[:, None] + var[None]) / 2
    above, below = jnp.maximum(c, 0), jnp.minimum(c, 0)
    return jnp.exp(-half) * jnp.expm1(below) - jnp.exp(above - half) * jnp.expm1(-above)


def sines(x: Normal) -> Moments:
    """y = sin(x), of each."""
    return cosines(Normal(x.mean - jnp.pi / 2, x.cov))


def with_angles(x: Normal, angles: tuple[int, ...]) -> Moments:
    """y = the entries of x that are no angles, then sin and cos of each angle."""
    size, number = len(x.mean), len(angles)
    others = [i for i in range(size) if i not in angles]
    pick = jnp.eye(size)[jnp.array([i for i in angles for _ in range(2)], int)]
    shift = jnp.tile(jnp.array([-jnp.pi / 2, 0.0]), number)  # sin is a shifted cos
    trig = chain(x, lambda x: linear(x, pick, shift), cosines)
    return beside(x, trig, jnp.array(others, int))


def features(x: Array, angles: tuple[int, ...]) -> Array:
    """Those of `with_angles`, of a point."""
    others = jnp.array([i for i in range(len(x)) if i not in angles], int)
    angle = x[jnp.array(angles, int)]
    trig = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=1).ravel()
    return jnp.concatenate([x[others], trig])


def beside(x: Normal, y: Moments, kept: Array) -> Moments:
    """Of the entries `kept` of x, followed by y."""
    gain = jnp.concatenate([jnp.eye(len(x.mean))[:, kept], y.gain], axis=1)
    cross = x.cov[kept] @ y.gain
    cov = jnp.block([[x.cov[jnp.ix_(kept, kept)], cross], [cross.T, y.cov]])
    return Moments(jnp.concatenate([x.mean[kept], y.mean]), cov, gain)


def chain(x: Normal, *functions: Function) -> Moments:
    """One after the other, the results in between taken for Gaussian."""
    found = functions[0](x)
    for function in functions[1:]:
        after = function(found.normal)
        found = after._replace(gain=found.gain @ after.gain)
    return found


def added(x: Normal, y: Moments) -> Normal:
    """Of x + y."""
    cross = x.cov @ y.gain
    return Normal(x.mean + y.mean, x.cov + y.cov + cross + cross.T)


def squash(x: Normal, limit: float | Array) -> Moments:
    """y = limit (9 sin x + sin 3x) / 8, which is flat at +-limit (Deisenroth, 2010)."""
    size = len(x.mean)
    once_and_thrice = jnp.concatenate([jnp.eye(size), 3 * jnp.eye(size)])
    mix = limit / 8 * jnp.concatenate([9 * jnp.eye(size), jnp.eye(size)], axis=1)
    return chain(
        x,
        lambda x: linear(x, once_and_thrice, jnp.zeros(2 * size)),
        sines,
        lambda x: linear(x, mix, jnp.zeros(size)),
    )


def kernel_mean(x: Array, f: Kernels) -> Array:
    """[E], at a point x [D]."""
    away = (x[None, None] - f.inputs[None]) / f.lengthscales[:, None]
    k = f.signal_var[:, None] * jnp.exp(-jnp.square(away).sum(axis=-1) / 2)
    return (k * f.weights).sum(axis=1)


def kernels(x: Normal, f: Kernels) -> Moments:
    """y = f(x): the outputs are independent but for what the input is uncertain about.

    With a `precision`, those of the Gaussian process itself, its own uncertainty
    included, that of observations not.
    """
    size = len(f.weights)
    centred = f.inputs - x.mean[None]  # [N, D]

    def mean(weights: Array, lengths: Array, signal: Array) -> tuple[Array, Array]:
        """E[f_a], and the gain [D] to it."""
        inverse = 1 / lengths
        one = jnp.eye(len(inverse), dtype=inverse.dtype)
        spread = inverse[:, None] * x.cov * inverse[None]
        solved, log_det = definite.inverse(one + spread)
        scaled = centred * inverse[None]
        solved = scaled @ solved
        logs = jnp.log(signal) - ((scaled * solved).sum(axis=1) + log_det) / 2
        q = weights * jnp.exp(logs)
        return q.sum(), q @ (solved * inverse[None])

    def log_kernel(lengths: Array, signal: Array) -> Array:
        return jnp.log(signal) - ((centred / lengths[None]) ** 2).sum(axis=1) / 2

    means, gains = jax.vmap(mean)(f.weights, f.lengthscales, f.signal_var)
    logs = jax.vmap(log_kernel)(f.lengthscales, f.signal_var)  # [E, N]

    def second(a: Array, b: Array) -> Array:
        """E[f_a f_b]; of the log, so that nothing underflows."""
        left, right = f.lengthscales[a] ** -2, f.lengthscales[b] ** -2
        root = jnp.sqrt(left + right)
        spread = root[:, None] * x.cov * root[None]
        one = jnp.eye(len(root), dtype=root.dtype)
        solved, log_det = definite.inverse(one + spread)
        # (cov^-1 + left + right)^-1 / 2, without the inverse of the covariance
        Q = solved @ spread / (2 * jnp.outer(root, root))
        left, right = centred * left[None], centred * right[None]
        ends = logs[a] + ((left @ Q) * left).sum(axis=1) - log_det / 2
        starts = logs[b] + ((right @ Q) * right).sum(axis=1)
        weights = jnp.outer(f.weights[a], f.weights[b])
        if f.precision is not None:
            weights -= jnp.where(a == b, f.precision[a], 0)
        number = len(weights) if f.num_rows is None else f.num_rows
        return _weighted_sum(number, weights, ends, starts, 2 * left @ Q, right)

    pairs = jnp.array(list(combinations_with_replacement(range(size), 2)))
    found = jax.lax.map(lambda pair: second(*pair), pairs)
    cov = jnp.zeros((size, size), found.dtype).at[pairs[:, 0], pairs[:, 1]].set(found)
    cov = cov + jnp.triu(cov, 1).T - jnp.outer(means, means)
    if f.precision is not None:
        cov = cov + jnp.diag(f.signal_var)
    return Moments(means, cov, gains.T)


@jax.custom_vjp
def _weighted_sum(
    number: Array | int,  # rows and columns that count: no other block is looked at
    weights: Array,  # [N, N]
    ends: Array,  # [N]
    starts: Array,  # [N]
    left: Array,  # [N, D]
    right: Array,  # [N, D]
) -> Array:
    """sum_ij weights_ij exp(ends_i + starts_j + left_i' right_j).

    The exponentials are computed once for the value and all of the gradient, for which
    nothing of size [N, N] is kept but the weights.
    """
    return _weighted_sum_forward(number, weights, ends, starts, left, right)[0]


def _weighted_sum_forward(
    number: Array | int,
    weights: Array,
    ends: Array,
    starts: Array,
    left: Array,
    right: Array,
) -> tuple[Array, Any]:
    size = len(ends)
    side = BLOCK if size % BLOCK == 0 else size
    blocks = (number + side - 1) // side
    part = lambda x, i: jax.lax.dynamic_slice_in_dim(x, i * side, side)

    def add(i: Array, j: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        exponents = part(ends, i)[:, None] + part(starts, j)[None]
        exponents += part(left, i) @ part(right, j).T
        corner = jax.lax.dynamic_slice(weights, (i * side, j * side), (side, side))
        terms = corner * jnp.exp(exponents)
        here = terms.sum(axis=1), terms @ part(right, j)
        there = terms.sum(axis=0), terms.T @ part(left, i)
        places = i, j, i, j
        found = here[0], there[0], here[1], there[1]
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, part(x, at) + new, at * side, 0)
            for x, at, new in zip(sums, places, found, strict=True)
        )

    def row(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        return jax.lax.fori_loop(0, blocks, lambda j, sums: add(i, j, sums), sums)

    zeros = tuple(map(jnp.zeros_like, (ends, starts, right, left)))
    slopes = jax.lax.fori_loop(0, blocks, row, zeros)
    return slopes[0].sum(), (slopes, (ends, starts, left, right))


def _weighted_sum_backward(kept: Any, g: Array) -> tuple[Array | None, ...]:
    slopes, (ends, starts, left, right) = kept
    # of weights that do not vary it is not computed
    terms = jnp.exp(ends[:, None] + starts[None] + left @ right.T)
    return (None, g * terms, *(g * slope for slope in slopes))


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def saturating_cost(x: Normal, target: Array, root: Array) -> Array:
    """E[1 - exp(-(x - target)' precision (x - target) / 2)], [] in [0, 1].

    The precision is root root', for a root [D, K].  The cost of Deisenroth and
    Rasmussen (2011).
    """
    away = root.T @ (x.mean - target)
    one = jnp.eye(len(away), dtype=away.dtype)
    inverse, log_det = definite.inverse(one + root.T @ x.cov @ root)
    return -jnp.expm1(-(away @ inverse @ away + log_det) / 2)
