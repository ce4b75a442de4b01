"""QT-Opt: Q-learning whose best action is searched for (Kalashnikov et al., 2018,
arXiv 1806.10293, Sec. 4).

    pi(s) = argmax_a Q'(s, a), by the cross-entropy method                   Sec. 4.2
    y = r + discount min(Q'(s', pi(s')), Q''(s', pi(s')))                    Eq. (1)
    step Q towards y; move Q' a little; every `lag` updates Q'' <- Q'

No network proposes actions, so that Q may have several peaks over them, where NAF has
one and an actor climbs one.  For rewards that are chances of success the paper fits
sigmoid(Q) by the cross-entropy: `loss`; other returns need the square.  Deviations: one
process learns and acts; Q'' is a snapshot, of an age up to `lag`; the search keeps the
best of all its samples (`planners/icem.py`, for one step).
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.ops import checks, finite
from mbrl_jax.planners.icem import icem
from mbrl_jax.types import Array, Env, Key, Metrics, Params, Plan, Policy
from mbrl_jax.value_learning import parts
from mbrl_jax.value_learning.parts import ActorObjective, Regression, ValueLearner

LOSSES = ("squared", "cross_entropy")


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    hidden_sizes: tuple[int, ...] = (64, 64)  # of Q, ReLU
    discount: float = 0.99
    learning_rate: float = 1e-3  # of Adam
    max_norm: float = 1e3  # of a gradient, above which it is scaled down
    target_rate: float = 0.005  # share of the new network in Q'
    lag: int = 500  # updates from one Q'' to the next
    loss: str = "squared"  # or cross_entropy: every return is from 0 to 1
    num_samples: int = 64  # of each iteration of the search
    num_elites: int = 6
    num_iterations: int = 3
    init_std: float = 0.7  # the search begins with, in units of the limit
    exploration_std: float = 0.1  # of the noise while exploring, in the same


class State(NamedTuple):
    params: Params
    target: Params  # Q'
    lagged: Params  # Q''
    opt_state: optax.OptState
    num_updates: Array  # [] int32


def make(env: Env, config: Config = Config()) -> ValueLearner:
    """Raises ValueError for what cannot be."""
    checks.continuous(env, "QT-Opt")
    validate(config)
    limit = env.action_limit
    network = parts.critics(env, config.hidden_sizes, 1)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)

    def init(key: Key) -> State:
        params = network.init(key)
        zero = jnp.zeros((), jnp.int32)
        return State(params, params, params, optimizer.init(params), zero)

    def q_value(params: Params, obs: Array, action: Array) -> Array:
        output = network.apply(params, obs, action)[0]
        return output if config.loss == "squared" else jax.nn.sigmoid(output)

    def best(params: Params, key: Key, obs: Array) -> Array:
        """argmax_a Q(s, a), in units of the limit, Sec. 4.2"""
        nothing = jnp.zeros((1, env.action_size), obs.dtype)
        kept = nothing[None]  # the best so far, which a later mean may leave behind
        start = Plan(nothing, nothing + config.init_std, nothing, kept)
        found, _ = icem(
            key,
            lambda actions: q_value(params, obs, limit * actions[0]),
            start,
            action_limit=1.0,
            num_samples=config.num_samples,
            num_elites=config.num_elites,
            num_iterations=config.num_iterations,
            momentum=0.0,
            decay=1.0,
        )
        return found.actions[0]

    def act(state: State, key: Key, obs: Array) -> tuple[Array, Array]:
        return limit * best(state.target, key, obs), jnp.zeros((), obs.dtype)

    def values(state: State, obs: Array, action: Array) -> Array:
        both = (state.target, state.lagged)
        return jnp.stack([q_value(params, obs, action) for params in both])

    def next_value(state: State, key: Key, next_obs: Array) -> Array:
        """min(Q'(s', pi(s')), Q''(s', pi(s'))), Eq. (1)"""
        action, _ = act(state, key, next_obs)
        return values(state, next_obs, action).min()

    def error(output: Array, target: Array) -> Array:
        if config.loss == "squared":
            return jnp.square(output - target)
        target = target.clip(0, 1)  # what the maximum makes too large
        return optax.sigmoid_binary_cross_entropy(output, target)

    def update(
        key: Key,
        state: State,
        rows: Regression,
        obs: Array,
        objective: ActorObjective | None,
    ) -> tuple[State, Metrics]:
        """The policy is part of the critic: `obs` and `objective` are not used."""
        rows = finite.zeroed(rows.weight == 0, rows)

        def loss(params: Params) -> Array:
            outputs = jax.vmap(partial(network.apply, params))(rows.obs, rows.action)
            errors = error(outputs[:, 0], rows.target)
            return (rows.weight * errors).sum() / rows.weight.sum()

        before, gradient = jax.value_and_grad(loss)(state.params)
        params, opt_state = optimizers.descend(
            optimizer, gradient, state.opt_state, state.params
        )
        target = optax.incremental_update(params, state.target, config.target_rate)
        num_updates = state.num_updates + 1
        due = num_updates % config.lag == 0
        lagged = jax.tree.map(partial(jnp.where, due), target, state.lagged)
        return State(params, target, lagged, opt_state, num_updates), {
            "critic/loss": before,
            "critic/value": rows.target.mean(),
            "gradient/skipped_updates": opt_state.num_skipped,
        }

    def explore(state: State) -> Policy:
        def act(key: Key, obs: Array) -> Array:
            search_key, key = jax.random.split(key)
            unit = best(state.target, search_key, obs)
            return parts.noisy(key, unit, config.exploration_std, limit)

        return parts.acting(act)

    def policy(state: State) -> Policy:
        return parts.acting(lambda key, obs: limit * best(state.target, key, obs))

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
    checks.at_least(config, 1, "lag", "num_elites", "num_iterations")
    checks.at_most(config, "num_elites", "num_samples")
    checks.positive(config, "learning_rate", "max_norm", "init_std")
    checks.at_least(config, 0, "exploration_std")
    checks.within(config, 0, 1, "discount", "target_rate")
    checks.one_of(config, "loss", LOSSES)
