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
problem; vmap over starts, or over anything that the functions close over.
"""

import enum
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


class _Expansion(NamedTuple):
    f_z: Array  # [H, O, O + A]
    f_zz: Array | None  # [H, O, O + A, O + A] of DDP
    l_z: Array  # [H, O + A]
    l_zz: Array  # [H, O + A, O + A]


class _Backward(NamedTuple):
    K: Array
    k: Array
    linear: Array  # [] a step of length a is expected to change the cost by
    quadratic: Array  # [] a linear + a^2 quadratic
    residual: Array  # []
    definite: Array  # [] bool
    finite: Array  # [] bool


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
    num_iterations: int | Array = 100,
    tolerance: float | Array = 1e-6,
) -> Solution:
    """Minimises sum_t cost(x_t, u_t, t) + final_cost(x_H), from `x` [O] and `u` [H, A].

    `second_order` makes it DDP, which converges quadratically; iLQR does so only where
    the dynamics are linear.  Converged is a `residual` of at most `tolerance`.
    """
    task = _Task(dynamics, cost, final_cost, limits)
    u = _clip(jnp.asarray(u, x.dtype), limits)
    still, none = jnp.zeros((*u.shape, len(x)), x.dtype), jnp.zeros((), x.dtype)
    everywhere = jnp.tile(x[None], (len(u) + 1, 1))
    xs, us, first = _rollout(task, everywhere, u, still, u, none)
    count, running = jnp.zeros((), jnp.int32), jnp.array(Status.RUNNING, jnp.int32)
    best = Solution(xs, us, still, u, first, none + jnp.inf, count, running)

    def iterate(search: _Search) -> _Search:
        best, mu, factor = search
        back, mu, factor = _backward(task, best, mu, factor, second_order)
        new, accepted = _line_search(task, best, back)
        mu, factor = _regularise(mu, factor, accepted)
        status = _status(best, back, mu, num_iterations, tolerance)
        going_on = status == Status.RUNNING
        xs, us, lower = jax.tree.map(
            lambda a, b: jnp.where(accepted & going_on, a, b),
            new,
            (best.x, best.u, best.cost),
        )
        count = best.iterations + going_on
        best = Solution(xs, us, back.K, back.k, lower, back.residual, count, status)
        return _Search(best, mu, factor)

    unfinished = lambda search: search.best.status == Status.RUNNING
    search = _Search(best, none, none + 1)
    return jax.lax.while_loop(unfinished, iterate, search).best


def _status(
    best: Solution,
    back: _Backward,
    mu: Array,
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
        (Status.NOT_FINITE, ~(back.finite & jnp.isfinite(best.cost))),
    ):
        status = jnp.where(holds, name, status)
    return status


def _rollout(
    task: _Task, x: Array, u: Array, K: Array, k: Array, size: Array
) -> tuple[Array, Array, Array]:
    """x, u and cost of u + size k + K (x' - x), on the true dynamics."""

    def step(x_now: Array, now: tuple) -> tuple[Array, tuple]:
        x, u, K, k, t = now
        u_now = _clip(u + size * k + K @ (x_now - x), task.limits)
        cost = task.cost(x_now, u_now, t)
        return task.dynamics(x_now, u_now, t), (x_now, u_now, cost)

    now = (x[:-1], u, K, k, jnp.arange(len(u)))
    end, (xs, us, costs) = jax.lax.scan(step, x[0], now)
    cost = costs.sum() + task.final_cost(end)
    return jnp.concatenate([xs, end[None]]), us, cost


def _line_search(
    task: _Task, best: Solution, back: _Backward
) -> tuple[tuple[Array, Array, Array], Array]:
    """The first of STEPS that lowers the cost enough, and whether there is one."""
    sizes = jnp.array(STEPS, best.x.dtype)

    def unfinished(carry: tuple) -> Array:
        _, accepted, i = carry
        return back.definite & ~accepted & (i < len(STEPS))

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


def _expand(
    task: _Task, x: Array, u: Array, second_order: bool
) -> tuple[_Expansion, tuple[Array, Array]]:
    """Of each step, and the first and second derivative of the final cost."""
    size = x.shape[1]
    f = lambda z, t: task.dynamics(z[:size], z[size:], t)
    l = lambda z, t: task.cost(z[:size], z[size:], t)
    at = (jnp.concatenate([x[:-1], u], axis=1), jnp.arange(len(u)))
    expansion = _Expansion(
        f_z=jax.vmap(jax.jacfwd(f))(*at),
        f_zz=jax.vmap(jax.jacfwd(jax.jacfwd(f)))(*at) if second_order else None,
        l_z=jax.vmap(jax.grad(l))(*at),
        l_zz=jax.vmap(jax.hessian(l))(*at),
    )
    end = (jax.grad(task.final_cost)(x[-1]), jax.hessian(task.final_cost)(x[-1]))
    return expansion, end


def _backward(
    task: _Task, best: Solution, mu: Array, factor: Array, second_order: bool
) -> tuple[_Backward, Array, Array]:
    """With as little regularisation, from `mu` on, as makes every step definite."""
    expansion, last = _expand(task, best.x, best.u, second_order)
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((expansion, last))]

    def unfinished(carry: tuple) -> Array:
        back, mu, _ = carry
        return back.finite & ~back.definite & (mu <= MOST)

    def attempt(carry: tuple) -> tuple:
        _, mu, factor = carry
        back = _recursion(expansion, last, best.u, mu, task.limits)
        more = _regularise(mu, factor, jnp.array(False))
        keep = lambda a, b: jnp.where(back.definite, a, b)
        return back, keep(mu, more[0]), keep(factor, more[1])

    zero = jnp.zeros_like(mu)
    start = _Backward(
        best.K, best.k, zero, zero, zero, jnp.array(False), jnp.stack(finite).all()
    )
    return jax.lax.while_loop(unfinished, attempt, (start, mu, factor))


def _recursion(
    expansion: _Expansion,
    last: tuple[Array, Array],
    u: Array,
    mu: Array,
    limits: Limits | None,
) -> _Backward:
    v, V = last
    size = len(v)

    def step(after: tuple, now: tuple[_Expansion, Array]) -> tuple[tuple, tuple]:
        V, v, costate = after
        (f_z, f_zz, l_z, l_zz), u = now
        Q_z, Q_zz = l_z + f_z.T @ v, l_zz + f_z.T @ V @ f_z
        if f_zz is not None:
            Q_zz += jnp.einsum("o,oij->ij", v, f_zz)
        stiff = Q_zz + mu * f_z.T @ f_z  # as if V were V + mu I
        Q_x, Q_u = Q_z[:size], Q_z[size:]
        Q_xx, Q_ux, Q_uu = Q_zz[:size, :size], Q_zz[size:, :size], Q_zz[size:, size:]
        K, k, well = _gains(stiff[size:], Q_u, u, limits)
        # of the curvature without mu, for which K and k are not optimal
        V = Q_xx + K.T @ Q_uu @ K + K.T @ Q_ux + Q_ux.T @ K
        v = Q_x + K.T @ (Q_uu @ k + Q_u) + Q_ux.T @ k
        gradient = l_z + f_z.T @ costate
        residual = _clip(u - gradient[size:], limits) - u
        before = ((V + V.T) / 2, v, gradient[:size])
        return before, (K, k, k @ Q_u, k @ Q_uu @ k / 2, residual, well)

    _, (K, k, linear, quadratic, residual, well) = jax.lax.scan(
        step, (V, v, v), (expansion, u), reverse=True
    )
    return _Backward(
        K=K,
        k=k,
        linear=linear.sum(),
        quadratic=quadratic.sum(),
        residual=jnp.abs(residual).max(),
        definite=well.all(),
        finite=jnp.array(True),  # or it would not have been asked for
    )


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
