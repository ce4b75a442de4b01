"""Direct collocation: trajectory optimisation with states and controls as unknowns.

    problem = Problem(dynamics, cost, final_constraint=at_goal, u_limits=(low, high))
    guess = straight_line(start, end, duration, num_intervals, num_controls)
    solution = collocate(problem, guess)
    u = control(solution.trajectory, t)  # collocation_mesh.py, which also refines

minimises the integral of cost(x, u, t) + final_cost(x(T)) where dx/dt is dynamics(x, u,
t), x(0) and T are given, final_constraint(x(T)) is 0, and x, u and constraints(x, u, t)
keep to their limits.  (Kelly, "An introduction to trajectory optimization", 2017;
Betts, "Practical methods for optimal control", 2010.)

    repeat
      expand the Lagrangian and the defects of each interval
      backwards, forwards: the Newton step, regularised, by a Riccati recursion
      take the largest part of it that lowers a merit function enough
      where the Lagrangian is as small as it has to be: new prices, a higher penalty

Defects, what x changes by in an interval less the integral of the dynamics, are
linearised and vanish with the step; their price is the costate.  The other constraints
are in an augmented Lagrangian, those of inequality with a slack behind a barrier.  It
needs no feasible start, and where constraints contradict each other it ends where they
are violated least.  An iteration takes time proportional to the number of intervals.

N intervals, x state [O], u control [A], z both [O + A].  In an interval, "trapezoidal"
has u linear and x quadratic; "hermite_simpson" has u quadratic, with its value half-way
as an unknown, and x cubic, with its value half-way eliminated (the compressed form).
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.ops import definite, finite
from mbrl_jax.planners import transcription
from mbrl_jax.planners.transcription import METHODS, CollocationProblem, Trajectory
from mbrl_jax.types import Array

SIZES = tuple(0.5**i for i in range(12))  # of the parts of a step that are compared
ENOUGH = 1e-4  # share of the expected decrease of the merit that a step has to keep
SCALE = 8.0  # of changes of the regularisation
LEAST, MOST = 1e-6, 1e8  # regularisation; less is none
FIRST = 0.1  # precision, and barrier in units of cost
FALL = 0.25  # the gap is to fall to this share each time, or the penalty grows
STUCK = 0.9  # it no longer falls


class Status(enum.IntEnum):
    RUNNING = -1
    CONVERGED = 0  # violation and residual are at most the tolerance
    STALLED = 1  # the violation is; what is left to gain is lost in rounding
    MAX_ITERATIONS = 2
    REGULARISATION_EXHAUSTED = 3  # no step improves, however short
    INFEASIBLE = 4  # no trajectory nearby violates the constraints less
    NOT_FINITE = 5  # a value or derivative at the trajectory


class Prices(NamedTuple):
    """Lagrange multipliers."""

    inequality: Array  # [N, L] of limits, constraints: at the start, then half-way
    last: Array  # [L or L / 2] at T
    end: Array  # of the final constraint


class Solution(NamedTuple):
    trajectory: Trajectory
    cost: Array  # []
    violation: Array  # [] largest, of defects and constraints
    residual: Array  # [] largest entry of the scaled gradient of the Lagrangian
    costate: Array  # [N, O] price of the defects
    prices: Prices
    iterations: Array  # [] int32
    status: Array  # [] int32


class _Expansion(NamedTuple):
    """Of the Lagrangian, in an interval by p = (z, v, next z), [P], and at T by z."""

    g: Array  # [N, P]
    W: Array  # [N, P, P]
    d: Array  # [N, O] defects
    D: Array  # [N, O, P]
    last_g: Array  # [O + A]
    last_W: Array  # [O + A, O + A]


class _Search(NamedTuple):
    point: transcription.Point
    prices: Prices
    penalty: Array  # of violations
    weight: Array  # of squared defects in the merit
    mu: Array  # regularisation
    precision: Array  # of the optimum before prices change; the barrier
    gap: Array  # violation, or slack of what has a price, when they changed
    violation: Array
    residual: Array
    iterations: Array
    status: Array


def collocate(
    problem: CollocationProblem,
    guess: Trajectory,
    *,
    method: str = "hermite_simpson",
    num_iterations: int | Array = 500,
    tolerance: float | Array = 1e-8,
    penalty: float | Array = 1e4,
    growth: float | Array = 10.0,
) -> Solution:
    """Solves `problem` from guess.x[0] on the nodes guess.t; the rest is a guess.

    `penalty`, the first one, is in units of cost per square of a constraint; it grows
    by the factor `growth`.  A small one looks further away from the guess, and takes
    longer.  float32 needs a larger tolerance, as 1e-3.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, must be one of {METHODS}")
    sizes = (guess.x.shape[1], guess.u.shape[1])
    task = transcription.Transcription(
        problem, method == "hermite_simpson", guess.t, *sizes
    )

    def iterate(search: _Search) -> _Search:
        expansion = _expand(task, search)
        step, mu, well = _newton(task, expansion, search.mu)
        search, lost = _advance(task, search._replace(mu=mu), expansion, step)
        usable = finite.all_finite(expansion)
        search = _judge(task, search, usable, lost & well, tolerance, growth)
        late = (search.status == Status.RUNNING) & (search.iterations >= num_iterations)
        status = jnp.where(late, Status.MAX_ITERATIONS, search.status)
        return search._replace(status=status)

    unfinished = lambda search: search.status == Status.RUNNING
    start = _start(task, guess, penalty)
    search = jax.lax.while_loop(unfinished, iterate, start)
    return _solution(task, search)


def _start(
    task: transcription.Transcription, guess: Trajectory, penalty: float | Array
) -> _Search:
    z = jnp.concatenate([guess.x, guess.u], axis=1)
    v = guess.u_mid if task.hermite else guess.u_mid[:, :0]
    point = transcription.Point(z, v, jnp.zeros_like(guess.x[1:]))
    each, last = jax.tree.map(jnp.zeros_like, transcription.evaluate(task, point))
    zero = jnp.zeros((), z.dtype)
    return _Search(
        point=point,
        prices=Prices(each.inequality, last.inequality, last.equality),
        penalty=jnp.minimum(zero + penalty, _most_penalty(zero)),
        weight=zero,
        mu=zero,
        precision=zero + FIRST,
        gap=zero + jnp.inf,
        violation=zero + jnp.inf,
        residual=zero + jnp.inf,
        iterations=jnp.zeros((), jnp.int32),
        status=jnp.array(Status.RUNNING, jnp.int32),
    )


def _solution(task: transcription.Transcription, search: _Search) -> Solution:
    z, v, costate = search.point
    x, u = z[:, : task.num_states], z[:, task.num_states :]
    each, last = transcription.evaluate(task, search.point)
    return Solution(
        Trajectory(task.t, x, u, v if task.hermite else (u[:-1] + u[1:]) / 2),
        each.cost.sum() + last.cost,
        search.violation,
        search.residual,
        costate,
        search.prices,
        search.iterations,
        search.status,
    )


def _due(inequality: Array, price: Array, search: _Search) -> Array:
    """The price of the slack s below: max(0, price + penalty inequality), rounded."""
    sharp, square = (
        price + search.penalty * inequality,
        search.penalty * search.precision,
    )
    root = jnp.sqrt(sharp**2 + 4 * square)
    larger = (root + jnp.abs(sharp)) / 2
    return jnp.where(sharp > 0, larger, square / larger)


def _priced(inequality: Array, price: Array, search: _Search) -> Array:
    """min over s > 0 of price (c + s) + penalty / 2 (c + s)^2 - barrier log s.

    Up to a constant, with c `inequality`: an augmented Lagrangian, and smooth.
    """
    due = _due(inequality, price, search)
    squares = (due**2 - price**2) / (2 * search.penalty)
    return (squares + search.precision * jnp.log(due)).sum()


def _lagrangians(
    task: transcription.Transcription, search: _Search
) -> tuple[Callable, tuple, Callable]:
    """(p, *arguments) -> (Lagrangian, defect) of an interval; these; z -> that of T."""

    def of_interval(
        p: Array, t: Array, h: Array, costate: Array, price: Array
    ) -> tuple[Array, Array]:
        cost, defect, inequality = transcription.interval(task, p, t, h)
        return cost + costate @ defect + _priced(inequality, price, search), defect

    def of_end(z: Array) -> Array:
        cost, gap, inequality = transcription.end(task, z)
        priced = _priced(inequality, search.prices.last, search)
        return cost + priced + gap @ (search.prices.end + search.penalty / 2 * gap)

    prices = (search.point.costate, search.prices.inequality)
    return of_interval, (task.t[:-1], jnp.diff(task.t), *prices), of_end


def _merit(
    task: transcription.Transcription, search: _Search, weight: float | Array
) -> Array:
    """Lagrangian and squared defects: Gill, Murray, Saunders and Wright, 1986."""
    of_interval, steps, of_end = _lagrangians(task, search)
    each, defects = jax.vmap(of_interval)(transcription.pairs(search.point), *steps)
    return each.sum() + of_end(search.point.z[-1]) + weight / 2 * (defects**2).sum()


def _expand(task: transcription.Transcription, search: _Search) -> _Expansion:
    of_interval, steps, of_end = _lagrangians(task, search)

    def first(p: Array, *step: Array) -> tuple[tuple, tuple]:
        g, defect = jax.grad(of_interval, has_aux=True)(p, *step)
        return (g, defect), (g, defect)

    each = jax.vmap(jax.jacfwd(first, has_aux=True))
    (W, D), (g, d) = each(transcription.pairs(search.point), *steps)
    last = search.point.z[-1]
    return _Expansion(g, W, d, D, jax.grad(of_end)(last), jax.hessian(of_end)(last))


def _newton(
    task: transcription.Transcription, expansion: _Expansion, mu: Array
) -> tuple[transcription.Point, Array, Array]:
    """The step; as little regularisation, from `mu` on, as it needs; if it exists."""

    def unfinished(carry: tuple) -> Array:
        _, mu, well = carry
        return ~well & (mu <= MOST)

    def attempt(carry: tuple) -> tuple:
        _, mu, _ = carry
        step, well = _solve(task, expansion, mu)
        return step, jnp.where(well, mu, _more(mu)), well

    N, size = len(expansion.g), len(expansion.last_g)
    z = jnp.zeros((N + 1, size), mu.dtype)
    v = jnp.zeros((N, expansion.g.shape[1] - 2 * size), mu.dtype)
    start = (
        transcription.Point(z, v, jnp.zeros_like(expansion.d)),
        mu,
        jnp.array(False),
    )
    return jax.lax.while_loop(unfinished, attempt, start)


def _solve(
    task: transcription.Transcription, expansion: _Expansion, mu: Array
) -> tuple[transcription.Point, Array]:
    """min over all p of g'p + 1/2 p'(W + mu I)p with d + D p = 0; if that exists.

    d + D p = 0 gives the next x from z and w = (v, next u): p = T (z, w) + c.
    """
    O, size, num_p = task.num_states, len(expansion.last_g), expansion.g.shape[1]
    after, x_next = np.arange(num_p - size, num_p), np.arange(O) + num_p - size
    others = np.delete(np.arange(num_p), x_next)  # (z, w)
    eye = jnp.eye(num_p, dtype=mu.dtype)
    W, last_W = expansion.W + mu * eye[None], expansion.last_W + mu * eye[:size, :size]
    inverse = jax.vmap(_inverse)(expansion.D[:, :, x_next])  # [N, O, O]

    def explicit(inverse: Array, D: Array, d: Array) -> tuple[Array, Array]:
        T = eye[:, others].at[x_next].set(-inverse @ D[:, others])
        return T, jnp.zeros_like(T[:, 0]).at[x_next].set(-inverse @ d)

    def back(value: tuple, now: tuple) -> tuple[tuple, tuple]:
        (V, v), (W, g, T, c) = value, now
        H, h = W.at[np.ix_(after, after)].add(V), g.at[after].add(v)
        H, h = T.T @ H @ T, T.T @ (h + H @ c)
        right = jnp.column_stack([H[size:, :size], h[size:]])
        solved, well = definite.solve(H[size:, size:], right)
        K, k = -solved[:, :-1], -solved[:, -1]
        before = H[:size, :size] + H[:size, size:] @ K
        before = (before + before.T) / 2
        return (before, h[:size] + H[:size, size:] @ k), (K, k, V, v, well)

    def forward(z: Array, now: tuple) -> tuple[Array, Array]:
        K, k, T, c = now
        p = T @ jnp.concatenate([z, K @ z + k]) + c
        return p[after], p

    def price(inverse: Array, p: Array, W: Array, g: Array, value: tuple) -> Array:
        V, v = value
        pull = W[x_next] @ p + g[x_next] + V[:O] @ p[after] + v[:O]
        return -inverse.T @ pull

    T, c = jax.vmap(explicit)(inverse, expansion.D, expansion.d)
    value, (K, k, V, v, well) = jax.lax.scan(
        back, (last_W, expansion.last_g), (W, expansion.g, T, c), reverse=True
    )
    u, first = definite.solve(value[0][O:, O:], -value[1][O:])
    start = jnp.concatenate([jnp.zeros(O, u.dtype), u])  # x(0) is given
    last, p = jax.lax.scan(forward, start, (K, k, T, c))
    costate = jax.vmap(price)(inverse, p, W, expansion.g, (V, v))
    z = jnp.concatenate([p[:, :size], last[None]])
    return transcription.Point(
        z, p[:, size : num_p - size], costate
    ), well.all() & first


def _inverse(matrix: Array) -> Array:
    """[O, O], by elimination with pivots; written out, as in ops/definite.py."""
    size = len(matrix)
    rows = jnp.column_stack([matrix, jnp.eye(size, dtype=matrix.dtype)])
    for i in range(size):
        pivot = i + jnp.argmax(jnp.abs(rows[i:, i]))
        rows = rows.at[i].set(rows[pivot]).at[pivot].set(rows[i])
        row = rows[i] / rows[i, i]
        rows = (rows - jnp.outer(rows[:, i], row)).at[i].set(row)
    return rows[:, size:]


def _advance(
    task: transcription.Transcription,
    search: _Search,
    expansion: _Expansion,
    step: transcription.Point,
) -> tuple[_Search, Array]:
    """The largest of SIZES times the step that improves; if no step can."""
    square = (expansion.d**2).sum()
    rise = (step.costate * expansion.d).sum()
    linear = (
        expansion.g * transcription.pairs(step)
    ).sum() + expansion.last_g @ step.z[-1]
    curvature = rise - linear  # p'(W + mu I)p
    # such a weight that the merit has a slope of at most minus half the curvature
    due = linear + rise + jnp.abs(curvature) / 2
    due = jnp.where(due > 0, due / jnp.maximum(square, jnp.finfo(due.dtype).tiny), 0.0)
    weight = jnp.maximum(search.weight / 2, 2 * due)
    slope = linear + rise - weight * square

    def moved(size: Array) -> _Search:
        point = jax.tree.map(lambda a, b: a + size * b, search.point, step)
        return search._replace(point=point)

    sizes = jnp.array((0.0, *SIZES), square.dtype)
    merits = jax.vmap(lambda size: _merit(task, moved(size), weight))(sizes)
    slack = 10 * jnp.finfo(square.dtype).eps * jnp.abs(merits[0])
    enough = merits <= merits[0] + ENOUGH * sizes * slope + slack
    accepted = enough[1:].any()
    size = jnp.where(accepted, sizes[1 + jnp.argmax(enough[1:])], 0.0)
    less = jnp.where(search.mu > LEAST, search.mu / SCALE, 0.0)
    search = moved(size)._replace(
        weight=weight,
        mu=jnp.where(accepted, less, _more(search.mu)),
        iterations=search.iterations + 1,
    )
    return search, -slope <= slack


def _more(mu: Array) -> Array:
    return jnp.maximum(LEAST, mu * SCALE)


def _judge(
    task: transcription.Transcription,
    search: _Search,
    usable: Array,
    lost: Array,
    tolerance: float | Array,
    growth: float | Array,
) -> _Search:
    """New prices where the Lagrangian is as small as it has to be; the status."""
    each, last = transcription.evaluate(task, search.point)
    residual, defect = _residual(task, search), _most(each.equality)
    prices, gap = _new_prices(search, each, last)
    violations = (defect, _over(each.inequality), _over(last.inequality))
    violation = jnp.stack([*violations, _most(last.equality)]).max()
    done = (jnp.maximum(residual, defect) <= search.precision) | lost
    exact, highest = search.precision <= tolerance, _most_penalty(gap)
    met = exact & (jnp.maximum(gap, violation) <= tolerance)
    stuck = exact & ~met & (search.penalty >= highest) & (gap > STUCK * search.gap)
    status = jnp.array(Status.RUNNING, jnp.int32)
    for name, holds in (  # the last one that holds counts
        (Status.REGULARISATION_EXHAUSTED, search.mu > MOST),
        (Status.INFEASIBLE, done & stuck),
        (Status.STALLED, lost & met),
        (Status.CONVERGED, met & (residual <= tolerance)),
        (Status.NOT_FINITE, ~(usable & jnp.isfinite(violation))),
    ):
        status = jnp.where(holds, name, status)
    slow = gap > FALL * search.gap
    larger = jnp.where(slow, search.penalty * growth, search.penalty)
    finer = jnp.minimum(search.precision / 10, search.precision**1.5)
    updated = search._replace(
        prices=prices,
        penalty=jnp.minimum(larger, highest),
        precision=jnp.maximum(finer, tolerance),
        gap=gap,
    )
    search = jax.tree.map(lambda a, b: jnp.where(done, a, b), updated, search)
    return search._replace(violation=violation, residual=residual, status=status)


def _residual(task: transcription.Transcription, search: _Search) -> Array:
    lagrangian = lambda point: _merit(task, search._replace(point=point), 0.0)
    gradient = jax.grad(lagrangian)(search.point)
    of_z = gradient.z.at[0, : task.num_states].set(0.0)  # x(0) is given
    scale = jnp.maximum(1.0, _most(search.point.costate) / 100)
    return jnp.maximum(_most(of_z), _most(gradient.v)) / scale


def _new_prices(
    search: _Search, each: transcription.Values, last: transcription.Values
) -> tuple[Prices, Array]:
    """And the largest gap: what is violated, or not at its limit and has a price."""
    old = search.prices
    prices = Prices(
        _due(each.inequality, old.inequality, search),
        _due(last.inequality, old.last, search),
        old.end + search.penalty * last.equality,
    )
    changes = [_most(a - b) for a, b in zip(prices, old, strict=True)]
    return prices, jnp.stack(changes).max() / search.penalty


def _most_penalty(x: Array) -> float:
    return float(jnp.finfo(x.dtype).eps) ** -0.5


def _over(inequality: Array) -> Array:
    return jnp.max(inequality, initial=0.0)


def _most(x: Array) -> Array:
    return jnp.max(jnp.abs(x), initial=0.0)
