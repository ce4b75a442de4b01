"""LQG: linear dynamics and quadratic costs, where x is only measured.

x' = A x + B u + c + w and y = C x + e, with w ~ N(0, W) and e ~ N(0, N) [Y].  A belief
is the normal distribution of x given what was measured, y_0 before u_0.  The optimum
steers its mean by the gains K, k of LQR (separation; Bertsekas, "Dynamic programming
and optimal control", 2017, Sec. 5.2).

An entry of y that is NaN was not measured: it corrects nothing, and the likelihood
leaves it out.

x state [O], u control [A], y measurement [Y], H horizon.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import definite
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key, Policy, PyTree


class Plant(NamedTuple):
    A: Array  # [H, O, O]
    B: Array  # [H, O, A]
    c: Array  # [H, O]
    W: Array  # [H, O, O]
    C: Array  # [H + 1, Y, O]
    N: Array  # [H + 1, Y, Y] positive definite


class Belief(NamedTuple):
    mean: Array  # [..., O]
    cov: Array  # [..., O, O]


class Gains(NamedTuple):
    """Of the Kalman filter; they do not depend on what is measured."""

    L: Array  # [H + 1, O, Y] the mean moves by L (y - C mean)
    predicted: Array  # [H + 1, O, O] cov before y is measured
    cov: Array  # [H + 1, O, O] and after
    status: Array  # [] int32, a `definite.Status`


class Filtered(NamedTuple):
    predicted: Belief  # [H + 1] before y is measured
    belief: Belief  # [H + 1] and after
    log_likelihood: Array  # [] of all that was measured
    status: Array  # [] int32, a `definite.Status`
    W: Array  # [H, O, O] of the plant, for the smoother


def correct(predicted: Array, C: Array, N: Array) -> tuple[Array, Array, Array]:
    """L [O, Y], the cov [O, O] after a measurement, and whether its own is definite.

    Of the cov `predicted` before it.  For the stationary filter that is V of
    `lqr.stationary(A.T, C.T, W, N)`, the dual of control.
    """
    predicted, C, N = floats("lqg.correct", (predicted, C, N))
    innovation = C @ predicted @ C.T + N
    solved, well = definite.solve(innovation, C @ predicted)
    L = solved.T
    rest = jnp.eye(len(predicted), dtype=predicted.dtype) - L @ C
    # Joseph's form stays positive semi-definite for any L
    return L, _symmetric(rest @ predicted @ rest.T + L @ N @ L.T), well


def kalman_gains(plant: Plant, cov: Array) -> Gains:
    """From `cov` [O, O], of x before the first measurement."""
    plant, cov = floats("lqg.kalman_gains", (plant, cov))

    def step(predicted: Array, now: tuple) -> tuple[Array, tuple]:
        A, W, C, N = now
        L, cov, well = correct(predicted, C, N)
        return _symmetric(A @ cov @ A.T + W), (L, predicted, cov, well)

    stages = (plant.A, plant.W, plant.C[:-1], plant.N[:-1])
    end, steps = jax.lax.scan(step, cov, stages)
    L, after, well = correct(end, plant.C[-1], plant.N[-1])
    Ls, predicted, covs, wells = map(_append, steps, (L, end, after, well))
    return Gains(Ls, predicted, covs, definite.status(wells, covs))


def kalman_filter(plant: Plant, prior: Belief, u: Array, y: Array) -> Filtered:
    """Beliefs of x given y so far, for u [H, A] and y [H + 1, Y] (Kalman, 1960).

    `prior` is before the first y.
    """
    plant, prior, u, y = floats("lqg.kalman_filter", (plant, prior, u, y))
    seen = ~jnp.isnan(y)
    plant, y = _of_what_is_seen(plant, seen), jnp.where(seen, y, 0)
    gains = kalman_gains(plant, prior.cov)

    def step(predicted: Array, now: tuple) -> tuple[Array, tuple]:
        A, B, c, C, L, u, y = now
        mean = predicted + L @ (y - C @ predicted)
        return A @ mean + B @ u + c, (predicted, mean)

    stages = (plant.A, plant.B, plant.c, plant.C[:-1], gains.L[:-1], u, y[:-1])
    end, steps = jax.lax.scan(step, prior.mean, stages)
    last = end + gains.L[-1] @ (y[-1] - plant.C[-1] @ end)
    predicted, mean = map(_append, steps, (end, last))
    errors = y - jnp.einsum("tyo,to->ty", plant.C, predicted)
    covs = plant.C @ gains.predicted @ jnp.swapaxes(plant.C, 1, 2) + plant.N
    density = jax.vmap(jax.scipy.stats.multivariate_normal.logpdf)
    unseen = (~seen).sum() * jnp.log(2 * jnp.pi) / 2  # each a standard normal, at 0
    finite = jnp.isfinite(mean).all()
    status = jnp.where(finite, gains.status, definite.Status.NOT_FINITE)
    return Filtered(
        Belief(predicted, gains.predicted),
        Belief(mean, gains.cov),
        jnp.sum(density(errors, jnp.zeros_like(errors), covs)) + unseen,
        status.astype(jnp.int32),
        plant.W,
    )


def _of_what_is_seen(plant: Plant, seen: Array) -> Plant:
    """Where `seen` [H + 1, Y] is false, y is standard normal and tells nothing."""
    both, one = seen[:, :, None] & seen[:, None], jnp.eye(seen.shape[1])
    return plant._replace(
        C=jnp.where(seen[:, :, None], plant.C, 0),
        N=jnp.where(both, plant.N, one[None].astype(plant.N.dtype)),
    )


def smoother(A: Array, filtered: Filtered) -> tuple[Belief, Array]:
    """Beliefs [H + 1] of x given all y, and a status (Rauch, Tung and Striebel, 1965).

    The predicted covs are to be positive definite, as they are where W is.
    """
    A = floats("lqg.smoother", A)

    def step(later: Belief, now: tuple) -> tuple[Belief, tuple]:
        belief, predicted, A, W = now
        solved, well = definite.solve(predicted.cov, A @ belief.cov)
        G = solved.T
        mean = belief.mean + G @ (later.mean - predicted.mean)
        # as Joseph's form: no difference of covs, of which rounding would be left
        rest = jnp.eye(len(A), dtype=A.dtype) - G @ A
        cov = rest @ belief.cov @ rest.T + G @ (W + later.cov) @ G.T
        smooth = Belief(mean, _symmetric(cov))
        return smooth, (smooth, well)

    last = jax.tree.map(lambda x: x[-1], filtered.belief)
    now = jax.tree.map(lambda x: x[:-1], filtered.belief)
    ahead = jax.tree.map(lambda x: x[1:], filtered.predicted)
    stages = (now, ahead, A, filtered.W)
    _, (beliefs, well) = jax.lax.scan(step, last, stages, reverse=True)
    beliefs = jax.tree.map(_append, beliefs, last)
    return beliefs, definite.status(well, beliefs.mean, beliefs.cov)


def lqg(plant: Plant, K: Array, k: Array, L: Array, mean: Array) -> Policy:
    """Acts on measurements y as obs.  `mean` [O] is that of x before the first one.

    Past its end the last entry of each array is used: arrays of length 1 make the
    stationary controller.
    """
    plant, K, k, L, mean = floats("lqg.lqg", (plant, K, k, L, mean))

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        mean, t = memory
        at = lambda x: x[jnp.minimum(t, len(x) - 1)]
        error = obs - at(plant.C) @ mean
        mean = mean + at(L) @ jnp.where(jnp.isnan(obs), 0, error)
        u = at(K) @ mean + at(k)
        mean = at(plant.A) @ mean + at(plant.B) @ u + at(plant.c)
        return u, (mean, t + 1)

    return Policy(lambda: (mean, jnp.zeros((), jnp.int32)), act)


def expected_cost(
    plant: Plant, prior: Belief, R: Array, K: Array, V: Array, v: Array, constant: Array
) -> Array:
    """Of LQG in all: what the mean costs, the noise, and not knowing (Bertsekas).

    R [H, A, A] is the cost of u; K [H, A, O], V [H + 1, O, O], v [H + 1, O] and
    constant [H + 1] are the solution of LQR.
    """
    given = (plant, prior, R, K, V, v, constant)
    plant, prior, R, K, V, v, constant = floats("lqg.expected_cost", given)
    gains, ahead = kalman_gains(plant, prior.cov), V[1:]
    Quu = R + jnp.swapaxes(plant.B, 1, 2) @ ahead @ plant.B
    blind = jnp.einsum("tai,tab,tbj,tij->", K, Quu, K, gains.cov[:-1])
    noise = jnp.einsum("tij,tij->", ahead, plant.W)
    known = prior.mean @ V[0] @ prior.mean / 2 + v[0] @ prior.mean + constant[0]
    return known + ((V[0] * prior.cov).sum() + noise + blind) / 2


def _append(steps: Array, last: Array) -> Array:
    return jnp.concatenate([steps, last[None]])


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
