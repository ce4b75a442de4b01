"""CMA-ES: covariance matrix adaptation (Hansen, "The CMA evolution strategy: a
tutorial", 2016, arXiv 1604.00772; equation numbers are of that paper).

    state = init(mean, std)
    repeat:
        samples = ask(key, state, num_samples)          x = mean + step_size N(0, cov)
        state = tell(state, samples, values)            small values are good

`minimise` is this loop until it stops, and says why; `restarted` runs it again with
twice as many samples when it got stuck (IPOP, Auger and Hansen, 2005); `cma_es` is a
planner.  With all parts of the paper: rank-one and rank-mu updates, active (negative)
weights, the step size's own path, lazy eigendecompositions.  Box bounds: `mirrored`.
It wants float64: float32 stalls where values differ by less than 1e-7.

D is the number of unknowns, N of samples, L of remembered generations.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.ops import checks, finite, sharding
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key, Metrics, Objective, Plan

STATUSES = (
    "not yet stopped",
    "reached the target",
    "steps became small",
    "values became flat",
    "covariance became ill-conditioned",
    "too many evaluations",
    "no value was finite",
)
RUNNING, REACHED, SMALL, FLAT, ILL, BUDGET, BROKEN = range(len(STATUSES))


class State(NamedTuple):
    mean: Array  # [D]
    step_size: Array  # []
    cov: Array  # [D, D], symmetric
    basis: Array  # [D, D] its eigenvectors, in columns
    axes: Array  # [D] roots of its eigenvalues
    path: Array  # [D] of the mean's steps, for the covariance
    step_path: Array  # [D] of the same, decorrelated, for the step size
    generation: Array  # [] int32


class Result(NamedTuple):
    x: Array  # [D] the best of all samples
    value: Array  # []
    status: Array  # [] int32, an index of `STATUSES`
    num_evaluations: Array  # [] int32
    state: State


class _Rates(NamedTuple):
    """The constants of Table 1."""

    weights: np.ndarray  # [N] the first half positive, of sum 1
    mu_eff: float
    step_path: float  # c_sigma
    damping: float  # d_sigma
    path: float  # c_c
    rank_one: float  # c_1
    rank_mu: float  # c_mu
    norm: float  # of a normal vector, expected


def default_num_samples(size: int) -> int:
    return 4 + int(3 * math.log(size))


def init(mean: Array, std: Array | float) -> State:
    """Starts from a normal around `mean` [D] with `std` [D]; a std of 0 stays one."""
    mean, std = floats("cma_es", (mean, std))
    zeros, eye = jnp.zeros_like(mean), jnp.eye(len(mean), dtype=mean.dtype)
    std = jnp.broadcast_to(std, mean.shape)
    size = jnp.sqrt((std**2).mean())
    size = jnp.where(size > 0, size, 1)
    cov = jnp.diag((std / size) ** 2)
    axes = jnp.where(std > 0, std / size, 1)
    generation = jnp.zeros((), jnp.int32)
    return State(mean, size, cov, eye, axes, zeros, zeros, generation)


def ask(key: Key, state: State, num_samples: int) -> Array:
    """Samples [N, D].  Eqs. (38) to (40)."""
    z = jax.random.normal(key, (num_samples, len(state.mean)), state.mean.dtype)
    y = jnp.where(_varies(state)[None], (z * state.axes[None]) @ state.basis.T, 0)
    return state.mean[None] + state.step_size * y


def tell(state: State, samples: Array, values: Array) -> State:
    """Learns from the values [N] of samples [N, D]; the smallest is the best.

    A value that is not finite is worse than any other; if none is, nothing is learned.
    """
    num_samples, size = samples.shape
    rates = _rates(size, num_samples)
    good = jnp.isfinite(values)
    order = jnp.argsort(jnp.where(good, values, jnp.inf))
    y = (samples[order] - state.mean[None]) / state.step_size  # best first
    weights = jnp.asarray(rates.weights, y.dtype)
    step = jnp.maximum(weights, 0) @ y  # [D] Eq. (41)
    whitened = lambda y: ((y @ state.basis) / state.axes[None]) @ state.basis.T

    step_path = _blend(
        rates.step_path, rates.mu_eff, state.step_path, whitened(step[None])[0]
    )  # Eq. (43)
    length = jnp.linalg.norm(step_path)
    # of as many unknowns as vary
    norm = rates.norm * jnp.sqrt(jnp.maximum(_varies(state).mean(), 1 / size))
    change = jnp.exp(rates.step_path / rates.damping * (length / norm - 1))
    step_size = state.step_size * jnp.minimum(change, jnp.e)  # Eq. (44)

    # The path waits while the step size grows fast.
    age = state.generation + 1
    settled = 1 - (1 - rates.step_path) ** (2 * age.astype(y.dtype))
    calm = length / jnp.sqrt(settled) < (1.4 + 2 / (size + 1)) * norm
    path = _blend(rates.path, rates.mu_eff, state.path, calm * step)  # Eq. (45)

    # Bad samples count by their direction alone, so that `cov` stays definite.
    lengths = (whitened(y) ** 2).sum(axis=1)
    shares = jnp.where(
        weights < 0, weights * size / jnp.maximum(lengths, 1e-30), weights
    )  # Eq. (46)
    lost = ~calm * rates.rank_one * rates.path * (2 - rates.path)
    kept = 1 + lost - rates.rank_one - rates.rank_mu * float(rates.weights.sum())
    cov = kept * state.cov + rates.rank_one * jnp.outer(path, path)
    cov = cov + rates.rank_mu * (y.T * shares[None]) @ y  # Eq. (47)
    cov = (cov + cov.T) / 2

    every = max(1, int(1 / ((rates.rank_one + rates.rank_mu) * size * 10)))
    basis, axes = jax.lax.cond(
        age % every == 0, _decompose, lambda cov: (state.basis, state.axes), cov
    )
    new = State(
        state.mean + state.step_size * step,
        step_size,
        cov,
        basis,
        axes,
        path,
        step_path,
        age,
    )
    learned = good.any()
    return jax.tree.map(lambda new, old: jnp.where(learned, new, old), new, state)


def minimise(
    key: Key,
    objective: Objective,
    mean: Array,
    std: Array | float,
    *,
    num_samples: int | None = None,
    max_evaluations: int | Array = 100_000,
    target: float = -jnp.inf,
    tolerance: float = 1e-12,
) -> Result:
    """Searches a minimum of `objective` [D] -> [], from a normal around `mean` [D].

    Stops at a value of `target`; where all values of the last generations differ by
    less than `tolerance`, or steps are smaller than this share of `std`; and for the
    reasons of `STATUSES`.
    """
    mean, std = floats("cma_es.minimise", (mean, std))
    size = len(mean)
    num_samples = num_samples or default_num_samples(size)
    num_remembered = 10 + -(-30 * size // num_samples)
    start = init(mean, std)

    def generation(carry: tuple) -> tuple:
        key, result, history = carry
        key, ask_key = jax.random.split(key)
        samples = ask(ask_key, result.state, num_samples)
        values = -finite.losing(-sharding.vmap(objective)(samples))  # [N]
        state = tell(result.state, samples, values)
        first = jnp.argmin(values)
        better = values[first] < result.value
        x = jnp.where(better, samples[first], result.x)
        value = jnp.where(better, values[first], result.value)
        num_evaluations = result.num_evaluations + num_samples
        row = result.state.generation % num_remembered
        history = history.at[row].set(values[first])
        step = state.step_size * jnp.maximum(
            jnp.abs(state.path), jnp.sqrt(jnp.diag(state.cov))
        )
        seen = jnp.concatenate([history, values])
        status = _first(
            (value <= target, REACHED),
            (~jnp.isfinite(values).any(), BROKEN),
            (jnp.ptp(seen) <= tolerance, FLAT),  # false while the history is not full
            ((step <= tolerance * start.step_size).all(), SMALL),
            (state.axes.max() > 1e7 * state.axes.min(), ILL),
            (num_evaluations + num_samples > max_evaluations, BUDGET),
        )
        return key, Result(x, value, status, num_evaluations, state), history

    history = jnp.full(num_remembered, jnp.inf, mean.dtype)
    running = lambda carry: carry[1].status == RUNNING
    return jax.lax.while_loop(running, generation, (key, _untried(start), history))[1]


def restarted(
    key: Key,
    objective: Objective,
    start: Callable[[Key], Array],
    std: Array | float,
    *,
    num_restarts: int = 5,
    max_evaluations: int = 1_000_000,
    target: float = -jnp.inf,
) -> Result:
    """`minimise` from `start(key)` [D], again with twice the samples until `target`.

    The best of all runs, with the evaluations of all and the last one's status.
    """

    def run(best: Result, key: Key, num_samples: int) -> Result:
        start_key, search_key = jax.random.split(key)
        found = minimise(
            search_key,
            objective,
            start(start_key),
            std,
            num_samples=num_samples,
            max_evaluations=max_evaluations - best.num_evaluations,
            target=target,
        )
        better = found.value < best.value
        return found._replace(
            x=jnp.where(better, found.x, best.x),
            value=jnp.minimum(found.value, best.value),
            num_evaluations=best.num_evaluations + found.num_evaluations,
        )

    mean = start(key)
    best = _untried(init(mean, std))
    for i, run_key in enumerate(jax.random.split(key, num_restarts + 1)):
        num_samples = default_num_samples(len(mean)) * 2**i
        spent = best.num_evaluations + num_samples > max_evaluations
        best = jax.lax.cond(
            (best.status == REACHED) | spent,
            lambda best, key: best,
            partial(run, num_samples=num_samples),
            best,
            run_key,
        )
    return best


def cma_es(
    key: Key,
    objective: Objective,
    plan: Plan,
    *,
    action_limit: float,
    num_samples: int = 100,
    num_iterations: int = 10,
) -> tuple[Plan, Metrics]:
    """Maximises `objective`, starting the search at `plan`; executes the best sample.

    Actions beyond the limit are mirrored at it.
    """
    plan = floats("cma_es", plan)
    checks.finite_limit("cma_es", action_limit)
    shape = plan.mean.shape
    into = lambda x: mirrored(x, -action_limit, action_limit).reshape(shape)
    state = init(plan.mean.ravel(), plan.std.ravel())

    def iteration(carry: tuple, key: Key) -> tuple[tuple, None]:
        state, best, best_return = carry
        samples = ask(key, state, num_samples)
        returns = finite.losing(sharding.vmap(lambda x: objective(into(x)))(samples))
        first = jnp.argmax(returns)
        better = returns[first] > best_return
        best = jnp.where(better, samples[first], best)
        best_return = jnp.maximum(returns[first], best_return)
        return (tell(state, samples, -returns), best, best_return), None

    start = (state, state.mean, jnp.asarray(-jnp.inf, state.mean.dtype))
    keys = jax.random.split(key, num_iterations)
    (state, best, best_return), _ = jax.lax.scan(iteration, start, keys)
    std = state.step_size * jnp.sqrt(jnp.diag(state.cov))
    found = plan._replace(
        mean=into(state.mean), std=std.reshape(shape), actions=into(best)
    )
    return found, {"plan/return": best_return}


def mirrored(x: Array, low: Array | float, high: Array | float) -> Array:
    """`x`, folded at the bounds as often as it takes to lie within.

    Minimising objective(mirrored(x)) minimises within them, also on the bounds.
    """
    span = high - low
    offset = jnp.mod(x - low, 2 * span)
    return low + jnp.minimum(offset, 2 * span - offset)


def _untried(state: State) -> Result:
    """Before the first sample."""
    nothing, mean = jnp.zeros((), jnp.int32), state.mean
    return Result(mean, jnp.asarray(jnp.inf, mean.dtype), nothing, nothing, state)


def _rates(size: int, num_samples: int) -> _Rates:
    """Table 1 and Eqs. (49) to (58)."""
    if num_samples < 4:
        raise ValueError(f"num_samples is {num_samples}, must be at least 4")
    raw = np.log((num_samples + 1) / 2) - np.log(np.arange(1, num_samples + 1))
    good, bad = raw[: num_samples // 2], raw[num_samples // 2 :]
    effective = lambda w: float(w.sum() ** 2 / (w**2).sum()) if w.any() else 0.0
    mu_eff, bad_eff = effective(good), effective(bad)
    step_path = (mu_eff + 2) / (size + mu_eff + 5)
    rank_one = 2 / ((size + 1.3) ** 2 + mu_eff)
    rank_mu = min(
        1 - rank_one,
        2 * (0.25 + mu_eff + 1 / mu_eff - 2) / ((size + 2) ** 2 + mu_eff),
    )
    negative = min(
        1 + rank_one / rank_mu,
        1 + 2 * bad_eff / (mu_eff + 2),
        (1 - rank_one - rank_mu) / (size * rank_mu),
    )
    weights = np.concatenate(
        [good / good.sum(), negative * bad / max(np.abs(bad).sum(), 1e-30)]
    )
    growth = max(0.0, math.sqrt((mu_eff - 1) / (size + 1)) - 1)
    return _Rates(
        weights,
        mu_eff,
        step_path=step_path,
        damping=1 + 2 * growth + step_path,
        path=(4 + mu_eff / size) / (size + 4 + 2 * mu_eff / size),
        rank_one=rank_one,
        rank_mu=rank_mu,
        norm=math.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2)),
    )


def _blend(rate: float, mu_eff: float, path: Array, step: Array) -> Array:
    """A path whose variance stays that of one step."""
    return (1 - rate) * path + math.sqrt(rate * (2 - rate) * mu_eff) * step


def _varies(state: State) -> Array:
    """Which unknowns, [D] bool: the others began with a std of 0."""
    return jnp.diag(state.cov) > 0


def _decompose(cov: Array) -> tuple[Array, Array]:
    # an axis of 1 for what does not vary, which nothing is ever sampled along
    still = jnp.diag(cov) == 0
    values, vectors = jnp.linalg.eigh(cov + jnp.diag(still.astype(cov.dtype)))
    tiny = jnp.finfo(cov.dtype).tiny
    return vectors, jnp.sqrt(jnp.maximum(values, tiny))


def _first(*cases: tuple[Array, int]) -> Array:
    """The status of the first case that is true, or `RUNNING`."""
    conditions, statuses = zip(*cases, strict=True)
    found = jnp.select(
        conditions, [jnp.asarray(x, jnp.int32) for x in statuses], RUNNING
    )
    return found.astype(jnp.int32)
