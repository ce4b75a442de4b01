"""PILCO: probabilistic inference for learning control (Deisenroth and Rasmussen, 2011).

Improve the policy by the exact gradient of what a Gaussian process expects, its own
ignorance included:

    repeat:
        run one episode: the first ones at random, later by the policy
        fit the processes to all the data
        from the belief about the first observation, H times:
            belief over the observation -> over the action -> over the change of it
        maximise the sum of the expected rewards of these beliefs, by BFGS

All beliefs are Gaussian, their moments exact (`ops/moments.py`).  The environment says
where episodes start, which observations are angles, and what reward a belief expects
(`types.Belief`).  Deviations: the noise of the processes is not added to beliefs, as in
the authors' code; the search starts anew from several policies as well as from the
last.  All is float64: variances are differences of large numbers.
"""

import dataclasses
from functools import partial

import jax

from mbrl_jax import moment_policies
from mbrl_jax.gradients import beliefs
from mbrl_jax.models import gaussian_process, policy_search
from mbrl_jax.ops import bfgs, checks
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, Params, PyTree

State = policy_search.State


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 240  # transitions kept, the latest
    num_random_episodes: int = 1  # acted at random, before the first policy
    horizon: int = 0  # H, steps of the belief; 0: of an episode
    policy: str = "rbf"  # or linear
    num_basis: int = 10  # radial basis functions
    num_restarts: int = 1  # policies that a search starts from, the last one first
    max_evaluations: int = 150  # of a search, per trial
    segment: int = 0  # rematerialise, keeping every so many-th belief; 0: keep all
    model: gaussian_process.Config = gaussian_process.Config()


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(env, config)
    belief = policy_search.belief_of(env, "pilco")
    model_config = dataclasses.replace(config.model, angles=belief.angles)
    model = gaussian_process.make(env.obs_size, env.action_size, model_config)
    made = moment_policies.make(env, belief, config.policy, config.num_basis)
    horizon = config.horizon or env.episode_length

    def loss(state: gaussian_process.State, params: Params) -> Array:
        args = belief, state.kernels, made, params, horizon, config.segment
        return -beliefs.rollout(*args)[0]

    def improve(key: Key, state: PyTree, params: Params) -> tuple[Params, Metrics]:
        drawn = jax.vmap(made.init)(jax.random.split(key, config.num_restarts))
        starts = jax.tree.map(lambda x, last: x.at[0].set(last), drawn, params)
        search = partial(bfgs.minimise, partial(loss, state))
        every = jax.vmap(lambda start: search(start, config.max_evaluations))(starts)
        found = bfgs.best(every)
        return found.params, {
            "imagined/return": -found.loss,
            "optimizer/num_evaluations": found.num_evaluations,
            "gradient/norm": found.gradient_norm,
        }

    return policy_search.make(env, config, model, made, improve)


def _validate(env: Env, config: Config) -> None:
    checks.continuous(env)
    checks.double("pilco")
    counts = ("num_random_episodes", "num_restarts", "max_evaluations")
    checks.at_least(config, 1, *counts)
    checks.at_least(config, 0, "horizon", "segment")
    checks.holds_an_episode(config, env)
    moment_policies.validate(config)
    policy_search.validate(config.model, "pilco")
    if config.model.kernel != "squared_exponential":
        raise ValueError(
            f"model.kernel is {config.model.kernel!r}, which has no moments"
        )
