"""DQN (Mnih et al., 2015), double (van Hasselt et al., 2016, arXiv 1509.06461).

    y = r + discount Q'(s', argmax over a' of Q(s', a'))       Q' moves slowly after Q
    step Q(s, a) towards y

For discrete actions; exploration takes a random one with probability `exploration`.
Deviations: the target network moves a little at every update; the loss is the square;
the probability of a random action stays as it is from the first step to the last.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.networks import MLP, features
from mbrl_jax.ops import checks
from mbrl_jax.types import Array, Env, Key, Metrics, Params, Policy
from mbrl_jax.value_learning import parts
from mbrl_jax.value_learning.parts import ActorObjective, Regression, ValueLearner


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    hidden_sizes: tuple[int, ...] = (128, 128)  # ReLU
    discount: float = 0.99
    learning_rate: float = 1e-3  # of Adam
    max_norm: float = 10.0  # of a gradient, above which it is scaled down
    target_rate: float = 0.005  # share of the new network in the target one
    exploration: float = 0.1  # probability of a random action while exploring


class State(NamedTuple):
    params: Params
    target: Params
    opt_state: optax.OptState


def make(env: Env, config: Config = Config()) -> ValueLearner:
    """Raises ValueError for what cannot be."""
    checks.discrete(env)
    checks.vectors(env)
    validate(config)
    network: Any = MLP(config.hidden_sizes, env.num_actions, nn.relu)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)

    def init(key: Key) -> State:
        params = network.init(key, jnp.zeros(env.obs_size))
        return State(params, params, optimizer.init(params))

    def best(params: Params, obs: Array) -> Array:
        return network.apply(params, obs).argmax().astype(jnp.int32)

    def act(state: State, key: Key, obs: Array) -> tuple[Array, Array]:
        return best(state.params, obs), jnp.zeros((), jnp.result_type(float))

    def q_values(params: Params, obs: Array, action: Array) -> Array:
        """Of this action, [1]."""
        return network.apply(params, obs)[action][None]

    def values(state: State, obs: Array, action: Array) -> Array:
        return q_values(state.target, obs, action)

    def next_value(state: State, key: Key, next_obs: Array) -> Array:
        """Q'(s', argmax over a' of Q(s', a')): double Q-learning, Eq. (4)"""
        return q_values(state.target, next_obs, best(state.params, next_obs))[0]

    def update(
        key: Key,
        state: State,
        rows: Regression,
        obs: Array,
        objective: ActorObjective | None,
    ) -> tuple[State, Metrics]:
        """The policy is part of the critic: `obs` and `objective` are not used."""
        params, opt_state, error = parts.update(
            q_values, optimizer, state.params, state.opt_state, rows
        )
        target = optax.incremental_update(params, state.target, config.target_rate)
        return State(params, target, opt_state), {
            "critic/mse": error,
            "critic/value": rows.target.mean(),
            "gradient/skipped_updates": opt_state.num_skipped,
        }

    def explore(state: State) -> Policy:
        def sometimes(key: Key, obs: Array) -> Array:
            coin_key, action_key = jax.random.split(key)
            other = jax.random.randint(action_key, (), 0, env.num_actions, jnp.int32)
            random = jax.random.bernoulli(coin_key, config.exploration)
            return jnp.where(random, other, best(state.params, obs))

        return parts.acting(sometimes)

    def policy(state: State) -> Policy:
        acting = parts.acting(lambda key, obs: best(state.params, obs))
        return acting._replace(
            values=lambda obs: network.apply(state.params, obs),
            features=lambda obs: features(network, state.params, obs),
        )

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
    )


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.positive(config, "learning_rate", "max_norm")
    checks.within(config, 0, 1, "discount", "target_rate", "exploration")
