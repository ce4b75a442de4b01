"""Model predictive path integral control (Williams et al., 2017)."""

import jax
import jax.numpy as jnp

from mbrl_jax.ops import finite, sharding
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan

QUARTER = 0.4916  # the standard deviation of the best quarter of a standard normal


def mppi(
    key: Key,
    objective: Objective,
    plan: Plan,
    *,
    action_limit: float,
    num_samples: int = 400,
    num_iterations: int = 5,
    temperature: float | Array = 0.1,
) -> tuple[Plan, Metrics]:
    """Moves the mean to the average of sampled sequences, weighted by exp(return / T).

    Here T is `temperature` times the standard deviation of the returns, so that it has
    no unit: that of the normal distribution whose best quarter is spread as that of the
    returns.  So a collision's huge cost is no more than a weight of 0, as that of a
    return that is not finite; if all are such, the mean stays.  The std stays.

    Deviation: without the control cost u' cov^-1 noise in the weights; what an action
    costs is up to the reward.
    """

    plan = floats("mppi", plan)
    smallest = jnp.finfo(plan.mean.dtype).tiny

    def iteration(mean: Array, key: Key) -> tuple[Array, Array]:
        noise = jax.random.normal(key, (num_samples, *mean.shape), mean.dtype)
        samples = mean[None] + plan.std[None] * noise
        samples = jnp.clip(samples, -action_limit, action_limit)  # [N, H, A]
        returns = finite.losing(sharding.vmap(objective)(samples))  # [N]
        good = jnp.isfinite(returns)
        best = jnp.where(good.any(), returns.max(), 0.0)
        behind = jnp.where(good, returns - best, -jnp.inf)  # at most 0
        spread = temperature * _spread(behind)
        weight = jnp.exp(behind / jnp.where(spread > 0, spread, smallest))
        weight = weight / jnp.maximum(weight.sum(), 1)  # at least one is 1
        moved = (weight[:, None, None] * samples).sum(axis=0)
        return jnp.where(good.any(), moved, mean), best

    keys = jax.random.split(key, num_iterations)
    mean, best = jax.lax.scan(iteration, plan.mean, keys)
    return plan._replace(mean=mean, actions=mean), {"plan/return": best[-1]}


def _spread(behind: Array) -> Array:
    """The standard deviation [] of values [N], as their best quarter shows it."""
    number = max(2, -(-len(behind) // 4))
    best, _ = jax.lax.top_k(behind, min(number, len(behind)))
    good = jnp.isfinite(best)
    # in units of the last of them, whose square neither overflows nor vanishes
    last = jnp.abs(jnp.where(good, best, 0)).max()
    scaled = jnp.where(good, best / jnp.where(last > 0, last, 1), 0)
    return last * jnp.std(scaled, where=good) / QUARTER
