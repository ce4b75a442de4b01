"""T-maze: what is seen at the start says where to turn at the end (Bakker, 2002).

"Reinforcement learning with long short-term memory", Sec. 5.1.  A corridor of `LENGTH`
steps leads to a junction; a sign in its first cell, and only there, says whether the
prize is above or below.  Whoever keeps nothing in mind turns the right way half of the
time.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

LENGTH = 10  # steps from the start to the junction
ON, UP, DOWN = range(3)  # the actions
PRIZE = 4.0
PENALTY = 0.1  # of a step that leads nowhere, and of a turn to the wrong side


def make() -> Env:
    """The best return is 4, without a memory (4 - 0.1) / 2 = 1.95.

    obs: the sign, 1 (up) or -1, 0 elsewhere than at the start; 1 at the junction, else
    0.  Actions: on, up, down.
    """
    return simulator.partly_observed(_all_seen(), "t_maze", _show)


def _all_seen() -> Env:
    """The same task, showing (position, sign)."""

    def initial(key: Key) -> Array:
        sign = jax.random.rademacher(key, (), dtype=jnp.result_type(float))
        return jnp.stack([jnp.zeros_like(sign), sign])

    def dynamics(state: Array, action: Array) -> Array:
        position = jnp.minimum(state[0] + (action == ON), LENGTH)
        return jnp.stack([position, state[1]])

    def terminal(obs: Array, action: Array, next_obs: Array) -> Array:
        return (obs[0] >= LENGTH) & (action != ON)

    def reward(obs: Array, action: Array, next_obs: Array) -> Array:
        right = terminal(obs, action, next_obs) & ((action == UP) == (obs[1] > 0))
        stays = next_obs[0] == obs[0]
        return jnp.where(right, PRIZE, jnp.where(stays, -PENALTY, 0))

    return simulator.make_env(
        "t_maze_all_seen",
        initial=initial,
        dynamics=dynamics,
        observe=lambda state: state,
        reward=reward,
        terminal=terminal,
        shapes=_shapes,
        view=raster.View((LENGTH / 2, 0.0), half_height=2.0, height=150, width=450),
        num_actions=3,
        episode_length=3 * LENGTH,
    )


def _show(obs: Array) -> Array:
    position, sign = obs
    junction = (position >= LENGTH).astype(obs.dtype)
    return jnp.stack([jnp.where(position == 0, sign, 0), junction])


def _shapes(state: Array) -> list[raster.Shapes]:
    position, sign = state
    at = lambda x, y: jnp.stack([jnp.asarray(x, state.dtype), jnp.asarray(y)])
    corridor = raster.box((LENGTH / 2, 0.0), (LENGTH / 2 + 0.5, 0.5), raster.STEEL)
    branch = raster.box((float(LENGTH), 0.0), (0.5, 1.5), raster.STEEL)
    return [
        corridor,
        branch,
        raster.disc(at(LENGTH, sign), 0.35, raster.GREEN),
        raster.disc(at(0, 0.9 * sign), 0.2, raster.GREEN),
        raster.disc(at(position, 0.0 * sign), 0.28, raster.BLUE),
    ]
