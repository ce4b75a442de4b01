"""Time-varying linear-Gaussian controllers, where they lead, and at what cost.

    u ~ N(K_t x + k_t, cov_t)

Around a trajectory x^, u^ such a controller is one of three (Levine, CS 285):

    0.5  open_loop        u^
    1.0  feedback         K (x - x^) + k + u^
    2.0  maximum_entropy  N(K (x - x^) + k + u^, temperature Quu^-1), which minimises
                          expected cost - temperature entropy (Levine and Koltun,
                          "Guided policy search", 2013)

In K x + k, x^ and u^ are part of k.

x state [O], u control [A], z both [O + A], T time steps; costs as in `planners/lqr.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import definite
from mbrl_jax.planners import lqr
from mbrl_jax.planners.lqg import Belief
from mbrl_jax.planners.lqr import LQRProblem
from mbrl_jax.types import Array, Key, Policy, PyTree


class Controller(NamedTuple):
    K: Array  # [T, A, O]
    k: Array  # [T, A]
    cov: Array  # [T, A, A] positive definite, or 0


class System(NamedTuple):
    """What a controller acts in."""

    problem: LQRProblem  # dynamics and costs
    noise: Array  # [T, O, O] cov of x'
    start: Belief  # of the first x


class Marginals(NamedTuple):
    """Of x and u at each step, and of x after the last one."""

    mean: Array  # [T, O + A]
    cov: Array  # [T, O + A, O + A]
    last: Belief


def policy(controller: Controller, *, noisy: bool = True) -> Policy:
    """Its memory is the time step; past the last one that is used."""
    root = jnp.linalg.cholesky(controller.cov)
    root = jnp.where(jnp.isfinite(root), root, 0)  # of 0

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        time = jnp.minimum(memory, len(controller.k) - 1)
        u = controller.K[time] @ obs + controller.k[time]
        if noisy:
            u = u + root[time] @ jax.random.normal(key, u.shape, u.dtype)
        return u, memory + 1

    return Policy(lambda: jnp.zeros((), jnp.int32), act)


def open_loop(system: System, controller: Controller, cov: Array) -> Controller:
    """The mean of the controls of another one, whatever x is.  `cov` is [A, A]."""
    size = system.start.mean.shape[0]
    u = marginals(system, controller).mean[:, size:]
    return Controller(jnp.zeros_like(controller.K), u, _everywhere(cov, controller))


def feedback(controller: Controller, cov: Array) -> Controller:
    """Another one's gains.  `cov` is [A, A]."""
    return controller._replace(cov=_everywhere(cov, controller))


def maximum_entropy(
    problem: LQRProblem, temperature: float | Array
) -> tuple[Controller, Array]:
    """The optimum of expected cost - temperature entropy, and a `definite.Status`.

    Its gains are those of LQR.  `temperature` is in units of the cost, per nat.
    """
    found = lqr.solve(problem)
    B = problem.B
    Quu = problem.R + jnp.swapaxes(B, 1, 2) @ found.V[1:] @ B
    one = jnp.eye(B.shape[2], dtype=B.dtype)
    inverse, _ = jax.vmap(definite.solve, in_axes=(0, None))(Quu, one)
    return Controller(found.K, found.k, temperature * _symmetric(inverse)), found.status


def linearised(
    act: Callable[[Array], Array], cov: Array, obs: Array, valid: Array
) -> Controller:
    """N(act(x), cov [A, A]) at samples obs [N, T, O] of each time step, where `valid`.

    Its gains are the mean Jacobian, which is what least squares tend to for a normal x
    (Stein's lemma); the mean action of the samples is kept.
    """
    weight = valid / jnp.maximum(valid.sum(axis=0), 1)[None]  # [N, T]
    each = lambda f: jax.vmap(jax.vmap(f))(obs)
    K = jnp.einsum("nt,ntao->tao", weight, each(jax.jacrev(act)))
    action = jnp.einsum("nt,nta->ta", weight, each(act))
    k = action - jnp.einsum("tao,nt,nto->ta", K, weight, obs)
    return Controller(K, k, jnp.tile(cov[None], (len(K), 1, 1)))


def marginals(system: System, controller: Controller) -> Marginals:
    """What x and u are, step by step: they are all Gaussian."""

    def step(x: Belief, now: tuple) -> tuple[Belief, tuple[Array, Array]]:
        A, B, c, noise, K, k, cov = now
        F = jnp.concatenate([A, B], axis=1)
        across = K @ x.cov
        both = jnp.block([[x.cov, across.T], [across, across @ K.T + cov]])
        z = jnp.concatenate([x.mean, K @ x.mean + k])
        after = Belief(F @ z + c, _symmetric(F @ both @ F.T + noise))
        return after, (z, _symmetric(both))

    problem = system.problem
    steps = (problem.A, problem.B, problem.c, system.noise, *controller)
    last, (mean, cov) = jax.lax.scan(step, system.start, steps)
    return Marginals(mean, cov, last)


def expected_cost(problem: LQRProblem, at: Marginals) -> Array:
    """The sum [] over all steps and the end."""
    second, first = cost_terms(problem)
    around = at.cov + jnp.einsum("ti,tj->tij", at.mean, at.mean)
    last, q = problem.Q[-1], problem.q[-1]
    x = at.last.mean
    end = (last * at.last.cov).sum() / 2 + x @ last @ x / 2 + q @ x
    steps = (second * around).sum() / 2 + (first * at.mean).sum()
    return steps + end + problem.constant.sum()


def cost_terms(problem: LQRProblem) -> tuple[Array, Array]:
    """Second [T, O + A, O + A] and first [T, O + A] derivatives at 0, by z."""
    Q, S, R = problem.Q[:-1], problem.S, problem.R
    first = jnp.concatenate([problem.q[:-1], problem.r], axis=1)
    above = jnp.concatenate([Q, jnp.swapaxes(S, 1, 2)], axis=2)
    return jnp.concatenate([above, jnp.concatenate([S, R], axis=2)], axis=1), first


def kl(new: Controller, old: Controller, at: Marginals) -> Array:
    """KL(new || old) of the two distributions of trajectories, by time step: [T] nats.

    `at` are the marginals of `new`.  As dynamics and start are the same, it is the
    expected KL of the controls, of all x that `new` comes to, not only their mean.
    """
    precision, old_log_det = jax.vmap(definite.inverse)(old.cov)
    _, log_det = jax.vmap(definite.inverse)(new.cov)
    K, size = new.K - old.K, new.K.shape[2]
    gap = jnp.einsum("tao,to->ta", K, at.mean[:, :size]) + new.k - old.k
    spread = K @ at.cov[:, :size, :size] @ jnp.swapaxes(K, 1, 2)
    spread = spread + new.cov + jnp.einsum("ta,tb->tab", gap, gap)
    trace = jnp.einsum("tab,tab->t", precision, spread)
    return (trace - K.shape[1] + old_log_det - log_det) / 2


def _everywhere(cov: Array, controller: Controller) -> Array:
    return jnp.broadcast_to(cov, controller.cov.shape).astype(controller.cov.dtype)


def _symmetric(matrix: Array) -> Array:
    return (matrix + jnp.swapaxes(matrix, -1, -2)) / 2
