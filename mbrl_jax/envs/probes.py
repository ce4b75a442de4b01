"""Probes: tasks so small that failing one names the fault.

The five of Jones, "Debugging RL, without the agonizing pain", 2021, in continuous form.
obs and action have size 1, actions lie in [-1, 1]; best is the optimal return.

| probe | steps | obs       | reward                   | best | tests            |
|-------|-------|-----------|--------------------------|------|------------------|
| 1     | 1     | 0         | 1                        | 1    | the value        |
| 2     | 1     | -1 or 1   | obs                      | obs  | ... given an obs |
| 3     | 2     | 0, then 1 | obs                      | 1    | ... discounted   |
| 4     | 1     | 0         | 1 - (action - 1/2)^2     | 1    | the policy       |
| 5     | 1     | -1 or 1   | 1 - (action - obs / 2)^2 | 1    | ... given an obs |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

Reward = Callable[[Array, Array, Array], Array]


def probe1() -> Env:
    """Reward 1 whatever happens.  Optimal return and value: 1."""
    return _one_step(
        "probe1", _zero, lambda obs, action, next_obs: jnp.ones((), obs.dtype)
    )


def probe2() -> Env:
    """The reward is the obs.  Optimal return and value: obs, 0 on average."""
    return _one_step("probe2", _coin, lambda obs, action, next_obs: obs[0])


def probe3() -> Env:
    """Reward 1 after the second step.  Optimal return 1, value `discount`, then 1."""
    return _make(
        "probe3",
        initial=_zero,
        dynamics=lambda state, action: state + 1,
        reward=lambda obs, action, next_obs: jnp.where(obs[0] > 0.5, 1.0, 0.0),
        terminal=lambda obs, action, next_obs: obs[0] > 0.5,
        episode_length=2,
    )


def probe4() -> Env:
    """The reward is best at action 1/2.  Optimal return and value: 1."""
    return _one_step(
        "probe4", _zero, lambda obs, action, next_obs: 1 - (action[0] - 0.5) ** 2
    )


def probe5() -> Env:
    """The reward is best at action obs / 2.  Optimal return and value: 1."""
    return _one_step(
        "probe5", _coin, lambda obs, action, next_obs: 1 - (action[0] - obs[0] / 2) ** 2
    )


def _one_step(name: str, initial: Callable[[Key], Array], reward: Reward) -> Env:
    return _make(
        name,
        initial=initial,
        dynamics=lambda state, action: state,
        reward=reward,
        terminal=lambda obs, action, next_obs: jnp.ones((), bool),
        episode_length=1,
    )


def _make(
    name: str,
    *,
    initial: Callable[[Key], Array],
    dynamics: Callable[[Array, Array], Array],
    reward: Reward,
    terminal: Reward,
    episode_length: int,
) -> Env:
    return simulator.make_env(
        name,
        initial=initial,
        dynamics=dynamics,
        observe=lambda state: state,
        reward=reward,
        terminal=terminal,
        shapes=lambda state: raster.lanes(state, 1.0),
        view=raster.LANES,
        action_size=1,
        action_limit=1.0,
        episode_length=episode_length,
    )


def _zero(key: Key) -> Array:
    return jnp.zeros(1)


def _coin(key: Key) -> Array:
    return jax.random.rademacher(key, (1,), dtype=jnp.result_type(float))
