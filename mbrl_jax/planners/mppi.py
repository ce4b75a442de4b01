"""Model predictive path integral control (Williams et al., 2017)."""

import jax
import jax.numpy as jnp

from mbrl_jax.ops import finite, sharding
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan


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
    no unit.  The std stays.  A return that is not finite has weight 0; if all are such,
    the mean stays.

    Deviation: without the control cost u' cov^-1 noise in the weights; what an action
    costs is up to the reward.
    """

    def iteration(mean: Array, key: Key) -> tuple[Array, Array]:
        noise = jax.random.normal(key, (num_samples, *mean.shape), mean.dtype)
        samples = mean[None] + plan.std[None] * noise
        samples = jnp.clip(samples, -action_limit, action_limit)  # [N, H, A]
        returns = finite.losing(sharding.vmap(objective)(samples))  # [N]
        good = jnp.isfinite(returns)
        best = jnp.where(good.any(), returns.max(), 0.0)
        spread = jnp.std(returns, where=good) + 1e-8
        weight = jnp.where(good, jnp.exp((returns - best) / (temperature * spread)), 0)
        weight = weight / jnp.maximum(weight.sum(), 1e-8)
        moved = (weight[:, None, None] * samples).sum(axis=0)
        return jnp.where(good.any(), moved, mean), best

    keys = jax.random.split(key, num_iterations)
    mean, best = jax.lax.scan(iteration, plan.mean, keys)
    return plan._replace(mean=mean, actions=mean), {"plan/return": best[-1]}
