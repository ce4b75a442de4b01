"""Learning the values of actions, off policy: critics, their targets, one step.

A `ValueLearner` is a method (SAC, TD3, NAF, DQN) in parts, so that what its critics are
fitted to, and what its policy goes up, may be put in from outside:

    target = reward + discount next_value(state, key, next_obs)   `one_step`
    update(key, state, rows with such targets, obs, actor_objective)

Each method writes its `next_value` and `actor_objective` itself.  Whatever looks
further ahead than a step (MVE, STEVE, MAAC) is another way to targets or another
objective, made of `act` and `values`.  Nothing follows a terminal transition; the end
of the clock is none.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax.networks import MLP
from mbrl_jax.ops import finite
from mbrl_jax.types import (
    Act,
    Array,
    Env,
    Gaussian,
    Key,
    Learner,
    Metrics,
    Params,
    Policy,
    PyTree,
    Transition,
)

Value = Callable[[Array, Array], Array]  # (obs, action) -> []
ActorObjective = Callable[[Key, Array, Act, Value], Array]
# (key, obs [N, O], ...) -> [N], what the policy goes up


class Regression(NamedTuple):
    """What critics are fitted to; with a leading axis."""

    obs: Array  # [O]
    action: Array  # [A]
    target: Array  # []
    weight: Array  # [] of the row in the mean


class ValueLearner(NamedTuple):
    """Functions for one example, but for `update` and an `ActorObjective`.

    A bonus is what acting there is worth by itself, as the entropy of SAC; mostly 0.
    """

    init: Callable[[Key], PyTree]
    act: Callable[[PyTree, Key, Array], tuple[Array, Array]]
    # (state, key, obs) -> action that the critics' targets are about, bonus []
    values: Callable[[PyTree, Array, Array], Array]
    # (state, obs, action) -> [K], by each of the slowly moving critics
    next_value: Callable[[PyTree, Key, Array], Array]
    # (state, key, next_obs) -> [] of what follows, in the critics' targets
    actor_objective: ActorObjective | None
    # as published; None where the policy is part of the critic
    update: Callable[
        [Key, PyTree, Regression, Array, ActorObjective | None], tuple[PyTree, Metrics]
    ]
    # (key, state, rows [B, ...], obs [N, O] of the policy's step, its objective)
    explore: Callable[[PyTree], Policy]
    policy: Callable[[PyTree], Policy]
    discount: float | Array
    noise: Callable[[PyTree, Array], Gaussian] | None = None
    # (state, obs) of what exploration draws, before it is cut or squashed [A]


def one_step(
    learner: ValueLearner, state: PyTree, key: Key, batch: Transition
) -> Regression:
    """Rows [B] of a batch [B], with targets that look one step ahead."""
    keys = jax.random.split(key, len(batch.reward))
    follows = jax.vmap(partial(learner.next_value, state))(keys, batch.next_obs)
    target = batch.reward + learner.discount * jnp.where(batch.terminal, 0, follows)
    return Regression(batch.obs, batch.action, target, jnp.ones_like(target))


def learner(parts: ValueLearner) -> Learner:
    """The method as it was published: it learns from transitions [B]."""

    def update(key: Key, state: PyTree, batch: Transition) -> tuple[PyTree, Metrics]:
        target_key, key = jax.random.split(key)
        rows = one_step(parts, state, target_key, batch)
        return parts.update(key, state, rows, batch.obs, parts.actor_objective)

    return Learner(parts.init, update, parts.explore, parts.policy)


class Critics(NamedTuple):
    """K networks Q(obs, action), the action in units of its limit."""

    init: Callable[[Key], Params]  # -> [K, ...]
    apply: Callable[[Params, Array, Array], Array]  # (params, obs, action) -> [K]


def critics(env: Env, hidden_sizes: tuple[int, ...], num_critics: int) -> Critics:
    network: Any = MLP(hidden_sizes, 1, nn.relu)

    def init(key: Key) -> Params:
        inputs = jnp.zeros(env.obs_size + env.action_size)
        keys = jax.random.split(key, num_critics)
        return jax.vmap(network.init, in_axes=(0, None))(keys, inputs)

    def apply(params: Params, obs: Array, action: Array) -> Array:
        inputs = jnp.concatenate([obs, action / env.action_limit])
        return jax.vmap(network.apply, in_axes=(0, None))(params, inputs)[:, 0]

    return Critics(init, apply)


def error(apply: Callable[[Array, Array], Array], rows: Regression) -> Array:
    """The critics' squared errors, summed over the critics, mean over the rows; [].

    `apply` gives [K] for (obs, action).  Rows of weight 0 may hold anything.
    """
    # before the networks, or their gradient would be NaN where it is not finite
    rows = finite.zeroed(rows.weight == 0, rows)
    found = jax.vmap(apply)(rows.obs, rows.action)
    squares = jnp.square(found - rows.target[:, None]).sum(axis=1)
    return (rows.weight * squares).sum() / rows.weight.sum()


def update(
    apply: Callable[[Params, Array, Array], Array],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    rows: Regression,
) -> tuple[Params, optax.OptState, Array]:
    """A step of critics towards the targets of the rows, and the `error` before it."""
    of = lambda params: error(partial(apply, params), rows)
    before, gradient = jax.value_and_grad(of)(params)
    return *descend(optimizer, gradient, opt_state, params), before


def descend(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    opt_state: optax.OptState,
    params: Params,
) -> tuple[Params, optax.OptState]:
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def acting(act: Callable[[Key, Array], Array]) -> Policy:
    """A policy without a memory, which never sees what is not finite, but 0."""

    def step(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return act(key, jnp.where(jnp.isfinite(obs), obs, 0)), memory

    return Policy(lambda: (), step)


def noisy(key: Key, unit: Array, std: float | Array, limit: float) -> Array:
    """An action in units of its limit [A], with normal noise, cut at the limit."""
    noise = jax.random.normal(key, unit.shape, unit.dtype)
    return limit * jnp.clip(unit + std * noise, -1, 1)


def exploring(policy: Policy, num_actions: int, share: float | Array) -> Policy:
    """A random action with probability `share`."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        coin_key, other_key, key = jax.random.split(key, 3)
        action, memory = policy.act(key, obs, memory)
        other = jax.random.randint(other_key, (), 0, num_actions, jnp.int32)
        return jnp.where(jax.random.bernoulli(coin_key, share), other, action), memory

    return Policy(policy.init, act)
