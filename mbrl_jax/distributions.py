"""Families of distributions over actions, by the outputs of a network.

A `Family` says how many outputs a policy's network has and what they mean.  Densities
of a squashed Gaussian are exact: the Jacobian of tanh is part of them, in a form that
neither overflows nor cancels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Env, Key

EDGE = 1e-6  # an action nearer to its limit than this share is taken for this near


class Family(NamedTuple):
    """Functions of `outputs` [D] for one observation; callers vmap.

    Where the std does not depend on the observation, the second half of the outputs is
    a parameter of its own (`networks`).
    """

    output_size: int  # D
    sample: Callable[[Key, Array], Array]  # -> action [A], or [] int32
    mode: Callable[[Array], Array]  # -> the most likely action, before squashing
    log_prob: Callable[[Array, Array], Array]  # (outputs, action) -> []
    entropy: Callable[[Key, Array], Array]  # -> [], exact or of one sample
    divergence: Callable[[Array, Array], Array]  # KL(p || q) of outputs p, q -> []


def of(env: Env, squash: bool = False) -> Family:
    """The family that fits the actions of `env`."""
    if env.num_actions:
        return categorical(env.num_actions)
    make = squashed_gaussian if squash else gaussian
    return make(env.action_size, env.action_limit)


def categorical(num_actions: int) -> Family:
    """Outputs are logits."""

    def entropy(key: Key, logits: Array) -> Array:
        log_p = jax.nn.log_softmax(logits)
        return -(jnp.exp(log_p) * log_p).sum()

    def divergence(p: Array, q: Array) -> Array:
        log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        return (jnp.exp(log_p) * (log_p - log_q)).sum()

    return Family(
        output_size=num_actions,
        sample=lambda key, logits: jax.random.categorical(key, logits),
        mode=lambda logits: logits.argmax().astype(jnp.int32),
        log_prob=lambda logits, action: jax.nn.log_softmax(logits)[action],
        entropy=entropy,
        divergence=divergence,
    )


def gaussian(action_size: int, action_limit: float) -> Family:
    """Outputs are mean and log-std, in units of the limit; the environment clips."""
    log_limit = math.log(action_limit)

    def sample(key: Key, outputs: Array) -> Array:
        return action_limit * _draw(key, outputs)

    def log_prob(outputs: Array, action: Array) -> Array:
        return _log_prob(outputs, action / action_limit) - action_size * log_limit

    return Family(
        output_size=2 * action_size,
        sample=sample,
        mode=lambda outputs: action_limit * jnp.split(outputs, 2)[0],
        log_prob=log_prob,
        entropy=lambda key, outputs: _entropy(outputs) + action_size * log_limit,
        divergence=_divergence,
    )


def squashed_gaussian(action_size: int, action_limit: float) -> Family:
    """action = limit tanh(u), u normal; outputs are u's mean and log-std.

    (Haarnoja et al., 2018, App. C.)  The mode is that of u, squashed.  An action at its
    limit does not tell its u, and is taken for one that is `EDGE` away: a policy whose
    means are far beyond learns from wrong densities.
    """

    def log_slope(u: Array) -> Array:
        """log of d action / du, summed."""
        return (math.log(action_limit) + _log_tanh_slope(u)).sum()

    def log_prob(outputs: Array, action: Array) -> Array:
        u = jnp.arctanh(jnp.clip(action / action_limit, EDGE - 1, 1 - EDGE))
        return _log_prob(outputs, u) - log_slope(u)

    def entropy(key: Key, outputs: Array) -> Array:
        """Of u exactly, and of the slope by one sample, with its gradient."""
        return _entropy(outputs) + log_slope(_draw(key, outputs))

    return Family(
        output_size=2 * action_size,
        sample=lambda key, outputs: action_limit * jnp.tanh(_draw(key, outputs)),
        mode=lambda outputs: action_limit * jnp.tanh(jnp.split(outputs, 2)[0]),
        log_prob=log_prob,
        entropy=entropy,
        divergence=_divergence,  # does not change under a squashing
    )


def squashed_draw(key: Key, outputs: Array) -> tuple[Array, Array]:
    """tanh(u) [A] of a drawn u, and its log-density [], exact however far u is."""
    u = _draw(key, outputs)
    return jnp.tanh(u), _log_prob(outputs, u) - _log_tanh_slope(u).sum()


def _log_tanh_slope(u: Array) -> Array:
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


def _draw(key: Key, outputs: Array) -> Array:
    mean, log_std = jnp.split(outputs, 2)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)


def _log_prob(outputs: Array, x: Array) -> Array:
    mean, log_std = jnp.split(outputs, 2)
    z = (x - mean) * jnp.exp(-log_std)
    return -(0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi)).sum()


def _entropy(outputs: Array) -> Array:
    return (jnp.split(outputs, 2)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum()


def _divergence(p: Array, q: Array) -> Array:
    (mean_p, log_p), (mean_q, log_q) = jnp.split(p, 2), jnp.split(q, 2)
    ratio = jnp.exp(2 * (log_p - log_q))
    far = ((mean_p - mean_q) * jnp.exp(-log_q)) ** 2
    return 0.5 * (ratio + far - 1 - 2 * (log_p - log_q)).sum()
