"""TD3 (Fujimoto et al., 2018); one critic and no delay make it DDPG.

Acting in the environment; `value_learning/td3.py` says how it learns.
"""

import dataclasses

from mbrl_jax.types import Algorithm, Env
from mbrl_jax.value_learning import off_policy, parts, td3


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    collect: off_policy.Config = off_policy.Config()
    learn: td3.Config = td3.Config()
    pixels: parts.PixelsConfig = parts.PixelsConfig()  # of pictures


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    method = td3.make(env, config.learn, config.pixels)
    learner = parts.learner(method, config.pixels.random_shift)
    hooks = off_policy.model_free(learner, config.collect.batch_size)
    return off_policy.make(env, hooks, config.collect)
