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
problem; vmap over starts, or over anything that the functions close over.  Units of x,
of u and of the cost make no difference, but by `project`.  Products of small matrices
are written out: batched, each would else be a call of its own.

Derivatives by x, by the limits and by what the functions close over are those of the
optimum (implicit differentiation), in both modes: of a last Newton step, by
second-order DDP, on the trajectory that was found.
"""

import enum
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.ops import definite
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, PyTree

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
    CONVERGED = 0  # to the tolerance
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


class _Given(NamedTuple):
    """What an optimum depends on, and may be differentiated by."""

    x: Array  # [O]
    limits: Limits | None
    closed_over: PyTree  # by the three functions


class _Expansion(NamedTuple):
    f_z: Array  # [H, O, O + A]
    f_zz: Array | None  # [H, O, O + A, O + A] of DDP
    l_z: Array  # [H, O + A]
    l_zz: Array  # [H, O + A, O + A]
    last: tuple[Array, Array]  # [O], [O, O] of the final cost
    finite: Array  # [] bool, all of them
    scale: Array  # [] sum of what the steps cost, each without its sign


class _Backward(NamedTuple):
    K: Array
    k: Array
    linear: Array  # [] a step of length a is expected to change the cost by
    quadratic: Array  # [] a linear + a^2 quadratic
    residual: Array  # []
    error: Array  # [] the same without a unit
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
    the dynamics are linear.  Converged is: for no control does the gradient promise
    more than `tolerance`^2 of the cost, by its own curvature.

    `project` replaces second derivatives of the costs (in DDP: of the cost to go) by
    the nearest ones that are convex in x and u together, cross term included.  Each
    step then has a minimum, with little or no regularisation.  Where that changes them
    at the solution, DDP converges linearly, and it need not be a minimum.

    Without `final_gains`, what ends for its number of iterations is not expanded once
    more: K, k and residual are those before the last step.  That halves the time of one
    iteration, as in replanning from a shifted plan.

    Raises ValueError for limits of which the least is above the largest, and for
    functions whose results have other shapes.
    """
    x, u = floats("ilqr", (x, u))
    limits = _limits(limits, u)
    functions, closed_over = _without_closures(dynamics, cost, final_cost, x, u)

    def task_of(given: _Given) -> _Task:
        now = functions(given.closed_over)
        return _Task(*now, given.limits, second_order, project)

    @jax.custom_jvp
    def follow(optimum: tuple, given: _Given) -> tuple:
        """`optimum`, changing as the true one does."""
        return optimum

    @follow.defjvp
    def change(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
        optimum, given = follow(*primals), primals[1]
        again = lambda given: _newton(task_of(given), given, *optimum[:2])
        return optimum, jax.jvp(again, (given,), (tangents[1],))[1]

    given = _Given(x, limits, closed_over)
    fixed = jax.lax.stop_gradient(given)
    u = jax.lax.stop_gradient(_clip(u, limits))
    best = _minimise(task_of(fixed), fixed.x, u, num_iterations, tolerance, final_gains)
    xs, us, K, k, least = follow(best[:5], given)
    return best._replace(x=xs, u=us, K=K, k=k, cost=least)


def _minimise(
    task: _Task,
    x: Array,
    u: Array,
    num_iterations: int | Array,
    tolerance: float | Array,
    final_gains: bool,
) -> Solution:
    start = _start(task, x, u)
    # what is left of a cost that goes to 0
    rest = jnp.finfo(x.dtype).eps * jnp.abs(start.best.cost)

    def iterate(search: _Search) -> _Search:
        best, mu, factor = search
        expansion = _expand(task, best.x, best.u)
        expansion = expansion._replace(scale=jnp.maximum(expansion.scale, rest))
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
    return jax.lax.while_loop(unfinished, iterate, start).best


def _newton(task: _Task, given: _Given, x: Array, u: Array) -> tuple:
    """x, u, K, k and cost after one more step from the optimum's `u` [H, A].

    There it goes nowhere; its derivatives are those of the optimum.  Controls at a
    limit stay there.
    """
    plain = task._replace(limits=None, second_order=True, project=False)
    free = jnp.ones(u.shape, bool)
    if given.limits is not None:
        low, high = _broadcast(given.limits, u)
        free = (u > low) & (u < high)
        u = jnp.where(u <= low, low, jnp.where(u >= high, high, u))
    still = jnp.zeros((*u.shape, x.shape[1]), x.dtype)
    xs, us, _ = _rollout(
        plain, x.at[0].set(given.x), u, still, 0 * u, jnp.zeros((), x.dtype)
    )
    back = _recursion(plain, _expand(plain, xs, us), us, 0 * x[0, 0], free)
    one = jnp.ones((), x.dtype)
    xs, us, cost = _rollout(plain, xs, us, back.K, back.k, one)
    gains = plain._replace(second_order=task.second_order)
    after = _recursion(gains, _expand(gains, xs, us), us, 0 * x[0, 0], free)
    return xs, us, after.K, after.k, cost


def _without_closures(
    dynamics: Dynamics, cost: Cost, final_cost: FinalCost, x: Array, u: Array
) -> tuple[Callable[[PyTree], tuple[Dynamics, Cost, FinalCost]], PyTree]:
    """The functions, in the type of `x`, as one of what they close over; and that.

    Raises ValueError where their results have other shapes than they are to have.
    """
    time = jnp.zeros((), jnp.arange(1).dtype)
    converted, closed_over = [], []
    for name, function, args, shape in (
        ("dynamics", dynamics, (x, u[0], time), x.shape),
        ("cost", cost, (x, u[0], time), ()),
        ("final_cost", final_cost, (x,), ()),
    ):
        typed = lambda *args, f=function: jnp.asarray(f(*args), x.dtype)
        found = jax.eval_shape(typed, *args).shape
        if found != shape:
            raise ValueError(f"ilqr: {name} gives shape {found}, must be {shape}")
        flat, values = jax.closure_convert(typed, *args)
        converted.append(flat)
        closed_over.append(values)

    def functions(closed_over: PyTree) -> tuple[Dynamics, Cost, FinalCost]:
        f, l, last = (
            lambda *args, f=f, values=values: f(*args, *values)
            for f, values in zip(converted, closed_over, strict=True)
        )
        return f, l, last

    return functions, closed_over


def _limits(limits: Limits | None, u: Array) -> Limits | None:
    """In the type of `u`; raises ValueError for some that are the wrong way round."""
    if limits is None:
        return None
    low, high = limits
    known = not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(limits))
    if known and not (np.asarray(low) <= np.asarray(high)).all():
        raise ValueError(f"ilqr: limits are {low} and {high}, least above largest")
    low, high = (jnp.asarray(limit, u.dtype) for limit in floats("ilqr", limits))
    return low, high


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
        (Status.CONVERGED, back.definite & (back.error <= tolerance)),
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
    costs, l_z = jax.vmap(jax.value_and_grad(l))(*at)
    last, last_x = jax.value_and_grad(task.final_cost)(x[-1])
    scale = jnp.abs(costs).sum() + jnp.abs(last)
    derivatives = (jax.vmap(jax.jacfwd(f))(*at), f_zz, l_z)
    every = jax.tree.leaves((derivatives, l_zz, last_x, last_xx))
    finite = jnp.stack([jnp.isfinite(x).all() for x in every]).all()
    if task.project:
        last_xx = definite.clip_eigenvalues(last_xx, 0.0)
        if not task.second_order:
            l_zz = jax.vmap(lambda l_zz: _project(l_zz, size))(l_zz)
    return _Expansion(*derivatives, l_zz, (last_x, last_xx), finite, scale)


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
    start = _Backward(best.K, best.k, zero, zero, zero, zero, jnp.array(False))
    return jax.lax.while_loop(unfinished, attempt, (start, mu, factor))


def _recursion(
    task: _Task, expansion: _Expansion, u: Array, mu: Array, free: Array | None = None
) -> _Backward:
    """Of the controls where `free` [H, A]; by default the limits say which."""
    f_z, f_zz, l_z, l_zz, (v, V), _, scale = expansion
    size = len(v)

    def step(after: tuple, now: tuple) -> tuple[tuple, tuple]:
        V, v, costate = after
        f_z, f_zz, l_z, l_zz, u, free = now
        Q_z, Q_zz = l_z + _times(f_z.T, v), l_zz + _times(f_z.T, _times(V, f_z))
        if f_zz is not None:
            Q_zz += _times(f_zz.T, v)
            Q_zz = _project(Q_zz, size) if task.project else Q_zz
        Q_x, Q_u = Q_z[:size], Q_z[size:]
        Q_xx, Q_ux, Q_uu = Q_zz[:size, :size], Q_zz[size:, :size], Q_zz[size:, size:]
        # as if V were larger by mu times a diagonal that has its units
        heavier = (mu * _curvature(V, v, scale))[:, None] * f_z
        stiff = Q_zz[size:] + _times(f_z.T[size:], heavier)
        if free is None:
            K, k, well = _gains(stiff, Q_u, u, task.limits)
        else:
            K, k, well = _free_gains(stiff, Q_u, free)
        # of the curvature without mu, for which K and k are not optimal
        half = _times(K.T, Q_uu) + Q_ux.T
        V = Q_xx + _times(half, K) + _times(K.T, Q_ux)
        v = Q_x + _times(half, k) + _times(K.T, Q_u)
        gradient = l_z + _times(f_z.T, costate)
        residual, error = _residual(gradient[size:], Q_uu, u, task.limits, scale)
        before = ((V + V.T) / 2, v, gradient[:size])
        change = (k * Q_u).sum(), (k * _times(Q_uu, k)).sum() / 2
        return before, (K, k, *change, residual, error, well)

    _, (K, k, linear, quadratic, residual, error, well) = jax.lax.scan(
        step, (V, v, v), (f_z, f_zz, l_z, l_zz, u, free), reverse=True
    )
    sums, most = (linear.sum(), quadratic.sum()), (residual.max(), error.max())
    return _Backward(K, k, *sums, *most, well.all())


def _curvature(V: Array, v: Array, scale: Array) -> Array:
    """Of the cost to go, by its second and first derivatives, without a sign, [O]."""
    return jnp.abs(jnp.diag(V)) + v**2 / jnp.where(scale > 0, scale, 1)


def _residual(
    gradient: Array, Q_uu: Array, u: Array, limits: Limits | None, scale: Array
) -> tuple[Array, Array]:
    """The largest entry of the (projected) gradient by u [A], and of the same in units
    of the cost's `scale`: a step to the minimum would gain half its square."""
    own = jnp.diag(Q_uu)
    steep = gradient**2 / jnp.where(scale > 0, scale, 1)
    if limits is not None:
        low, high = _broadcast(limits, u)
        steep = jnp.abs(gradient) / jnp.where(high > low, high - low, 1)
    # without a curvature of its own, that of a step through the box or to no cost
    curvature = jnp.where(own > 0, own, steep)
    curvature = jnp.where(curvature > 0, curvature, 1)
    step = -gradient / curvature
    if limits is not None:
        step = jnp.clip(u + step, low, high) - u
    error = jnp.abs(step) * jnp.sqrt(curvature / jnp.where(scale > 0, scale, 1))
    return jnp.abs(step * curvature).max(), error.max()


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
    low, high = _broadcast(limits, u)
    k, free = definite.minimise_in_box(Q_uu, Q_u, low - u, high - u)
    solved, well = definite.solve_free(Q_uu, free, Q_ux)
    return -solved, k, well


def _free_gains(stiff: Array, Q_u: Array, free: Array) -> tuple[Array, Array, Array]:
    """The same where it is known which controls are `free` [A]; others stay."""
    num_controls = len(Q_u)
    right = jnp.column_stack([stiff[:, :-num_controls], Q_u])
    solved, well = definite.solve_free(stiff[:, -num_controls:], free, right)
    return -solved[:, :-1], -solved[:, -1], well


def _clip(u: Array, limits: Limits | None) -> Array:
    return u if limits is None else jnp.clip(u, *_broadcast(limits, u))


def _broadcast(limits: Limits, u: Array) -> Limits:
    low, high = (jnp.broadcast_to(limit, u.shape) for limit in limits)
    return low, high


def _slack(cost: Array) -> Array:
    """What rounding may change about `cost`."""
    return 10 * jnp.finfo(cost.dtype).eps * jnp.abs(cost)
