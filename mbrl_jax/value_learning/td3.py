"""TD3 (Fujimoto et al., 2018, arXiv 1802.09477), and DDPG (Lillicrap et al., 2016).

    a' = target policy(s') + noise, cut at `smoothing_limit`                 Eq. (14)
    y = r + discount min over target critics of Q'(s', a')                   Eq. (10)
    step the critics towards y
    every `delay` updates: step the policy up Q(s, policy(s)); move the targets a little

`DDPG` is the configuration with one critic, no smoothing and no delay.  Exploration is
by normal noise.  Deviation: the policy goes up the mean of the critics, not the first.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    hidden_sizes: tuple[int, ...] = (256, 256)  # of policy and critics, ReLU
    num_critics: int = 2  # K
    discount: float = 0.99
    learning_rate: float = 3e-4  # of Adam, for policy and critics
    max_norm: float = 1e3  # of a gradient, above which it is scaled down
    target_rate: float = 0.005  # share of the new networks in the target ones
    delay: int = 2  # updates of the critics to one of the policy
    smoothing_std: float = 0.2  # noise of the target policy, in units of the limit
    smoothing_limit: float = 0.5  # at which it is cut
    exploration_std: float = 0.1  # of the noise while exploring


DDPG = Config(num_critics=1, delay=1, smoothing_std=0.0)


class State(NamedTuple):
    actor: Params
    critics: Params  # [K, ...]
    target_actor: Params
    target_critics: Params
    actor_opt: optax.OptState
    critics_opt: optax.OptState
    num_updates: Array  # [] int32


def make(
    env: Env, config: Config = Config(), pixels: parts.PixelsConfig | None = None
) -> ValueLearner:
    """Of pictures by an encoder of `pixels`.  Raises ValueError for what cannot be."""
    checks.continuous(env, "TD3")
    validate(config)
    network: Any = MLP(config.hidden_sizes, env.action_size, nn.relu)
    critics = parts.critics(env, config.hidden_sizes, config.num_critics, pixels)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)

    def init(key: Key) -> State:
        actor_key, critics_key = jax.random.split(key)
        actor = network.init(actor_key, jnp.zeros(critics.seen_size))
        params = critics.init(critics_key)
        opts = optimizer.init(actor), optimizer.init(params)
        return State(actor, params, actor, params, *opts, jnp.zeros((), jnp.int32))

    def mean(actor: Params, state: State, obs: Array) -> Array:
        """In units of the limit."""
        return jnp.tanh(network.apply(actor, critics.encode(state.critics, obs)))

    def act(state: State, key: Key, obs: Array) -> tuple[Array, Array]:
        """The target policy's action, smoothed, Eq. (14); no bonus."""
        unit = mean(state.target_actor, state, obs)
        noise = config.smoothing_std * jax.random.normal(key, unit.shape, unit.dtype)
        limit = config.smoothing_limit
        unit = jnp.clip(unit + jnp.clip(noise, -limit, limit), -1, 1)
        return env.action_limit * unit, jnp.zeros((), unit.dtype)

    def values(state: State, obs: Array, action: Array) -> Array:
        return critics.apply(state.target_critics, obs, action)

    def next_value(state: State, key: Key, next_obs: Array) -> Array:
        """min over target critics of Q'(s', a'), Eq. (10)"""
        action, bonus = act(state, key, next_obs)
        return values(state, next_obs, action).min() + bonus

    def actor_objective(key: Key, obs: Array, act: Act, value: Value) -> Array:
        """Q(s, policy(s)), [N]; its gradient is that of Silver et al., 2014, Eq. (9)"""
        action, bonus = jax.vmap(act)(jax.random.split(key, len(obs)), obs)
        return jax.vmap(value)(obs, action) + bonus

    def update(
        key: Key,
        state: State,
        rows: Regression,
        obs: Array,
        objective: ActorObjective | None,
    ) -> tuple[State, Metrics]:
        params, critics_opt, error = parts.update(
            critics.apply, optimizer, state.critics, state.critics_opt, rows
        )
        state = state._replace(
            critics=params, critics_opt=critics_opt, num_updates=state.num_updates + 1
        )
        due = state.num_updates % config.delay == 0
        improved = partial(improve, objective or actor_objective, key, obs)
        state = jax.lax.cond(due, improved, lambda state: state, state)
        return state, {
            "critic/mse": error / config.num_critics,
            "critic/value": rows.target.mean(),
            "gradient/skipped_updates": state.actor_opt.num_skipped
            + critics_opt.num_skipped,
        }

    def improve(objective: ActorObjective, key: Key, obs: Array, state: State) -> State:
        """A step of the policy, and of all targets."""
        value = lambda obs, action: critics.apply(state.critics, obs, action).mean()

        def loss(actor: Params) -> Array:
            def at(key: Key, obs: Array) -> tuple[Array, Array]:
                unit = mean(actor, state, obs)
                return env.action_limit * unit, jnp.zeros((), unit.dtype)

            return -objective(key, obs, at, value).mean()

        gradient = jax.grad(loss)(state.actor)
        actor, actor_opt = optimizers.descend(
            optimizer, gradient, state.actor_opt, state.actor
        )
        follow = partial(optax.incremental_update, step_size=config.target_rate)
        return state._replace(
            actor=actor,
            target_actor=follow(actor, state.target_actor),
            target_critics=follow(state.critics, state.target_critics),
            actor_opt=actor_opt,
        )

    def explore(state: State) -> Policy:
        def act(key: Key, obs: Array) -> Array:
            unit, std = mean(state.actor, state, obs), config.exploration_std
            return parts.noisy(key, unit, std, env.action_limit)

        return parts.acting(act)

    def policy(state: State) -> Policy:
        return parts.acting(
            lambda key, obs: env.action_limit * mean(state.actor, state, obs)
        )

    def noise(state: State, obs: Array) -> Gaussian:
        unit = mean(state.actor, state, obs)
        return Gaussian(unit, jnp.full_like(unit, config.exploration_std))

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
    checks.at_least(config, 1, "num_critics", "delay")
    checks.positive(config, "learning_rate", "max_norm")
    checks.at_least(config, 0, "smoothing_std", "smoothing_limit", "exploration_std")
    checks.within(config, 0, 1, "discount", "target_rate")
