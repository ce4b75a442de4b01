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


def reward_weighted(
    mean: Array, var: Array, elites: Array, returns: Array, sharpness: float | Array
) -> tuple[Array, Array]:
    """Mean and variance of a Gaussian search, by expectation maximisation (PoWER).

    Of the elites [K, ...], mean + weighted mean of e, e = elite - mean, and weighted
    mean of e^2 (Kober and Peters, 2011, for noise that is drawn once for an episode).
    Weights are to be positive, as if probabilities of success: they are
    exp(sharpness (return - best) / (best - worst)), whatever the unit of returns [K].
    One that is not finite weighs nothing; with none that is, nothing moves.
    """
    good = jnp.isfinite(returns)
    best = jnp.where(good, returns, -jnp.inf).max()
    behind = jnp.where(good, best - returns, 0)
    share = behind / jnp.where(behind.max() > 0, behind.max(), 1)
    weight = jnp.where(good, jnp.exp(-sharpness * share), 0)
    weight = weight / jnp.where(good.any(), weight.sum(), 1)
    away = elites - mean[None]
    new_var = jnp.tensordot(weight, jnp.square(away), axes=1)
    return mean + jnp.tensordot(weight, away, axes=1), jnp.where(
        good.any(), new_var, var
    )
