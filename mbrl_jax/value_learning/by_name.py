"""The value learners by name, for algorithms that take any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from mbrl_jax.ops import checks
from mbrl_jax.types import Env
from mbrl_jax.value_learning import dqn, naf, sac, td3
from mbrl_jax.value_learning.parts import ValueLearner

_LEARNERS: dict[str, Callable[[Env, Any], ValueLearner]] = {
    "sac": sac.make,
    "td3": td3.make,
    "naf": naf.make,
    "dqn": dqn.make,
}


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
    for learner in (sac, td3, naf, dqn):  # those that are not in use, too
        own = learner.__name__.rpartition(".")[2]
        checks.under(own, learner.validate, getattr(config, own))
    return _LEARNERS[config.name](env, getattr(config, config.name))
