"""MAAC: model-augmented actor-critic (Clavera et al., 2020, arXiv 2005.08068).

    repeat:
        fit the ensemble to all real data
        imagine short futures from real states into a buffer
        for each real step: act, and `updates_per_step` times:
            step two critics on batches of real and imagined transitions, as SAC does
            step the policy up the gradient, through the model, of           Eq. (2)
                sum_{t<H} discount^t r_t + discount^H min over critics of Q(s_H, a_H)
            with each step of the model by a member drawn at random

H is the horizon, of 0 .. `max_horizon`, that predicts best what the latest real steps
were worth, which the model has not seen yet: with H = 0 it is MBPO.  Rewards
include SAC's for entropy.  Deviation: the paper sets H by hand (`cross_validate` off).
"""

import dataclasses

import jax
import jax.numpy as jnp

from mbrl_jax.models import bnn, ensemble, gaussian_process
from mbrl_jax.models import by_name as models
from mbrl_jax.models.imagine import sample_ts1
from mbrl_jax.ops import checks
from mbrl_jax.types import Algorithm, Env, Key, Metrics, PyTree, Transition
from mbrl_jax.value_learning import branching, expansion, off_policy, sac, validity
from mbrl_jax.value_learning.branching import ModelState
from mbrl_jax.value_learning.parts import one_step


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    max_horizon: int = 5  # H, at most
    cross_validate: bool = True  # choose H by real data; else it is the greatest
    num_windows: int = 256  # of real steps, to choose by
    collect: off_policy.Config = off_policy.Config(updates_per_step=10)
    learn: sac.Config = sac.Config()
    imagine: branching.Config = branching.Config()
    model: models.Config = models.Config(
        ensemble=ensemble.Config(
            hidden_sizes=(200, 200), batch_size=256, patience=5, learn_reward=True
        ),
        gaussian_process=gaussian_process.Config(learn_reward=True),
        bnn=bnn.Config(learn_reward=True),
    )


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 0, "max_horizon")
    checks.at_least(config, 1, "num_windows")
    learner = sac.make(env, config.learn)
    setting = branching.learned(
        env, learner, config.model, config.imagine, config.collect.batch_size
    )
    model, most = setting.model, config.max_horizon

    def learn(
        key: Key, learned: PyTree, model_state: ModelState, batch: Transition
    ) -> tuple[PyTree, Metrics]:
        target_key, key = jax.random.split(key)
        rows = one_step(learner, learned, target_key, batch)
        sample = sample_ts1(model, model.members(model_state.model))
        objective = expansion.lookahead(
            sample, setting.decode, learner.discount, model_state.horizon, most
        )
        learned, metrics = learner.update(key, learned, rows, batch.obs, objective)
        return learned, {**metrics, "lookahead/horizon": model_state.horizon}

    choose = lambda *_: jnp.full((), most, jnp.int32)
    if config.cross_validate:
        choose = validity.best_horizon(
            setting, config.collect, config.num_windows, most
        )
    method = branching.make(env, setting, learn=learn, choose=choose)
    return off_policy.make(env, method, config.collect)
