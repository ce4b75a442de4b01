"""Gridworlds from text: four moves among walls, which may slip to the side.

`#` is a wall, `S` a start (one of them at random), `G` a goal (reward 1) and `P` a pit
(reward -1), which both end the task; anything else is free.  A move into a wall or out
of the grid stays where it is.

obs: one-hot over all cells, row by row from the top, walls included; action: 0 up, 1
down, 2 left, 3 right; reward: `step_reward`, and that of where the move ends.

Two mazes change while they are walked in: `make_changing`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs import simulator
from mbrl_jax.ops import raster
from mbrl_jax.ops.tabular import Tables
from mbrl_jax.types import Array, Env, Key

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # rows, columns
ASIDE = ((2, 3), (2, 3), (0, 1), (0, 1))  # what a move slips to

# Sutton and Barto, "Reinforcement learning", 2018, Fig. 8.2: Dyna's maze, 14 steps long
MAZE = """
.......#G
..#....#.
S.#....#.
..#......
.....#...
.........
"""
# Fig. 8.4: the short way, on the right, closes; one on the left opens
BLOCKING_MAZE = (
    """
........G
.........
.........
########.
.........
...S.....
""",
    """
........G
.........
.........
.########
.........
...S.....
""",
)
# Fig. 8.5: a shorter way opens, on the right
SHORTCUT_MAZE = (
    BLOCKING_MAZE[1],
    """
........G
.........
.........
.#######.
.........
...S.....
""",
)
# Russell and Norvig, "Artificial intelligence", 2010, Fig. 17.1
GRIDWORLD = """
...G
.#.P
S...
"""

# Of one size, for one policy of several tasks; from end to end of two of them 12 steps
DETOURS = (
    """
S.#..
..#.G
..#..
.....
.....
""",
    """
....G
.####
.....
####.
S....
""",
    """
G.#..
..#..
....S
..#..
..#..
""",
    """
S....
####.
.....
.####
....G
""",
)
# Two rooms that a corridor joins, after Teh et al., 2017, Sec. 4.1: from anywhere in
# them to a goal, two of these in each; of one size too
ROOMS = """
SSSSS##########SSSSS
SSSSS##########SSSSS
SSSSS..........SSSSS
SSSSS##########SSSSS
SSSSS##########SSSSS
"""


def _with_goal(text: str, row: int, column: int) -> str:
    rows = [list(line) for line in text.split()]
    rows[row][column] = "G"
    return "\n".join(map("".join, rows))


TWO_ROOMS = tuple(
    _with_goal(ROOMS, *goal) for goal in ((0, 19), (4, 17), (0, 0), (4, 2))
)


class Grid(NamedTuple):
    """What a text says; S cells, row by row from the top."""

    walls: np.ndarray  # [rows, columns] bool
    starts: np.ndarray  # cells
    prizes: np.ndarray  # [S] reward of arriving there
    terminal: np.ndarray  # [S] bool, goals and pits
    slip: float  # probability of a move to the side, half of it to either
    step_reward: float


class State(NamedTuple):
    cell: Array  # [] int32
    key: Key  # of what is to slip


class Changing(NamedTuple):
    place: State
    time: Array  # [] int32, steps of this world


def maze() -> Env:
    """So long an episode that a random policy arrives, after 900 steps on average."""
    return make("maze", parse(MAZE), episode_length=2000)


def gridworld() -> Env:
    """A fifth of all moves slips; without a discount its values are published."""
    grid = parse(GRIDWORLD, slip=0.2, step_reward=-0.04)
    return make("gridworld", grid, episode_length=100)


def detour(number: int) -> Env:
    """One of `DETOURS`, counted from 1; a tenth of all moves slips."""
    grid = parse(DETOURS[number - 1], slip=0.1, step_reward=-0.04)
    return make(f"detour{number}", grid, episode_length=50)


def two_rooms(number: int) -> Env:
    """One of `TWO_ROOMS`, counted from 1; a tenth of all moves slips.

    obs: behind the cell also the last action, see `simulator.with_last_action`.
    """
    grid = parse(TWO_ROOMS[number - 1], slip=0.1, step_reward=-0.04)
    name = f"two_rooms{number}"
    return simulator.with_last_action(make(name, grid, episode_length=100))


def blocking_maze() -> Env:
    """10 steps to the goal, 16 after 1,000 steps (Sutton and Barto, Example 8.2)."""
    grids = [parse(text) for text in BLOCKING_MAZE]
    return make_changing("blocking_maze", grids, (1000,), episode_length=3000)


def shortcut_maze() -> Env:
    """16 steps to the goal, 10 after 3,000 steps (Sutton and Barto, Example 8.3)."""
    grids = [parse(text) for text in SHORTCUT_MAZE]
    return make_changing("shortcut_maze", grids, (3000,), episode_length=6000)


def parse(text: str, *, slip: float = 0.0, step_reward: float = 0.0) -> Grid:
    """Raises ValueError for rows of different lengths, or none, or no start."""
    rows = text.split()
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"a grid has rows of one length, not {[*map(len, rows)]}")
    cells = np.array([list(row) for row in rows])
    if not (cells == "S").any():
        raise ValueError("a grid has a start, S")
    goals, pits = (cells == "G").ravel(), (cells == "P").ravel()
    return Grid(
        walls=cells == "#",
        starts=np.flatnonzero(cells == "S"),
        prizes=1.0 * goals - 1.0 * pits,
        terminal=goals | pits,
        slip=slip,
        step_reward=step_reward,
    )


def make(name: str, grid: Grid, *, episode_length: int) -> Env:
    neighbours = jnp.asarray(_neighbours(grid))
    prizes, terminal = jnp.asarray(grid.prizes), jnp.asarray(grid.terminal)

    def dynamics(state: State, action: Array) -> State:
        slip_key, side_key, key = jax.random.split(state.key, 3)
        side = jax.random.choice(side_key, jnp.array(ASIDE, jnp.int32)[action])
        slips = jax.random.bernoulli(slip_key, grid.slip)
        return State(neighbours[state.cell, jnp.where(slips, side, action)], key)

    def reward(obs: Array, action: Array, next_obs: Array) -> Array:
        value = next_obs @ prizes.astype(next_obs.dtype) + grid.step_reward
        return jnp.where(terminal[obs.argmax()], 0, value)

    return simulator.make_env(
        name,
        initial=lambda key: _start(grid, key),
        dynamics=dynamics,
        observe=lambda state: jax.nn.one_hot(state.cell, grid.walls.size),
        reward=reward,
        terminal=lambda obs, action, next_obs: terminal[next_obs.argmax()],
        shapes=lambda state: shapes(grid, state.cell),
        view=_view(grid),
        num_actions=len(MOVES),
        episode_length=episode_length,
    )


def make_changing(
    name: str, grids: Sequence[Grid], changes: Sequence[int], *, episode_length: int
) -> Env:
    """A world whose walls change, walked in without an end.

    The first `changes[i]` steps are made in `grids[i]` or earlier ones.  Arriving at a
    goal pays and leads back to the start, in one step; the world's clock goes on, and
    nothing is terminal.  In the book each arrival ends an episode, so that no value
    crosses it; here the next round counts too, and with a discount the shortest way is
    the best of both.

    Raises ValueError for grids that differ in more than walls, or that slip.
    """
    _check_changing(grids, changes)
    first, size = grids[0], grids[0].walls.size
    neighbours = np.stack([_neighbours(grid) for grid in grids])  # [W, S, 4]
    arrives = first.terminal[neighbours[0]]  # [S, 4]
    rewards = jnp.asarray(first.prizes[neighbours[0]] * arrives + first.step_reward)
    ways, ends, late = map(jnp.asarray, (neighbours, arrives, np.array(changes)))

    def dynamics(state: Changing, action: Array) -> Changing:
        cell, key = state.place
        start = _start(first, key)
        which = (state.time >= late).sum()
        moved = State(ways[which, cell, action], key)
        place = jax.tree.map(
            lambda x, y: jnp.where(ends[cell, action], x, y), start, moved
        )
        return Changing(place, state.time + 1)

    return simulator.make_env(
        name,
        initial=lambda key: Changing(_start(first, key), jnp.zeros((), jnp.int32)),
        dynamics=dynamics,
        observe=lambda state: jax.nn.one_hot(state.place.cell, size),
        reward=lambda obs, action, next_obs: rewards[obs.argmax(), action],
        shapes=lambda state: _shapes_of(
            grids, (state.time >= late).sum(), state.place.cell
        ),
        view=_view(first),
        num_actions=len(MOVES),
        episode_length=episode_length,
    )


def tables(grid: Grid) -> Tables:
    """The same, exactly; walls, where nobody is, count as terminal."""
    neighbours, size = _neighbours(grid), grid.walls.size
    transition = np.zeros((size, len(MOVES), size))
    for action, aside in enumerate(ASIDE):
        ways = ((action, 1 - grid.slip), *((side, grid.slip / 2) for side in aside))
        for move, probability in ways:
            transition[np.arange(size), action, neighbours[:, move]] += probability
    terminal = grid.terminal | grid.walls.ravel()
    reward = np.where(terminal[:, None], 0, grid.step_reward + transition @ grid.prizes)
    dtype = jnp.result_type(float)
    return Tables(
        jnp.asarray(transition, dtype), jnp.asarray(reward, dtype), jnp.array(terminal)
    )


def shapes(grid: Grid, cell: Array) -> list[raster.Shapes]:
    """A cell is 1 wide; the first one has its centre at (0, 0)."""
    height, width = grid.walls.shape
    centre = ((width - 1) / 2, -(height - 1) / 2)
    found = [
        raster.box(centre, (width / 2, height / 2), raster.STEEL, opacity=0.3),
        *_marks(grid, np.flatnonzero(grid.walls), raster.INK, 0.5),
        *_marks(grid, grid.starts, raster.BLUE, 0.42, opacity=0.2),
        *_marks(grid, np.flatnonzero(grid.prizes > 0), raster.GREEN, 0.42),
        *_marks(grid, np.flatnonzero(grid.prizes < 0), raster.AMBER, 0.42),
    ]
    row, column = jnp.divmod(cell, width)
    at = jnp.stack([column, -row]).astype(jnp.result_type(float))
    return [*found, raster.disc(at, 0.28, raster.BLUE)]


def _shapes_of(grids: Sequence[Grid], which: Array, cell: Array) -> list[raster.Shapes]:
    """`shapes` of one of several grids, whose index is traced."""
    walls = np.stack([grid.walls for grid in grids])  # [W, rows, columns]
    fixed = np.logical_and.reduce(walls)
    moving = np.flatnonzero(np.logical_or.reduce(walls) & ~fixed)
    frame, *rest = shapes(grids[0]._replace(walls=fixed), cell)
    here = jnp.asarray(walls)[which].ravel()
    marks = [
        mark._replace(colour=mark.colour.at[3].set(here[i].astype(mark.colour.dtype)))
        for i, mark in zip(
            moving, _marks(grids[0], moving, raster.INK, 0.5), strict=True
        )
    ]
    return [frame, *marks, *rest]


def _marks(
    grid: Grid,
    cells: np.ndarray,
    colour: raster.Colour,
    half_size: float,
    opacity: float = 1.0,
) -> list[raster.Shapes]:
    places = [divmod(int(cell), grid.walls.shape[1]) for cell in cells]
    size = (half_size, half_size)
    return [
        raster.box((float(column), -float(row)), size, colour, opacity=opacity)
        for row, column in places
    ]


def _view(grid: Grid) -> raster.View:
    """All of the grid and a margin, 200 pixels high and 400 wide at most."""
    height, width = grid.walls.shape
    pixels = min(200 / (height + 0.5), 400 / (width + 0.5))  # of a cell
    return raster.View(
        centre=((width - 1) / 2, -(height - 1) / 2),
        half_height=(height + 0.5) / 2,
        height=round(pixels * (height + 0.5)),
        width=round(pixels * (width + 0.5)),
    )


def _start(grid: Grid, key: Key) -> State:
    start_key, key = jax.random.split(key)
    cell = jax.random.choice(start_key, jnp.asarray(grid.starts, jnp.int32))
    return State(cell, key)


def _check_changing(grids: Sequence[Grid], changes: Sequence[int]) -> None:
    if len(changes) != len(grids) - 1:
        raise ValueError(f"{len(grids)} grids do not change {len(changes)} times")
    first, *others = grids
    for grid in others:
        alike = jax.tree.map(np.array_equal, grid._replace(walls=first.walls), first)
        if first.walls.shape != grid.walls.shape or not all(alike):
            raise ValueError("a world that changes has other walls, and nothing else")
    if first.slip:
        raise ValueError(f"a world that changes does not slip, slip is {first.slip}")


def _neighbours(grid: Grid) -> np.ndarray:
    """Where each move leads, [S, 4] int32; out of terminal cells none does.

    Out of a wall one may walk: it can have risen where somebody stood.
    """
    height, width = grid.walls.shape
    rows, columns = np.divmod(np.arange(grid.walls.size), width)
    found = []
    for down, right in MOVES:
        row = np.clip(rows + down, 0, height - 1)
        column = np.clip(columns + right, 0, width - 1)
        blocked = grid.terminal | grid.walls[row, column]
        found.append(np.where(blocked, rows * width + columns, row * width + column))
    return np.stack(found, axis=1).astype(np.int32)
