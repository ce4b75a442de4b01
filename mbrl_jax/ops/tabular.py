"""Finite Markov decision processes as tables: solved exactly, or counted from data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


class Tables(NamedTuple):
    """S states, A actions.  A terminal state has no future, whatever its rows say."""

    transition: Array  # [S, A, S] probabilities
    reward: Array  # [S, A] expected
    terminal: Array  # [S] bool


class Solution(NamedTuple):
    """What the best policy attains; 0 in terminal states."""

    values: Array  # [S]
    q_values: Array  # [S, A]
    residual: Array  # [] largest change in the last iteration


def value_iteration(
    tables: Tables,
    discount: float | Array,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> Solution:
    """Bellman's optimality equation as an iteration, from values of 0 (1957).

    Ends when no value changes by more than `tolerance`, or after `max_iterations`: the
    residual says which.
    """

    def backup(values: Array) -> Array:
        q_values = tables.reward + discount * tables.transition @ values
        return jnp.where(tables.terminal[:, None], 0, q_values)

    def improve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        values, _, i = carry
        new = backup(values).max(axis=1)
        return new, jnp.abs(new - values).max(), i + 1

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] > tolerance) & (carry[2] < max_iterations)

    zeros = jnp.zeros_like(tables.reward[:, 0])
    start = (zeros, jnp.full_like(zeros[0], jnp.inf), jnp.zeros((), jnp.int32))
    values, residual, _ = jax.lax.while_loop(unfinished, improve, start)
    return Solution(values, backup(values), residual)


def policy_values(tables: Tables, policy: Array, discount: float | Array) -> Array:
    """What a policy attains, by its Bellman equation, a linear system: [S].

    `policy` [S, A] holds the probabilities of its actions.
    """
    going = ~tables.terminal[:, None]
    reward = jnp.where(going, policy * tables.reward, 0).sum(axis=1)
    ahead = jnp.where(going, (policy[..., None] * tables.transition).sum(axis=1), 0)
    return jnp.linalg.solve(jnp.eye(len(reward)) - discount * ahead, reward)


def counted(
    states: Array,
    actions: Array,
    rewards: Array,
    next_states: Array,
    terminal: Array,
    *,
    num_states: int,
    num_actions: int,
) -> Tables:
    """The most likely tables given T transitions, each argument [T].

    What was never tried leads back to where it was, without reward.
    """
    shape = (num_states, num_actions)
    counts = jnp.zeros((*shape, num_states), rewards.dtype)
    counts = counts.at[states, actions, next_states].add(1)
    num = counts.sum(axis=-1)  # [S, A]
    stay = jnp.broadcast_to(jnp.eye(num_states)[:, None], counts.shape)
    total = jnp.zeros(shape, rewards.dtype).at[states, actions].add(rewards)
    some = jnp.maximum(num, 1)
    return Tables(
        transition=jnp.where(num[..., None] > 0, counts / some[..., None], stay),
        reward=total / some,
        terminal=jnp.zeros(num_states, bool).at[next_states].max(terminal),
    )
