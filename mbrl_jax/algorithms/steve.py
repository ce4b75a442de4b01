"""STEVE: stochastic ensemble value expansion (Buckman et al., 2018, arXiv 1807.01675).

    repeat:
        fit the members of an ensemble to all real data
        for each real step: act, and `updates_per_step` times:
            from next_obs of real transitions on, imagine `horizon` steps in each member
            for each h = 0 .. horizon: targets that follow a member for h steps and
                a critic from there on, of all pairs; their mean and their variance
            step the critics towards the means, weighed by 1 / variance   Eqs. (8), (9)
            step the policy up the critics, as the learner does

Where the model is wrong its members differ, and the weights fall back on the real step.
`horizon` 0 with one critic is the learner itself.  Deviations: a member predicts the
reward together with the next obs, so that M K targets are made, not M^2 K; the critics
learn from the same rows, and differ by their first weights alone, where the paper draws
a batch for each.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mbrl_jax.models import bnn, ensemble, gaussian_process, outcomes
from mbrl_jax.models import by_name as models
from mbrl_jax.ops import checks
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics, PyTree, Transition
from mbrl_jax.value_learning import by_name, expansion, off_policy, td3
from mbrl_jax.value_learning.parts import Regression, ValueLearner


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    horizon: int = 3  # H, imagined steps after each real one, at most
    collect: off_policy.Config = off_policy.Config(updates_per_step=4)
    learner: by_name.Config = by_name.Config(
        name="td3", td3=dataclasses.replace(td3.DDPG, num_critics=4)
    )
    model: models.Config = models.Config(
        ensemble=ensemble.Config(
            probabilistic=False,
            num_members=4,
            hidden_sizes=(128, 128),
            learn_reward=True,
        ),
        gaussian_process=gaussian_process.Config(learn_reward=True),
        bnn=bnn.Config(learn_reward=True),
    )


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 0, "horizon")
    learner = by_name.make(env, config.learner)
    _needs_critics(env, learner, config)
    model, decode = outcomes.learned(env, config.model)

    def expand(
        learned: PyTree, key: Key, batch: Transition, members: PyTree
    ) -> tuple[Regression, Metrics]:
        rows, weights = expansion.steve(
            learner, learned, key, batch, model, members, decode, config.horizon
        )
        return rows, {"expansion/weight_of_model": 1 - weights[:, 0].mean()}

    method = expansion.method(learner, model, config.collect.batch_size, expand)
    return off_policy.make(env, method, config.collect)


def _needs_critics(env: Env, learner: ValueLearner, config: Config) -> None:
    """Alone, a critic has no variance, and the real step would have all the weight."""

    def values(key: Key) -> Array:
        state, obs = learner.init(key), jnp.zeros(env.obs_size)
        action, _ = learner.act(state, key, obs)
        return learner.values(state, obs, action)

    (number,) = jax.eval_shape(values, jax.random.key(0)).shape
    if config.horizon and number == 1:
        raise ValueError(
            f"horizon is {config.horizon}, and {config.learner.name} has one critic: "
            "set num_critics to 2 or more"
        )
