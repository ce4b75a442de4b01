"""What local controllers are improved from: their episodes, and what is fitted to them.

For one controller, to be vmapped over many, each with an environment of its own.
`config` has the fields `num_episodes`, `num_remembered`, `horizon`, `init_std`,
`max_kl`, `prior`, `strength`, `num_clusters` and `rows_per_cluster`, as in the
algorithms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import gathering
from mbrl_jax.gathering import Gathered
from mbrl_jax.gradients import pathwise
from mbrl_jax.local_policies import controllers, local_system
from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.models import gaussian_mixture, linear_gaussian
from mbrl_jax.models.linear_gaussian import Dynamics, Episodes
from mbrl_jax.ops import checks, finite
from mbrl_jax.planners.lqg import Belief
from mbrl_jax.types import Array, Env, Key, Window

Reward = Callable[[Array, Array, Array], Array]  # (obs [O], action [A], next_obs) -> []


class Experience(NamedTuple):
    gathered: Gathered  # [N, ...]
    episodes: Episodes  # the latest, the newest first
    dynamics: Dynamics  # fitted to those gathered
    system: System  # with the reward expanded around the controller's way


def first_cov(env: Env, config: Any) -> Array:
    """[A, A] of the first controllers."""
    return jnp.square(config.init_std * env.action_limit) * jnp.eye(env.action_size)


def first_controller(env: Env, config: Any) -> Controller:
    """Noise around 0."""
    num_times, O, A = env.episode_length, env.obs_size, env.action_size
    return Controller(
        jnp.zeros((num_times, A, O)),
        jnp.zeros((num_times, A)),
        jnp.tile(first_cov(env, config)[None], (num_times, 1, 1)),
    )


def no_episodes(env: Env, config: Any) -> Episodes:
    """None of them valid yet."""
    number = max(config.num_episodes, config.num_remembered)
    shape = number, env.episode_length
    obs, action = (
        jnp.zeros((*shape, env.obs_size)),
        jnp.zeros((*shape, env.action_size)),
    )
    return Episodes(obs, action, obs, jnp.zeros(shape, bool))


def gather(
    key: Key,
    env: Env,
    controller: Controller,
    remembered: Episodes,
    reward: Reward,
    config: Any,
) -> Experience:
    """Runs `num_episodes`, fits the dynamics, expands the reward.

    What bends up is taken for straight: to a quadratic, noise there would be a gain.
    """
    act_key, fit_key = jax.random.split(key)
    gatherer = gathering.episode_gatherer(env, config.num_episodes)
    gathered = gatherer.gather(act_key, controllers.policy(controller), ())
    new, number = usable(gathered.windows), len(remembered.valid)
    every = jax.tree.map(lambda x, y: jnp.concatenate([x, y])[:number], new, remembered)
    dynamics = _fit(fit_key, new, every, config)
    cost = lambda x, u, after: -reward(x, u, after)
    system = local_system.make(dynamics, cost, _start(every), controller, convex=True)
    return Experience(gathered, every, dynamics, system)


def usable(windows: Window) -> Episodes:
    """The rows that are finite; the others are 0 and not valid."""
    steps = windows.transitions
    rows = steps.obs, steps.action, steps.next_obs
    valid = windows.valid & finite.usable(rows, num_batch_axes=2)
    obs, action, next_obs = (jnp.where(valid[..., None], x, 0) for x in rows)
    return Episodes(obs, action, next_obs, valid)


def validate(method: str, env: Env, config: Any) -> Reward:
    """The reward of `env`.  Raises ValueError for what no `method` can be made of."""
    checks.continuous(env)
    reward = env.reward
    if reward is None:
        raise ValueError(
            f"only the simulator of {env.name} knows its reward, which {method} expands"
        )
    obs, action = jnp.zeros(env.obs_size), jnp.zeros(env.action_size)
    if not pathwise.varies(lambda z: reward(*z), (obs, action, obs)):
        raise ValueError(
            f"the reward of {env.name} does not change with what is seen and done, or "
            f"only by jumps: {method} has nothing to expand"
        )
    check_settings(env, config)
    return reward


def check_settings(env: Env, config: Any) -> None:
    """Raises ValueError, naming the field, for what cannot be."""
    checks.one_of(config, "prior", ("mixture", "none"))
    checks.positive(config, "max_kl", "init_std", "strength")
    checks.at_least(config, 2, "num_episodes")
    checks.at_least(config, 1, "num_clusters", "rows_per_cluster", "num_remembered")
    checks.at_least(config, 0, "horizon")
    if config.horizon > env.episode_length:
        raise ValueError(
            f"horizon is {config.horizon}, more than the {env.episode_length} steps of "
            f"an episode of {env.name}"
        )
    least = env.obs_size + env.action_size + 1
    if config.prior == "none" and config.num_episodes < least:
        raise ValueError(
            f"num_episodes is {config.num_episodes}, must be at least {least} for "
            f"prior 'none': there are {env.obs_size} observations and "
            f"{env.action_size} actions to fit"
        )


def _fit(key: Key, new: Episodes, every: Episodes, config: Any) -> Dynamics:
    if config.prior == "none":
        return linear_gaussian.fit(new)
    rows, valid = linear_gaussian.rows_of(every)
    mixture = gaussian_mixture.fit(
        key,
        rows.reshape(-1, rows.shape[-1]),
        valid.ravel(),
        num_clusters=config.num_clusters,
        rows_per_cluster=config.rows_per_cluster,
    )
    return linear_gaussian.fit(new, linear_gaussian.mixed(mixture, config.strength))


def _start(episodes: Episodes) -> Belief:
    """Of the first observations."""
    obs, weight = episodes.obs[:, 0], episodes.valid[:, 0].astype(episodes.obs.dtype)
    number = jnp.maximum(weight.sum(), 1)
    mean = weight @ obs / number
    gap = (obs - mean[None]) * weight[:, None]
    return Belief(mean, gap.T @ gap / number)
