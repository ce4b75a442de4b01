"""Model-based RL 0.5: act at random, fit a model, plan in it, trust the plan.

The first of the lectures (Levine, CS 285, "Model-based reinforcement learning"):

    repeat:
        run one episode at random
        fit the model to all the data
    policy: plan `plan.horizon` steps ahead, execute `plan.interval`, plan again

The model never sees where its plans lead: distribution shift.  More data at random does
not mend it, `mbrl_v10` does.  The model is one network for the change of observation,
fitted by least squares; options are those of `models/ensemble.py`.
"""

import dataclasses

from mbrl_jax.models import aggregation, ensemble
from mbrl_jax.models import by_name as models
from mbrl_jax.planners import mpc
from mbrl_jax.types import Algorithm, Env

State = aggregation.State


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept
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
    model, policy = aggregation.planning(env, config)
    return aggregation.make(
        env,
        model,
        policy,
        capacity=config.capacity,
        num_random_episodes=None,
    )
