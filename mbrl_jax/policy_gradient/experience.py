"""What on-policy learners learn from: experience, seen by the agent that gathered it.

    rows, agent = gae_samples(net, agent, windows, discount, gae_lambda)
    rows = flatten_time(rows)             # steps, unless there is memory
    parts = minibatches(key, rows, 8)     # to scan over

Experience comes in windows, from environments (`on_policy`) or models (`imagine`).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.ops import checks, finite, normalize
from mbrl_jax.ops.returns import td_lambda
from mbrl_jax.policy_gradient.actor_critic import (
    ActorCritic,
    Agent,
    normalise_obs,
    unroll,
)
from mbrl_jax.types import Array, Key, Params, PyTree, Window


class Samples(NamedTuple):
    """What there is to learn from one window, by the agent that acted."""

    obs: Array  # [T, O] normalised, or pictures
    first: Array  # [T] bool, the memory starts afresh here
    action: Array  # [T, A]
    outputs: Array  # [T, D]
    log_prob: Array  # [T]
    value: Array  # [T] normalised
    advantage: Array  # [T]
    target: Array  # [T] the lambda-return, normalised
    valid: Array  # [T] bool
    memory: PyTree


def gae_samples(
    net: ActorCritic,
    agent: Agent,
    windows: Window,
    discount: float | Array,
    gae_lambda: float | Array,
    *,
    with_critic: bool = True,
) -> tuple[Samples, Agent]:
    """Rows [N, T, ...] of windows [N, T, ...] that `agent` acted in, and the agent with
    their statistics.

    Advantages are generalised advantage estimates (Schulman et al., 2016, Eq. 16).  A
    time limit is no end: the value of what was seen last stands for what follows, as it
    does after the last step.  What is not finite is not valid, and nothing looks past.
    Without a critic all values are taken for 0.
    """
    stats, scale = normalize.so_far(agent.obs), normalize.so_far(agent.returns)
    mean, std = (scale.mean[0], scale.std[0]) if with_critic else (0.0, 0.0)

    def one(window: Window) -> Samples:
        data, valid = window.transitions, window.valid
        valid = valid & finite.usable(data, num_batch_axes=1)
        obs, next_obs = map(
            jax.vmap(partial(normalise_obs, stats)), (data.obs, data.next_obs)
        )
        ended = data.terminal | data.truncated
        first = jnp.concatenate([jnp.zeros(1, bool), ended[:-1]])
        along = partial(unroll, net.start, first=first, obs=obs)
        _, outputs = along(net.act, agent.actor, window.memory[0])
        memories, value = along(net.value, agent.critic, window.memory[1])
        _, next_value = jax.vmap(net.value, (None, 0, 0))(
            agent.critic, memories, next_obs
        )
        returns = td_lambda(
            jnp.where(valid, data.reward, 0),
            next_value * std + mean,
            data.terminal,
            data.truncated | ~jnp.append(valid[1:], True),
            discount,
            gae_lambda,
        )
        action = jnp.where(jnp.isfinite(data.action), data.action, 0)
        return Samples(
            obs=obs,
            first=first,
            action=action,
            outputs=outputs,
            log_prob=jax.vmap(net.family.log_prob)(outputs, action),
            value=value,
            advantage=returns - (value * std + mean),
            target=returns,
            valid=valid,
            memory=window.memory,
        )

    rows = jax.vmap(one)(windows)
    valid = rows.valid.ravel()
    returns = normalize.update(agent.returns, rows.target.reshape(-1, 1), valid)
    later = normalize.so_far(returns)
    rows = rows._replace(target=(rows.target - later.mean[0]) / later.std[0])
    if net.obs_size:
        seen = windows.transitions.obs.reshape(valid.size, -1)
        agent = agent._replace(obs=normalize.update(agent.obs, seen, valid))
    return rows, agent._replace(returns=returns)


def outputs_of(net: ActorCritic, actor: Params, rows: Samples) -> Array:
    """Of the policy along rows [N, T, ...]: [N, T, D]."""
    return _along(net, net.act, actor, rows.memory[0], rows)


def values_of(net: ActorCritic, critic: Params, rows: Samples) -> Array:
    """Normalised values along rows [N, T, ...]: [N, T]."""
    return _along(net, net.value, critic, rows.memory[1], rows)


def _along(
    net: ActorCritic,
    apply: Callable[[Params, PyTree, Array], tuple[PyTree, Array]],
    params: Params,
    memory: PyTree,
    rows: Samples,
) -> Array:
    """Outputs of one of the networks along rows [N, T, ...]."""
    one = partial(unroll, net.start, apply, params)
    if jax.tree.leaves(memory):
        return jax.vmap(one)(memory, rows.first, rows.obs)[1]
    # along one axis: between products with two, XLA copies
    obs = rows.obs.reshape(-1, *rows.obs.shape[2:])
    outputs = one((), rows.first.ravel(), obs)[1]
    return outputs.reshape(rows.first.shape + outputs.shape[1:])


def flatten_time(rows: Samples) -> Samples:
    """Rows [N, T, ...] as [N x T, 1, ...] where no memory ties the steps together."""
    if jax.tree.leaves(rows.memory):
        return rows
    return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), rows)


def minibatches(key: Key, rows: Samples, number: int) -> Samples:
    """Rows [N, ...] shuffled into [number, N // number, ...]; a rest is left out."""
    total = len(rows.first)
    number = min(number, total)
    order = _shuffled(key, total)[: total // number * number]
    return jax.tree.map(lambda x: x[order].reshape(number, -1, *x.shape[1:]), rows)


def _shuffled(key: Key, total: int) -> Array:
    """range(total) in random order.

    Random bits are sorted that end in these numbers: on a CPU, several times as fast as
    `jax.random.permutation`, which sorts pairs, twice.
    """
    bits = jax.random.bits(key, (total,), jnp.uint32) >> 1
    numbers = jnp.arange(total, dtype=bits.dtype)
    return jnp.sort(bits // total * total + numbers) % total


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """Hyperparameters of a critic that is fitted on its own."""

    learning_rate: float = 1e-3  # of Adam
    num_epochs: int = 10
    num_minibatches: int = 8
    max_norm: float = 10.0  # of the gradient, above which it is scaled down


def validate(config: CriticConfig) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.at_least(config, 1, "num_epochs", "num_minibatches")
    checks.positive(config, "learning_rate", "max_norm")


def check_minibatches(config: Any, num_steps: int) -> None:
    """Raises ValueError where a learner, or its critic, wants more of them than there
    are steps in an update."""
    own = getattr(config, "critic", config)
    number = getattr(own, "num_minibatches", 1)
    if number > num_steps:
        raise ValueError(
            f"num_minibatches is {number}, more than the {num_steps} steps of an update"
        )


class Fitter(NamedTuple):
    """Least squares on the targets of rows."""

    init: Callable[[Params], optax.OptState]
    fit: Callable[
        [Key, Params, optax.OptState, Samples], tuple[Params, optax.OptState, Array]
    ]  # (key, critic, opt_state, rows) -> ..., mean square [] in the last epoch


def fitter(net: ActorCritic, config: CriticConfig) -> Fitter:
    """Raises ValueError for what cannot be."""
    validate(config)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    Fit = tuple[Params, optax.OptState]

    def loss(critic: Params, rows: Samples) -> Array:
        error = values_of(net, critic, rows) - rows.target
        return masked_mean(error**2, rows.valid)

    def descend(carry: Fit, rows: Samples) -> tuple[Fit, Array]:
        critic, opt_state = carry
        error, gradient = jax.value_and_grad(loss)(critic, rows)
        return optimizers.descend(optimizer, gradient, opt_state, critic), error

    def fit(
        key: Key, critic: Params, opt_state: optax.OptState, rows: Samples
    ) -> tuple[Params, optax.OptState, Array]:
        rows = flatten_time(rows)

        def epoch(carry: Fit, key: Key) -> tuple[Fit, Array]:
            parts = minibatches(key, rows, config.num_minibatches)
            carry, errors = jax.lax.scan(descend, carry, parts)
            return carry, errors.mean()

        keys = jax.random.split(key, config.num_epochs)
        (critic, opt_state), errors = jax.lax.scan(epoch, (critic, opt_state), keys)
        return critic, opt_state, errors[-1]

    return Fitter(optimizer.init, fit)


class Surrogate(NamedTuple):
    """Of other policies, on the experience of this one (Schulman et al., 2015)."""

    gain: Callable[[Params], Array]  # actor -> mean of ratio times advantage, Eq. (14)
    divergence: Callable[[Params], Array]  # actor -> mean of KL(pi_old || pi)


def surrogate(net: ActorCritic, rows: Samples) -> Surrogate:
    """Where the policy is the one that acted, the gradient of `gain` is the policy
    gradient.  Advantages are standardised."""
    advantage = standardised(rows)

    def gain(actor: Params) -> Array:
        outputs = outputs_of(net, actor, rows)
        log_prob = jax.vmap(jax.vmap(net.family.log_prob))(outputs, rows.action)
        ratio = jnp.exp(jnp.where(rows.valid, log_prob - rows.log_prob, 0))
        return masked_mean(ratio * advantage, rows.valid)

    def divergence(actor: Params) -> Array:
        outputs = outputs_of(net, actor, rows)
        each = jax.vmap(jax.vmap(net.family.divergence))(rows.outputs, outputs)
        return masked_mean(each, rows.valid)

    return Surrogate(gain, divergence)


def entropy(net: ActorCritic, key: Key, outputs: Array, valid: Array) -> Array:
    """The mean over valid steps of outputs [N, T, D]."""
    keys = jax.random.split(key, valid.shape)
    return masked_mean(jax.vmap(jax.vmap(net.family.entropy))(keys, outputs), valid)


def standardised(rows: Samples) -> Array:
    """The advantages, with mean 0 and std 1."""
    mean = masked_mean(rows.advantage, rows.valid)
    centred = rows.advantage - mean
    std = jnp.sqrt(masked_mean(centred**2, rows.valid))
    return centred / (std + 1e-8)


def masked_mean(x: Array, valid: Array) -> Array:
    """Over all entries that are valid; 0 where none is."""
    return jnp.where(valid, x, 0).sum() / jnp.maximum(valid.sum(), 1)
