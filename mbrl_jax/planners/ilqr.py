"""iLQR and DDP: trajectory optimisation by the Riccati recursion around a trajectory.

(Tassa, Erez and Todorov, "Synthesis and stabilization of complex behaviors through
online trajectory optimization", 2012; limits of u as in Tassa, Mansard and Todorov,
"Control-limited differential dynamic programming", 2014.)

    roll out u
    repeat
      expand the dynamics to first order (iLQR) or second (DDP), the costs to second
      backwards: u + k + K dx minimises the expansion, regularised, within the limits
      forwards: the largest step along k that lowers the true cost enough
      regularise less if there was one, else more

x state [O], u control [A], z both [O + A], H horizon; f dynamics, l cost; V, v the
second and first derivatives of the cost to go; K, k gains; Q.. as in the papers.

It starts unregularised, so that a linear-quadratic problem takes one iteration.  One
problem; vmap over starts, or over anything that the functions close over.  Products of
small matrices are written out: batched, each would else be a call of its own.
"""

import enum
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import definite
from mbrl_jax.types import Array

Dynamics = Callable[[Array, Array, Array], Array]  # (x, u, t) -> x
Cost = Callable[[Array, Array, Array], Array]  # (x, u, t) -> []
FinalCost = Callable[[Array], Array]  # x -> []
Limits = tuple[Array, Array]  # least and largest u, each [A]

STEPS = tuple(1.1 ** -(i**2) for i in range(10))  # along k, tried in turn
ENOUGH = 1e-4  # share of the expected decrease of the cost that a step has to keep
SCALE = 2.0  # of the regularisation; it changes by SCALE, SCALE^2, ... in a row
LEAST, MOST = 1e-6, 1e10  # regularisation; less is none


class Status(enum.IntEnum):
    RUNNING = -1
    CONVERGED = 0  # the residual is at most the tolerance
    STALLED = 1  # what is left to gain is lost in rounding
    MAX_ITERATIONS = 2
    REGULARISATION_EXHAUSTED = 3  # no step lowers the cost, however short
    NOT_FINITE = 4  # the cost, or a derivative on the trajectory


class Solution(NamedTuple):
    """u + K (x' - x) is the controller around the trajectory."""

    x: Array  # [H + 1, O]
    u: Array  # [H, A]
    K: Array  # [H, A, O] 0 for a control at its limit
    k: Array  # [H, A] the step that was left
    cost: Array  # []
    residual: Array  # [] largest entry of the (projected) gradient of the cost by u
    iterations: Array  # [] int32
    status: Array  # [] int32


class _Task(NamedTuple):
    dynamics: Dynamics
    cost: Cost
    final_cost: FinalCost
    limits: Limits | None
    second_order: bool
    project: bool


class _Expansion(NamedTuple):
    f_z: Array  # [H, O, O + A]
    f_zz: Array | None  # [H, O, O + A, O + A] of DDP
    l_z: Array  # [H, O + A]
    l_zz: Array  # [H, O + A, O + A]
    last: tuple[Array, Array]  # [O], [O, O] of the final cost
    finite: Array  # [] bool, all of them


class _Backward(NamedTuple):
    K: Array
    k: Array
    linear: Array  # [] a step of length a is expected to change the cost by
    quadratic: Array  # [] a linear + a^2 quadratic
    residual: Array  # []
    definite: Array  # [] bool


class _Search(NamedTuple):
    best: Solution
    mu: Array  # [] regularisation
    factor: Array  # [] of its last change


def ilqr(
    dynamics: Dynamics,
    cost: Cost,
    final_cost: FinalCost,
    x: Array,
    u: Array,
    *,
    limits: Limits | None = None,
    second_order: bool = False,
    project: bool = False,
    final_gains: bool = True,
    num_iterations: int | Array = 100,
    tolerance: float | Array = 1e-6,
) -> Solution:
    """Minimises sum_t cost(x_t, u_t, t) + final_cost(x_H), from `x` [O] and `u` [H, A].

    `second_order` makes it DDP, which converges quadratically; iLQR does so only where
    the dynamics are linear.  Converged is a `residual` of at most `tolerance`.

    `project` replaces second derivatives of the costs (in DDP: of the cost to go) by
    the nearest ones that are convex in x and u together, cross term included.  Each
    step then has a minimum, with little or no regularisation.  Where that changes them
    at the solution, DDP converges linearly, and it need not be a minimum.

    Without `final_gains`, what ends for its number of iterations is not expanded once
    more: K, k and residual are those before the last step.  That halves the time of one
    iteration, as in replanning from a shifted plan.
    """
    task = _Task(dynamics, cost, final_cost, limits, second_order, project)
    u = _clip(jnp.asarray(u, x.dtype), limits)

    def iterate(search: _Search) -> _Search:
        best, mu, factor = search
        expansion = _expand(task, best.x, best.u)
        back, mu, factor = _backward(task, expansion, best, mu, factor)
        status = _status(best, back, mu, expansion.finite, num_iterations, tolerance)
        going_on = status == Status.RUNNING
        new, accepted = _line_search(task, best, back, going_on)
        mu, factor = _regularise(mu, factor, accepted)
        exhausted = going_on & (mu > MOST)
        status = jnp.where(exhausted, Status.REGULARISATION_EXHAUSTED, status)
        count = best.iterations + (going_on & ~exhausted)
        if not final_gains:
            out = (status == Status.RUNNING) & (count >= num_iterations)
            status = jnp.where(out, Status.MAX_ITERATIONS, status)
        xs, us, lower = jax.tree.map(
            lambda a, b: jnp.where(accepted, a, b), new, (best.x, best.u, best.cost)
        )
        best = Solution(xs, us, back.K, back.k, lower, back.residual, count, status)
        return _Search(best, mu, factor)

    unfinished = lambda search: search.best.status == Status.RUNNING
    return jax.lax.while_loop(unfinished, iterate, _start(task, x, u)).best


def _start(task: _Task, x: Array, u: Array) -> _Search:
    still, none = jnp.zeros((*u.shape, len(x)), x.dtype), jnp.zeros((), x.dtype)
    everywhere = jnp.tile(x[None], (len(u) + 1, 1))
    xs, us, cost = _rollout(task, everywhere, u, still, u, none)
    count, running = jnp.zeros((), jnp.int32), jnp.array(Status.RUNNING, jnp.int32)
    best = Solution(xs, us, still, u, cost, none + jnp.inf, count, running)
    return _Search(best, none, none + 1)


def _status(
    best: Solution,
    back: _Backward,
    mu: Array,
    finite: Array,
    num_iterations: int | Array,
    tolerance: float | Array,
) -> Array:
    lost = -(back.linear + back.quadratic) <= _slack(best.cost)
    status = jnp.array(Status.RUNNING, jnp.int32)
    for name, holds in (  # the last one that holds counts
        (Status.REGULARISATION_EXHAUSTED, mu > MOST),
        (Status.MAX_ITERATIONS, best.iterations >= num_iterations),
        (Status.STALLED, back.definite & lost & (back.residual >= best.residual)),
        (Status.CONVERGED, back.definite & (back.residual <= tolerance)),
        (Status.NOT_FINITE, ~(finite & jnp.isfinite(best.cost))),
    ):
        status = jnp.where(holds, name, status)
    return status


def _rollout(
    task: _Task, x: Array, u: Array, K: Array, k: Array, size: Array
) -> tuple[Array, Array, Array]:
    """x, u and cost of u + size k + K (x' - x), on the true dynamics."""

    def step(x_now: Array, now: tuple) -> tuple[Array, tuple]:
        x, u, K, k, t = now
        u_now = _clip(u + size * k + _times(K, x_now - x), task.limits)
        cost = task.cost(x_now, u_now, t)
        return task.dynamics(x_now, u_now, t), (x_now, u_now, cost)

    now = (x[:-1], u, K, k, jnp.arange(len(u)))
    end, (xs, us, costs) = jax.lax.scan(step, x[0], now)
    cost = costs.sum() + task.final_cost(end)
    return jnp.concatenate([xs, end[None]]), us, cost


def _line_search(
    task: _Task, best: Solution, back: _Backward, wanted: Array
) -> tuple[tuple[Array, Array, Array], Array]:
    """The first of STEPS that lowers the cost enough, and whether there is one.

    None is tried unless `wanted`.
    """
    sizes = jnp.array(STEPS, best.x.dtype)

    def unfinished(carry: tuple) -> Array:
        _, accepted, i = carry
        return wanted & ~accepted & (i < len(STEPS))

    def attempt(carry: tuple) -> tuple:
        i = carry[-1]
        new = _rollout(task, best.x, best.u, back.K, back.k, sizes[i])
        expected = -(sizes[i] * back.linear + sizes[i] ** 2 * back.quadratic)
        lower = best.cost - new[-1] >= ENOUGH * expected - _slack(best.cost)
        return new, lower & (expected >= 0), i + 1  # both false if NaN

    start = ((best.x, best.u, best.cost), jnp.array(False), jnp.zeros((), jnp.int32))
    new, accepted, _ = jax.lax.while_loop(unfinished, attempt, start)
    return new, accepted


def _regularise(mu: Array, factor: Array, accepted: Array) -> tuple[Array, Array]:
    """Tassa et al., 2012, Sec. II-F."""
    down = jnp.minimum(1 / SCALE, factor / SCALE)
    less = jnp.where(mu * down > LEAST, mu * down, 0.0)
    up = jnp.maximum(SCALE, factor * SCALE)
    more = jnp.maximum(LEAST, mu * up)
    return jnp.where(accepted, less, more), jnp.where(accepted, down, up)


def _expand(task: _Task, x: Array, u: Array) -> _Expansion:
    size = x.shape[1]
    f = lambda z, t: task.dynamics(z[:size], z[size:], t)
    l = lambda z, t: task.cost(z[:size], z[size:], t)
    at = (jnp.concatenate([x[:-1], u], axis=1), jnp.arange(len(u)))
    f_zz = jax.vmap(jax.jacfwd(jax.jacfwd(f)))(*at) if task.second_order else None
    l_zz = jax.vmap(jax.hessian(l))(*at)
    last_xx = jax.hessian(task.final_cost)(x[-1])
    derivatives = (jax.vmap(jax.jacfwd(f))(*at), f_zz, jax.vmap(jax.grad(l))(*at))
    last_x = jax.grad(task.final_cost)(x[-1])
    every = jax.tree.leaves((derivatives, l_zz, last_x, last_xx))
    finite = jnp.stack([jnp.isfinite(x).all() for x in every]).all()
    if task.project:
        last_xx = definite.clip_eigenvalues(last_xx, 0.0)
        if not task.second_order:
            l_zz = jax.vmap(lambda l_zz: _project(l_zz, size))(l_zz)
    return _Expansion(*derivatives, l_zz, (last_x, last_xx), finite)


def _project(joint: Array, size: int) -> Array:
    """The nearest second derivative by z that is convex; `size` is that of x."""
    Q, S, R = definite.project(
        joint[:size, :size], joint[size:, :size], joint[size:, size:]
    )
    return jnp.block([[Q, S.T], [S, R]])


def _backward(
    task: _Task, expansion: _Expansion, best: Solution, mu: Array, factor: Array
) -> tuple[_Backward, Array, Array]:
    """With as little regularisation, from `mu` on, as makes every step definite."""

    def unfinished(carry: tuple) -> Array:
        back, mu, _ = carry
        return expansion.finite & ~back.definite & (mu <= MOST)

    def attempt(carry: tuple) -> tuple:
        _, mu, factor = carry
        back = _recursion(task, expansion, best.u, mu)
        more = _regularise(mu, factor, jnp.array(False))
        keep = lambda a, b: jnp.where(back.definite, a, b)
        return back, keep(mu, more[0]), keep(factor, more[1])

    zero = jnp.zeros_like(mu)
    start = _Backward(best.K, best.k, zero, zero, zero, jnp.array(False))
    return jax.lax.while_loop(unfinished, attempt, (start, mu, factor))


def _recursion(task: _Task, expansion: _Expansion, u: Array, mu: Array) -> _Backward:
    f_z, f_zz, l_z, l_zz, (v, V), _ = expansion
    size = len(v)

    def step(after: tuple, now: tuple) -> tuple[tuple, tuple]:
        V, v, costate = after
        f_z, f_zz, l_z, l_zz, u = now
        Q_z, Q_zz = l_z + _times(f_z.T, v), l_zz + _times(f_z.T, _times(V, f_z))
        if f_zz is not None:
            Q_zz += _times(f_zz.T, v)
            Q_zz = _project(Q_zz, size) if task.project else Q_zz
        Q_x, Q_u = Q_z[:size], Q_z[size:]
        Q_xx, Q_ux, Q_uu = Q_zz[:size, :size], Q_zz[size:, :size], Q_zz[size:, size:]
        # as if V were V + mu I
        stiff = Q_zz[size:] + mu * _times(f_z.T[size:], f_z)
        K, k, well = _gains(stiff, Q_u, u, task.limits)
        # of the curvature without mu, for which K and k are not optimal
        half = _times(K.T, Q_uu) + Q_ux.T
        V = Q_xx + _times(half, K) + _times(K.T, Q_ux)
        v = Q_x + _times(half, k) + _times(K.T, Q_u)
        gradient = l_z + _times(f_z.T, costate)
        residual = _clip(u - gradient[size:], task.limits) - u
        before = ((V + V.T) / 2, v, gradient[:size])
        change = (k * Q_u).sum(), (k * _times(Q_uu, k)).sum() / 2
        return before, (K, k, *change, residual, well)

    _, (K, k, linear, quadratic, residual, well) = jax.lax.scan(
        step, (V, v, v), (f_z, f_zz, l_z, l_zz, u), reverse=True
    )
    residual = jnp.abs(residual).max()
    return _Backward(K, k, linear.sum(), quadratic.sum(), residual, well.all())


def _times(a: Array, b: Array) -> Array:
    """a @ b of a small [..., I] and [I] or [I, J], written out."""
    if b.ndim == 1:
        terms = (a[..., i] * b[i] for i in range(len(b)))
    else:
        terms = (a[:, i, None] * b[i][None] for i in range(len(b)))
    return functools.reduce(operator.add, terms)


def _gains(
    stiff: Array, Q_u: Array, u: Array, limits: Limits | None
) -> tuple[Array, Array, Array]:
    """K, k and whether there is a minimum; `stiff` [A, O + A] is Q_ux, then Q_uu."""
    num_controls = len(Q_u)
    Q_ux, Q_uu = stiff[:, :-num_controls], stiff[:, -num_controls:]
    if limits is None:
        solved, well = definite.solve(Q_uu, jnp.column_stack([Q_ux, Q_u]))
        return -solved[:, :-1], -solved[:, -1], well
    k, free = definite.minimise_in_box(Q_uu, Q_u, limits[0] - u, limits[1] - u)
    solved, well = definite.solve_free(Q_uu, free, Q_ux)
    return -solved, k, well


def _clip(u: Array, limits: Limits | None) -> Array:
    if limits is None:
        return u
    low, high = (jnp.broadcast_to(limit, u.shape).astype(u.dtype) for limit in limits)
    return jnp.clip(u, low, high)


def _slack(cost: Array) -> Array:
    """What rounding may change about `cost`."""
    return 10 * jnp.finfo(cost.dtype).eps * jnp.abs(cost)
