"""NAF: Q-learning by normalised advantage functions (Gu et al., 2016).

Acting in the environment; `value_learning/naf.py` says how it learns.
"""

import dataclasses

from mbrl_jax.types import Algorithm, Env
from mbrl_jax.value_learning import naf, off_policy, parts


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    collect: off_policy.Config = off_policy.Config()
    learn: naf.Config = naf.Config()


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    learner = parts.learner(naf.make(env, config.learn))
    method = off_policy.model_free(learner, config.collect.batch_size)
    return off_policy.make(env, method, config.collect)
