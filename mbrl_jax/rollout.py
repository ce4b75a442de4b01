"""Environment x policy -> trajectories."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import loop, sharding
from mbrl_jax.types import (
    Array,
    Env,
    EnvState,
    Key,
    Metrics,
    Policy,
    PyTree,
    Simulation,
    Transition,
)


class Episode(NamedTuple):
    transitions: Transition  # [T, ...]
    valid: Array  # [T] bool, false after the end of the episode


class EnvAndMemory(NamedTuple):
    """An environment and the policy in it, between two calls of `rollout`."""

    env_state: EnvState
    memory: PyTree


def episode(
    key: Key, env: Env, policy: Policy, num_steps: int | None = None
) -> Episode:
    """One episode, at most `num_steps` (default: the environment's own limit) long.

    After its end nothing is computed, unless vmapped, and entries are zero and not
    valid.
    """
    return Episode(*_run(key, env, policy, num_steps, _transition)[1])


def trajectory(key: Key, env: Env, policy: Policy) -> tuple[EnvState, Array]:
    """The states of one episode [T + 1, ...], and which of them are `valid` [T + 1]."""
    start, (states, valid) = _run(key, env, policy, None, lambda old, action, new: new)
    states = jax.tree.map(
        lambda x, y: jnp.concatenate([jnp.asarray(x)[None], y]), start, states
    )
    return states, jnp.concatenate([jnp.ones(1, bool), valid])


def evaluate(
    key: Key, env: Env, policy: Policy, num_episodes: int, starts: Key | None = None
) -> tuple[Metrics, Episode]:
    """Runs `num_episodes`; statistics of their returns, and the episodes [E, T].

    With the key `starts`, environments are reset by that, and `key` is the policy's.
    """

    def one(keys: Key) -> Episode:
        key, start_key = keys
        if starts is None:
            return episode(key, env, policy)
        own = env._replace(reset=lambda key: env.reset(start_key))
        return episode(key, own, policy)

    keys = jax.random.split(key, num_episodes)
    start_keys = keys if starts is None else jax.random.split(starts, num_episodes)
    keys = jnp.stack([keys, start_keys], axis=1)
    episodes = jax.lax.map(one, keys) if env.host else sharding.vmap(one)(keys)
    returns = episodes.transitions.reward.sum(axis=-1)  # invalid rewards are 0
    metrics = {
        "eval/return_mean": returns.mean(),
        "eval/return_std": returns.std(),
        "eval/return_min": returns.min(),
        "eval/return_max": returns.max(),
        "eval/length_mean": episodes.valid.sum(axis=-1).mean(),
    }
    return metrics, episodes


def start(key: Key, env: Env, policy: Policy) -> EnvAndMemory:
    return EnvAndMemory(env.reset(key), policy.init())


def rollout(
    key: Key, env: Env, policy: Policy, running: EnvAndMemory, num_steps: int
) -> tuple[EnvAndMemory, Transition]:
    """Goes on for `num_steps`; an episode that ends is followed by a fresh one.

    The transitions [T, ...] keep the observation that an episode ended with.
    """

    def step(running: EnvAndMemory, key: Key) -> tuple[EnvAndMemory, Transition]:
        act_key, reset_key = jax.random.split(key)
        old, memory = running
        action, memory = policy.act(act_key, old.obs, memory)
        new = env.step(old, action)
        running = loop.when(
            new.terminal | new.truncated,
            lambda running: start(reset_key, env, policy),
            EnvAndMemory(new, memory),
        )
        return running, _transition(old, action, new)

    return jax.lax.scan(step, running, jax.random.split(key, num_steps))


def _transition(old: EnvState, action: Array, new: EnvState) -> Transition:
    return Transition(old.obs, action, new.reward, new.obs, new.terminal, new.truncated)


def _run(
    key: Key,
    env: Env,
    policy: Policy,
    num_steps: int | None,
    record: Callable[[EnvState, Array, EnvState], PyTree],
) -> tuple[EnvState, tuple[PyTree, Array]]:
    """One episode; what `record` makes of each step, stacked, and which are valid."""
    reset_key, key = jax.random.split(key)
    first = start(reset_key, env, policy)

    def advance(key: Key, running: EnvAndMemory) -> tuple[EnvAndMemory, PyTree]:
        action, memory = policy.act(key, running.env_state.obs, running.memory)
        new = env.step(running.env_state, action)
        return EnvAndMemory(new, memory), record(running.env_state, action, new)

    def stay(key: Key, running: EnvAndMemory) -> tuple[EnvAndMemory, PyTree]:
        shapes = jax.eval_shape(advance, key, running)[1]
        return running, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def step(
        running: EnvAndMemory, key: Key
    ) -> tuple[EnvAndMemory, tuple[PyTree, Array]]:
        done = running.env_state.terminal | running.env_state.truncated
        running, recorded = jax.lax.cond(done, stay, advance, key, running)
        return running, (recorded, ~done)

    keys = jax.random.split(key, num_steps or env.episode_length)
    return first.env_state, jax.lax.scan(step, first, keys)[1]


def simulation(env: Env, env_state: EnvState) -> Simulation:
    """The true dynamics from `env_state` on; nothing is earned after an end."""

    def step(
        now: tuple[EnvState, Array], action: Array
    ) -> tuple[tuple[EnvState, Array], Array]:
        state, alive = now
        state = env.step(state, action)
        reward = jnp.where(alive, state.reward, 0)
        return (state, alive & ~state.terminal), reward

    return Simulation((env_state, jnp.ones((), bool)), step)
