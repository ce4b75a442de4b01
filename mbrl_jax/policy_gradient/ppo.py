"""PPO: proximal policy optimisation (Schulman et al., 2017, arXiv 1707.06347).

    advantages by GAE, with the policy and critic that acted
    repeat `num_epochs` times, in `num_minibatches` parts:
        ratio = pi(a | s) / pi_old(a | s)
        ascend  mean of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)         Eq. (7)
                or, as a penalty, of ratio A - beta KL(pi_old || pi)            Eq. (8)
                - value_weight (V - return)^2 + entropy_weight entropy          Eq. (9)
    beta doubles where the KL was above 1.5 targets, and halves where below 1 / 1.5

Deviations, all usual (Engstrom et al., 2020; Andrychowicz et al., 2021): advantages are
standardised in each part, observations and returns normalised by running statistics,
the gradient is scaled down to `max_norm`; policy and critic share no weights.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.ops import checks
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.policy_gradient.experience import Samples, masked_mean
from mbrl_jax.types import Array, Key, Learner, Metrics, Params, Window


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    learning_rate: float = 3e-4  # of Adam
    discount: float = 0.99
    gae_lambda: float = 0.95  # lambda of GAE
    objective: str = "clip"  # clip or penalty
    clip: float = 0.2  # of the ratio
    target_kl: float = 0.01  # KL that the penalty, or the rate, aims at
    rate_factor: float = 1.0  # of the learning rate where the KL is off; 1: stays
    num_epochs: int = 10
    num_minibatches: int = 8
    entropy_weight: float = 0.0
    value_weight: float = 0.5
    value_clip: float = 0.0  # of the change of normalised values; 0: none
    max_norm: float = 0.5  # of the gradient, above which it is scaled down
    decay_steps: int = 0  # optimiser steps in which the learning rate falls; 0: stays


class State(NamedTuple):
    agent: Agent
    opt_state: optax.OptState
    beta: Array  # [] weight of the KL
    rate: Array  # [] factor of the learning rate


def _clipped(
    config: Config, ratio: Array, rows: Samples, kl: Array, beta: Array
) -> Array:
    near = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    return jnp.minimum(ratio * rows.advantage, near * rows.advantage)  # Eq. (7)


def _penalised(
    config: Config, ratio: Array, rows: Samples, kl: Array, beta: Array
) -> Array:
    return ratio * rows.advantage - beta * kl  # Eq. (8)


OBJECTIVES: dict[str, Callable[[Config, Array, Samples, Array, Array], Array]] = {
    "clip": _clipped,
    "penalty": _penalised,
}


def make(net: ActorCritic, config: Config) -> Learner:
    """`update` takes windows [N, T].  Raises ValueError for what cannot be."""
    validate(config)
    optimizer = optimizers.clipped_adam(
        config.learning_rate, config.max_norm, decay_steps=config.decay_steps
    )
    objective = OBJECTIVES[config.objective]

    def init(key: Key) -> State:
        agent = actor_critic.init(key, net)
        opt_state = optimizer.init((agent.actor, agent.critic))
        return State(agent, opt_state, jnp.ones(()), jnp.ones(()))

    def update(key: Key, state: State, windows: Window) -> tuple[State, Metrics]:
        rows, agent = experience.gae_samples(
            net, state.agent, windows, config.discount, config.gae_lambda
        )
        state, rows = state._replace(agent=agent), experience.flatten_time(rows)

        def epoch(state: State, key: Key) -> tuple[State, Metrics]:
            shuffle_key, key = jax.random.split(key)
            parts = experience.minibatches(shuffle_key, rows, config.num_minibatches)
            keys = jax.random.split(key, len(parts.first))
            state, seen = jax.lax.scan(descend, state, (keys, parts))
            return state, jax.tree.map(jnp.mean, seen)

        state, seen = jax.lax.scan(
            epoch, state, jax.random.split(key, config.num_epochs)
        )
        last = jax.tree.map(lambda x: x[-1], seen)
        off = _sign(last["policy/divergence"], 1.5 * config.target_kl, 1.5)
        state = state._replace(beta=jnp.clip(state.beta * 2.0**off, 1e-6, 1e6))
        return state, {
            **last,
            "policy/beta": state.beta,
            "policy/rate": state.rate,
            "policy/skipped_updates": state.opt_state.num_skipped,
        }

    def descend(state: State, x: tuple[Key, Samples]) -> tuple[State, Metrics]:
        (key, rows), agent = x, state.agent
        rows = rows._replace(advantage=experience.standardised(rows))
        params = agent.actor, agent.critic
        gradient, seen = jax.grad(loss, has_aux=True)(params, key, rows, state.beta)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        updates = jax.tree.map(lambda x: state.rate * x, updates)
        actor, critic = optax.apply_updates(params, updates)
        off = _sign(seen["policy/divergence"], 2 * config.target_kl, 2.0)
        rate = jnp.clip(state.rate * config.rate_factor**-off, 1e-2, 1e2)
        agent = agent._replace(actor=actor, critic=critic)
        return State(agent, opt_state, state.beta, rate), seen

    def loss(
        params: tuple[Params, Params], key: Key, rows: Samples, beta: Array
    ) -> tuple[Array, Metrics]:
        actor, critic = params
        outputs = experience.outputs_of(net, actor, rows)
        value = experience.values_of(net, critic, rows)
        each = lambda f: jax.vmap(jax.vmap(f))
        log_ratio = each(net.family.log_prob)(outputs, rows.action) - rows.log_prob
        ratio = jnp.exp(jnp.where(rows.valid, log_ratio, 0))
        kl = each(net.family.divergence)(rows.outputs, outputs)
        entropy = experience.entropy(net, key, outputs, rows.valid)
        gain = masked_mean(objective(config, ratio, rows, kl, beta), rows.valid)
        error = masked_mean(_squares(config, value, rows), rows.valid)
        total = -gain + config.value_weight * error - config.entropy_weight * entropy
        beyond = jnp.abs(ratio - 1) > config.clip
        return total, {
            "policy/entropy": entropy,
            "policy/divergence": masked_mean(kl, rows.valid),
            "policy/clipped": masked_mean(beyond.astype(ratio.dtype), rows.valid),
            "critic/loss": error,
        }

    return actor_critic.learner(net, init, update)


def _squares(config: Config, value: Array, rows: Samples) -> Array:
    """Of the critic's errors; no less than from where it may go, if clipped."""
    squares = (value - rows.target) ** 2
    change = jnp.clip(value - rows.value, -config.value_clip, config.value_clip)
    clipped = jnp.maximum(squares, (rows.value + change - rows.target) ** 2)
    return jnp.where(config.value_clip > 0, clipped, squares)


def _sign(x: Array, high: float | Array, ratio: float) -> Array:
    """1 above `high`, -1 below its part, else 0."""
    return (x > high).astype(x.dtype) - (x < high / ratio**2)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.one_of(config, "objective", OBJECTIVES)
    checks.at_least(config, 1, "num_epochs", "num_minibatches", "rate_factor")
    checks.at_least(
        config, 0, "entropy_weight", "value_weight", "value_clip", "decay_steps"
    )
    checks.positive(config, "learning_rate", "max_norm", "clip", "target_kl")
    checks.within(config, 0, 1, "discount", "gae_lambda")
