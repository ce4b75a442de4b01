"""Models of a finite world as tables, learned one step at a time.

Deterministic: the last outcome of every pair of a state and an action (Sutton, 1990).
Dirichlet: how often each outcome came, for a world that is random.

What was never tried is taken to lead back to where it is, without reward (Sutton and
Barto, 2018, Sec. 8.3).  `S` states, `A` actions, both numbered from 0.

    model = tabular.deterministic(num_states, num_actions)
    state = model.update(model.init(), time, step)
    outcome = model.sample(key, state, s, a)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Key


class TabularTransition(NamedTuple):
    """What happened once.  With a `state` of S it is written nowhere."""

    state: Array  # [] int32
    action: Array  # [] int32
    reward: Array  # []
    next_state: Array  # [] int32
    terminal: Array  # [] bool


class TabularOutcome(NamedTuple):
    """What the model says that comes."""

    reward: Array  # []
    next_state: Array  # [] int32
    terminal: Array  # [] bool


class Last(NamedTuple):
    """The deterministic model's state."""

    tried_at: Array  # [S, A] int32 time of the last try, 0: never
    outcome: TabularOutcome  # [S, A] of that


class Counts(NamedTuple):
    """The Dirichlet model's state."""

    tried_at: Array  # [S, A] int32 time of the last try, 0: never
    outcomes: Array  # [S, A, S] how often
    reward: Array  # [S, A] total
    terminal: Array  # [S] bool, arriving there ended the task when last it happened


class Tabular(NamedTuple):
    """A model as functions.  `state.tried_at` [S, A] is there in every one."""

    init: Callable[[], Any]
    update: Callable[
        [Any, Array, TabularTransition], Any
    ]  # (state, time from 1 on, step)
    sample: Callable[[Key, Any, Array, Array], TabularOutcome]  # (key, state, s, a)
    backup: Callable[[Any, Array], Array]
    # (state, values after a step [S]) -> reward and value expected of each pair [S, A]
    leads_to: Callable[[Any, Array], Array]
    # (state, s) -> [S, A] bool, the pairs that were seen to lead there


def deterministic(num_states: int, num_actions: int) -> Tabular:
    """Says of each pair what it did the last time: it follows a world that changes."""
    shape = (num_states, num_actions)

    def init() -> Last:
        here = jnp.arange(num_states, dtype=jnp.int32)
        return Last(
            jnp.zeros(shape, jnp.int32),
            TabularOutcome(
                reward=jnp.zeros(shape, jnp.result_type(float)),
                next_state=jnp.broadcast_to(here[:, None], shape),
                terminal=jnp.zeros(shape, bool),
            ),
        )

    def update(state: Last, time: Array, step: TabularTransition) -> Last:
        new = Last(time, TabularOutcome(step.reward, step.next_state, step.terminal))
        at = step.state, step.action
        return jax.tree.map(lambda x, y: x.at[at].set(y, mode="drop"), state, new)

    def sample(key: Key, state: Last, s: Array, a: Array) -> TabularOutcome:
        return jax.tree.map(lambda x: x[s, a], state.outcome)

    def backup(state: Last, values: Array) -> Array:
        reward, next_state, terminal = state.outcome
        return reward + jnp.where(terminal, 0, values[next_state])

    def leads_to(state: Last, s: Array) -> Array:
        return (state.tried_at > 0) & (state.outcome.next_state == s)

    return Tabular(init, update, sample, backup, leads_to)


def dirichlet(num_states: int, num_actions: int, prior: float | Array = 0.0) -> Tabular:
    """The posterior predictive of next states, and the mean reward of each pair.

    P(s') = (n(s, a, s') + prior) / (n(s, a) + S prior), under a symmetric Dirichlet
    with `prior` for each of the S states; 0 leaves the frequencies.  A state drawn from
    it is distributed as one drawn from a fresh draw of the posterior.  Pairs that were
    never tried have no posterior: they lead back.
    """
    shape = (num_states, num_actions)

    def init() -> Counts:
        dtype = jnp.result_type(float)
        return Counts(
            jnp.zeros(shape, jnp.int32),
            jnp.zeros((*shape, num_states), dtype),
            jnp.zeros(shape, dtype),
            jnp.zeros(num_states, bool),
        )

    def update(state: Counts, time: Array, step: TabularTransition) -> Counts:
        s, a, reward, next_state, terminal = step
        reached = jnp.where(s < num_states, next_state, num_states)
        return Counts(
            state.tried_at.at[s, a].set(time, mode="drop"),
            state.outcomes.at[s, a, next_state].add(1, mode="drop"),
            state.reward.at[s, a].add(reward, mode="drop"),
            state.terminal.at[reached].set(terminal, mode="drop"),
        )

    def sample(key: Key, state: Counts, s: Array, a: Array) -> TabularOutcome:
        below = jnp.cumsum(state.outcomes[s, a] + prior)  # [S]
        # of (0, total], so that what has no weight is never drawn
        drawn = below[-1] * (1 - jax.random.uniform(key, (), below.dtype))
        tried = state.tried_at[s, a] > 0
        after = (below < drawn).sum(dtype=jnp.int32)
        next_state = jnp.where(tried, after, s).astype(jnp.int32)
        reward = state.reward[s, a] / jnp.maximum(state.outcomes[s, a].sum(), 1)
        return TabularOutcome(reward, next_state, tried & state.terminal[next_state])

    def backup(state: Counts, values: Array) -> Array:
        ahead = jnp.where(state.terminal, 0, values)
        number = state.outcomes.sum(axis=-1)  # [S, A]
        total = state.outcomes @ ahead + prior * ahead.sum()
        expected = total / jnp.maximum(number + num_states * prior, 1)
        reward = state.reward / jnp.maximum(number, 1)
        return jnp.where(state.tried_at > 0, reward + expected, values[:, None])

    def leads_to(state: Counts, s: Array) -> Array:
        return state.outcomes[..., s] > 0

    return Tabular(init, update, sample, backup, leads_to)
