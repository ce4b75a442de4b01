"""PETS: probabilistic ensembles with trajectory sampling (Chua et al., 2018).

Plan through an ensemble that knows what it does not know:

    repeat:
        run one episode: the first ones at random, later by model-predictive control,
            whose planner maximises the mean return of particles through the ensemble
        fit the ensemble to all the data

The paper's grid is `model` x `propagation` x `planner`.  With `distil.num_updates` each
fit also puts the ensemble into one network (`models/distilled.py`), which is what plans
are made in: it needs no particle for each member.  Deviations: all candidates of
a search meet the same random numbers, which makes their comparison less noisy and saves
most of the sampling; the default planner and sizes, which suit small tasks and two CPU
cores; those of `models/ensemble.py`.
"""

import dataclasses

from mbrl_jax.models import aggregation, distilled, outcomes, particles
from mbrl_jax.models import by_name as models
from mbrl_jax.models.propagation import PROPAGATIONS
from mbrl_jax.ops import checks
from mbrl_jax.ops import risk as risks
from mbrl_jax.planners import mpc
from mbrl_jax.types import Algorithm, Array, Env, Key, Objective, Policy, PyTree

State = aggregation.State


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
    num_random_episodes: int = 1  # acted at random, before the first plan
    # ts_inf, ts1, moment_matching, distribution_sampling, expectation
    propagation: str = "ts_inf"
    num_particles: int = 10  # P, futures per action sequence; expectation takes one
    risk: str = "mean"  # of the particles' returns: mean, mean_minus_std, cvar
    risk_level: float = 1.0  # stds subtracted, or fraction of worst particles in cvar
    planner: str = "icem"  # or cem (the paper's), cma_es, gradient, mppi, ...
    plan: mpc.Config = mpc.Config()
    model: models.Config = models.Config()
    distil: distilled.Config = distilled.Config()


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.continuous(env)
    _validate(env, config)
    model, decode = outcomes.learned(env, config.model)
    if config.distil.num_updates:
        model = distilled.make(model, env.obs_size, env.action_size, config.distil)
    worth = risks.RISKS[config.risk](config.risk_level)
    deterministic = config.propagation == "expectation"
    num_particles = 1 if deterministic else config.num_particles

    def policy(state: PyTree) -> Policy:
        propagate = PROPAGATIONS[config.propagation](model, state)

        def objective(key: Key, obs: Array) -> Objective:
            if config.planner in mpc.LOOK_INSIDE:
                return particles.particle_mean(
                    key, propagate, decode, obs, num_particles
                )
            return lambda actions: worth(
                particles.particle_returns(
                    key, propagate, decode, obs, actions, num_particles
                )
            )

        return mpc.make(
            config.planner, config.plan, env.action_size, env.action_limit, objective
        )

    return aggregation.make(
        env,
        model,
        policy,
        capacity=config.capacity,
        num_random_episodes=config.num_random_episodes,
    )


def _validate(env: Env, config: Config) -> None:
    mpc.validate(config.planner, config.plan)
    models.validate(config.model, env.obs_size)
    checks.one_of(config, "propagation", PROPAGATIONS)
    checks.one_of(config, "risk", risks.RISKS)
    if config.planner in mpc.LOOK_INSIDE and config.risk != "mean":
        raise ValueError(
            f"risk is {config.risk!r}: {config.planner} plans for the mean only"
        )
    checks.at_least(config, 1, "num_random_episodes", "num_particles")
    if config.risk == "cvar":
        checks.positive(config, "risk_level")
        checks.within(config, 0, 1, "risk_level")
    checks.holds_an_episode(config, env)
    distil = config.distil.num_updates != 0
    if distil:
        checks.under("distil", distilled.validate, config.distil)
    if config.propagation != "expectation":
        number = config.distil.num_members if distil else None
        models.shares(config.model, "num_particles", config.num_particles, number)
