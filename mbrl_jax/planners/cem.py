"""Cross-entropy method (Rubinstein, 1999; as in PETS, Chua et al., 2018, App. A)."""

import jax
import jax.numpy as jnp

from mbrl_jax.ops import elites, finite, sharding
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan

WITHIN = 1.5  # standard deviations from the limit to the centre of the search


def cem(
    key: Key,
    objective: Objective,
    plan: Plan,
    *,
    action_limit: float,
    num_samples: int = 400,
    num_elites: int = 40,
    num_iterations: int = 5,
    momentum: float | Array = 0.1,
) -> tuple[Plan, Metrics]:
    """Maximises `objective`, starting the search at `plan`; executes the final mean.

    Each iteration samples action sequences from a normal truncated at two standard
    deviations and at the action limit, whose centre is 1.5 of them within that, and
    moves mean and variance towards those of the best `num_elites`.  A return that is
    not finite is worse than any other, and its sequence moves nothing.

    Deviation: PETS's code narrows the normal near the limit, until two standard
    deviations fit, so that a mean at the limit has no variance and never leaves it.
    """
    plan = floats("cem", plan)

    def iteration(
        carry: tuple[Array, Array], key: Key
    ) -> tuple[tuple[Array, Array], Array]:
        mean, var = carry  # [H, A]
        std = jnp.sqrt(var)
        inner = jnp.maximum(action_limit - WITHIN * std, 0)
        centre, unit = jnp.clip(mean, -inner, inner), jnp.where(std > 0, std, 1)
        low = jnp.maximum((-action_limit - centre) / unit, -2.0)
        high = jnp.minimum((action_limit - centre) / unit, 2.0)
        noise = jax.random.truncated_normal(
            key, low[None], high[None], (num_samples, *mean.shape), mean.dtype
        )
        samples = centre[None] + std[None] * noise  # [N, H, A]
        samples = jnp.clip(samples, -action_limit, action_limit)  # rounding
        returns = finite.losing(sharding.vmap(objective)(samples))  # [N]
        elite, elite_returns = elites.best(samples, returns, num_elites)
        return elites.refit(mean, var, elite, elite_returns, momentum), elite_returns

    start = (plan.mean, jnp.square(plan.std))
    keys = jax.random.split(key, num_iterations)
    (mean, var), elite_returns = jax.lax.scan(iteration, start, keys)
    plan = plan._replace(mean=mean, std=jnp.sqrt(var), actions=mean)
    return plan, {"plan/return": elite_returns[-1].mean()}
