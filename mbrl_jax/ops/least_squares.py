"""Nonlinear least squares in which each example has unknowns of its own.

Levenberg-Marquardt (Nocedal and Wright, "Numerical optimization", 2006, Sec. 10.3) for
sum_w |r(shared, own_w, data_w)|^2.  Most of J^T J is 0: own unknowns only touch their
example, and are eliminated from the normal equations (Schur complement), so that the
cost is linear in the number W of examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, PyTree

Residual = Callable[[Array, Array, PyTree], Array]
# (shared [P], own [D], the data of one example) -> [...]


class Solution(NamedTuple):
    shared: Array  # [P]
    own: Array  # [W, D]
    residuals: Array  # [W, ...]
    losses: Array  # [I + 1] sums of squares, from the start on
    inverse: Array  # [P, P] the block of (J^T J)^-1 that belongs to `shared`
    lost: Array  # [P] bool, the data do not tell it at all; large in `inverse`


class _Point(NamedTuple):
    shared: Array  # [P]
    own: Array  # [W, D]


class _Normal(NamedTuple):
    """J^T J and J^T r in blocks."""

    shared: Array  # [P, P]
    cross: Array  # [W, P, D]
    own: Array  # [W, D, D]
    shared_gradient: Array  # [P]
    own_gradient: Array  # [W, D]


class _Best(NamedTuple):
    """Where the sum was least so far."""

    point: _Point
    loss: Array  # []
    residuals: Array  # [W, ...]
    normal: _Normal


def minimise(
    residual: Residual,
    shared: Array,
    own: Array,
    data: PyTree,
    num_iterations: int,
    max_step: float = 1.0,
) -> Solution:
    """From `shared` [P] and `own` [W, D]; leaves of `data` are [W, ...].

    No step that makes the sum larger, or not a number, is taken; none changes an entry
    of `shared` by more than `max_step`.  What has no effect stays as it was.
    """
    start = _Point(shared, own)
    # jit, so that it is traced only once.
    evaluate = jax.jit(lambda point: _evaluate(residual, point, data))
    nothing = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(evaluate, start)
    )

    def iterate(carry: PyTree, _: None) -> tuple[PyTree, Array]:
        candidate, best, damping = carry
        new = _Best(candidate, *evaluate(candidate))
        better = new.loss < best.loss  # false if it is NaN
        best = jax.tree.map(lambda x, y: jnp.where(better, x, y), new, best)
        damping = damping * jnp.where(better, 0.2, 5.0)
        # Never 0: it keeps unknowns that have no effect where they are.
        damping = jnp.clip(damping, jnp.finfo(damping.dtype).eps ** 0.5, 1e8)
        step = _step(best.normal, damping, max_step)
        candidate = jax.tree.map(jnp.add, best.point, step)
        return (candidate, best, damping), best.loss

    # The start is the first candidate, so that `residual` is compiled only once.
    best = _Best(start, *nothing)._replace(loss=jnp.full_like(nothing[0], jnp.inf))
    carry = (start, best, jnp.full_like(best.loss, 0.05))
    (_, best, _), losses = jax.lax.scan(iterate, carry, length=num_iterations + 1)
    inverse, lost = _inverse(best.normal)
    return Solution(*best.point, best.residuals, losses, inverse, lost)


def _evaluate(
    residual: Residual, point: _Point, data: PyTree
) -> tuple[Array, Array, _Normal]:
    """The sum of squares [], the residuals [W, ...], the normal equations."""

    def one(shared: Array, own: Array, data: PyTree) -> tuple[Array, ...]:
        def twice(shared: Array, own: Array) -> tuple[Array, Array]:
            r = residual(shared, own, data)
            return r.ravel(), r

        (j, k), r = jax.jacfwd(twice, (0, 1), has_aux=True)(shared, own)
        return r, j.T @ j, j.T @ k, k.T @ k, j.T @ r.ravel(), k.T @ r.ravel()

    residuals, *blocks = jax.vmap(one, (None, 0, 0))(*point, data)
    normal = _Normal(*blocks)
    normal = normal._replace(
        shared=normal.shared.sum(axis=0),
        shared_gradient=normal.shared_gradient.sum(axis=0),
    )
    return (residuals**2).sum(), residuals, normal


def _step(normal: _Normal, damping: Array, max_step: float) -> _Point:
    """Solves with (1 + `damping`) times the diagonal."""
    damped = lambda x: x + damping * jnp.diag(jnp.diag(x))
    normal = normal._replace(
        shared=damped(normal.shared), own=jax.vmap(damped)(normal.own)
    )
    from_cross, schur = _eliminate(normal)
    from_own = jnp.einsum("wdp,wd->p", from_cross, normal.own_gradient)
    shared = _solve(schur, from_own - normal.shared_gradient)
    shared = shared / jnp.maximum(1.0, jnp.abs(shared).max() / max_step)
    pull = normal.own_gradient + jnp.einsum("wpd,p->wd", normal.cross, shared)
    return _Point(shared, -jax.vmap(_solve)(normal.own, pull))


def _inverse(normal: _Normal) -> tuple[Array, Array]:
    """[P, P], and what is lost, [P].

    After scaling to a diagonal of 1, eigenvalues below a floor are rounding errors.
    """
    _, schur = _eliminate(normal)
    floor = jnp.finfo(schur.dtype).eps ** (2 / 3)
    least = floor * jnp.diag(normal.shared) + floor**4
    scale = jnp.sqrt(jnp.maximum(jnp.diag(schur), least))
    values, vectors = jnp.linalg.eigh(schur / jnp.outer(scale, scale))
    lost = (vectors**2 @ (values < floor).astype(scale.dtype)) > 1e-6
    half = vectors / jnp.outer(scale, jnp.sqrt(jnp.maximum(values, floor)))
    return half @ half.T, lost


def _eliminate(normal: _Normal) -> tuple[Array, Array]:
    """own^-1 cross^T [W, D, P], and what is left of `shared`, [P, P]."""
    from_cross = jax.vmap(_solve)(normal.own, jnp.swapaxes(normal.cross, 1, 2))
    eliminated = jnp.einsum("wpd,wdq->pq", normal.cross, from_cross)
    return from_cross, normal.shared - eliminated


def _solve(matrix: Array, right: Array) -> Array:
    """Of [D, D], positive definite but where unknowns have no effect, and [D, ...].

    Elimination needs no pivots then.  It is written out, since LAPACK takes longer for
    matrices this small, and its batches can wait for each other forever on two cores.
    """
    size, eps = len(matrix), jnp.finfo(matrix.dtype).eps
    least = eps * (jnp.diag(matrix).max(initial=0.0) + eps)
    both = jnp.column_stack([matrix + least * jnp.eye(size), right])
    for i in range(size):
        row = both[i] / both[i, i]
        both = (both - jnp.outer(both[:, i], row)).at[i].set(row)
    return both[:, size:].reshape(right.shape)
