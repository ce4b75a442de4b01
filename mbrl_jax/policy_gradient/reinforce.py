"""REINFORCE (Williams, 1992): the score of what was done, weighted by what came of it.

    g = mean over episodes of sum_t grad log pi(a_t | s_t) (R_t - b)

R_t is the discounted sum of the rewards from t on; there is no discount^t in front.  A
baseline b leaves the mean of g and changes its variance:

    none      0
    average   the mean of R_t over all steps of the other episodes
    optimal   of each parameter i its own, E[g_i s_i] / E[s_i^2] of the other episodes,
              s the score of an episode and g its gradient for b = 0; with one R for the
              whole episode it is E[s_i^2 R] / E[s_i^2] (Peters and Schaal, 2008)
    value     V(s_t), a critic fitted to R_t; it also stands for what a time limit cuts

No baseline sees the episode that it is used in, so that none has a bias; estimated from
few others, `average` and `optimal` may cost more than they save (benchmarks/README.md).
Windows are whole episodes; where there is no critic, nothing counts after a time limit.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.ops import checks, estimate
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.policy_gradient.experience import CriticConfig, Samples
from mbrl_jax.types import Array, Key, Learner, Metrics, Params, Window


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    baseline: str = "value"  # none, average, optimal or value
    learning_rate: float = 1e-2  # of Adam, for the policy
    max_norm: float = 1e3  # of the gradient, above which it is scaled down
    discount: float = 0.99
    critic: CriticConfig = CriticConfig()  # of the baseline `value`


class State(NamedTuple):
    agent: Agent
    opt_state: optax.OptState
    critic_opt_state: optax.OptState


def gradients(net: ActorCritic, actor: Params, rows: Samples, baseline: str) -> Params:
    """The gradient [N, ...] of each of N episodes; its mean estimates the true one.

    `rows` [N, T] are those of `rows_of`.
    """

    def score(actor: Params, episode: Samples, weights: Array) -> Array:
        one = jax.tree.map(lambda x: x[None], episode)
        outputs = experience.outputs_of(net, actor, one)[0]
        log_prob = jax.vmap(net.family.log_prob)(outputs, episode.action)
        return jnp.where(episode.valid, log_prob * weights, 0).sum()

    def each(weights: Array) -> Params:
        return jax.vmap(jax.grad(score), (None, 0, 0))(actor, rows, weights)

    return BASELINES[baseline](each, rows)


def _as_it_is(each: Callable[[Array], Params], rows: Samples) -> Params:
    return each(rows.advantage)


def _average(each: Callable[[Array], Params], rows: Samples) -> Params:
    returns = jnp.where(rows.valid, rows.advantage, 0).sum(axis=1)
    total, count = returns.sum() - returns, rows.valid.sum() - rows.valid.sum(axis=1)
    mean = total / jnp.maximum(count, 1)
    return each(rows.advantage - mean[:, None])


def _optimal(each: Callable[[Array], Params], rows: Samples) -> Params:
    largest = jnp.abs(jnp.where(rows.valid, rows.advantage, 0)).max()

    def less_baseline(gradient: Array, score: Array) -> Array:
        others = lambda x: x.sum(axis=0, keepdims=True) - x
        top, below = others(gradient * score), others(score**2)
        # none where the other scores are 0, or cancel but for rounding
        known = below * largest**2 > jnp.maximum(1e-10 * others(gradient**2), 0)
        return gradient - score * jnp.where(known, top / jnp.where(known, below, 1), 0)

    ones = jnp.ones_like(rows.advantage)
    return jax.tree.map(less_baseline, each(rows.advantage), each(ones))


BASELINES = {
    "none": _as_it_is,
    "average": _average,
    "optimal": _optimal,
    "value": _as_it_is,  # the critic's value is already taken off
}


def rows_of(
    net: ActorCritic, agent: Agent, windows: Window, config: Config
) -> tuple[Samples, Agent]:
    """What is learned from whole episodes [N, T], and the agent with its statistics."""
    with_critic = config.baseline == "value"
    return experience.gae_samples(
        net, agent, windows, config.discount, 1.0, with_critic=with_critic
    )


def make(net: ActorCritic, config: Config) -> Learner:
    """`update` takes whole episodes [N, T].  Raises ValueError for what cannot be."""
    validate(config)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    critic_fitter = experience.fitter(net, config.critic)

    def init(key: Key) -> State:
        agent = actor_critic.init(key, net)
        opt_state = optimizer.init(agent.actor)
        return State(agent, opt_state, critic_fitter.init(agent.critic))

    def update(key: Key, state: State, windows: Window) -> tuple[State, Metrics]:
        critic_key, entropy_key = jax.random.split(key)
        rows, agent = rows_of(net, state.agent, windows, config)
        each = gradients(net, agent.actor, rows, config.baseline)
        gradient = jax.tree.map(lambda x: x.mean(axis=0), each)
        actor, opt_state = optimizers.ascend(
            optimizer, gradient, state.opt_state, agent.actor
        )
        agent = agent._replace(actor=actor)
        state = state._replace(agent=agent, opt_state=opt_state)
        metrics = {
            "policy/entropy": experience.entropy(
                net, entropy_key, rows.outputs, rows.valid
            ),
            "policy/gradient_norm": estimate.norm(gradient),
            "policy/skipped_updates": opt_state.num_skipped,
        }
        if config.baseline != "value":
            return state, metrics
        critic, opt_state, error = critic_fitter.fit(
            critic_key, agent.critic, state.critic_opt_state, rows
        )
        agent = agent._replace(critic=critic)
        state = state._replace(agent=agent, critic_opt_state=opt_state)
        return state, {**metrics, "critic/loss": error}

    return actor_critic.learner(net, init, update)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    experience.validate(config.critic)
    checks.one_of(config, "baseline", BASELINES)
    checks.positive(config, "learning_rate", "max_norm")
    checks.within(config, 0, 1, "discount")
