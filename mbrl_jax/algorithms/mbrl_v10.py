"""Model-based RL 1.0: `mbrl_v05` that also learns from where its plans lead.

Levine, CS 285, "Model-based reinforcement learning"; the data aggregation is DAgger's
(Ross and Bagnell, 2012):

    repeat:
        run one episode: the first ones at random, later by the policy
        fit the model to all the data
    policy: plan `plan.horizon` steps ahead, execute `plan.interval`, plan again

A plan is executed blindly, however wrong it turns out on the way: see `mbrl_v15`.
"""

import dataclasses

from mbrl_jax.models import aggregation, ensemble
from mbrl_jax.models import by_name as models
from mbrl_jax.ops import checks
from mbrl_jax.planners import mpc
from mbrl_jax.types import Algorithm, Env

State = aggregation.State


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
    num_random_episodes: int = 1  # acted at random, before the first plan
    # random_shooting, cem, icem, mppi, cma_es, gradient or ilqr
    planner: str = "icem"
    plan: mpc.Config = mpc.Config(  # there is time to search: plans are few
        interval=10, num_samples=200, num_elites=20, num_iterations=10
    )
    model: models.Config = models.Config(
        ensemble=ensemble.Config(probabilistic=False, num_members=1)
    )


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 1, "num_random_episodes")
    model, policy = aggregation.planning(env, config)
    return aggregation.make(
        env,
        model,
        policy,
        capacity=config.capacity,
        num_random_episodes=config.num_random_episodes,
    )
