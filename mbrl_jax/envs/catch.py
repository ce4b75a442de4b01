"""Catch: a ball falls at a slant, and has to be caught (after bsuite's, Osband et al.,
2020, "Behaviour suite for reinforcement learning", where it falls straight).

A board of `SIZE` x `SIZE` cells, one pixel each as `pixels/catch/size=10`.  The ball
starts in the top row, in any column, and moves down a row and `slant` columns in a
step; at a wall its slant turns.  obs: row and column of the ball, its slant, and the
column of the paddle, in the middle at first, all in [-1, 1].  Actions: left, stay,
right.  reward: 1 for a ball that is caught, -1 for one that is not; both are the end.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

SIZE = 10  # cells
CELL = 2 / SIZE  # the board is from -1 to 1


def make() -> Env:
    """The best return is 1; who never moves has about -0.8."""
    return simulator.make_env(
        "catch",
        initial=initial,
        dynamics=dynamics,
        observe=observe,
        reward=reward,
        terminal=terminal,
        shapes=shapes,
        view=raster.View((0.0, 0.0), half_height=1.0, height=200, width=200),
        num_actions=3,
        episode_length=SIZE,
    )


def initial(key: Key) -> Array:
    """row, column, slant, paddle; [4] int32."""
    column_key, slant_key = jax.random.split(key)
    column = jax.random.randint(column_key, (), 0, SIZE)
    slant = jax.random.randint(slant_key, (), -1, 2)
    return jnp.stack([0, column, slant, SIZE // 2])


def dynamics(state: Array, action: Array) -> Array:
    row, column, slant, paddle = state
    ahead = column + slant
    slant = jnp.where((ahead < 0) | (ahead >= SIZE), -slant, slant)
    paddle = jnp.clip(paddle + action - 1, 0, SIZE - 1)
    return jnp.stack([row + 1, column + slant, slant, paddle])


def observe(state: Array) -> Array:
    unit = lambda cell: 2 * cell / (SIZE - 1) - 1
    row, column, slant, paddle = state
    return jnp.stack([unit(row), unit(column), slant + 0.0, unit(paddle)])


def terminal(obs: Array, action: Array, next_obs: Array) -> Array:
    return next_obs[0] > 1 - 1 / SIZE


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    caught = jnp.abs(next_obs[1] - next_obs[3]) < 1 / SIZE
    ended = terminal(obs, action, next_obs)
    return jnp.where(ended, jnp.where(caught, 1.0, -1.0), 0.0)


def cell(row: float | Array, column: float | Array) -> Array:
    """Where the middle of a cell is, row 0 at the top; [2]."""
    return jnp.stack([(column + 0.5) * CELL - 1, 1 - (row + 0.5) * CELL])


def shapes(state: Array) -> list[raster.Shapes]:
    row, column, _, paddle = state
    half = (CELL / 2, CELL / 2)
    return [
        raster.box(cell(SIZE - 1.0, paddle), half, raster.AMBER),
        raster.box(cell(row, column), half, raster.INK),
    ]
