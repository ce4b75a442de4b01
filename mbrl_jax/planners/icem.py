"""iCEM: sample-efficient cross-entropy method (Pinneri et al., 2020)."""

import jax
import jax.numpy as jnp

from mbrl_jax.ops import elites, finite, sharding
from mbrl_jax.ops.floats import floats
from mbrl_jax.ops.noise import coloured_noise
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan


def icem(
    key: Key,
    objective: Objective,
    plan: Plan,
    *,
    action_limit: float,
    num_samples: int = 400,
    num_elites: int = 40,
    num_iterations: int = 5,
    momentum: float | Array = 0.1,
    noise_exponent: float | Array = 2.0,
    decay: float = 1.25,
) -> tuple[Plan, Metrics]:
    """Maximises `objective`, starting the search at `plan`; executes the best sample.

    CEM with the additions of the paper: noise whose power falls as frequency to the
    minus `noise_exponent` along the horizon; the elites kept from the last iteration
    and the last plan (`plan.elites`, whose number K is the caller's); a population that
    shrinks by `decay` per iteration; clipping at the limit; the mean among the last
    samples.  A return that is not finite is worse than any other.  Of equal returns, as
    where each step that is survived earns 1, the mean's wins, then those that were
    kept: fresh noise is not executed for nothing.
    """
    plan = floats("icem", plan)
    num_kept = plan.elites.shape[0]
    mean, var, kept = plan.mean, jnp.square(plan.std), plan.elites
    # the sizes differ, so this loop cannot be a scan
    for i, key in enumerate(jax.random.split(key, num_iterations)):
        size = max(int(num_samples * decay**-i), 2 * num_elites)
        noise = coloured_noise(key, (size, *mean.shape), noise_exponent, mean.dtype)
        samples = mean[None] + jnp.sqrt(var)[None] * noise
        samples = jnp.clip(samples, -action_limit, action_limit)
        candidates = [kept, samples]
        if i == num_iterations - 1:
            candidates.insert(0, mean[None])
        samples = jnp.concatenate(candidates)  # [N + K, H, A]; the first of equals wins
        returns = finite.losing(sharding.vmap(objective)(samples))
        elite, elite_returns = elites.best(samples, returns, num_elites)
        kept = elite[:num_kept]
        mean, var = elites.refit(mean, var, elite, elite_returns, momentum)
    found = Plan(mean, jnp.sqrt(var), actions=elite[0], elites=kept)
    return found, {"plan/return": elite_returns[0]}
