"""Policy distillation: one network from many teachers (Rusu et al., 2016).

    for each task, a teacher: given, or a DQN that learns it first
    repeat:
        act in each task, and remember what is seen there
        `num_updates` times, with a batch of each task:
            loss, of what the teacher of the task ranks actions by:
            kl     KL(softmax(q_teacher / tau) || softmax(q_student))         Eq. (3)
            mse    (q_student - q_teacher)^2                                  Eq. (2)
            nll    -log softmax(q_student) of the teacher's best action       Eq. (1)

The student has hidden layers for all tasks and a last layer for each (Sec. 3.2).  From
the command line teachers are `--teachers=FOLDER,FOLDER`, and their environments the
tasks, as of `--env=NAME+NAME`; from Python, policies given to `make`.
Deviations: the student acts itself, unless `actor` is "teacher"; the hidden layers are
told which task it is; Adam in place of RMSProp; a teacher's values are not normalised.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mbrl_jax.envs import multi_task
from mbrl_jax.networks import MLP
from mbrl_jax.ops import checks
from mbrl_jax.ops import distillation as losses
from mbrl_jax.types import Algorithm, Array, Env, Params, Policy
from mbrl_jax.value_learning import distillation


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    teachers: tuple[str, ...] = ()  # run folders, by task; none: it trains its own
    loss: str = "kl"  # kl, mse or nll
    temperature: float = 0.01  # tau of kl, of the teacher alone
    hidden_sizes: tuple[int, ...] = (64, 64)  # ReLU
    distil: distillation.Config = distillation.Config()


State = distillation.State


def make(
    env: Env, config: Config = Config(), teachers: Sequence[Policy] = ()
) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.discrete(env)
    checks.vectors(env)
    checks.positive(config, "temperature")
    kinds: dict[str, Callable[[Array, Array], Array]] = {
        "kl": partial(losses.sharpened_divergence, temperature=config.temperature),
        "mse": losses.squared_error,
        "nll": losses.most_likely,
    }
    checks.one_of(config, "loss", kinds)
    num_tasks = len(env.tasks) or 1
    network: Any = MLP(config.hidden_sizes, num_tasks * env.num_actions, nn.relu)

    def values(params: Params, obs: Array) -> Array:
        heads = network.apply(params, obs).reshape(num_tasks, env.num_actions)
        return heads[multi_task.which(env, obs)]

    def loss(params: Params, task: int, obs: Array, said: distillation.Said) -> Array:
        return kinds[config.loss](values(params, obs), said.values)

    student = distillation.Student(
        init=lambda key: network.init(key, jnp.zeros(env.obs_size)),
        values=values,
        loss=loss,
    )
    teaching = distillation.teachers(env, teachers, config.teachers, config.distil)
    return distillation.make(env, student, teaching, config.distil)
