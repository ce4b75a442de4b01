"""Model-based RL 1.5: `mbrl_v10` that plans anew at every step.

Levine, CS 285, "Model-based reinforcement learning":

    repeat:
        run one episode: the first ones at random, later by the policy
        fit the model to all the data
    policy: plan `plan.horizon` steps ahead, execute the first action, plan again

Model-predictive control: what the model got wrong is seen at the next step, and planned
with.  It pays with a search per action; version 2.0, `bptt`, has a network act.
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
    plan: mpc.Config = mpc.Config()
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
