"""Gradient shooting: ascend the return along its gradient by the actions."""

import jax
import jax.numpy as jnp
import optax

from mbrl_jax.ops import checks, finite, sharding
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan


def gradient(
    key: Key,
    objective: Objective,
    plan: Plan,
    *,
    action_limit: float,
    num_samples: int = 16,
    num_iterations: int = 50,
    step_size: float | Array = 0.05,
) -> tuple[Plan, Metrics]:
    """Maximises a differentiable `objective`; executes the best sequence on the way.

    Adam from the mean and `num_samples` - 1 samples of `plan` side by side, in units of
    the action limit, onto which actions are projected.  A gradient that is not finite
    moves nothing, a return that is not finite is worse than any other.
    """
    plan = floats("gradient", plan)
    checks.finite_limit("gradient", action_limit)
    optimizer = finite.skip_non_finite(optax.adam(step_size), num_samples)
    worth = lambda x: objective(x * action_limit)
    evaluate = sharding.vmap(jax.value_and_grad(worth))

    def iteration(carry: tuple, _: None) -> tuple[tuple, None]:
        x, opt_state, best, best_return = carry
        returns, slopes = evaluate(x)  # [N], [N, H, A]
        returns = finite.losing(returns)
        better = returns > best_return
        best = jnp.where(better[:, None, None], x, best)
        best_return = jnp.maximum(returns, best_return)
        updates, opt_state = optimizer.update(-slopes, opt_state)
        x = jnp.clip(x + updates, -1, 1)
        return (x, opt_state, best, best_return), None

    noise = jax.random.normal(key, (num_samples, *plan.mean.shape), plan.mean.dtype)
    starts = plan.mean[None] + plan.std[None] * noise.at[0].set(0)
    starts = jnp.clip(starts / action_limit, -1, 1)
    nothing = jnp.full(num_samples, -jnp.inf, plan.mean.dtype)
    carry = (starts, optimizer.init(starts), starts, nothing)
    # one more, to evaluate where the last step went
    carry, _ = jax.lax.scan(iteration, carry, None, length=num_iterations + 1)
    _, _, best, best_return = carry
    first = jnp.argmax(best_return)
    actions = best[first] * action_limit
    found = plan._replace(mean=actions, actions=actions)
    return found, {"plan/return": best_return[first]}
