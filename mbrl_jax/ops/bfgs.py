"""BFGS with one evaluation of the loss in the program, for losses of a long program.

`jax.scipy.optimize.minimize` has four, each of which is compiled, and under vmap waits
for the longest line search at every step; here all searches evaluate all the time.

Nocedal and Wright, "Numerical optimization", 2006, Ch. 6, with the line search of Lewis
and Overton, "Nonsmooth optimization via quasi-Newton methods", 2013, Alg. 2.6: double,
then bisect, until the weak Wolfe conditions hold.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mbrl_jax.types import Array, Params

DECREASE, CURVATURE = 1e-4, 0.9  # of the Wolfe conditions
MOST_TRIALS = 20  # in a line search: after them there is no lower point to be found


class Minimum(NamedTuple):
    params: Params
    loss: Array  # []; inf if it was not finite anywhere
    num_evaluations: Array  # [] int32
    gradient_norm: Array  # [], the largest entry there


class Search(NamedTuple):
    x: Array  # [D]
    loss: Array  # []
    gradient: Array  # [D]
    inverse: Array  # [D, D], approximate inverse of the Hessian
    direction: Array  # [D]
    length: Array  # [], of the next trial along it
    low: Array  # [], the longest that was too short
    high: Array  # [], the shortest that was too long
    num_trials: Array  # [] int32, in this line search
    num_evaluations: Array  # [] int32
    done: Array  # [] bool


def minimise(
    loss: Callable[[Params], Array],
    start: Params,
    max_evaluations: int,
    tolerance: float = 1e-5,
) -> Minimum:
    """The lowest point found, `start` or lower; meant for float64.

    Ends where no entry of the gradient is above `tolerance`, where a line search finds
    nothing lower, or after `max_evaluations`.  What is not finite is too long a step.
    """
    vector, unravel = ravel_pytree(start)
    evaluate = jax.value_and_grad(lambda x: loss(unravel(x)))

    def unfinished(s: Search) -> Array:
        return ~s.done & (s.num_evaluations < max_evaluations)

    def trial(s: Search) -> Search:
        x = s.x + s.length * s.direction
        value, gradient = evaluate(x)
        finite = jnp.isfinite(value) & jnp.isfinite(gradient).all()
        first = s.num_evaluations == 0
        slope = s.gradient @ s.direction
        lower = finite & (value <= s.loss + DECREASE * s.length * slope)
        flat = gradient @ s.direction >= CURVATURE * slope
        # the last trial of a line search is taken if it is lower at all
        last = s.num_trials + 1 >= MOST_TRIALS
        accept = jnp.where(first, finite, lower & (flat | last))
        taken = _taken(s, x, value, gradient, first, tolerance)
        other = _other_length(s, lower)._replace(done=last | first)
        s = _choose(accept, taken, other)
        return s._replace(num_evaluations=s.num_evaluations + 1)

    nothing, zero = jnp.zeros((), jnp.int32), jnp.zeros_like(vector)
    eye = jnp.eye(len(vector), dtype=vector.dtype)
    infinite, one = jnp.array(jnp.inf, vector.dtype), jnp.ones((), vector.dtype)
    found = jax.lax.while_loop(
        unfinished,
        trial,
        Search(
            vector, infinite, zero, eye, zero, one, 0 * one, infinite,
            nothing, nothing, jnp.zeros((), bool),
        ),
    )  # fmt: skip
    return Minimum(
        unravel(found.x),
        found.loss,
        found.num_evaluations,
        jnp.abs(found.gradient).max(),
    )


def best(found: Minimum) -> Minimum:
    """The lowest of several [N, ...], and the evaluations of all."""
    lowest = jax.tree.map(lambda x: x[jnp.argmin(found.loss)], found)
    return lowest._replace(num_evaluations=found.num_evaluations.sum())


def _taken(
    s: Search, x: Array, loss: Array, gradient: Array, first: Array, tolerance: float
) -> Search:
    """At a new point, ready for the line search from there."""
    step, change = x - s.x, gradient - s.gradient
    product = step @ change
    curved = ~first & (product > 0)
    safe = jnp.where(curved, product, 1)
    # Nocedal and Wright, Eq. (6.17), from the identity: scaled as by their Eq. (6.20),
    # by the steepest direction, which comes first, steps along the others are tiny
    away = s.inverse @ change
    rank_one = (1 + change @ away / safe) * jnp.outer(step, step) / safe
    both = jnp.outer(away, step) / safe
    inverse = jnp.where(curved, s.inverse + rank_one - both - both.T, s.inverse)
    direction = -inverse @ gradient
    # to begin with, or if rounding has turned it uphill
    steepest = first | (direction @ gradient >= 0)
    unit = 1 / jnp.maximum(jnp.linalg.norm(gradient), 1)
    # their Eq. (3.60): as if the loss fell by as much as last time
    slope = jnp.minimum(direction @ gradient, -jnp.finfo(x.dtype).tiny)
    again = jnp.minimum(1, 2.02 * (loss - s.loss) / slope)
    eye = jnp.eye(len(x), dtype=x.dtype)
    return Search(
        x,
        loss,
        gradient,
        jnp.where(steepest, eye, inverse),
        jnp.where(steepest, -gradient, direction),
        jnp.where(steepest, unit, again).astype(x.dtype),
        jnp.zeros_like(s.low),
        jnp.full_like(s.high, jnp.inf),
        jnp.zeros_like(s.num_trials),
        s.num_evaluations,
        jnp.abs(gradient).max() <= tolerance,
    )


def _choose(first: Array, a: Search, b: Search) -> Search:
    return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)


def _other_length(s: Search, lower: Array) -> Search:
    """Further if the point was lower but still steep, else back."""
    low = jnp.where(lower, s.length, s.low)
    high = jnp.where(lower, s.high, s.length)
    length = jnp.where(jnp.isfinite(high), (low + high) / 2, 2 * low)
    num_trials = s.num_trials + 1
    # rather than nothing, in the end, what was lower, if still steep
    length = jnp.where((num_trials + 1 >= MOST_TRIALS) & (low > 0), low, length)
    return s._replace(length=length, low=low, high=high, num_trials=num_trials)
