"""Dyna: any off-policy learner, with experience from a learned model as well.

The general recipe of the lectures (Sutton, 1990; Levine, CS 285):

    repeat:
        fit the model to all real data
        imagine futures: from `starts`, with `actions` first and the policy's after
            them, of a given number of steps (`imagine.last_length`)
        for each real step: act, and update the `learner` `updates_per_step` times with
            batches of which `real_share` is real

Real states with the actions that were taken there, and one step, are Sutton's choice;
the policy's actions and SAC are MBPO's; discrete actions take DQN.
"""

import dataclasses
from functools import partial

import jax

from mbrl_jax import policies, replay
from mbrl_jax.models import by_name as models
from mbrl_jax.ops import checks
from mbrl_jax.replay import Replay
from mbrl_jax.types import Algorithm, Array, Env, Key, Policy
from mbrl_jax.value_learning import branching, by_name, off_policy

_STARTS = ("seen", "latest", "initial")
_ACTIONS = ("policy", "taken", "uniform")


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    starts: str = "seen"  # states seen so far, the latest ones, or initial ones
    actions: str = "policy"  # the first ones: policy, uniform, or taken in that state
    collect: off_policy.Config = off_policy.Config(updates_per_step=5)
    learner: by_name.Config = by_name.Config()
    imagine: branching.Config = branching.Config()
    model: models.Config = models.Config()


State = off_policy.State


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(config)
    setting = branching.learned(
        env,
        by_name.make(env, config.learner),
        config.model,
        config.imagine,
        config.collect.batch_size,
    )
    latest = config.collect.interval * config.collect.num_envs
    method = branching.make(env, setting, draw=partial(_draw, env, config, latest))
    return off_policy.make(env, method, config.collect)


def _draw(
    env: Env,
    config: Config,
    latest: int,
    key: Key,
    data: Replay,
    number: int,
    policy: Policy,
) -> tuple[Array, Array | None]:
    """Where futures start, and with which actions."""
    newest = latest if config.starts == "latest" else None
    batch_key, reset_key, act_key = jax.random.split(key, 3)
    batch = replay.sample(batch_key, data, number, newest)
    starts = batch.obs
    if config.starts == "initial":
        reset = lambda key: env.reset(key).obs
        starts = jax.vmap(reset)(jax.random.split(reset_key, number))
    if config.actions == "policy":
        return starts, None
    if config.actions == "taken":
        return starts, batch.action
    act = lambda key, obs: policies.uniform(env).act(key, obs, ())[0]
    return starts, jax.vmap(act)(jax.random.split(act_key, number), starts)


def _validate(config: Config) -> None:
    checks.one_of(config, "starts", _STARTS)
    checks.one_of(config, "actions", _ACTIONS)
    if config.starts == "initial" and config.actions == "taken":
        raise ValueError(
            "starts is 'initial', where no action was taken: actions must be policy "
            "or uniform"
        )
