"""What a local controller acts in: fitted dynamics, and costs expanded around its way.

x state [O], u control [A], z both [O + A], T time steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.local_policies import controllers
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.models.linear_gaussian import Dynamics
from mbrl_jax.ops import definite
from mbrl_jax.planners.lqg import Belief
from mbrl_jax.planners.lqr import LQRProblem
from mbrl_jax.types import Array

Cost = Callable[[Array, Array, Array], Array]  # (x, u, x') -> []


def make(
    dynamics: Dynamics,
    cost: Cost,
    start: Belief,
    controller: Controller,
    *,
    convex: bool = False,
) -> System:
    """Costs are expanded to second order around the mean of x and u at each step.

    x' is that expected after x and u: what its noise adds is the same for every
    controller, and left out.  Where the cost is not convex the expansion is not,
    unless `convex`: then directions in which it bends down are taken for straight.
    """
    size = len(start.mean)
    A, B = dynamics.F[:, :, :size], dynamics.F[:, :, size:]
    steps, zero = jnp.zeros_like(A), jnp.zeros((len(A) + 1,), A.dtype)
    problem = LQRProblem(
        A=A,
        B=B,
        c=dynamics.f,
        Q=jnp.concatenate([steps, steps[:1]]),
        S=jnp.zeros_like(jnp.swapaxes(B, 1, 2)),
        R=jnp.zeros_like(jnp.swapaxes(B, 1, 2) @ B),
        q=jnp.zeros((len(A) + 1, size), A.dtype),
        r=jnp.zeros_like(B[:, 0]),
        constant=zero,
    )
    system = System(problem, dynamics.cov, start)
    z = controllers.marginals(system, controller).mean

    def of_step(z: Array, F: Array, f: Array) -> Array:
        return cost(z[:size], z[size:], F @ z + f)

    at = z, dynamics.F, dynamics.f
    costs, slope = jax.vmap(jax.value_and_grad(of_step))(*at)
    second = jax.vmap(jax.hessian(of_step))(*at)
    if convex:
        second = jax.vmap(definite.positive_part)(second)
    bend = jnp.einsum("tij,tj->ti", second, z)
    first = slope - bend
    constant = costs - ((slope + first) * z).sum(axis=1) / 2
    problem = problem._replace(
        Q=problem.Q.at[:-1].set(second[:, :size, :size]),
        S=second[:, size:, :size],
        R=second[:, size:, size:],
        q=problem.q.at[:-1].set(first[:, :size]),
        r=first[:, size:],
        constant=zero.at[:-1].set(constant),
    )
    return system._replace(problem=problem)
