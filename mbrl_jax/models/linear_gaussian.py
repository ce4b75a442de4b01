"""Time-varying linear-Gaussian dynamics, refitted to a few episodes.

    p(x' | x, u, t) = N(F_t [x; u] + f_t, cov_t)

By Levine and Abbeel, "Learning neural network policies with guided policy search under
unknown dynamics", 2014, Sec. 4 and App. A: rows [x; u; x'] of one time step are normal,
with a normal-inverse-Wishart prior around those of all time steps; the dynamics are the
conditional of x' of the posterior mean.  Deviation: the prior is one Gaussian, not a
mixture.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
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


def fit(episodes: Episodes, strength: float | Array) -> Dynamics:
    """The dynamics of each time step, with a prior that is worth `strength` rows.

    That many count as seen where all rows are on average, and as varying as they do:
    in the notation of Levine and Abbeel, m = n_0 = strength, which must be positive.
    Rows that are not finite do not count.
    """
    obs, action, next_obs = floats("linear_gaussian.fit", episodes[:3])
    valid = episodes.valid
    size, num_inputs = obs.shape[-1], obs.shape[-1] + action.shape[-1]
    # changes instead of x': the same up to rounding, and that is much less
    rows = jnp.concatenate([obs, action, next_obs - obs], axis=-1)  # [N, T, D]
    valid = valid & finite.usable(rows, num_batch_axes=2)
    rows = jnp.where(valid[..., None], rows, 0)
    flat, num_rows = rows.reshape(-1, rows.shape[-1]), jnp.maximum(valid.sum(), 1)
    stats = normalize.statistics(flat, valid.ravel())
    rows = (rows - stats.mean[None, None]) / stats.std[None, None]
    rows = jnp.where(valid[..., None], rows, 0)
    pooled = jnp.einsum("nti,ntj->ij", rows, rows) / num_rows

    def one(rows: Array, valid: Array) -> Dynamics:
        mean, cov = posterior(rows, valid, pooled, strength)
        return condition(mean, cov, num_inputs)

    F, f, cov = jax.vmap(one, in_axes=1)(rows, valid)
    inputs, outputs = stats.std[:num_inputs], stats.std[num_inputs:]
    F = F * outputs[None, :, None] / inputs[None, None]
    f = f * outputs[None] + stats.mean[None, num_inputs:] - F @ stats.mean[:num_inputs]
    F = F + jnp.eye(size, num_inputs, dtype=F.dtype)[None]
    found = Dynamics(F, f, cov * jnp.outer(outputs, outputs)[None])
    # XLA is not to fuse the elimination with what looks entries up: that compiles long
    return jax.lax.optimization_barrier(found)


def posterior(
    rows: Array, valid: Array, prior_cov: Array, strength: float | Array
) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of rows [N, D] by the posterior mean of both.

    The prior is around a mean of 0 (Levine and Abbeel, 2014, App. A.3).
    """
    weight = valid.astype(rows.dtype)
    number = weight.sum()
    mean = weight @ rows / jnp.maximum(number, 1)
    centred = (rows - mean[None]) * weight[:, None]
    shift = number * strength / (number + strength) * jnp.outer(mean, mean)
    cov = strength * prior_cov + centred.T @ centred + shift
    return number * mean / (number + strength), cov / (number + strength)


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
