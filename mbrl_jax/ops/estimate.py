"""What is known of a gradient that was estimated from samples, and its diagnostics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Params, PyTree


class Estimate(NamedTuple):
    """The gradient of an expected return, over the samples that were finite."""

    gradient: Params  # the mean of the samples
    variance: Params  # of one sample, entry by entry; that of the mean is / num_samples
    num_samples: Array  # [] int32, finite ones
    num_non_finite: Array  # [] int32, samples left out
    mean_return: Array  # [] discounted, without the value after the horizon


def summarise(gradients: Params, returns: Array) -> Estimate:
    """Of samples [N, ...]; those that are not finite in every entry are left out."""
    entries = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves((gradients, returns))]
    valid = jnp.stack([jnp.isfinite(x).all(axis=1) for x in entries]).all(axis=0)
    mean, variance = _moments(gradients, valid)
    return Estimate(
        gradient=mean,
        variance=variance,
        num_samples=valid.sum(),
        num_non_finite=(~valid).sum(),
        mean_return=_moments(returns, valid)[0],
    )


def to_go(rewards: Array) -> Array:
    """Of rewards [..., H], what is still to come at each step, its own included."""
    return jnp.flip(jnp.cumsum(jnp.flip(rewards, -1), -1), -1)


def leave_one_out(returns: Array) -> Array:
    """Each sample [N, ...] less the mean of the others; all NaN where one entry is."""
    axes = tuple(range(1, returns.ndim))
    valid = jnp.isfinite(returns).all(axis=axes, keepdims=True)  # [N, 1, ...]
    total = jnp.where(valid, returns, 0).sum(axis=0, keepdims=True)
    advantages = returns - (total - returns) / jnp.maximum(valid.sum() - 1, 1)
    return jnp.where(valid, advantages, jnp.nan)


def inverse_variance_share(score: Params, pathwise: Params, valid: Array) -> Array:
    """k_LR = 1 / (1 + var_LR / var_RP) of two sets of gradients [N, ...] (PIPPS,
    Algorithm 1); variances are traces, among the `valid` samples [N]."""
    var_score, var_pathwise = (
        sum((x.sum() for x in jax.tree.leaves(_moments(y, valid)[1])), jnp.zeros(()))
        for y in (score, pathwise)
    )
    share = jnp.nan_to_num(1 / (1 + var_score / var_pathwise), nan=0.0)
    return jnp.where(jnp.isfinite(var_pathwise), share, 1)


def mix(share: Array, a: Array, b: Array) -> Array:
    """share a + (1 - share) b; what has no share may be infinite."""
    mixed = share * a + (1 - share) * b
    return jnp.where(share == 1, a, jnp.where(share == 0, b, mixed))


def _moments(samples: PyTree, valid: Array) -> tuple[PyTree, PyTree]:
    """Mean and variance of the `valid` ones of samples [N, ...]; 0 where too few."""
    number = valid.sum()

    def total(x: Array) -> Array:
        mask = valid.reshape(valid.shape + (1,) * (x.ndim - 1))
        return jnp.where(mask, x, 0).sum(axis=0)

    mean = jax.tree.map(lambda x: total(x) / jnp.maximum(number, 1), samples)
    squares = jax.tree.map(lambda x, m: jnp.square(x - m[None]), samples, mean)
    return mean, jax.tree.map(lambda x: total(x) / jnp.maximum(number - 1, 1), squares)


def norm(tree: PyTree) -> Array:
    """Euclidean, of all leaves together; squares do not overflow."""
    leaves = [jnp.ravel(x) for x in jax.tree.leaves(tree)]
    scale = jnp.stack([jnp.abs(x).max() for x in leaves]).max()
    scale = jnp.where(scale > 0, scale, 1)
    return scale * jnp.sqrt(sum(jnp.square(x / scale).sum() for x in leaves))


def total_variance(estimate: Estimate) -> Array:
    """The trace of the covariance of one sample."""
    return sum(
        (x.sum() for x in jax.tree.leaves(estimate.variance)), start=jnp.zeros(())
    )


def standard_error(estimate: Estimate) -> Params:
    """Of each entry of the gradient."""
    return jax.tree.map(lambda x: jnp.sqrt(x / estimate.num_samples), estimate.variance)


def signal_to_noise(estimate: Estimate) -> Array:
    """|gradient| over the standard deviation of one sample.

    The mean of N samples is sqrt(N) times as good.  A gradient of 0 measured with N
    samples shows 1 / sqrt(N): what is not well above it is noise.
    """
    return norm(estimate.gradient) / jnp.sqrt(total_variance(estimate))


def cosine(a: Params, b: Params) -> Array:
    """Of the angle between two gradients; NaN if one of them is 0."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    size_a, size_b = norm(a), norm(b)
    return sum(
        (((x / size_a) * (y / size_b)).sum() for x, y in pairs), start=jnp.zeros(())
    )


def bias(gradient: Params, reference: Params) -> Array:
    """|gradient - reference| / |reference|, as against finite differences."""
    difference = jax.tree.map(jnp.subtract, gradient, reference)
    return norm(difference) / norm(reference)
