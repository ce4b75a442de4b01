"""Gathering experience: environments side by side, their windows or whole episodes.

    gatherer = window_gatherer(env, num_envs, num_steps)  # or episode_gatherer
    parallel = gatherer.init(env_key, policy)
    gathered = gatherer.gather(act_key, policy, parallel)
    counters = count(counters, gathered)

Environments go on from window to window; an episode that ends is followed by a fresh
one, from a key of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import rollout
from mbrl_jax.ops import finite, loop
from mbrl_jax.types import Array, Env, Key, Metrics, Policy, PyTree, Transition, Window


class ParallelEnvs(NamedTuple):
    """N environments, between two windows."""

    place: rollout.EnvAndMemory  # [N, ...]
    returns: Array  # [N] of the episodes that run


class Counters(NamedTuple):
    """What has happened in the environments so far."""

    env_steps: Array  # [] int32
    last_return: Array  # [] mean return of the episodes that ended last
    num_episodes: Array  # [] int32, ended
    num_non_finite: Array  # [] int32, steps not learned from


class Gathered(NamedTuple):
    """What came of acting in N environments."""

    parallel: PyTree
    windows: Window  # [N, T, ...]
    ended: Array  # [N, T] bool, an episode ended with this step
    returns: Array  # [N, T] of the episode so far


class Gatherer(NamedTuple):
    init: Callable[[Key, Policy], PyTree]
    gather: Callable[[Key, Policy, PyTree], Gathered]  # (key, policy, parallel)


def window_gatherer(env: Env, num_envs: int, num_steps: int) -> Gatherer:
    """Windows of `num_steps`, each beginning where the last one ended.

    An environment that is not finite at the end of a window starts anew.  Raises
    ValueError for several of an environment that steps outside jax.
    """
    if env.host and num_envs > 1:
        raise ValueError(
            f"{env.name} steps outside jax, one at a time: num_envs is {num_envs}, "
            "must be 1"
        )
    each = over(env)

    def init(key: Key, policy: Policy) -> ParallelEnvs:
        keys = jax.random.split(key, num_envs)
        place = each(lambda key: rollout.start(key, env, policy), keys)
        return ParallelEnvs(place, jnp.zeros(num_envs))

    def one(
        key: Key, policy: Policy, parallel: ParallelEnvs
    ) -> tuple[ParallelEnvs, Transition, Array]:
        key, reset_key = jax.random.split(key)
        place, steps = rollout.rollout(key, env, policy, parallel.place, num_steps)
        total, returns = _returns(parallel.returns, steps)
        last = ParallelEnvs(place, total)
        lost = ~finite.usable(steps, num_batch_axes=1)[-1]

        def restart(_: ParallelEnvs) -> ParallelEnvs:
            start = rollout.start(reset_key, env, policy)
            return ParallelEnvs(start, jnp.zeros_like(total))

        return loop.when(lost, restart, last), steps, returns

    def gather(key: Key, policy: Policy, parallel: ParallelEnvs) -> Gathered:
        keys, memory = jax.random.split(key, num_envs), parallel.place.memory
        parallel, steps, returns = each(
            lambda x: one(x[0], policy, x[1]), (keys, parallel)
        )
        ended = steps.terminal | steps.truncated
        windows = Window(steps, jnp.ones_like(ended), memory)
        return Gathered(parallel, windows, ended, returns)

    return Gatherer(init, gather)


def episode_gatherer(env: Env, num_envs: int) -> Gatherer:
    """One whole episode of each environment, as long as the longest may be."""

    def gather(key: Key, policy: Policy, parallel: PyTree) -> Gathered:
        keys = jax.random.split(key, num_envs)
        steps, valid = over(env)(lambda key: rollout.episode(key, env, policy), keys)
        ended = valid & ~jnp.pad(valid[:, 1:], ((0, 0), (0, 1)))
        memory = jax.vmap(lambda key: policy.init())(keys)
        _, returns = jax.vmap(_returns)(jnp.zeros(num_envs), steps)
        return Gathered((), Window(steps, valid, memory), ended, returns)

    return Gatherer(lambda key, policy: (), gather)


def zero_counters() -> Counters:
    zero = jnp.zeros((), jnp.int32)
    return Counters(zero, jnp.zeros(()), zero, zero)


def count(counters: Counters, gathered: Gathered) -> Counters:
    """With what was gathered."""
    _, windows, ended, returns = gathered
    valid, number = windows.valid, ended.sum(dtype=jnp.int32)
    mean = jnp.where(ended, returns, 0).sum() / jnp.maximum(number, 1)
    good = finite.usable(windows.transitions, num_batch_axes=2)
    return Counters(
        counters.env_steps + valid.sum(dtype=jnp.int32),
        jnp.where(number > 0, mean, counters.last_return),
        counters.num_episodes + number,
        counters.num_non_finite + (valid & ~good).sum(dtype=jnp.int32),
    )


def report(counters: Counters, so_far: Array) -> Metrics:
    """`so_far` is the return [] of the first episode, until one has ended."""
    ended = counters.num_episodes > 0
    return {
        "env_steps": counters.env_steps,
        "episode/return": jnp.where(ended, counters.last_return, so_far),
        "episode/num_finished": counters.num_episodes,
        "episode/non_finite": counters.num_non_finite,
    }


def over(env: Env) -> Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]:
    """Maps over environments: at once, or one after the other outside jax."""
    return jax.lax.map if env.host else lambda f, xs: jax.vmap(f)(xs)


def _returns(before: Array, steps: Transition) -> tuple[Array, Array]:
    """The return [] that goes on after a window, and those so far [T] within it; a
    reward that is not finite is none."""

    def add(total: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, ended = x
        total = total + jnp.where(jnp.isfinite(reward), reward, 0)
        return jnp.where(ended, 0, total), total

    return jax.lax.scan(add, before, (steps.reward, steps.terminal | steps.truncated))
