"""PIPPS: PILCO with particles, against chaos (Parmas et al., 2018).

"PIPPS: flexible model-based policy search robust to the curse of chaos", ICML 2018,
arXiv 1902.01240.  As PILCO, with particles in place of beliefs:

    repeat:
        run one episode: the first ones at random, later by the policy
        fit the processes to all the data
        `num_updates` times:
            move P particles from where episodes start for H steps, each next state
            drawn from the process's prediction, its noise included
            step the policy along the gradient of their mean return

by one of these estimators, all from `gradients`:

    total_propagation    pathwise and likelihood ratio, mixed at each step (Algorithm 1)
    pathwise             through the particles: explodes where the dynamics are chaotic
    likelihood_ratio     the score function of the predictions
    batch_importance     the same of what all particles predict together
    gaussian_resampling  pathwise, the particles replaced at each step by as many from
                         the Gaussian with their moments

Deviations: Adam begins anew after each trial, and its learning rate falls; the
variances of `total_propagation` are those with respect to the weights of the basis
functions, not the targets; the centres of a policy begin apart from each other
(`spread`).  All is float64, as for PILCO.
"""

import dataclasses
from functools import partial

import jax.numpy as jnp

from mbrl_jax import moment_policies
from mbrl_jax.gradients import by_name, closed_loop
from mbrl_jax.gradients.closed_loop import ExpectedReturn
from mbrl_jax.models import gaussian_process, outcomes, policy_search
from mbrl_jax.ops import checks
from mbrl_jax.types import Algorithm, Array, Env, Key, PyTree

State = policy_search.State


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 240  # transitions kept, the latest
    num_random_episodes: int = 1  # acted at random, before the first policy
    horizon: int = 0  # H, steps of a particle; 0: of an episode
    policy: str = "rbf"  # or linear
    num_basis: int = 50  # radial basis functions
    spread: float = 1.0  # of their centres around the start: the std of each entry
    estimator: str = "total_propagation"  # or one of the others above
    num_particles: int = 300  # P
    num_updates: int = 250  # of the policy, after each episode
    learning_rate: float = 1e-2  # of Adam, at first
    max_norm: float = 1.0  # of the gradient, above which it is scaled down
    segment: int = 0  # rematerialise, keeping every so many-th state; 0: keep all
    model: gaussian_process.Config = gaussian_process.Config()


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(env, config)
    belief = policy_search.belief_of(env, "pipps")
    model_config = dataclasses.replace(config.model, angles=belief.angles)
    model = gaussian_process.make(env.obs_size, env.action_size, model_config)
    made = moment_policies.make(
        env, belief, config.policy, config.num_basis, config.spread
    )
    actor = closed_loop.deterministic(made.action)
    decode = outcomes.decoder(env, learn_reward=False, learn_terminal=False)
    horizon = config.horizon or env.episode_length

    def gradient(
        key: Key, state: gaussian_process.State, ready: PyTree
    ) -> tuple[PyTree, Array]:
        predict, nowhere = partial(model.predict, state), jnp.zeros((1, env.obs_size))
        system = closed_loop.from_member(predict, decode, nowhere, env.action_size)
        system = system._replace(reset=lambda key: env.reset(key).obs)
        problem = ExpectedReturn(system, actor, horizon, segment=config.segment)
        estimator = by_name.ESTIMATORS[config.estimator]
        return estimator(key, ready, problem, config.num_particles)

    return policy_search.of_particles(env, config, model, made, gradient)


def _validate(env: Env, config: Config) -> None:
    checks.double("pipps")
    checks.one_of(config, "estimator", by_name.ESTIMATORS)
    policy_search.validate_particles(config, env)
    policy_search.validate(config.model, "pipps")
