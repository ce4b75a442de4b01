"""LQR: the optimum of linear dynamics under quadratic costs, and tracking.

One problem, to be vmapped; float32 or float64 as its arrays are, integers count as
floats.  What cannot be solved says so in a status, see `ops/definite.py`.

    solve(tracking(time_invariant(A, B, Q, R, horizon=50), x, u))

x' = A x + B u + c, cost sum_t 1/2 x'Qx + u'Sx + 1/2 u'Ru + q'x + r'u + constant, and
after the last step only the terms of x.  u = K x + k is optimal, and the cost of what
follows is 1/2 x'Vx + v'x + constant.  (Bertsekas, "Dynamic programming and optimal
control", 2017, Sec. 3.1.)

x state [O], u control [A], H horizon.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import definite
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array

DOUBLINGS = 30  # of the steps over which a derivative of the stationary V is summed


class LQRProblem(NamedTuple):
    A: Array  # [H, O, O]
    B: Array  # [H, O, A]
    c: Array  # [H, O]
    Q: Array  # [H + 1, O, O]
    S: Array  # [H, A, O]
    R: Array  # [H, A, A]
    q: Array  # [H + 1, O]
    r: Array  # [H, A]
    constant: Array  # [H + 1]


class Solution(NamedTuple):
    K: Array  # [H, A, O]
    k: Array  # [H, A]
    V: Array  # [H + 1, O, O]
    v: Array  # [H + 1, O]
    constant: Array  # [H + 1]
    status: Array  # [] int32


class Stationary(NamedTuple):
    K: Array  # [A, O]
    V: Array  # [O, O]
    status: Array  # [] int32
    iterations: Array  # [] int32


class LQRRollout(NamedTuple):
    x: Array  # [H + 1, O]
    u: Array  # [H, A]
    cost: Array  # []


def time_invariant(
    A: Array, B: Array, Q: Array, R: Array, *, horizon: int, last: Array | None = None
) -> LQRProblem:
    """The same at each step, with `last` [O, O] for Q after the last, or Q itself."""
    last = Q if last is None else last
    A, B, Q, R, last = floats("lqr.time_invariant", (A, B, Q, R, last))
    steps = lambda x, n=horizon: jnp.broadcast_to(x, (n, *jnp.shape(x)))
    zeros, none = jnp.zeros_like(A[0]), jnp.zeros_like(R[0])
    return LQRProblem(
        A=steps(A),
        B=steps(B),
        c=steps(zeros),
        Q=jnp.concatenate([steps(Q), last[None]]),
        S=steps(jnp.zeros_like(B.T)),
        R=steps(R),
        q=steps(zeros, horizon + 1),
        r=steps(none),
        constant=steps(zeros[0], horizon + 1),
    )


def tracking(problem: LQRProblem, x: Array, u: Array) -> LQRProblem:
    """Counts the quadratic costs from `x` [H + 1, O] and `u` [H, A] instead of 0."""
    problem, x, u = floats("lqr.tracking", (problem, x, u))
    Qx = jnp.einsum("tij,tj->ti", problem.Q, x)
    Ru = jnp.einsum("tij,tj->ti", problem.R, u)
    Sx = jnp.einsum("tij,tj->ti", problem.S, x[:-1])
    Su = jnp.einsum("tij,ti->tj", problem.S, u)
    of_u = (u * (Ru / 2 + Sx)).sum(axis=1)
    constant = problem.constant + (x * Qx).sum(axis=1) / 2
    return problem._replace(
        q=(problem.q - Qx).at[:-1].add(-Su),
        r=problem.r - Ru - Sx,
        constant=constant.at[:-1].add(of_u),
    )


def rollout(problem: LQRProblem, K: Array, k: Array, x: Array) -> LQRRollout:
    """Of u = K x + k, from `x` [O], without noise."""
    problem, K, k, x = floats("lqr.rollout", (problem, K, k, x))

    def step(x: Array, now: tuple) -> tuple[Array, tuple]:
        (A, B, c, Q, S, R, q, r, constant), K, k = now
        u = K @ x + k
        cost = x @ Q @ x / 2 + u @ (S @ x + R @ u / 2) + q @ x + r @ u + constant
        return A @ x + B @ u + c, (x, u, cost)

    end, (xs, us, costs) = jax.lax.scan(step, x, (_stages(problem), K, k))
    last = end @ problem.Q[-1] @ end / 2 + problem.q[-1] @ end + problem.constant[-1]
    return LQRRollout(jnp.concatenate([xs, end[None]]), us, costs.sum() + last)


def solve(problem: LQRProblem) -> Solution:
    """By recursion from the last step.  R + B'VB is to be positive definite."""
    problem = floats("lqr.solve", problem)
    last = (problem.Q[-1], problem.q[-1], problem.constant[-1])

    def back(after: tuple, stage: LQRProblem) -> tuple[tuple, tuple]:
        gains, value, well = _improve(stage, *after)
        return value, (gains, value, well)

    _, (gains, values, well) = jax.lax.scan(back, last, _stages(problem), reverse=True)
    return _solution(gains, values, well, last)


def solve_parallel(problem: LQRProblem) -> Solution:
    """`solve`, in parallel over time: log2(H) steps of more work, for long horizons.

    Here R itself has to be positive definite.  (Särkkä and García-Fernández, "Temporal
    parallelization of dynamic programming and linear quadratic control", 2023.)
    """
    problem = floats("lqr.solve_parallel", problem)
    stages = _stages(problem)
    elements, well_before = jax.vmap(_element)(stages)
    zeros = jnp.zeros_like(problem.A[:1])
    none = jnp.zeros_like(problem.q[:1])
    last = _Element(zeros, none, zeros, -problem.q[-1:], problem.Q[-1:])
    elements = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), elements, last)
    compose = jax.vmap(lambda later, earlier: _compose(earlier, later))
    every = jax.lax.associative_scan(compose, elements, reverse=True)
    ahead = (every.J[1:], -every.eta[1:], jnp.zeros_like(problem.constant[1:]))
    gains, (V, v, gained), well = jax.vmap(_improve)(stages, *ahead)
    constant = problem.constant[-1] + jnp.cumsum(gained[::-1])[::-1]
    ends = (problem.Q[-1], problem.q[-1], problem.constant[-1])
    return _solution(gains, (V, v, constant), well & well_before, ends)


def stationary(
    A: Array,
    B: Array,
    Q: Array,
    R: Array,
    S: Array | None = None,
    *,
    num_iterations: int = 50,
) -> Stationary:
    """The optimum of an endless horizon, from the algebraic Riccati equation.

    By structure-preserving doubling (Chu et al., 2004): iteration i looks 2^i steps
    ahead.  R + B'VB is to be positive definite, R itself need not be.  `NOT_CONVERGED`
    where (A, B) cannot be stabilised, or Q does not see what is unstable.  Derivatives,
    in both modes, are those of the equation's solution.
    """
    A, B, Q, R, S = floats("lqr.stationary", (A, B, Q, R, S))
    S = jnp.zeros_like(B.T) if S is None else S
    zeros = jnp.zeros_like(A[0])
    stage = LQRProblem(A, B, zeros, Q, S, R, zeros, jnp.zeros_like(R[0]), zeros[0])
    V, status, iterations = _double(jax.lax.stop_gradient(stage), num_iterations)
    V = _follows(V, stage)
    (K, _), _, well = _improve(stage, V, zeros, zeros[0])
    solved = status == definite.Status.SOLVED
    status = jnp.where(solved & ~well, definite.Status.INDEFINITE, status)
    return Stationary(K, V, status.astype(jnp.int32), iterations)


def _double(stage: LQRProblem, num_iterations: int) -> tuple[Array, Array, Array]:
    """V [O, O], a status and the number of iterations."""
    unit = _units(stage)
    stage = _in_units(stage, unit)
    potential = _potential(stage)
    start, well = _element(_with_potential(stage, potential))
    eps = jnp.finfo(unit.dtype).eps
    tolerance = 10 * len(unit) * eps

    def unfinished(carry: tuple) -> Array:
        _, _, converged, finite, iteration = carry
        return ~converged & finite & (iteration < num_iterations)

    def double(carry: tuple) -> tuple:
        half, (least, best), _, _, iteration = carry
        both = _compose(half, half)
        both = both._replace(C=_symmetric(both.C), J=_symmetric(both.J))
        rise = jnp.abs(both.J - half.J).max() / jnp.abs(both.J + potential).max()
        # `A` is the closed loop over all steps looked ahead: it tells if that is stable
        stable = jnp.abs(both.A).max() < jnp.sqrt(eps)
        finite = jnp.isfinite(both.J).all() & jnp.isfinite(both.A).all()
        converged = ~(rise > tolerance) & stable & finite  # 0 / 0 where nothing costs
        # a loop that is not stable only adds to the rounding
        better = converged | (finite & (rise < least))
        best = jnp.where(better, both.J, best)
        least = jnp.where(better, rise, least)
        return both, (least, best), converged, finite, iteration + 1

    finite = jnp.isfinite(start.J).all() & jnp.isfinite(start.A).all()
    best = (jnp.full_like(unit[0], jnp.inf), start.J)
    carry = (start, best, jnp.array(False), finite, jnp.zeros((), jnp.int32))
    carry = jax.lax.while_loop(unfinished, double, carry)
    _, (_, found), converged, _, iterations = carry
    status = jnp.where(converged, definite.Status.SOLVED, definite.Status.NOT_CONVERGED)
    status = jnp.where(well, status, definite.Status.INDEFINITE)
    status = jnp.where(finite, status, definite.Status.NOT_FINITE)
    return (found + potential) / jnp.outer(unit, unit), status, iterations


def _units(stage: LQRProblem) -> Array:
    """Of x, [O], in which all that costs anything costs about the same.

    By what x costs in O steps without control; powers of 2, which round nothing.
    """
    costs, ahead = stage.Q, stage.A
    for _ in range(len(stage.A) - 1):
        costs, ahead = costs + ahead.T @ stage.Q @ ahead, ahead @ stage.A
    curvature = jnp.abs(jnp.diag(costs))
    usable = jnp.isfinite(curvature) & (curvature > 0)
    return jnp.exp2(-jnp.round(jnp.log2(jnp.where(usable, curvature, 1)) / 2))


def _in_units(stage: LQRProblem, unit: Array) -> LQRProblem:
    """Of x / `unit` in place of x."""
    return stage._replace(
        A=stage.A * unit[None] / unit[:, None],
        B=stage.B / unit[:, None],
        Q=stage.Q * jnp.outer(unit, unit),
        S=stage.S * unit[None],
    )


def _potential(stage: LQRProblem) -> Array:
    """X [O, O], such that R + B'XB is definite: 0 where R is.

    As many steps' costs of x as that takes.
    """
    potential, cost = jnp.zeros_like(stage.Q), stage.Q
    for _ in range(len(stage.A)):
        R = stage.R + stage.B.T @ potential @ stage.B
        _, well = definite.solve(R, jnp.zeros_like(R[0]))
        # where R itself counts against some control, that is no minimum
        wanted = ~well & (jnp.diag(stage.R) >= 0).all()
        potential = jnp.where(wanted, potential + cost, potential)
        cost = stage.A.T @ cost @ stage.A
    return _symmetric(potential)


def _with_potential(stage: LQRProblem, potential: Array) -> LQRProblem:
    """With 1/2 x'Xx paid where a step leads and paid back where it begins.

    Over many steps that changes nothing but V, to V - X.
    """
    ahead, B = potential @ stage.A, stage.B
    return stage._replace(
        Q=stage.Q + stage.A.T @ ahead - potential,
        S=stage.S + B.T @ ahead,
        R=stage.R + B.T @ potential @ B,
    )


@jax.custom_jvp
def _follows(V: Array, stage: LQRProblem) -> Array:
    """`V`, which solves the Riccati equation of `stage`, and changes as that says."""
    return V


@_follows.defjvp
def _changes(
    primals: tuple[Array, LQRProblem], tangents: tuple[Array, LQRProblem]
) -> tuple[Array, Array]:
    """dV = F'dV F + what `stage` changes of the equation's right side, F closed loop:
    summed over 2^i steps at once."""
    V, stage = primals
    V = _follows(V, stage)  # it changes too, where derivatives are differentiated
    zeros = jnp.zeros_like(V[0])
    value = lambda stage: _improve(stage, V, zeros, zeros[0])[1][0]
    _, change = jax.jvp(value, (stage,), (tangents[1],))
    (K, _), *_ = _improve(stage, V, zeros, zeros[0])

    def double(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        change, loop = carry
        return (change + loop.T @ change @ loop, loop @ loop), None

    loop = stage.A + stage.B @ K
    (change, _), _ = jax.lax.scan(double, (change, loop), length=DOUBLINGS)
    return V, change


class _Element(NamedTuple):
    """What a stretch of time costs at least, from x to z (Särkkä, Eq. 41).

    max over l of 1/2 x'Jx - eta'x - l'(z - A x - b) - 1/2 l'C l, up to a constant.
    """

    A: Array  # [O, O]
    b: Array  # [O]
    C: Array  # [O, O]
    eta: Array  # [O]
    J: Array  # [O, O]


def _element(stage: LQRProblem) -> tuple[_Element, Array]:
    """One step, with u counted from -R^-1 (S x + r), which rids it of S and r."""
    right = jnp.column_stack([stage.S, stage.B.T, stage.r])
    solved, well = definite.solve(stage.R, right)
    size = len(stage.A)
    S, B, r = solved[:, :size], solved[:, size:-1], solved[:, -1]
    element = _Element(
        A=stage.A - stage.B @ S,
        b=stage.c - stage.B @ r,
        C=stage.B @ B,
        eta=stage.S.T @ r - stage.q,
        J=stage.Q - stage.S.T @ S,
    )
    return element, well


def _compose(first: _Element, second: _Element) -> _Element:
    """Of two stretches, one after the other (Särkkä, Eq. 45)."""
    size = len(first.A)
    between = jnp.eye(size, dtype=first.A.dtype) + first.C @ second.J
    right = [first.A, first.C, first.b + first.C @ second.eta]
    solved = jnp.linalg.solve(between, jnp.column_stack(right))
    A, C, b = solved[:, :size], solved[:, size:-1], solved[:, -1]
    return _Element(
        A=second.A @ A,
        b=second.A @ b + second.b,
        C=second.A @ C @ second.A.T + second.C,
        eta=A.T @ (second.eta - second.J @ first.b) + first.eta,
        J=A.T @ second.J @ first.A + first.J,
    )


def _improve(stage: LQRProblem, V: Array, v: Array, constant: Array) -> tuple:
    """((K, k), (V, v, constant), definite) of a step, of the value that follows."""
    A, B, c, Q, S, R, q, r, own = stage
    ahead = V @ c + v
    Qxx, Qux, Quu = Q + A.T @ V @ A, S + B.T @ V @ A, R + B.T @ V @ B
    Qx, Qu = q + A.T @ ahead, r + B.T @ ahead
    solved, well = definite.solve(Quu, jnp.column_stack([Qux, Qu]))
    K, k = -solved[:, :-1], -solved[:, -1]
    V_before = _symmetric(Qxx + Qux.T @ K)
    constant = constant + own + c @ (V @ c / 2 + v) + k @ Qu / 2
    return (K, k), (V_before, Qx + Qux.T @ k, constant), well


def _stages(problem: LQRProblem) -> LQRProblem:
    """Without what follows the last step."""
    return problem._replace(
        Q=problem.Q[:-1], q=problem.q[:-1], constant=problem.constant[:-1]
    )


def _solution(gains: tuple, values: tuple, well: Array, last: tuple) -> Solution:
    add = lambda x, y: jnp.concatenate([x, y[None]])
    V, v, constant = jax.tree.map(add, values, last)
    status = definite.status(well, V, v, gains[1])
    return Solution(gains[0], gains[1], V, v, constant, status)


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
