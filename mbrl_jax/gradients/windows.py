"""Environments side by side, taken on from one short window of steps to the next.

What methods share that differentiate through a simulator: `window` is one sample of all
environments and its gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.gradients import pathwise
from mbrl_jax.gradients.closed_loop import ExpectedReturn, Rollout
from mbrl_jax.ops import normalize
from mbrl_jax.types import Array, Env, EnvState, Key, Metrics, Params, PyTree


class Parallel(NamedTuple):
    """N environments."""

    states: EnvState  # [N, ...]
    returns: Array  # [N] of the episodes that run
    finished: Array  # [N] return of the last episode that ended; 0 before
    num_finished: Array  # [N] int32
    env_steps: Array  # [] int32
    num_broken: Array  # [] int32, windows left out since they were not finite
    obs: normalize.RunningStats  # of all observations


def init(key: Key, env: Env, num_envs: int) -> Parallel:
    nothing, zeros = jnp.zeros((), jnp.int32), jnp.zeros(num_envs)
    return Parallel(
        states=jax.vmap(env.reset)(jax.random.split(key, num_envs)),
        returns=zeros,
        finished=zeros,
        num_finished=jnp.zeros(num_envs, jnp.int32),
        env_steps=nothing,
        num_broken=nothing,
        obs=normalize.running_stats(env.obs_size),
    )


def window(
    key: Key, params: Params, env: Env, problem: ExpectedReturn, parallel: Parallel
) -> tuple[Params, Rollout, Array, Parallel]:
    """The gradient of the mean return over the next `problem.horizon` steps.

    Also the samples [N, ...], which of them are `valid` [N], and where this leads.  The
    states that the window begins in are taken as given.  An episode ends with the
    window in which it ends, also one cut by its time limit; a window that is not
    finite, with the observation that it ends with, is left out and its environment
    starts anew.
    """
    window_key, reset_key = jax.random.split(key)
    gradient, samples, valid = pathwise.pathwise_mean(
        window_key, params, problem, parallel.states
    )
    steps, final = samples.steps, samples.final
    good = steps.alive & valid[:, None]
    returns = parallel.returns + jnp.where(good, steps.reward, 0).sum(axis=1)
    ended = final.terminal | (final.time >= env.episode_length)
    fresh = jax.vmap(env.reset)(jax.random.split(reset_key, ended.size))
    count = good.sum(dtype=jnp.int32)
    return (
        gradient,
        samples,
        valid,
        Parallel(
            states=_select(ended | ~valid, fresh, final),
            returns=jnp.where(ended | ~valid, 0, returns),
            finished=jnp.where(ended & valid, returns, parallel.finished),
            num_finished=parallel.num_finished + (ended & valid),
            env_steps=parallel.env_steps + count,
            num_broken=parallel.num_broken + (~valid).sum(dtype=jnp.int32),
            obs=normalize.update(
                parallel.obs, steps.obs.reshape(-1, env.obs_size), good.ravel()
            ),
        ),
    )


def metrics(parallel: Parallel) -> Metrics:
    """`episode/return` is of each environment's last episode; of those that run, as far
    as they are, until one has ended."""
    ended = parallel.num_finished > 0
    returns = jnp.where(ended, parallel.finished, 0).sum() / jnp.maximum(ended.sum(), 1)
    return {
        "env_steps": parallel.env_steps,
        "episode/return": jnp.where(ended.any(), returns, parallel.returns.mean()),
        "episode/num_finished": parallel.num_finished.sum(),
        "gradient/num_non_finite": parallel.num_broken,
    }


def _select(which: Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` where `which` [N], else `b`."""

    def one(a: Array, b: Array) -> Array:
        return jnp.where(which.reshape(which.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(one, a, b)
