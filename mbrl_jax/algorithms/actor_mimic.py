"""Actor-Mimic: one network that acts and thinks as many (Parisotto et al., 2016).

    for each task i, a teacher, or expert: given, or a DQN that learns it first
    repeat:
        act in each task, epsilon-greedily, and remember what is seen there
        `num_updates` times, with a batch of each task, a step down
            KL(softmax(Q_i / tau) || pi) + beta |f_i(h) - h_i|^2

pi is the student's policy, a softmax of its outputs, h its last hidden layer, h_i that
of the expert, and f_i a linear map, learned with the student for each expert: the
student's features have to hold what the expert's do (Sec. 3).  Teachers are named as
for `policy_distillation`.
Deviations: KL in place of the cross-entropy, from which it differs by a constant; the
network is told which task it is, which pictures of games tell by themselves.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mbrl_jax.networks import MLP, features
from mbrl_jax.ops import checks
from mbrl_jax.ops import distillation as losses
from mbrl_jax.types import Algorithm, Array, Env, Key, Params, Policy
from mbrl_jax.value_learning import distillation


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    teachers: tuple[str, ...] = ()  # run folders, by task; none: it trains its own
    temperature: float = 1.0  # tau, of the experts' values
    feature_weight: float = 0.01  # beta
    hidden_sizes: tuple[int, ...] = (64, 64)  # ReLU
    distil: distillation.Config = distillation.Config(exploration=0.1)


State = distillation.State


def make(
    env: Env, config: Config = Config(), teachers: Sequence[Policy] = ()
) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    checks.discrete(env)
    checks.vectors(env)
    checks.positive(config, "temperature")
    checks.at_least(config, 0, "feature_weight")
    teaching = distillation.teachers(env, teachers, config.teachers, config.distil)
    sizes = distillation.num_features(env, teaching)
    network = MLP(config.hidden_sizes, env.num_actions, nn.relu)
    apply: Any = network.apply
    maps: list[Any] = [
        nn.Dense(size, param_dtype=jnp.result_type(float)) for size in sizes
    ]

    def init(key: Key) -> Params:
        key, *keys = jax.random.split(key, 1 + len(maps))
        start: Any = network.init
        params = start(key, jnp.zeros(env.obs_size))
        hidden = features(network, params, jnp.zeros(env.obs_size))
        found = [f.init(key, hidden) for f, key in zip(maps, keys, strict=True)]
        return {"network": params, "maps": found}

    def values(params: Params, obs: Array) -> Array:
        return apply(params["network"], obs)

    def loss(params: Params, task: int, obs: Array, said: distillation.Said) -> Array:
        policy = losses.sharpened_divergence(
            values(params, obs), said.values, config.temperature
        )
        hidden = features(network, params["network"], obs)
        mapped = maps[task].apply(params["maps"][task], hidden)
        thought = losses.squared_error(mapped, said.features)
        return policy + config.feature_weight * thought

    student = distillation.Student(init, values, loss)
    return distillation.make(env, student, teaching, config.distil)
