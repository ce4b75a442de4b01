"""Simple policies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.networks import PolicyNetwork
from mbrl_jax.ops import normalize
from mbrl_jax.types import Array, Env, Gaussian, Key, Params, Policy, PyTree

EDGE = 1e-6  # an action nearer to its limit than this share is taken for this near


class Squashed(NamedTuple):
    """A Gaussian u, squashed: action = action_limit tanh(u)."""

    init: Callable[[Key], Params]
    gaussian: Callable[[Params, Array], Gaussian]  # of u, given obs [O]
    squash: Callable[[Array], Array]  # u [A] -> action [A]
    unsquash: Callable[[Array], Array]  # back


def squashed(
    env: Env, hidden_sizes: tuple[int, ...], init_std: float | Array
) -> Squashed:
    """A network for the mean; the std of u does not depend on obs (SHAC, Sec. 4)."""
    network: Any = PolicyNetwork(hidden_sizes, env.action_size)

    def gaussian(params: Params, obs: Array) -> Gaussian:
        mean, log_std = network.apply(params, obs)
        return Gaussian(mean, init_std * jnp.exp(log_std))

    def unsquash(action: Array) -> Array:
        return jnp.arctanh(jnp.clip(action / env.action_limit, EDGE - 1, 1 - EDGE))

    return Squashed(
        init=lambda key: network.init(key, jnp.zeros(env.obs_size)),
        gaussian=gaussian,
        squash=lambda u: env.action_limit * jnp.tanh(u),
        unsquash=unsquash,
    )


def sampler(
    network: Squashed, stats: normalize.Statistics
) -> Callable[[Params, Key, Array], Array]:
    """(params, key, obs) -> action, of observations normalised by `stats`."""

    def sample(params: Params, key: Key, obs: Array) -> Array:
        mean, std = network.gaussian(params, normalize.normalise(stats, obs))
        return network.squash(mean + std * jax.random.normal(key, mean.shape))

    return sample


def noisy(network: Squashed, stats: normalize.Statistics, params: Params) -> Policy:
    """Acts as `sampler` does."""
    sample = sampler(network, stats)
    return Policy(
        lambda: (), lambda key, obs, memory: (sample(params, key, obs), memory)
    )


def greedy(network: Squashed, stats: normalize.Statistics, params: Params) -> Policy:
    """Acts by the mean."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        mean, _ = network.gaussian(params, normalize.normalise(stats, obs))
        return network.squash(mean), memory

    return Policy(lambda: (), act)


def uniform(env: Env) -> Policy:
    """Acts uniformly at random within the limits, or among discrete actions."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        if env.num_actions:
            return jax.random.randint(key, (), 0, env.num_actions, jnp.int32), memory
        limit = env.action_limit
        action = jax.random.uniform(
            key, (env.action_size,), minval=-limit, maxval=limit
        )
        return action, memory

    return Policy(lambda: (), act)


def constant(env: Env) -> Policy:
    """Does nothing: the action 0 always, of discrete ones the first."""
    action = jnp.zeros((), jnp.int32) if env.num_actions else jnp.zeros(env.action_size)
    return Policy(lambda: (), lambda key, obs, memory: (action, memory))


def switch(first: Array, a: Policy, b: Policy) -> Policy:
    """`a` where the scalar `first` is true, else `b`.  One branch is executed, but for
    a batched `first`, where both are."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        def act_a(_: None) -> tuple[Array, PyTree]:
            action, memory_a = a.act(key, obs, memory[0])
            return action, (memory_a, memory[1])

        def act_b(_: None) -> tuple[Array, PyTree]:
            action, memory_b = b.act(key, obs, memory[1])
            return action, (memory[0], memory_b)

        return jax.lax.cond(first, act_a, act_b, None)

    return Policy(lambda: (a.init(), b.init()), act)
