"""Beliefs in a closed loop: Gaussians over observations, moved in closed form (PILCO).

    x ~ N(mean, cov)  ->  model's inputs, the action among them  ->  change of x

A state is the belief over an observation, an action are the moments of the model's
inputs, and nothing is drawn: the return is exact but for taking every distribution in
between for Gaussian.  Deisenroth and Rasmussen, "PILCO: a model-based and
data-efficient approach to policy search", 2011, Sec. 2.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.gradients import closed_loop
from mbrl_jax.gradients.closed_loop import DynamicalSystem, ExpectedReturn, Rollout
from mbrl_jax.moment_policies import MomentPolicy
from mbrl_jax.ops import moments
from mbrl_jax.ops.moments import Kernels, Moments, Normal
from mbrl_jax.types import Array, Belief, Key, Params


def expected_return(
    belief: Belief, f: Kernels, made: MomentPolicy, horizon: int, segment: int
) -> ExpectedReturn:
    """Of a policy in the processes `f`, for params that `made.prepare` has seen."""
    mean, std = jnp.array(belief.mean), jnp.array(belief.std)

    def step(key: Key, x: Normal, inputs: Moments) -> Normal:
        change = moments.kernels(inputs.normal, f)
        return moments.added(x, change._replace(gain=inputs.gain @ change.gain))

    system = DynamicalSystem(
        reset=lambda key: Normal(mean, jnp.diag(std**2)),
        step=step,
        observe=lambda x: x,
        reward=lambda x, action, new: belief.reward(*new),
        terminal=lambda x, action, new: jnp.zeros((), bool),
    )
    actor = closed_loop.Actor(lambda ready, key, x: made.inputs(ready, x))
    return ExpectedReturn(system, actor, horizon, segment=segment)


def rollout(
    belief: Belief,
    f: Kernels,
    made: MomentPolicy,
    params: Params,
    horizon: int,
    segment: int = 0,
) -> tuple[Array, Rollout]:
    """The expected return, and the beliefs on the way, of `horizon` steps."""
    problem = expected_return(belief, f, made, horizon, segment)
    key = jax.random.key(0)  # nothing is drawn
    start = problem.system.reset(key)
    return closed_loop.rollout(key, made.prepare(params), problem, start)
