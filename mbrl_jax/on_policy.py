"""The loop of on-policy learning: act, learn from it, forget it.

    repeat:
        in all environments at once, act for a window of steps, or for whole episodes
        update the learner with what happened

Environments go on from window to window; an episode that ends is followed by a fresh
one, from a key of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import rollout
from mbrl_jax.experience import Window
from mbrl_jax.ops import finite, loop
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Learner,
    Metrics,
    Policy,
    PyTree,
    Transition,
)


class Running(NamedTuple):
    """N environments, between two windows."""

    place: rollout.Running  # [N, ...]
    returns: Array  # [N] of the episodes that run


class Tally(NamedTuple):
    """What has happened in the environments so far."""

    env_steps: Array  # [] int32
    last_return: Array  # [] mean return of the episodes that ended last
    num_episodes: Array  # [] int32, ended
    num_non_finite: Array  # [] int32, steps not learned from


class State(NamedTuple):
    learner: PyTree
    running: PyTree  # Running, or () where every window is whole episodes
    tally: Tally


class Gathered(NamedTuple):
    """What came of acting in N environments."""

    running: PyTree
    windows: Window  # [N, T, ...]
    ended: Array  # [N, T] bool, an episode ended with this step
    returns: Array  # [N, T] of the episode so far


class Gatherer(NamedTuple):
    init: Callable[[Key, Policy], PyTree]
    gather: Callable[[Key, Policy, PyTree], Gathered]  # (key, policy, running)


def of_windows(env: Env, num_envs: int, num_steps: int) -> Gatherer:
    """Windows of `num_steps`, each beginning where the last one ended.

    An environment that is not finite at the end of a window starts anew.  Raises
    ValueError for several of an environment that steps outside jax.
    """
    if env.host and num_envs > 1:
        raise ValueError(
            f"{env.name} steps outside jax, one at a time: num_envs is {num_envs}, "
            "must be 1"
        )
    each = _over(env)

    def init(key: Key, policy: Policy) -> Running:
        keys = jax.random.split(key, num_envs)
        place = each(lambda key: rollout.start(key, env, policy), keys)
        return Running(place, jnp.zeros(num_envs))

    def one(
        key: Key, policy: Policy, running: Running
    ) -> tuple[Running, Transition, Array]:
        key, reset_key = jax.random.split(key)
        place, steps = rollout.rollout(key, env, policy, running.place, num_steps)
        total, returns = _returns(running.returns, steps)
        last = Running(place, total)
        lost = ~finite.all_finite(steps, num_batch_axes=1)[-1]

        def restart(_: Running) -> Running:
            start = rollout.start(reset_key, env, policy)
            return Running(start, jnp.zeros_like(total))

        return loop.when(lost, restart, last), steps, returns

    def gather(key: Key, policy: Policy, running: Running) -> Gathered:
        keys, memory = jax.random.split(key, num_envs), running.place.memory
        running, steps, returns = each(
            lambda x: one(x[0], policy, x[1]), (keys, running)
        )
        ended = steps.terminal | steps.truncated
        windows = Window(steps, jnp.ones_like(ended), memory)
        return Gathered(running, windows, ended, returns)

    return Gatherer(init, gather)


def of_episodes(env: Env, num_envs: int) -> Gatherer:
    """One whole episode of each environment, as long as the longest may be."""

    def gather(key: Key, policy: Policy, running: PyTree) -> Gathered:
        keys = jax.random.split(key, num_envs)
        steps, valid = _over(env)(lambda key: rollout.episode(key, env, policy), keys)
        ended = valid & ~jnp.pad(valid[:, 1:], ((0, 0), (0, 1)))
        memory = jax.vmap(lambda key: policy.init())(keys)
        _, returns = jax.vmap(_returns)(jnp.zeros(num_envs), steps)
        return Gathered((), Window(steps, valid, memory), ended, returns)

    return Gatherer(lambda key, policy: (), gather)


def nothing() -> Tally:
    zero = jnp.zeros((), jnp.int32)
    return Tally(zero, jnp.zeros(()), zero, zero)


def count(tally: Tally, gathered: Gathered) -> Tally:
    """With what was gathered."""
    _, windows, ended, returns = gathered
    valid, number = windows.valid, ended.sum(dtype=jnp.int32)
    mean = jnp.where(ended, returns, 0).sum() / jnp.maximum(number, 1)
    good = finite.all_finite(windows.transitions, num_batch_axes=2)
    return Tally(
        tally.env_steps + valid.sum(dtype=jnp.int32),
        jnp.where(number > 0, mean, tally.last_return),
        tally.num_episodes + number,
        tally.num_non_finite + (valid & ~good).sum(dtype=jnp.int32),
    )


def report(tally: Tally, so_far: Array) -> Metrics:
    """`so_far` is the return [] of the first episode, until one has ended."""
    ended = tally.num_episodes > 0
    return {
        "env_steps": tally.env_steps,
        "episode/return": jnp.where(ended, tally.last_return, so_far),
        "episode/num_finished": tally.num_episodes,
        "episode/non_finite": tally.num_non_finite,
    }


def make(learner: Learner, gatherer: Gatherer, num_updates: int = 1) -> Algorithm:
    """The loop; `num_updates` of it are a step of the algorithm."""

    def init(key: Key) -> State:
        learner_key, env_key = jax.random.split(key)
        learned = learner.init(learner_key)
        running = gatherer.init(env_key, learner.explore(learned))
        return State(learned, running, nothing())

    def update(state: State, key: Key) -> tuple[State, tuple[Metrics, Array]]:
        act_key, update_key = jax.random.split(key)
        gathered = gatherer.gather(
            act_key, learner.explore(state.learner), state.running
        )
        learned, metrics = learner.update(update_key, state.learner, gathered.windows)
        state = State(learned, gathered.running, count(state.tally, gathered))
        return state, (metrics, gathered.returns[:, -1].mean())

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        keys = jax.random.split(key, num_updates)
        state, (seen, so_far) = jax.lax.scan(update, state, keys)
        last = jax.tree.map(lambda x: x[-1], seen)
        return state, {**last, **report(state.tally, so_far[-1])}

    return Algorithm(init, step, lambda state: learner.policy(state.learner))


def _over(env: Env) -> Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]:
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
