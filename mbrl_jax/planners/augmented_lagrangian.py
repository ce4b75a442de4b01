"""Constraints on states and controls, by an augmented Lagrangian around any optimiser.

(Nocedal and Wright, "Numerical optimization", 2006, Sec. 17.4.)

    repeat
      solve the problem with the price and the penalty of violations in its cost
      raise the prices (multipliers) by penalty times violation
      if the violation has not fallen enough, raise the penalty

x state [O], u control [A], H horizon, I inequalities, E equalities.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array

Cost = Callable[[Array, Array, Array], Array]  # (x, u, t) -> []
FinalCost = Callable[[Array], Array]  # x -> []

FALL = 0.25  # the violation is to fall to this share in each iteration
MOST = 1e8  # penalty


class Status(enum.IntEnum):
    MET = 0  # the constraints, within the tolerance
    VIOLATED = 1  # they contradict each other, or there were too few iterations
    NOT_FINITE = 2


class Constraints(NamedTuple):
    inequality: Array  # [I] to be at most 0
    equality: Array  # [E] to be 0


class Constrained(NamedTuple):
    solution: Any  # of `solve`, whose status tells how good it is
    multipliers: Constraints  # [H, I], [H, E]
    last_multipliers: Constraints  # of the final constraints
    violation: Array  # [] of any constraint
    iterations: Array  # [] int32
    status: Array  # [] int32


class _State(NamedTuple):
    solution: Any
    multipliers: tuple[Constraints, Constraints]  # of the steps and of the end
    penalty: Array
    gap: Array  # [] violation, or price of a constraint that is not at its limit
    violation: Array
    iterations: Array


def unconstrained(x: Array) -> Constraints:
    """No final constraints."""
    return Constraints(jnp.zeros(0, x.dtype), jnp.zeros(0, x.dtype))


def augmented_lagrangian(
    solve: Callable[[Cost, FinalCost, Array], Any],
    cost: Cost,
    final_cost: FinalCost,
    x: Array,
    u: Array,
    *,
    constraints: Callable[[Array, Array, Array], Constraints],
    final_constraints: Callable[[Array], Constraints] = unconstrained,
    num_iterations: int | Array = 30,
    penalty: float | Array = 10.0,
    growth: float | Array = 5.0,
    tolerance: float | Array = 1e-6,
) -> Constrained:
    """`solve(cost, final_cost, u)` under constraints, from `x` [O] and `u` [H, A].

    What it returns has fields x [H + 1, O] and u [H, A].  `penalty`, the first one, is
    in units of cost per square of a constraint; it grows by the factor `growth`.
    """

    def solved(u: Array, multipliers: tuple, penalty: Array) -> Any:
        of_steps, of_end = multipliers

        def priced(x: Array, u: Array, t: Array) -> Array:
            now = jax.tree.map(lambda price: price[t], of_steps)
            return cost(x, u, t) + _price(constraints(x, u, t), now, penalty)

        def priced_end(x: Array) -> Array:
            return final_cost(x) + _price(final_constraints(x), of_end, penalty)

        return solve(priced, priced_end, u)

    def values(x: Array, u: Array) -> tuple[Constraints, Constraints]:
        of_steps = jax.vmap(constraints)(x[:-1], u, jnp.arange(len(u)))
        return of_steps, final_constraints(x[-1])

    def iterate(state: _State) -> _State:
        solution = solved(state.solution.u, state.multipliers, state.penalty)
        of_steps, of_end = (
            _update(value, price, state.penalty)
            for value, price in zip(
                values(solution.x, solution.u), state.multipliers, strict=True
            )
        )
        gap = jnp.maximum(of_steps[1], of_end[1])
        more = jnp.minimum(state.penalty * growth, MOST)
        return _State(
            solution,
            (of_steps[0], of_end[0]),
            jnp.where(gap > FALL * state.gap, more, state.penalty),
            gap,
            jnp.maximum(of_steps[2], of_end[2]),
            state.iterations + 1,
        )

    def unfinished(state: _State) -> Array:  # false if the gap is NaN
        return (state.gap > tolerance) & (state.iterations < num_iterations)

    none = jax.tree.map(jnp.zeros_like, values(jnp.tile(x[None], (len(u) + 1, 1)), u))
    first = jnp.asarray(penalty, x.dtype)
    shapes = jax.eval_shape(solved, u, none, first)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)._replace(u=u)
    never = jnp.full_like(first, jnp.inf)
    start = _State(blank, none, first, never, never, jnp.zeros((), jnp.int32))
    state = jax.lax.while_loop(unfinished, iterate, start)
    status = jnp.where(state.gap <= tolerance, Status.MET, Status.VIOLATED)
    finite = jnp.isfinite(state.gap) & jnp.isfinite(state.solution.u).all()
    status = jnp.where(finite, status, Status.NOT_FINITE).astype(jnp.int32)
    return Constrained(
        state.solution, *state.multipliers, state.violation, state.iterations, status
    )


def _price(value: Constraints, price: Constraints, penalty: Array) -> Array:
    due = jnp.maximum(0.0, price.inequality + penalty * value.inequality)
    inequality = (due**2 - price.inequality**2) / (2 * penalty)
    equality = value.equality * (price.equality + penalty / 2 * value.equality)
    return inequality.sum() + equality.sum()


def _update(
    value: Constraints, price: Constraints, penalty: Array
) -> tuple[Constraints, Array, Array]:
    """New prices; the largest gap; the largest violation."""
    due = jnp.maximum(0.0, price.inequality + penalty * value.inequality)
    gap = jnp.maximum(value.inequality, -price.inequality / penalty)
    most = lambda x: jnp.max(jnp.abs(x), initial=0.0)
    unequal = most(value.equality)
    return (
        Constraints(due, price.equality + penalty * value.equality),
        jnp.maximum(most(gap), unequal),
        jnp.maximum(most(jnp.maximum(value.inequality, 0.0)), unequal),
    )
