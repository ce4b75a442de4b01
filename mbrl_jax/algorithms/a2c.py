"""A2C: advantage actor-critic (Mnih et al., 2016).

Acting in environments side by side; `policy_gradient/a2c.py` says how it learns.
"""

import dataclasses

from mbrl_jax import gathering
from mbrl_jax.ops import checks
from mbrl_jax.policy_gradient import a2c, actor_critic, on_policy
from mbrl_jax.types import Algorithm, Env


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_envs: int = 16  # side by side
    window: int = 5  # steps of each, between two updates
    num_updates: int = 100  # in a step of the algorithm
    net: actor_critic.Config = actor_critic.Config()
    learn: a2c.Config = a2c.Config()


State = on_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 1, "num_envs", "window", "num_updates")
    net = actor_critic.make(env, config.net)
    learner = a2c.make(net, config.learn)
    gatherer = gathering.window_gatherer(env, config.num_envs, config.window)
    return on_policy.make(learner, gatherer, config.num_updates)
