"""LQR that stays near the last controller.

The step of Levine and Abbeel, "Learning neural network policies with guided policy
search under unknown dynamics", 2014:

    minimise expected cost l - temperature entropy,
    such that KL(new || old trajectories) <= max_kl

For a dual variable eta the Lagrangian, divided by eta + temperature, is the cost

    (l - eta log old(u | x)) / (eta + temperature)

less the entropy of the new controller: one backward pass of LQR, whose controller has
the covariance Quu^-1.  (Without a temperature that shrinks from step to step.)  The
larger eta, the nearer the old controller; eta is searched by geometric means of the
ends of a bracket.  Where a Quu is not positive definite eta is too small, as where the
KL divergence is too large: it becomes the lower end of the bracket.  (The set of 1 /
eta that have a minimum is an interval from 0 on.)

One problem, to be vmapped.  Nothing is raised: see the status.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.local_policies import controllers
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.ops import definite, finite
from mbrl_jax.ops.floats import floats
from mbrl_jax.planners.lqr import LQRProblem
from mbrl_jax.types import Array

# of eta, in units of what the cost of a step varies by
LEAST, MOST = 1e-8, 1e16
FACTOR = 10.0  # the most by which eta changes in a step
SIZE_FACTORS, SIZES = (0.1, 5.0), (0.01, 10.0)  # of a step's bound
BAND = 0.1  # |KL - max_kl| / max_kl of what has converged

Form = Callable[[System, Controller], Controller]


class Improvement(NamedTuple):
    controller: Controller  # the old one where none is found
    kl: Array  # [] nats, summed over time
    eta: Array  # [] in units of the cost, per nat
    cost: Array  # [] expected of the new controller
    old_cost: Array  # [] and of the old one
    status: Array  # [] int32, a `definite.Status`
    num_iterations: Array  # [] int32, of the search for eta
    num_indefinite: Array  # [] int32, of these with a Quu that is not positive definite


class _Search(NamedTuple):
    lower: Array  # [] eta, too small; 0 before there is one
    upper: Array  # [] large enough; inf before there is one
    eta: Array  # []
    best: Improvement
    done: Array  # [] bool


def improve(
    system: System,
    old: Controller,
    max_kl: float | Array,
    *,
    form: Form = lambda system, controller: controller,
    temperature: float | Array = 0.0,
    num_iterations: int = 50,
) -> Improvement:
    """The best controller within `max_kl` nats of `old`, whose covs are definite.

    `temperature` is what a nat of entropy is worth, in units of the cost: [], or [T]
    where that changes with time.
    `form` makes what is executed of the controller that minimises the Lagrangian, such
    as its open loop; it is of that that KL and cost are taken.

    SOLVED is: the KL divergence is `max_kl` within 10 %, or less than that with the
    least eta, where it binds no more.  NOT_CONVERGED: the best within `max_kl` that was
    found in `num_iterations`.  INDEFINITE: none was found; NOT_FINITE: for a reason.
    """
    at = controllers.marginals(system, old)
    scale = _variation(system.problem, at)
    least, most = LEAST * scale, MOST * scale
    zero, nothing = jnp.zeros((), jnp.int32), jnp.zeros_like(scale)
    old_cost = controllers.expected_cost(system.problem, at)
    unsolved = jnp.array(definite.Status.INDEFINITE, jnp.int32)
    start = Improvement(old, nothing, most, old_cost, old_cost, unsolved, zero, zero)

    def unfinished(search: _Search) -> Array:
        return ~search.done & (search.best.num_iterations < num_iterations)

    def attempt(search: _Search) -> _Search:
        lower, upper, eta, best, _ = search
        problem = penalised(system.problem, old, eta, temperature)
        share = _share(eta, temperature)
        new, status = controllers.maximum_entropy(problem, share)
        new = form(system, new)
        at = controllers.marginals(system, new)
        kl = controllers.kl(new, old, at).sum()
        cost = controllers.expected_cost(system.problem, at)
        well = (status == definite.Status.SOLVED) & jnp.isfinite(kl + cost)
        small = well & (kl <= max_kl)
        solved = well & (jnp.abs(kl - max_kl) <= BAND * max_kl)
        solved = solved | (small & (eta <= least))
        lower, upper = jnp.where(small, lower, eta), jnp.where(small, eta, upper)
        middle = jnp.sqrt(lower) * jnp.sqrt(upper)
        down = jnp.maximum(jnp.maximum(middle, upper / FACTOR), least)
        up = jnp.minimum(jnp.minimum(middle, lower * FACTOR), most)
        done = solved | (~small & (eta >= most))
        status = jnp.where(
            solved, definite.Status.SOLVED, definite.Status.NOT_CONVERGED
        )
        found = best._replace(
            controller=new, kl=kl, eta=eta, cost=cost, status=status.astype(jnp.int32)
        )
        best = jax.tree.map(
            lambda a, b: jnp.where(solved | small, a, b), found, best
        )._replace(
            num_iterations=best.num_iterations + 1,
            num_indefinite=best.num_indefinite + ~well,
        )
        return _Search(lower, upper, jnp.where(small, down, up), best, done)

    search = _Search(nothing, nothing + jnp.inf, scale, start, jnp.zeros((), bool))
    best = jax.lax.while_loop(unfinished, attempt, search).best
    sound = finite.all_finite((system, old))
    status = jnp.where(sound, best.status, definite.Status.NOT_FINITE)
    return best._replace(status=status.astype(jnp.int32))


def adapted(
    size: float | Array, predicted: float | Array, actual: float | Array
) -> Array:
    """The next step's size [], a factor of its bound, from how the last one turned out.

    What is gained by a step of s times the last is taken for `predicted` s less
    (`predicted` - `actual`) s^2, the best s for that, and at most SIZE_FACTORS of it
    (Levine, Wagener and Abbeel, "Learning contact-rich manipulation skills with guided
    policy search", 2015).  Where nothing was predicted it stays.
    """
    predicted, actual, size = floats("kl_lqr.adapted", (predicted, actual, size))
    lost = jnp.maximum(predicted - actual, 0)
    best = predicted / (2 * jnp.where(lost > 0, lost, predicted / 1e3))
    best = jnp.clip(best, *SIZE_FACTORS)
    changed = (predicted > 0) & jnp.isfinite(actual)
    return jnp.where(changed, jnp.clip(size * best, *SIZES), size)


def scheduled(weights: Array, kl: Array) -> Array:
    """Weights [T] of KL divergences [T]: doubled where these are above their mean over
    time, halved where two standard deviations below (Levine, Finn, Darrell and Abbeel,
    "End-to-end training of deep visuomotor policies", 2016, Sec. 4)."""
    mean, std = kl.mean(), kl.std()
    factor = jnp.where(kl > mean, 2.0, jnp.where(kl < mean - 2 * std, 0.5, 1.0))
    return weights * factor


def penalised(
    problem: LQRProblem,
    old: Controller,
    eta: float | Array,
    temperature: float | Array = 0.0,
) -> LQRProblem:
    """The costs (l - eta log old(u | x)) / (eta + temperature), up to a constant.

    A `temperature` [T] is averaged in this: dividing costs changes no gain.
    """
    scale = eta + _mean(temperature)
    precision, _ = jax.vmap(definite.inverse)(old.cov)
    scaled = problem._replace(
        Q=problem.Q / scale,
        S=problem.S / scale,
        R=problem.R / scale,
        q=problem.q / scale,
        r=problem.r / scale,
        constant=problem.constant / scale,
    )
    return _pulled(scaled, old, eta / scale * precision)


def toward(problem: LQRProblem, other: Controller, weight: Array) -> LQRProblem:
    """The costs l - weight log other(u | x), up to a constant, for `weight` [T].

    With `weight` for a temperature: l + weight KL(u || other), whatever the controller.
    """
    precision, _ = jax.vmap(definite.inverse)(other.cov)
    return _pulled(problem, other, weight[:, None, None] * precision)


def _pulled(problem: LQRProblem, to: Controller, precision: Array) -> LQRProblem:
    """With the cost of half the square of u - K x - k, in this precision [T, A, A]."""
    PK = precision @ to.K
    Pk = jnp.einsum("tab,tb->ta", precision, to.k)
    KPK = jnp.swapaxes(to.K, 1, 2) @ PK
    KPk = jnp.einsum("tao,ta->to", to.K, Pk)
    kPk = (to.k * Pk).sum(axis=1)
    return problem._replace(
        Q=problem.Q.at[:-1].add(KPK),
        S=problem.S - PK,
        R=problem.R + precision,
        q=problem.q.at[:-1].add(KPk),
        r=problem.r - Pk,
        constant=problem.constant.at[:-1].add(kPk / 2),
    )


def _mean(temperature: float | Array) -> float | Array:
    return jnp.mean(temperature) if jnp.ndim(temperature) else temperature


def _share(eta: Array, temperature: float | Array) -> float | Array:
    """Of eta + temperature in its mean over time, [T, 1, 1], or 1."""
    if not jnp.ndim(temperature):
        return 1.0
    every = eta + jnp.asarray(temperature)
    return (every / every.mean())[:, None, None]


def _variation(problem: LQRProblem, at: controllers.Marginals) -> Array:
    """[] by how much the cost of a step varies: of those that do, the least.

    The least, since the old controller may let the state grow without bound.
    """
    second, first = controllers.cost_terms(problem)
    every = _step_variation(second, first, at.mean, at.cov)
    last = problem.Q[-1:], problem.q[-1:], at.last.mean[None], at.last.cov[None]
    every = jnp.concatenate([every, _step_variation(*last)])
    varies = every > jnp.finfo(every.dtype).eps * every.max()
    scale = jnp.where(varies, every, jnp.inf).min()
    return jnp.where(jnp.isfinite(scale), scale, 1)


def _step_variation(second: Array, first: Array, mean: Array, cov: Array) -> Array:
    """[T], of a quadratic function of a Gaussian: its slope, and its curvature."""
    slope = first + jnp.einsum("tij,tj->ti", second, mean)
    along = jnp.einsum("ti,tij,tj->t", slope, cov, slope)
    bent = jnp.abs(second * cov).sum(axis=(1, 2)) / 2
    return jnp.sqrt(jnp.maximum(along, 0)) + bent
