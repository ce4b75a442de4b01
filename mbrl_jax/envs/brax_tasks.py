"""What is known of Brax's tasks: their rewards and ends, as functions of observations.

The rules are those of Brax's own sources (Freeman et al., 2021), restated for (obs [O],
action [A], next_obs [O]) wherever the observation holds what they need.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.types import Array

Rule = Callable[[Array, Array, Array], Array]  # (obs [O], action [A], next_obs [O])

BACKENDS = ("generalized", "positional", "spring", "mjx")


class BraxTask(NamedTuple):
    """What is known of one of Brax's tasks, from the simulator's own rules."""

    terminal: Rule
    reward: Rule | None = None
    exact: tuple[str, ...] = BACKENDS  # where the observation holds all that they need


def never(obs: Array, action: Array, next_obs: Array) -> Array:
    """No end, but of an observation that is not finite.  So in all rules here."""
    return ~jnp.isfinite(next_obs).all()


def hopper_terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    """Healthy: height > 0.7 m, |pitch| < 0.2 rad, all coordinates in (-100, 100).

    Brax bounds the velocities likewise, but the observation clips them to 10.
    """
    height, pitch = next_obs[0], next_obs[1]
    healthy = (height > 0.7) & (jnp.abs(pitch) < 0.2)
    healthy &= (jnp.abs(next_obs[1:]) < 100).all()
    return ~healthy | never(obs, action, next_obs)


def walker2d_terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    """Healthy: height in (0.8, 2) m and |pitch| < 1 rad."""
    height, pitch = next_obs[0], next_obs[1]
    healthy = (height > 0.8) & (height < 2.0) & (jnp.abs(pitch) < 1.0)
    return ~healthy | never(obs, action, next_obs)


def ant_terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    """Healthy: height in [0.2, 1] m."""
    height = next_obs[0]
    return (height < 0.2) | (height > 1.0) | never(obs, action, next_obs)


def humanoid_terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    """Healthy: height in [1, 2] m."""
    height = next_obs[0]
    return (height < 1.0) | (height > 2.0) | never(obs, action, next_obs)


def inverted_pendulum_terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    """The pole is more than 0.2 rad from upright."""
    return (jnp.abs(next_obs[1]) > 0.2) | never(obs, action, next_obs)


def inverted_pendulum_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    return jnp.ones((), next_obs.dtype)


def double_pendulum_terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    """The tip is at most 1 m high; upright, it is 1.2 m high."""
    return (_double_pendulum_tip(next_obs)[1] <= 1.0) | never(obs, action, next_obs)


def double_pendulum_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """10 while up, less the tip's distance from (0, 2) and the speeds, weighted.

    The observation clips the velocities to 10, Brax's own reward does not.
    """
    x, z = _double_pendulum_tip(next_obs)
    distance = 0.01 * x**2 + (z - 2) ** 2
    speed = 1e-3 * next_obs[6] ** 2 + 5e-3 * next_obs[7] ** 2
    return 10.0 * (z > 1.0) - distance - speed


def reacher_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """Minus the distance of the tip from the target (m), minus the squared action."""
    return -_norm(next_obs[-3:]) - (action**2).sum()


def pusher_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """Minus the object's distances from goal and arm (m) and the effort.

    The distances are those before the step, and the torque is twice the action.
    """
    arm, thing, goal = obs[14:17], obs[17:20], obs[20:23]
    control = ((2 * action) ** 2).sum()
    return -_norm(thing - goal) - 0.5 * _norm(thing - arm) - 0.1 * control


TASKS = {
    "ant": BraxTask(ant_terminal),
    "fast": BraxTask(never),  # no physics: with it Brax tests its wrappers
    "halfcheetah": BraxTask(never),
    "hopper": BraxTask(hopper_terminal),
    "humanoid": BraxTask(humanoid_terminal),
    "humanoidstandup": BraxTask(never),
    "inverted_pendulum": BraxTask(inverted_pendulum_terminal, inverted_pendulum_reward),
    "inverted_double_pendulum": BraxTask(
        double_pendulum_terminal,
        double_pendulum_reward,
        exact=("generalized", "mjx"),  # the joints of the others give a little
    ),
    "pusher": BraxTask(never, pusher_reward),
    "reacher": BraxTask(never, reacher_reward),
    "swimmer": BraxTask(never),
    "walker2d": BraxTask(walker2d_terminal),
}


def _norm(vector: Array) -> Array:
    """[D] -> [], with gradient 0 at 0."""
    square = (vector**2).sum()
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _double_pendulum_tip(obs: Array) -> tuple[Array, Array]:
    """(x, z) in m of the upper end of two poles of 0.6 m.

    obs: position of the cart, sin of both joints, cos of both, three velocities.
    """
    x, sin1, sin2, cos1, cos2 = obs[:5]
    sin12, cos12 = sin1 * cos2 + cos1 * sin2, cos1 * cos2 - sin1 * sin2
    return x + 0.6 * (sin1 + sin12), 0.6 * (cos1 + cos12)
