"""QT-Opt: Q-learning with a search for the best action (Kalashnikov et al., 2018).

Acting in the environment; `value_learning/qt_opt.py` says how it learns.
"""

import dataclasses

from mbrl_jax.types import Algorithm, Env
from mbrl_jax.value_learning import off_policy, parts, qt_opt


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    collect: off_policy.Config = off_policy.Config(batch_size=64)
    learn: qt_opt.Config = qt_opt.Config()


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    learner = parts.learner(qt_opt.make(env, config.learn))
    method = off_policy.model_free(learner, config.collect.batch_size)
    return off_policy.make(env, method, config.collect)
