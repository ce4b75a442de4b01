"""Cross-entropy method (Rubinstein, 1999; as in PETS, Chua et al., 2018, App. A)."""

import jax
import jax.numpy as jnp

from mbrl_jax.ops import elites, finite, sharding
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan


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
    deviations, which are narrowed so that the action limit is not passed, and moves
    mean and variance towards those of the best `num_elites`.  A return that is not
    finite is worse than any other, and its sequence moves nothing.
    """

    def iteration(
        carry: tuple[Array, Array], key: Key
    ) -> tuple[tuple[Array, Array], Array]:
        mean, var = carry  # [H, A]
        room = jnp.minimum(mean + action_limit, action_limit - mean)  # [H, A]
        std = jnp.sqrt(jnp.minimum(var, jnp.square(room / 2)))
        noise = jax.random.truncated_normal(
            key, -2.0, 2.0, (num_samples, *mean.shape), mean.dtype
        )
        samples = mean[None] + std[None] * noise  # [N, H, A]
        returns = finite.losing(sharding.vmap(objective)(samples))  # [N]
        elite, elite_returns = elites.best(samples, returns, num_elites)
        return elites.refit(mean, var, elite, elite_returns, momentum), elite_returns

    start = (plan.mean, jnp.square(plan.std))
    keys = jax.random.split(key, num_iterations)
    (mean, var), elite_returns = jax.lax.scan(iteration, start, keys)
    plan = plan._replace(mean=mean, std=jnp.sqrt(var), actions=mean)
    return plan, {"plan/return": elite_returns[-1].mean()}
