"""The elites of a stochastic search."""

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


def best(samples: Array, returns: Array, num_elites: int) -> tuple[Array, Array]:
    """The `num_elites` samples [K, ...] with the largest returns [K], best first."""
    elite_returns, index = jax.lax.top_k(returns, num_elites)
    return samples[index], elite_returns


def refit(
    mean: Array, var: Array, elites: Array, returns: Array, momentum: float | Array
) -> tuple[Array, Array]:
    """Mean and variance, moved to those of the elites [K, ...] with finite returns [K].

    `momentum` is the share of the old ones; with no finite return nothing moves.
    """
    good = jnp.isfinite(returns)
    weight = good.astype(mean.dtype) / jnp.maximum(good.sum(), 1)
    elite_mean = jnp.tensordot(weight, elites, axes=1)
    elite_var = jnp.tensordot(weight, jnp.square(elites - elite_mean[None]), axes=1)
    keep = jnp.where(good.any(), momentum, 1.0).astype(mean.dtype)
    return (
        keep * mean + (1 - keep) * elite_mean,
        keep * var + (1 - keep) * elite_var,
    )
