"""SAC: soft actor-critic (Haarnoja et al., 2018, arXiv 1812.05905).

    y = r + discount (min over target critics of Q'(s', a') - temperature log pi(a'|s'))
    step the critics towards y                                         Eqs. (3), (5)
    step the policy up min over critics of Q(s, a) - temperature log pi(a|s)  Eq. (7)
    step the temperature so that the entropy goes to `target_entropy`       Eq. (18)
    move the target critics a little

Actions are limit tanh(u), with u normal; entropies are of tanh(u), in [-1, 1].
Deviation: the log-std of u is bent softly into [-5, 2] by a tanh instead of cut.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import distributions, optimizers
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks
from mbrl_jax.types import Act, Array, Env, Gaussian, Key, Metrics, Params, Policy
from mbrl_jax.value_learning import parts
from mbrl_jax.value_learning.parts import (
    ActorObjective,
    Regression,
    Value,
    ValueLearner,
)

LOG_STD = (-5.0, 2.0)  # of u, least and most


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    hidden_sizes: tuple[int, ...] = (256, 256)  # of policy and critics, ReLU
    num_critics: int = 2  # K
    discount: float = 0.99
    learning_rate: float = 3e-4  # of Adam, for policy and critics
    max_norm: float = 1e3  # of a gradient, above which it is scaled down
    target_rate: float = 0.005  # share of the new critics in the target ones
    init_temperature: float = 1.0  # reward per nat of entropy
    temperature_rate: float = 3e-4  # of Adam, for its logarithm; 0: it stays
    target_entropy: float = -1.0  # nats per dimension of the action


class State(NamedTuple):
    actor: Params
    critics: Params  # [K, ...]
    target_critics: Params  # [K, ...]
    log_temperature: Array  # []
    actor_opt: optax.OptState
    critics_opt: optax.OptState
    temperature_opt: optax.OptState


def make(
    env: Env, config: Config = Config(), pixels: parts.PixelsConfig | None = None
) -> ValueLearner:
    """Of pictures by an encoder of `pixels`.  Raises ValueError for what cannot be."""
    checks.continuous(env, "SAC")
    validate(config)
    network: Any = MLP(config.hidden_sizes, 2 * env.action_size, nn.relu)
    critics = parts.critics(env, config.hidden_sizes, config.num_critics, pixels)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    slow = optimizers.clipped_adam(config.temperature_rate, config.max_norm)

    def init(key: Key) -> State:
        actor_key, critics_key = jax.random.split(key)
        actor = network.init(actor_key, jnp.zeros(critics.seen_size))
        params = critics.init(critics_key)
        log_temperature = jnp.log(config.init_temperature) + jnp.zeros(())
        return State(
            actor,
            params,
            params,
            log_temperature,
            optimizer.init(actor),
            optimizer.init(params),
            slow.init(log_temperature),
        )

    def gaussian(state: State, obs: Array) -> Array:
        """Mean and log-std of u, [2 A]."""
        seen = critics.encode(state.critics, obs)
        mean, raw = jnp.split(network.apply(state.actor, seen), 2)
        low, high = LOG_STD
        log_std = low + 0.5 * (high - low) * (1 + jnp.tanh(raw))
        return jnp.concatenate([mean, log_std])

    def draw(state: State, key: Key, obs: Array) -> tuple[Array, Array]:
        """An action [A] of the environment, and the log-density of tanh(u)."""
        unit, log_prob = distributions.squashed_draw(key, gaussian(state, obs))
        return env.action_limit * unit, log_prob

    def act(state: State, key: Key, obs: Array) -> tuple[Array, Array]:
        action, log_prob = draw(state, key, obs)
        return action, -jnp.exp(state.log_temperature) * log_prob

    def values(state: State, obs: Array, action: Array) -> Array:
        return critics.apply(state.target_critics, obs, action)

    def next_value(state: State, key: Key, next_obs: Array) -> Array:
        """min over target critics of Q'(s', a') - temperature log pi(a'|s'), Eq. (3)"""
        action, entropy_bonus = act(state, key, next_obs)
        return values(state, next_obs, action).min() + entropy_bonus

    def actor_objective(key: Key, obs: Array, act: Act, value: Value) -> Array:
        """min over critics of Q(s, a) - temperature log pi(a|s), Eq. (7); [N]"""
        action, entropy_bonus = jax.vmap(act)(jax.random.split(key, len(obs)), obs)
        return jax.vmap(value)(obs, action) + entropy_bonus

    def update(
        key: Key,
        state: State,
        rows: Regression,
        obs: Array,
        objective: ActorObjective | None,
    ) -> tuple[State, Metrics]:
        objective = objective or actor_objective
        params, critics_opt, error = parts.update(  # Eq. (5)
            critics.apply, optimizer, state.critics, state.critics_opt, rows
        )
        state = state._replace(critics=params)
        value = lambda obs, action: critics.apply(params, obs, action).min()

        def loss(actor: Params) -> Array:
            drawn = lambda key, obs: act(state._replace(actor=actor), key, obs)
            return -objective(key, obs, drawn, value).mean()

        lost, gradient = jax.value_and_grad(loss)(state.actor)
        actor, actor_opt = optimizers.descend(
            optimizer, gradient, state.actor_opt, state.actor
        )
        # the same draws as those of the actor's own objective
        keys = jax.random.split(jax.random.clone(key), len(obs))
        _, log_prob = jax.vmap(partial(draw, state))(keys, obs)
        entropy = -log_prob.mean()
        # Eq. (18), whose gradient is the entropy that is missing
        missing = config.target_entropy * env.action_size - entropy
        log_temperature, temperature_opt = optimizers.descend(
            slow, -missing, state.temperature_opt, state.log_temperature
        )
        return State(
            actor,
            params,
            optax.incremental_update(params, state.target_critics, config.target_rate),
            log_temperature,
            actor_opt,
            critics_opt,
            temperature_opt,
        ), {
            "critic/mse": error / config.num_critics,
            "critic/value": rows.target.mean(),
            "policy/objective": -lost,
            "policy/entropy": entropy,
            "policy/temperature": jnp.exp(log_temperature),
            "gradient/skipped_updates": actor_opt.num_skipped + critics_opt.num_skipped,
        }

    def explore(state: State) -> Policy:
        return parts.acting(lambda key, obs: draw(state, key, obs)[0])

    def policy(state: State) -> Policy:
        def mode(key: Key, obs: Array) -> Array:
            mean, _ = jnp.split(gaussian(state, obs), 2)
            return env.action_limit * jnp.tanh(mean)

        return parts.acting(mode)

    def noise(state: State, obs: Array) -> Gaussian:
        mean, log_std = jnp.split(gaussian(state, obs), 2)
        return Gaussian(mean, jnp.exp(log_std))

    return ValueLearner(
        init,
        act,
        values,
        next_value,
        actor_objective,
        update,
        explore,
        policy,
        config.discount,
        noise,
    )


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.at_least(config, 1, "num_critics")
    checks.positive(config, "learning_rate", "max_norm", "init_temperature")
    checks.at_least(config, 0, "temperature_rate")
    checks.within(config, 0, 1, "discount", "target_rate")
