"""The value learners by name, for algorithms that take any of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from mbrl_jax.ops import checks
from mbrl_jax.types import Env
from mbrl_jax.value_learning import dqn, naf, sac, td3
from mbrl_jax.value_learning.parts import ValueLearner

_LEARNERS: dict[str, Any] = {"sac": sac, "td3": td3, "naf": naf, "dqn": dqn}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    name: str = "sac"  # sac, td3 or naf; dqn for discrete actions
    sac: sac.Config = sac.Config()
    td3: td3.Config = td3.Config()
    naf: naf.Config = naf.Config()
    dqn: dqn.Config = dqn.Config()


def make(env: Env, config: Config) -> ValueLearner:
    """Raises ValueError for what cannot be."""
    checks.one_of(config, "name", _LEARNERS)
    for name, learner in _LEARNERS.items():  # those that are not in use, too
        checks.under(name, learner.validate, getattr(config, name))
    return _LEARNERS[config.name].make(env, getattr(config, config.name))
