"""MVE: model-based value expansion (Feinberg et al., 2018, arXiv 1803.00101).

    repeat:
        fit the model to all real data
        for each real step: act, and `updates_per_step` times:
            from next_obs of real transitions on, imagine `horizon` steps by the policy
            step the critics towards r + sum of the imagined rewards + critics' value
                of the end, discounted; with `td_k`, at all imagined states as well
            step the policy up the critics, as the learner does

The model improves the targets only: it gives no data.  `horizon` 0 is the learner
itself.  The paper's learner is DDPG, `learner.name` td3 with one critic.  Deviations:
the model is probabilistic, and fitted to all data now and then; the paper's predicts a
mean, and takes a step of its own at every update.
"""

import dataclasses

from mbrl_jax.models import bnn, ensemble, gaussian_process, imagine, outcomes
from mbrl_jax.models import by_name as models
from mbrl_jax.ops import checks
from mbrl_jax.types import Algorithm, Env, Key, Metrics, PyTree, Transition
from mbrl_jax.value_learning import by_name, expansion, off_policy, td3
from mbrl_jax.value_learning.parts import Regression


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    horizon: int = 3  # H, imagined steps after each real one
    td_k: bool = True  # learn at imagined states, too
    collect: off_policy.Config = off_policy.Config(updates_per_step=4)
    learner: by_name.Config = by_name.Config(name="td3", td3=td3.DDPG)
    model: models.Config = models.Config(
        ensemble=ensemble.Config(
            num_members=1, hidden_sizes=(128, 128), learn_reward=True
        ),
        gaussian_process=gaussian_process.Config(learn_reward=True),
        bnn=bnn.Config(learn_reward=True),
    )


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.at_least(config, 0, "horizon")
    learner = by_name.make(env, config.learner)
    model, decode = outcomes.learned(env, config.model)

    def expand(
        learned: PyTree, key: Key, batch: Transition, members: PyTree
    ) -> tuple[Regression, Metrics]:
        sample = imagine.sample_ts1(model, members)
        rows = expansion.mve(
            learner, learned, key, batch, sample, decode, config.horizon, config.td_k
        )
        return rows, {}

    method = expansion.method(learner, model, config.collect.batch_size, expand)
    return off_policy.make(env, method, config.collect)
