"""Dodge: bars fall, and must not hit who stands below; a game in the manner of MinAtar
(Young and Tian, 2019, arXiv 1903.03176), whose next frame cannot be known.

A board of `SIZE` x `SIZE` cells, one pixel each as `pixels/dodge/size=10`.  `NUM_BARS`
bars of `WIDTH` cells fall by a row in a step.  One that has fallen out waits for up to
`WAIT` steps, and comes again in any column.  obs: the row (-1 to 1, below -1 while it
waits) and the column of each bar, and the own column.  Actions: left, stay, right.
reward: 1 for every step without a hit; a hit is the end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import catch, simulator
from mbrl_jax.envs.catch import CELL, SIZE
from mbrl_jax.ops import raster
from mbrl_jax.types import Array, Env, Key

NUM_BARS, WIDTH, WAIT = 3, 3, 5  # so few that there is always a gap
EPISODE_LENGTH = 100


class State(NamedTuple):
    rows: Array  # [NUM_BARS] int32, negative while they wait
    columns: Array  # [NUM_BARS] int32, of the middle
    place: Array  # [] int32, the own column
    key: Key


def make() -> Env:
    """The best return is that of all steps, 100."""
    return simulator.make_env(
        "dodge",
        initial=initial,
        dynamics=dynamics,
        observe=observe,
        reward=lambda obs, action, next_obs: 1.0 - is_hit(obs, action, next_obs),
        terminal=is_hit,
        shapes=shapes,
        view=raster.View((0.0, 0.0), half_height=1.0, height=200, width=200),
        num_actions=3,
        episode_length=EPISODE_LENGTH,
    )


def initial(key: Key) -> State:
    key, drawn = jax.random.split(key)
    rows, columns = fresh(drawn)
    return State(rows, columns, jnp.array(SIZE // 2), key)


def fresh(key: Key) -> tuple[Array, Array]:
    """Rows and columns of bars that come anew."""
    row_key, column_key = jax.random.split(key)
    rows = -jax.random.randint(row_key, (NUM_BARS,), 0, WAIT + 1)
    return rows, jax.random.randint(column_key, (NUM_BARS,), 0, SIZE)


def dynamics(state: State, action: Array) -> State:
    """After a hit nothing moves."""
    key, drawn = jax.random.split(state.key)
    rows, columns = fresh(drawn)
    out = state.rows >= SIZE - 1
    after = State(
        jnp.where(out, rows, state.rows + 1),
        jnp.where(out, columns, state.columns),
        jnp.clip(state.place + action - 1, 0, SIZE - 1),
        key,
    )
    hit = is_hit(observe(state), action, observe(state))
    stay = lambda old, new: jnp.where(hit, old, new)
    return jax.tree.map(stay, state._replace(key=key), after)


def observe(state: State) -> Array:
    cells = jnp.concatenate([state.rows, state.columns, state.place[None]])
    return 2 * cells / (SIZE - 1) - 1


def is_hit(obs: Array, action: Array, next_obs: Array) -> Array:
    rows, columns, place = jnp.split(next_obs, [NUM_BARS, 2 * NUM_BARS])
    there = jnp.abs(columns - place) < (WIDTH / 2) * CELL
    return ((rows > 1 - 1 / SIZE) & there).any()


def shapes(state: State) -> list[raster.Shapes]:
    bar, own = (WIDTH * CELL / 2, CELL / 2), (CELL / 2, CELL / 2)
    bars = [
        raster.box(catch.cell(state.rows[i], state.columns[i]), bar, raster.INK)
        for i in range(NUM_BARS)
    ]
    return [raster.box(catch.cell(SIZE - 1.0, state.place), own, raster.AMBER), *bars]
