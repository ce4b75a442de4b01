"""TRPO: trust region policy optimisation (Schulman et al., 2015, arXiv 1502.05477).

    g = gradient of the surrogate, mean of ratio A, at ratio 1    Eq. (14), A by GAE
    x = F^-1 g by conjugate gradients, F the Hessian of the mean KL      App. C
    from step = sqrt(2 max_kl / (x^T F x)) x on, shorten by `backtrack_ratio` until
        the surrogate has improved and the KL is at most `max_kl`; else stay
    fit the critic to the lambda-returns

Deviation: the KL is bounded on the very steps of the batch, all of them.  Advantages
are standardised; observations and returns normalised by running statistics.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax.ops import checks, natural
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.policy_gradient.experience import CriticConfig, Surrogate
from mbrl_jax.types import Array, Key, Learner, Metrics, Params, Window


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    max_kl: float = 0.01  # largest mean KL of an update
    num_iterations: int = 10  # of conjugate gradients
    damping: float = 0.1  # added to the diagonal of F
    backtrack_ratio: float = 0.8  # of the step, from try to try
    num_tries: int = 10
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
        surrogate = experience.surrogate(net, rows)
        actor, num_tries, moved = improve(surrogate, agent.actor, config)
        critic, opt_state, error = critic_fitter.fit(
            critic_key, agent.critic, state.opt_state, rows
        )
        return State(agent._replace(actor=actor, critic=critic), opt_state), {
            "policy/entropy": experience.entropy(
                net, entropy_key, rows.outputs, rows.valid
            ),
            "policy/divergence": surrogate.divergence(actor),
            "policy/moved": moved.astype(error.dtype),
            "policy/tries": num_tries,
            "critic/loss": error,
            "critic/skipped_updates": opt_state.num_skipped,
        }

    return actor_critic.learner(net, init, update)


def improve(
    surrogate: Surrogate, actor: Params, config: Config
) -> tuple[Params, Array, Array]:
    """A step up the gain, after how many tries, and whether any was good."""
    change = natural.step(
        *surrogate,
        actor,
        size=config.max_kl,
        solver="cg",
        damping=config.damping,
        num_iterations=config.num_iterations,
    )
    return _search(surrogate, actor, change, config)


def _search(
    surrogate: Surrogate, actor: Params, change: Params, config: Config
) -> tuple[Params, Array, Array]:
    """The first good one along `change`, after how many tries, and whether any."""
    before = surrogate.gain(actor)

    def proposal(i: Array) -> Params:
        return jax.tree.map(
            lambda x, y: x + config.backtrack_ratio**i * y, actor, change
        )

    def attempt(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, _ = carry
        new = proposal(i)
        better = surrogate.gain(new) > before
        return i + 1, better & (surrogate.divergence(new) <= config.max_kl)

    def unfinished(carry: tuple[Array, Array]) -> Array:
        return ~carry[1] & (carry[0] < config.num_tries)

    start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    num_tries, found = jax.lax.while_loop(unfinished, attempt, start)
    pick = lambda new, old: jnp.where(found, new, old)
    return jax.tree.map(pick, proposal(num_tries - 1), actor), num_tries, found


def validate(config: Config) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    experience.validate(config.critic)
    checks.at_least(config, 1, "num_iterations", "num_tries")
    checks.at_least(config, 0, "damping")
    checks.positive(config, "max_kl")
    checks.within(config, 0, 1, "discount", "gae_lambda", "backtrack_ratio")
