"""The natural policy gradient (Kakade, 2001; step by KL: Rajeswaran et al., 2017).

    g = mean of grad log pi(a | s) A                     A by GAE
    step the policy by sqrt(2 max_kl / (g^T F^-1 g)) F^-1 g
    fit the critic to the lambda-returns

F is the Fisher matrix, the Hessian of the KL from the policy that acted
(`ops/natural`).
Advantages are standardised; observations and returns normalised by running statistics.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax.ops import checks, natural
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.policy_gradient.experience import CriticConfig
from mbrl_jax.types import Key, Learner, Metrics, Window


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    max_kl: float = 0.01  # KL of a step, to second order
    solver: str = "cg"  # cg, or exact: the whole Fisher matrix, for small policies
    num_iterations: int = 10  # of conjugate gradients
    damping: float = 0.1  # added to the diagonal of F
    discount: float = 0.99
    gae_lambda: float = 0.97  # lambda of GAE
    critic: CriticConfig = CriticConfig()


class State(NamedTuple):
    agent: Agent
    opt_state: optax.OptState  # of the critic


def make(net: ActorCritic, config: Config) -> Learner:
    """`update` takes windows [N, T].  Raises ValueError for what cannot be."""
    validate(config)
    critic_fitter = experience.fitter(net, config.critic)

    def init(key: Key) -> State:
        agent = actor_critic.init(key, net)
        return State(agent, critic_fitter.init(agent.critic))

    def update(key: Key, state: State, windows: Window) -> tuple[State, Metrics]:
        critic_key, entropy_key = jax.random.split(key)
        rows, agent = experience.gae_samples(
            net, state.agent, windows, config.discount, config.gae_lambda
        )
        gain, divergence = experience.surrogate(net, rows)
        change = natural.step(
            gain,
            divergence,
            agent.actor,
            size=config.max_kl,
            solver=config.solver,
            damping=config.damping,
            num_iterations=config.num_iterations,
        )
        actor = jax.tree.map(jnp.add, agent.actor, change)
        critic, opt_state, error = critic_fitter.fit(
            critic_key, agent.critic, state.opt_state, rows
        )
        return State(agent._replace(actor=actor, critic=critic), opt_state), {
            "policy/entropy": experience.entropy(
                net, entropy_key, rows.outputs, rows.valid
            ),
            "policy/divergence": divergence(actor),
            "critic/loss": error,
            "critic/skipped_updates": opt_state.num_skipped,
        }

    return actor_critic.learner(net, init, update)


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    experience.validate(config.critic)
    checks.one_of(config, "solver", natural.SOLVERS)
    checks.at_least(config, 1, "num_iterations")
    checks.at_least(config, 0, "damping")
    checks.positive(config, "max_kl")
    checks.within(config, 0, 1, "discount", "gae_lambda")
