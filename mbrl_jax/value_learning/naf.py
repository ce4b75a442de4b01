"""NAF: normalised advantage functions (Gu et al., 2016, arXiv 1603.00748, Sec. 4).

    Q(s, a) = V(s) - 1/2 (a - mu(s))^T L(s) L(s)^T (a - mu(s))               Eq. (3)

with L lower triangular, of positive diagonal: mu is where Q is largest, and V how large
it is there, so that Q-learning needs no search for the best action:

    y = r + discount V'(s');   step Q towards y;   move V' a little

Actions are in units of their limit, and mu is kept within it by tanh.  While V is far
too large, what lowers Q the fastest is to move mu away from every action taken, up to
where tanh has no gradient and nothing brings it back.  Hence `value_scale`, with which
V goes as fast.  Deviation: without batch normalisation.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks
from mbrl_jax.types import Array, Env, Gaussian, Key, Metrics, Params, Policy
from mbrl_jax.value_learning import parts
from mbrl_jax.value_learning.parts import ActorObjective, Regression, ValueLearner


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    hidden_sizes: tuple[int, ...] = (200, 200)  # ReLU
    discount: float = 0.99
    learning_rate: float = 1e-3  # of Adam
    max_norm: float = 1e3  # of a gradient, above which it is scaled down
    target_rate: float = 0.005  # share of the new network in the target one
    value_scale: float = 10.0  # of the network's outputs: a fraction of usual returns
    exploration_std: float = 0.3  # of the noise while exploring, in units of the limit


class State(NamedTuple):
    params: Params
    target: Params
    opt_state: optax.OptState


class Quadratic(NamedTuple):
    """Q(s, .) at one s, the action in units of its limit."""

    value: Array  # []
    mean: Array  # [A]
    factor: Array  # [A, A] L

    def __call__(self, unit: Array) -> Array:
        return self.value - 0.5 * jnp.square(self.factor.T @ (unit - self.mean)).sum()


def shape(outputs: Array, size: int, scale: float | Array) -> Quadratic:
    """Of a network's outputs [1 + A + A (A + 1) / 2], for A = `size`: V, mu and L,
    whose diagonal is that of an exponential."""
    value, raw, entries = jnp.split(outputs, [1, 1 + size])
    zeros = jnp.zeros((size, size), outputs.dtype)
    factor = zeros.at[jnp.tril_indices(size)].set(entries)
    diagonal = jnp.exp(jnp.clip(jnp.diag(factor), -5, 5))
    factor = jnp.tril(factor, -1) + jnp.diag(diagonal)
    return Quadratic(scale * value[0], jnp.tanh(raw), jnp.sqrt(scale) * factor)


def make(env: Env, config: Config = Config()) -> ValueLearner:
    """Raises ValueError for what cannot be."""
    checks.continuous(env, "NAF")
    checks.vectors(env)
    validate(config)
    size, limit = env.action_size, env.action_limit
    num_outputs = 1 + size + size * (size + 1) // 2
    network: Any = MLP(config.hidden_sizes, num_outputs, nn.relu)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)

    def quadratic(params: Params, obs: Array) -> Quadratic:
        return shape(network.apply(params, obs), size, config.value_scale)

    def init(key: Key) -> State:
        params = network.init(key, jnp.zeros(env.obs_size))
        return State(params, params, optimizer.init(params))

    def act(state: State, key: Key, obs: Array) -> tuple[Array, Array]:
        mean = quadratic(state.target, obs).mean
        return limit * mean, jnp.zeros((), mean.dtype)

    def values(state: State, obs: Array, action: Array) -> Array:
        return quadratic(state.target, obs)(action / limit)[None]

    def next_value(state: State, key: Key, next_obs: Array) -> Array:
        """V'(s'): the largest Q'(s', a'), that of mu'(s')"""
        best, _ = act(state, key, next_obs)
        return values(state, next_obs, best)[0]

    def update(
        key: Key,
        state: State,
        rows: Regression,
        obs: Array,
        objective: ActorObjective | None,
    ) -> tuple[State, Metrics]:
        """The policy is part of the critic: `obs` and `objective` are not used."""

        def loss(params: Params) -> Array:
            error = parts.error(
                lambda obs, action: quadratic(params, obs)(action / limit)[None], rows
            )
            return error / config.value_scale**2

        error, gradient = jax.value_and_grad(loss)(state.params)
        params, opt_state = optimizers.descend(
            optimizer, gradient, state.opt_state, state.params
        )
        target = optax.incremental_update(params, state.target, config.target_rate)
        return State(params, target, opt_state), {
            "critic/mse": error * config.value_scale**2,
            "critic/value": rows.target.mean(),
            "gradient/skipped_updates": opt_state.num_skipped,
        }

    def explore(state: State) -> Policy:
        def act(key: Key, obs: Array) -> Array:
            mean = quadratic(state.params, obs).mean
            return parts.noisy(key, mean, config.exploration_std, limit)

        return parts.acting(act)

    def policy(state: State) -> Policy:
        return parts.acting(lambda key, obs: limit * quadratic(state.params, obs).mean)

    def noise(state: State, obs: Array) -> Gaussian:
        mean = quadratic(state.params, obs).mean
        return Gaussian(mean, jnp.full_like(mean, config.exploration_std))

    return ValueLearner(
        init,
        act,
        values,
        next_value,
        None,
        update,
        explore,
        policy,
        config.discount,
        noise,
    )


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.positive(config, "learning_rate", "max_norm", "value_scale")
    checks.at_least(config, 0, "exploration_std")
    checks.within(config, 0, 1, "discount", "target_rate")
