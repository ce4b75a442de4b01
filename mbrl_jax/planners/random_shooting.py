"""Random shooting ("guess and check"; Nagabandi et al., 2018, Sec. IV)."""

import jax
import jax.numpy as jnp

from mbrl_jax.ops import checks, finite, sharding
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan


def random_shooting(
    key: Key,
    objective: Objective,
    plan: Plan,
    *,
    action_limit: float,
    num_samples: int = 1000,
) -> tuple[Plan, Metrics]:
    """The best of `num_samples` action sequences drawn uniformly within the limit.

    Only the shape of `plan` matters.
    """
    plan = floats("random_shooting", plan)
    checks.finite_limit("random_shooting", action_limit)
    samples = jax.random.uniform(
        key,
        (num_samples, *plan.mean.shape),
        plan.mean.dtype,
        -action_limit,
        action_limit,
    )
    returns = finite.losing(sharding.vmap(objective)(samples))  # [N]
    best: Array = samples[jnp.argmax(returns)]
    metrics = {"plan/return": returns.max()}
    return plan._replace(mean=best, actions=best), metrics
