"""A2C: advantage actor-critic (Mnih et al., 2016, arXiv 1602.01783, synchronous).

    after each short window of all environments, one step along the gradient of
        log pi(a | s) A - value_weight (V - return)^2 + entropy_weight entropy

With `gae_lambda` 1 returns are the longest the window allows (Sec. 4).  Deviations:
advantages are standardised in each window, observations and returns normalised by
running statistics; policy and critic share no weights.
"""

import dataclasses
from typing import NamedTuple

import jax
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

    learning_rate: float = 7e-4  # of RMSProp
    square_decay: float = 0.99  # of RMSProp's mean squares
    discount: float = 0.99
    gae_lambda: float = 1.0  # lambda of GAE
    entropy_weight: float = 0.01
    value_weight: float = 0.5
    max_norm: float = 0.5  # of the gradient, above which it is scaled down
    decay_steps: int = 0  # updates in which the learning rate falls; 0: stays


class State(NamedTuple):
    agent: Agent
    opt_state: optax.OptState


def make(net: ActorCritic, config: Config) -> Learner:
    """`update` takes windows [N, T].  Raises ValueError for what cannot be."""
    validate(config)
    optimizer = optimizers.clipped_rmsprop(
        config.learning_rate,
        config.max_norm,
        decay=config.square_decay,
        decay_steps=config.decay_steps,
    )

    def init(key: Key) -> State:
        agent = actor_critic.init(key, net)
        return State(agent, optimizer.init((agent.actor, agent.critic)))

    def update(key: Key, state: State, windows: Window) -> tuple[State, Metrics]:
        rows, agent = experience.gae_samples(
            net, state.agent, windows, config.discount, config.gae_lambda
        )
        params = agent.actor, agent.critic
        gradient, seen = jax.grad(loss, has_aux=True)(params, key, rows)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        actor, critic = optax.apply_updates(params, updates)
        agent = agent._replace(actor=actor, critic=critic)
        seen["policy/skipped_updates"] = opt_state.num_skipped
        return State(agent, opt_state), seen

    def loss(
        params: tuple[Params, Params], key: Key, rows: Samples
    ) -> tuple[Array, Metrics]:
        actor, critic = params
        outputs = experience.outputs_of(net, actor, rows)
        log_prob = jax.vmap(jax.vmap(net.family.log_prob))(outputs, rows.action)
        entropy = experience.entropy(net, key, outputs, rows.valid)
        gain = masked_mean(log_prob * experience.standardised(rows), rows.valid)
        value = experience.values_of(net, critic, rows)
        error = masked_mean((value - rows.target) ** 2, rows.valid)
        total = -gain + config.value_weight * error - config.entropy_weight * entropy
        return total, {"policy/entropy": entropy, "critic/loss": error}

    return actor_critic.learner(net, init, update)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.at_least(config, 0, "entropy_weight", "value_weight", "decay_steps")
    checks.positive(config, "learning_rate", "max_norm")
    checks.within(config, 0, 1, "discount", "gae_lambda", "square_decay")
