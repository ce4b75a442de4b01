"""MBPO: model-based policy optimisation (Janner et al., 2019, arXiv 1906.08253).

"When to trust your model":

    repeat:
        fit the ensemble to all real data
        imagine short futures from real states, by the policy, each step by an elite
            drawn at random; the futures get longer on a schedule
        for each real step: act, and update SAC `updates_per_step` times with batches
            of which `real_share` is real

What the futures are worth is measured each time, before the model has seen the latest
data, with the paper's bound from these measurements (`validity.py`): "validity/...".
The model learns the reward, while terminations are those of the environment.
Deviations: elites share the rows of a step equally; with `real_share` 1 it is SAC.
"""

import dataclasses

from mbrl_jax.models import bnn, ensemble, gaussian_process
from mbrl_jax.models import by_name as models
from mbrl_jax.ops import checks
from mbrl_jax.types import Algorithm, Env
from mbrl_jax.value_learning import branching, off_policy, sac, validity


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    collect: off_policy.Config = off_policy.Config(updates_per_step=20)
    learn: sac.Config = sac.Config()
    imagine: branching.Config = branching.Config(num_rollouts=100_000)
    model: models.Config = models.Config(
        ensemble=ensemble.Config(
            num_members=7,
            num_elites=5,
            hidden_sizes=(200, 200, 200, 200),
            weight_decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
            batch_size=256,
            patience=5,
            holdout_fraction=0.2,
            max_holdout=5000,
            learn_reward=True,
        ),
        gaussian_process=gaussian_process.Config(learn_reward=True),
        bnn=bnn.Config(learn_reward=True),
    )
    num_watched: int = 64  # windows of real steps that the model is measured on


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 1, "num_watched")
    setting = branching.learned(
        env,
        sac.make(env, config.learn),
        config.model,
        config.imagine,
        config.collect.batch_size,
    )
    watch = validity.watcher(
        setting, config.collect, config.num_watched, config.imagine.last_length
    )
    method = branching.make(env, setting, watch=watch)
    return off_policy.make(env, method, config.collect)
