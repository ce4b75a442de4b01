"""iLQR as a planner: model-predictive control by local quadratic models (iLQG-MPC).

Tassa, Erez and Todorov, "Synthesis and stabilization of complex behaviors through
online trajectory optimization", 2012: a few iterations at every step, from the last
plan on.  The search is local; it begins at the best of some random sequences and the
last plan, without which a pendulum that hangs still would never learn to swing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mbrl_jax.ops import finite, sharding
from mbrl_jax.ops.floats import floats
from mbrl_jax.planners.ilqr import ilqr
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan, PyTree, Simulation


def planner(
    key: Key,
    objective: Objective,
    plan: Plan,
    *,
    action_limit: float,
    num_samples: int = 100,
    num_iterations: int = 3,
) -> tuple[Plan, Metrics]:
    """Maximises the return of a `Simulation`, whose steps are differentiated.

    Its state may be any pytree: iLQR's x are all its numbers, so the cost of a step
    grows with the square of their number.  Random keys in it are those of the first
    sequence, flags and counts have no derivative.  Raises TypeError for an objective
    that is no `Simulation`.
    """
    task = objective
    if not isinstance(task, Simulation):
        raise TypeError("iLQR needs a types.Simulation for its objective, not a return")
    plan = floats("ilqr_planner.planner", plan)
    noise = jax.random.normal(key, (num_samples, *plan.mean.shape), plan.mean.dtype)
    starts = plan.mean[None] + plan.std[None] * noise.at[0].set(0)
    starts = jnp.clip(starts, -action_limit, action_limit)
    first = starts[jnp.argmax(finite.losing(sharding.vmap(objective)(starts)))]
    x, split, merge = _as_vector(task, first)

    limit = jnp.asarray(action_limit, x.dtype)

    def dynamics(x: Array, u: Array, t: Array) -> Array:
        return split(task.step(merge(x, t), u)[0])

    def cost(x: Array, u: Array, t: Array) -> Array:
        return -task.step(merge(x, t), u)[1]

    found = ilqr(
        dynamics,
        cost,
        lambda x: jnp.zeros((), x.dtype),
        x,
        first,
        limits=(-limit, limit),
        final_gains=False,
        num_iterations=num_iterations,
    )
    actions = found.u.astype(plan.mean.dtype)  # of the state's type until now
    return plan._replace(mean=actions, actions=actions), {"plan/return": -found.cost}


def _as_vector(
    simulation: Simulation, actions: Array
) -> tuple[Array, Callable[[PyTree], Array], Callable[[Array, Array], PyTree]]:
    """The start as x [O], state -> x, and (x, t) -> state, with the keys that `actions`
    lead to."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    leaves, tree = jax.tree.flatten(simulation.start)
    keys_at = [i for i, leaf in enumerate(leaves) if is_key(leaf)]

    def numbers(state: PyTree) -> list[Array]:
        return [x for x in jax.tree.leaves(state) if not is_key(x)]

    def forward(state: PyTree, action: Array) -> tuple[PyTree, list[Array]]:
        keys = [x for x in jax.tree.leaves(state) if is_key(x)]
        return simulation.step(state, action)[0], keys

    _, keys = jax.lax.scan(forward, simulation.start, actions)
    x, unravel = ravel_pytree(numbers(simulation.start))

    def merge(x: Array, t: Array) -> PyTree:
        leaves = unravel(x)
        for i, key in zip(keys_at, keys, strict=True):
            leaves.insert(i, key[t])
        return jax.tree.unflatten(tree, leaves)

    return x, lambda state: ravel_pytree(numbers(state))[0], merge
