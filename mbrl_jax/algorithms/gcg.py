"""GCG: generalised computation graphs (Kahn et al., 2018).

Acting in the environment; `value_learning/gcg.py` says how it learns.
"""

import dataclasses

from mbrl_jax.types import Algorithm, Env
from mbrl_jax.value_learning import gcg, off_policy


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    collect: off_policy.Config = off_policy.Config(batch_size=64)
    learn: gcg.Config = gcg.Config()


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    method = gcg.make(env, config.learn, config.collect)
    return off_policy.make(env, method, config.collect)
