"""PPO: proximal policy optimisation (Schulman et al., 2017).

Acting in environments side by side; `policy_gradient/ppo.py` says how it learns.
"""

import dataclasses

from mbrl_jax import gathering, networks
from mbrl_jax.ops import checks
from mbrl_jax.policy_gradient import actor_critic, experience, on_policy, ppo
from mbrl_jax.types import Algorithm, Env


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    num_envs: int = 16  # side by side
    window: int = 128  # steps of each, between two updates
    net: actor_critic.Config = actor_critic.Config()
    learn: ppo.Config = ppo.Config()
    pixels: networks.EncoderConfig = networks.EncoderConfig()  # of pictures


State = on_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 1, "num_envs", "window")
    num_steps = config.num_envs * config.window
    experience.check_minibatches(config.learn, num_steps)
    net = actor_critic.make(env, config.net, config.pixels)
    learner = ppo.make(net, config.learn)
    gatherer = gathering.window_gatherer(env, config.num_envs, config.window)
    return on_policy.make(learner, gatherer)
