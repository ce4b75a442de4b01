"""REINFORCE (Williams, 1992).

Acting in environments side by side; `policy_gradient/reinforce.py` says how it learns.
"""

import dataclasses

from mbrl_jax import gathering
from mbrl_jax.ops import checks
from mbrl_jax.policy_gradient import actor_critic, experience, on_policy, reinforce
from mbrl_jax.types import Algorithm, Env


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_envs: int = 16  # episodes between two updates
    net: actor_critic.Config = actor_critic.Config()
    learn: reinforce.Config = reinforce.Config()


State = on_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 2, "num_envs")  # each is the baseline of the others
    num_steps = config.num_envs * env.episode_length
    experience.check_minibatches(config.learn, num_steps)
    net = actor_critic.make(env, config.net)
    learner = reinforce.make(net, config.learn)
    gatherer = gathering.episode_gatherer(env, config.num_envs)
    return on_policy.make(learner, gatherer)
