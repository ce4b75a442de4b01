"""Arm: bring the hand of a two-link arm to one point, from wherever it starts.

The arm of `reacher`: two uniform rods in a horizontal plane with viscous joints and no
stops, motors twice as strong.  obs (q1, q2, q1_dot, q2_dot), rad and rad/s: q1 of the
first link from the x axis, q2 of the second from the first, not wrapped.  action: the
torques at shoulder and elbow, in units of its `gear`.
reward: -|hand - goal|^2 - 0.01 |joint speeds|^2 - 0.01 |action|^2, after the step,
smooth everywhere.  Starts are at rest, uniform within +-`SPREAD` of a posture.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.envs import reacher, simulator
from mbrl_jax.ops import raster, two_link
from mbrl_jax.types import Array, Env, Key

ARM = reacher.REACHER._replace(gear=2.0)
GOAL = (0.3, 0.6)  # m from the shoulder
POSTURE, SPREAD = (-0.6, 0.9), 0.6  # rad, of the middle of the starts
SPEED_COST, ACTION_COST = 0.01, 0.01
EPISODE_LENGTH = 60  # of `reacher.DT`


def make() -> Env:
    return simulator.make_env(
        "arm",
        initial=initial,
        dynamics=dynamics,
        observe=lambda state: state,
        reward=reward,
        shapes=shapes,
        view=raster.View(centre=(0.0, -0.1), half_height=1.25),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
    )


def initial(key: Key) -> Array:
    angles = jax.random.uniform(key, (2,), minval=-SPREAD, maxval=SPREAD)
    return jnp.concatenate([jnp.array(POSTURE) + angles, jnp.zeros(2)])


def dynamics(state: Array, action: Array) -> Array:
    return reacher.dynamics(_shown(state), action, ARM).arm


def hand(obs: Array) -> Array:
    """Where it is, [2], m from the shoulder."""
    y, x = two_link.tip(reacher.LENGTHS, jnp.cos(obs[:2]), jnp.sin(obs[:2]))
    return jnp.stack([x, y])


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    gap = hand(next_obs) - jnp.array(GOAL)
    cost = (gap**2).sum() + SPEED_COST * (next_obs[2:] ** 2).sum()
    return -cost - ACTION_COST * (action**2).sum()


def shapes(state: Array) -> list[raster.Shapes]:
    return reacher.shapes(_shown(state))


def _shown(state: Array) -> reacher.State:
    return reacher.State(state, jnp.array(GOAL))
