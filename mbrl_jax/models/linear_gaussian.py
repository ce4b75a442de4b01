"""Time-varying linear-Gaussian dynamics, refitted to a few episodes.

    p(x' | x, u, t) = N(F_t [x; u] + f_t, cov_t)

By Levine and Abbeel, "Learning neural network policies with guided policy search under
unknown dynamics", 2014, Sec. 4 and App. A: rows [x; u; x'] of one time step are normal;
the dynamics are the conditional of x' of their mean and covariance.  Without a prior
that is a least-squares regression at each time step; with one, which is normal-inverse-
Wishart, a Bayesian one.  A prior is a function of the rows that it is for:

    pooled      one Gaussian, of the rows of all time steps
    mixed       of the clusters of a mixture that these rows belong to (App. A.3)
    linearised  of any model's linearisation where these rows are

Deviation: changes x' - x stand in place of x' in rows: the same up to rounding, and
that is much less.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.models import gaussian_mixture
from mbrl_jax.models.gaussian_mixture import Mixture
from mbrl_jax.ops import definite, finite, normalize
from mbrl_jax.ops.floats import floats
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Gaussian, Transition


class Episodes(NamedTuple):
    """What the dynamics are fitted to."""

    obs: Array  # [N, T, O]
    action: Array  # [N, T, A]
    next_obs: Array  # [N, T, O]
    valid: Array  # [N, T] bool, the others do not count


class Dynamics(NamedTuple):
    F: Array  # [T, O, O + A]
    f: Array  # [T, O]
    cov: Array  # [T, O, O]


class NIW(NamedTuple):
    """A normal-inverse-Wishart prior of the mean and the covariance of rows [D]."""

    mean: Array  # [D] mu_0
    scatter: Array  # [D, D] Phi: `strength` times the covariance that is expected
    strength: Array  # [] how many rows it is worth: m = n_0


Prior = Callable[[Array, Array], NIW]
# (rows [N, D] of [x; u; x' - x] at one time step, which of them are valid [N])


def fit(episodes: Episodes, prior: Prior | float | Array | None = None) -> Dynamics:
    """The dynamics of each time step, by least squares or with a prior; a number is the
    strength of the pooled one.

    Rows that are not finite do not count.  Least squares from too few rows are those
    with the smallest gains, in units of the rows' own deviations, and in a step without
    rows x changes as in all the others; no covariance is singular.
    """
    if prior is not None and not callable(prior):
        prior = pooled(episodes, prior)
    num_inputs = episodes.obs.shape[-1] + episodes.action.shape[-1]
    rows, valid = rows_of(episodes)
    size, flat = rows.shape[-1] - num_inputs, rows.reshape(-1, rows.shape[-1])
    stats = normalize.statistics(flat, valid.ravel())
    unknown = NIW(
        stats.mean, jnp.zeros_like(jnp.diag(stats.std)), jnp.zeros_like(flat[0, 0])
    )

    def one(rows: Array, valid: Array) -> Dynamics:
        given = unknown if prior is None else prior(rows, valid)
        scatter = given.scatter / jnp.outer(stats.std, stats.std)
        mean = (given.mean - stats.mean) / stats.std
        rows = (rows - stats.mean[None]) / stats.std[None]
        rows = jnp.where(valid[:, None], rows, 0)
        mean, cov = posterior(rows, valid, NIW(mean, scatter, given.strength))
        return condition(mean, cov, num_inputs)

    F, f, cov = jax.vmap(one, in_axes=1)(rows, valid)
    inputs, outputs = stats.std[:num_inputs], stats.std[num_inputs:]
    F = F * outputs[None, :, None] / inputs[None, None]
    f = f * outputs[None] + stats.mean[None, num_inputs:] - F @ stats.mean[:num_inputs]
    F = F + jnp.eye(size, num_inputs, dtype=F.dtype)[None]
    found = Dynamics(F, f, cov * jnp.outer(outputs, outputs)[None])
    # XLA is not to fuse the elimination with what looks entries up: that compiles long
    return jax.lax.optimization_barrier(found)


def rows_of(episodes: Episodes) -> tuple[Array, Array]:
    """[x; u; x' - x] at every step, [N, T, D], and which are to be used, [N, T]."""
    obs, action, next_obs = floats("linear_gaussian.fit", episodes[:3])
    rows = jnp.concatenate([obs, action, next_obs - obs], axis=-1)
    valid = episodes.valid & finite.usable(rows, num_batch_axes=2)
    return jnp.where(valid[..., None], rows, 0), valid


def pooled(episodes: Episodes, strength: float | Array) -> Prior:
    """As all rows are on average, and varying as they do.  `strength` is positive."""
    rows, valid = rows_of(episodes)
    flat, weight = rows.reshape(-1, rows.shape[-1]), valid.ravel()
    stats = normalize.statistics(flat, weight)
    # in these units no square vanishes
    gap = jnp.where(weight[:, None], (flat - stats.mean[None]) / stats.std[None], 0)
    units = jnp.outer(stats.std, stats.std)
    scatter = strength * (gap.T @ gap / jnp.maximum(weight.sum(), 1)) * units
    prior = NIW(stats.mean, scatter, jnp.asarray(strength, rows.dtype))
    return lambda rows, valid: prior


def mixed(mixture: Mixture, strength: float | Array) -> Prior:
    """As the clusters are that the rows belong to (Levine and Abbeel, 2014, App. A.3).

    `mixture` is of rows of many time steps and iterations; `strength` is positive.
    """

    def prior(rows: Array, valid: Array) -> NIW:
        mean, cov = gaussian_mixture.moments(mixture, rows, valid)
        return NIW(mean, strength * cov, jnp.asarray(strength, cov.dtype))

    return prior


def linearised(
    model: Callable[[Array, Array], Gaussian], cov: Array, strength: float | Array
) -> Prior:
    """As a model, (obs, action) -> next_obs [O], is near the mean of the rows.

    `cov` [O + A, O + A] is how x and u vary there.  (Fu, Levine and Abbeel, "One-shot
    learning of manipulation skills with online dynamics adaptation and neural network
    priors", 2016.)
    """

    def prior(rows: Array, valid: Array) -> NIW:
        mean = valid.astype(rows.dtype) @ rows / jnp.maximum(valid.sum(), 1)
        inputs, size = mean[: len(cov)], len(mean) - len(cov)

        def change(z: Array) -> tuple[Array, Gaussian]:
            after = model(z[:size], z[size:])
            return after.mean - z[:size], after

        F, after = jax.jacfwd(change, has_aux=True)(inputs)  # [O, O + A]
        across = F @ cov
        noise = jnp.diag(jnp.square(after.std))
        joint = jnp.block([[cov, across.T], [across, across @ F.T + noise]])
        middle = jnp.concatenate([inputs, after.mean - inputs[:size]])
        return NIW(middle, strength * joint, jnp.asarray(strength, cov.dtype))

    return prior


def posterior(rows: Array, valid: Array, prior: NIW) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of rows [N, D] by the posterior mean of both.

    (Levine and Abbeel, 2014, App. A.3.)  Without a prior and rows they are 0.
    """
    weight = valid.astype(rows.dtype)
    number = weight.sum()
    total = number + prior.strength
    total = jnp.where(total > 0, total, 1)
    mean = weight @ rows / jnp.maximum(number, 1)
    centred = (rows - mean[None]) * weight[:, None]
    gap = mean - prior.mean
    shift = number * prior.strength / total * jnp.outer(gap, gap)
    cov = prior.scatter + centred.T @ centred + shift
    return (number * mean + prior.strength * prior.mean) / total, cov / total


def condition(mean: Array, cov: Array, num_inputs: int) -> Dynamics:
    """What follows from the first `num_inputs` variables, standardised: one time step.

    The inputs' covariance gets a ridge of 500 times the precision.
    Variances are above rounding, also where the variables follow exactly.
    """
    eps = jnp.finfo(cov.dtype).eps
    jitter = 8 * eps
    # so much that directions in which nothing varied do not blow up rounding
    inputs = cov[:num_inputs, :num_inputs] + 500 * eps * jnp.eye(num_inputs)
    gain, _ = definite.solve(inputs, cov[:num_inputs, num_inputs:])  # 0 if singular
    F = gain.T
    one = jnp.eye(len(F), dtype=F.dtype)
    rest = jnp.concatenate([-F, one], axis=1)
    left = rest @ cov @ rest.T  # not negative, but for the rounding of `cov`
    return Dynamics(F, rest @ mean, (left + left.T) / 2 + jitter * one)


def predict(dynamics: Dynamics, time: Array, obs: Array, action: Array) -> Gaussian:
    """x' [O] at a time step [] int32; its variables taken one by one."""
    mean = dynamics.F[time] @ jnp.concatenate([obs, action]) + dynamics.f[time]
    return Gaussian(mean, jnp.sqrt(jnp.maximum(jnp.diag(dynamics.cov[time]), 0)))


def latest(data: Replay, num_envs: int, number: int, num_times: int) -> Episodes:
    """The latest `number` episodes of each of the environments that took turns to fill
    `data`, at most `num_times` steps long; those that still run too.

    After a transition that was left out, the time within the episode is not known: the
    rest of it is not valid.  [N, T, ...], for N = num_envs number and T = num_times.
    """
    # one more, as the oldest may be seen from its middle on
    length = min((number + 1) * num_times, data.capacity // num_envs)
    newest = replay.newest(data, length * num_envs)
    before = newest.offered - newest.number  # transitions offered after each
    turn, env = length - 1 - before // num_envs, num_envs - 1 - before % num_envs
    turn = jnp.where(replay.valid(newest) & (turn >= 0), turn, length)  # or dropped

    def apart(x: Array) -> Array:
        empty = jnp.zeros((length, num_envs, *x.shape[1:]), x.dtype)
        return empty.at[turn, env].set(x, mode="drop")

    rows, here = jax.tree.map(apart, (newest.data, jnp.ones_like(turn, bool)))
    # nothing was forgotten yet: what comes first is the beginning of an episode
    whole = (data.size < data.capacity) & (data.offered <= length * num_envs)
    index, first = jnp.arange(length), length - data.offered // num_envs

    def one(rows: Transition, here: Array) -> Episodes:
        ended = (rows.terminal | rows.truncated) & here
        episode = jnp.cumsum(ended) - ended  # from the oldest on
        start = jax.lax.cummax(jnp.where(ended, index + 1, 0))
        start = jnp.maximum(jnp.roll(start, 1).at[0].set(0), first)
        gap = jax.lax.cummax(jnp.where(here, -1, index))  # the last one until now
        known = here & (gap < start) & ((episode > 0) | whole)
        slot = jnp.where(known, episode[-1] - episode, number)  # or dropped

        def put(x: Array) -> Array:
            empty = jnp.zeros((number, num_times, *x.shape[1:]), x.dtype)
            return empty.at[slot, index - start].set(x, mode="drop")

        return Episodes(*map(put, (rows.obs, rows.action, rows.next_obs, known)))

    episodes = jax.vmap(one, in_axes=1)(rows, here)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), episodes)
