from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, policies, rollout
from mbrl_jax.envs import grid, simulator
from mbrl_jax.ops import raster, tabular
from mbrl_jax.types import Array

UP, DOWN, LEFT, RIGHT = range(4)


def at(cell: int, env_state, env):
    """The state of `env` in `cell`."""
    state = env_state.sim.state._replace(cell=jnp.array(cell, jnp.int32))
    obs = jnp.eye(env.obs_size, dtype=env_state.obs.dtype)[cell]
    return env_state._replace(obs=obs, sim=env_state.sim._replace(state=state))


def test_the_maze_is_that_of_the_book():
    maze = grid.parse(grid.MAZE)
    walls = {(int(row), int(column)) for row, column in np.argwhere(maze.walls)}
    assert walls == {(1, 2), (2, 2), (3, 2), (0, 7), (1, 7), (2, 7), (4, 5)}
    assert maze.walls.shape == (6, 9)
    np.testing.assert_array_equal(maze.starts, [2 * 9 + 0])
    np.testing.assert_array_equal(np.flatnonzero(maze.terminal), [8])


def distances(walls: np.ndarray) -> dict[tuple[int, int], int]:
    """Steps to (0, 8) in a maze of 6 x 9, by breadth-first search."""
    distance, queue = {(0, 8): 0}, deque([(0, 8)])
    while queue:
        row, column = queue.popleft()
        for down, right in grid.MOVES:
            cell = (row + down, column + right)
            inside = 0 <= cell[0] < 6 and 0 <= cell[1] < 9
            if inside and not walls[cell] and cell not in distance:
                distance[cell] = distance[row, column] + 1
                queue.append(cell)
    return distance


def test_the_shortest_way_through_the_maze_has_14_steps():
    """And so are all the values."""
    maze = grid.parse(grid.MAZE)
    distance = distances(maze.walls)
    assert distance[2, 0] == 14
    values = tabular.value_iteration(grid.tables(maze), 0.95).values.reshape(6, 9)
    assert len(distance) == 54 - 7
    for cell, steps in distance.items():
        np.testing.assert_allclose(
            values[cell], 0.95 ** (steps - 1) * (steps > 0), rtol=1e-6
        )


def test_the_values_of_the_gridworld_are_those_of_the_book():
    """Russell and Norvig, 2010, Fig. 17.3."""
    world = grid.parse(grid.GRIDWORLD, slip=0.2, step_reward=-0.04)
    values = tabular.value_iteration(grid.tables(world), 1.0).values
    expected = [[0.812, 0.868, 0.918], [0.762, 0, 0.660], [0.705, 0.655, 0.611]]
    np.testing.assert_allclose(values.reshape(3, 4)[:, :3], expected, atol=5e-4)
    np.testing.assert_allclose(values[11], 0.388, atol=5e-4)


@pytest.mark.parametrize("text", [grid.MAZE, grid.GRIDWORLD])
@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_the_tables_are_what_happens(text: str, slip: float):
    """From every cell by every action: the shares of 500 tries, and the rewards."""
    layout = grid.parse(text, slip=slip, step_reward=-0.1)
    env, tables = grid.make("grid", layout, episode_length=9), grid.tables(layout)
    start = env.reset(jax.random.key(0))

    def tries(cell: Array, action: Array) -> tuple[Array, Array, Array]:
        def one(key: Array) -> tuple[Array, Array, Array]:
            here = at(cell, start, env)
            state = here.sim.state._replace(key=key)
            here = here._replace(sim=here.sim._replace(state=state))
            after = env.step(here, action)
            return after.obs, after.reward, after.terminal

        results = jax.vmap(one)(jax.random.split(jax.random.key(1), 500))
        return jax.tree.map(lambda x: x.mean(axis=0), results)

    cells, actions = jnp.divmod(jnp.arange(4 * env.obs_size), 4)
    shares, rewards, ends = jax.jit(jax.vmap(tries))(cells, actions)
    free = ~layout.walls.ravel()[cells]
    expected = tables.transition.reshape(shares.shape)
    # five standard deviations
    error = 5 * np.sqrt(expected * (1 - expected) / 500) + 1e-6
    assert (np.abs(shares - expected) <= error)[free].all()
    spread = 10 * np.sqrt(slip / 500) + 1e-5  # rewards lie within 2 of each other
    np.testing.assert_allclose(
        rewards[free], tables.reward.reshape(-1)[free], atol=spread
    )
    arrived = (shares * tables.terminal[None]).sum(axis=1)
    np.testing.assert_allclose(ends[free], arrived[free], atol=1e-6)
    np.testing.assert_allclose(tables.transition.sum(axis=-1), 1, rtol=1e-6)


def test_what_can_be_got_in_the_detours():
    """0.53 on average of the first three, by their tables; at random about -1.8."""
    best, at_random = [], []
    for text in grid.DETOURS:
        layout = grid.parse(text, slip=0.1, step_reward=-0.04)
        tables = grid.tables(layout)
        transition, reward = np.asarray(tables.transition), np.asarray(tables.reward)
        values = np.zeros((2, len(reward)))  # of the best policy, of a random one
        for _ in range(grid.detour(1).episode_length):
            q = reward[None] + np.einsum("sat,pt->psa", transition, values)
            q = np.where(tables.terminal[None, :, None], 0, q)
            values = np.stack([q[0].max(axis=1), q[1].mean(axis=1)])
        best.append(values[0, layout.starts].mean())
        at_random.append(values[1, layout.starts].mean())
    np.testing.assert_allclose(np.mean(best[:3]), 0.53, atol=0.005)
    np.testing.assert_allclose(np.mean(at_random[:3]), -1.84, atol=0.005)


def test_what_can_be_got_in_the_two_rooms():
    """On average 0.476 by their tables, and at random -2.77; a corridor that is 10 long
    is the only way from room to room."""
    best, at_random = [], []
    for number, text in enumerate(grid.TWO_ROOMS, start=1):
        layout = grid.parse(text, slip=0.1, step_reward=-0.04)
        tables = grid.tables(layout)
        transition, reward = np.asarray(tables.transition), np.asarray(tables.reward)
        values = np.zeros((2, len(reward)))  # of the best policy, of a random one
        for _ in range(grid.two_rooms(number).episode_length):
            q = reward[None] + np.einsum("sat,pt->psa", transition, values)
            q = np.where(tables.terminal[None, :, None], 0, q)
            values = np.stack([q[0].max(axis=1), q[1].mean(axis=1)])
        best.append(values[0, layout.starts].mean())
        at_random.append(values[1, layout.starts].mean())
        walls = layout.walls
        assert (walls.sum(axis=0) == [0] * 5 + [4] * 10 + [0] * 5).all()
        (goal,) = np.flatnonzero(layout.terminal) % 20
        assert (goal > 10) == (number < 3)
        assert len(layout.starts) == 2 * 25 - 1
    np.testing.assert_allclose(np.mean(best), 0.476, atol=0.001)
    np.testing.assert_allclose(np.mean(at_random), -2.769, atol=0.005)


def test_the_last_action_is_seen_behind_the_cell():
    """Even if it led nowhere; zeros at the start.  Nothing else changes."""
    plain = grid.make("grid", grid.parse("S.G", step_reward=-0.1), episode_length=9)
    env = simulator.with_last_action(plain)
    assert env.obs_size == 3 + 4
    actions = jnp.array([RIGHT, UP, RIGHT])
    start, seen = (
        env.reset(jax.random.key(0)),
        run(plain, plain.reset(jax.random.key(0)), actions),
    )
    states = run(env, start, actions)
    np.testing.assert_array_equal(start.obs, np.eye(7)[0])
    expected = np.eye(3)[[1, 1, 2]], np.eye(4)[[RIGHT, UP, RIGHT]]
    np.testing.assert_array_equal(states.obs, np.concatenate(expected, axis=1))
    np.testing.assert_array_equal(states.reward, seen.reward)
    np.testing.assert_array_equal(states.terminal, [False, False, True])
    rule = env.reward(states.obs[1], RIGHT, states.obs[2])
    np.testing.assert_allclose(rule, 0.9, rtol=1e-6)
    assert env.terminal(states.obs[1], RIGHT, states.obs[2])


def test_a_walk():
    """Into the wall, down the way, and to the goal; then nothing more comes."""
    layout = grid.parse("S#G\n...", step_reward=-0.5)
    env = grid.make("grid", layout, episode_length=99)
    env_state, seen = env.reset(jax.random.key(0)), []
    for action in (UP, RIGHT, DOWN, DOWN, RIGHT, RIGHT, UP, UP):
        env_state = env.step(env_state, jnp.array(action))
        cell, reward = int(env_state.obs.argmax()), float(env_state.reward)
        seen.append((cell, reward, bool(env_state.terminal)))
    assert seen == [
        (0, -0.5, False),
        (0, -0.5, False),
        (3, -0.5, False),
        (3, -0.5, False),
        (4, -0.5, False),
        (5, -0.5, False),
        (2, 0.5, True),
        (2, 0.0, True),
    ]


def test_starts_are_drawn():
    env = grid.make("grid", grid.parse("S.SS\n#..G"), episode_length=9)
    obs = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3000)).obs
    # five standard deviations of a share of one third
    np.testing.assert_allclose(
        np.asarray(obs).mean(axis=0)[[0, 2, 3]], 1 / 3, atol=0.043
    )
    np.testing.assert_array_equal(obs.sum(axis=1), 1)


CHANGING = {  # walls, steps to the goal before and after, and when the world changes
    "blocking_maze": (grid.BLOCKING_MAZE, (10, 16), 1000),
    "shortcut_maze": (grid.SHORTCUT_MAZE, (16, 10), 3000),
}


@pytest.mark.parametrize("name", CHANGING)
def test_the_ways_through_the_mazes_that_change(name: str):
    """Lengths as in the book's Fig. 8.4 and 8.5."""
    texts, lengths, _ = CHANGING[name]
    grids = [grid.parse(text) for text in texts]
    assert tuple(distances(x.walls)[5, 3] for x in grids) == lengths
    for x in grids:
        np.testing.assert_array_equal(x.starts, [5 * 9 + 3])
        np.testing.assert_array_equal(np.flatnonzero(x.terminal), [8])
        assert set(np.flatnonzero(x.walls.any(axis=1))) == {3}


def run(env, env_state, actions):
    """All states after the first."""

    def step(env_state, action):
        env_state = env.step(env_state, action)
        return env_state, env_state

    return jax.lax.scan(step, env_state, jnp.array(actions))[1]


@pytest.mark.parametrize("name", CHANGING)
def test_round_and_round_by_the_shortest_way_until_the_world_changes(name: str):
    """Each arrival pays 1 and is at the start; then the way is closed, or longer than
    another."""
    _, (length, after), when = CHANGING[name]
    env = envs.make(name)
    ways = {10: [RIGHT] * 5 + [UP] * 5, 16: [LEFT] * 3 + [UP] * 5 + [RIGHT] * 8}
    rounds = (when - 1) // length
    states = run(env, env.reset(jax.random.key(0)), ways[length] * rounds)
    cells = states.obs.argmax(axis=1).reshape(rounds, length)
    np.testing.assert_array_equal(cells[:, -1], 5 * 9 + 3)
    assert (cells[:, :-1] != 5 * 9 + 3).all()
    assert (cells != 8).all()  # nobody is ever at the goal
    np.testing.assert_array_equal(
        states.reward.reshape(rounds, length), np.eye(length)[[-1] * rounds]
    )
    assert not states.terminal.any()
    last = jax.tree.map(lambda x: x[-1], states)
    waiting = [DOWN] * (when - rounds * length)
    states = run(env, last, waiting + ways[after])
    np.testing.assert_array_equal(states.reward, [0] * (len(states.reward) - 1) + [1])
    states = run(env, last, waiting + ways[length])
    assert states.reward.sum() == (name == "shortcut_maze")


@pytest.mark.parametrize(
    ("name", "opens"), [("blocking_maze", 0), ("shortcut_maze", 8)]
)
def test_the_change_comes_after_so_many_steps(name: str, opens: int):
    """The last step of the first world, and the first one of the second."""
    env, when = envs.make(name), CHANGING[name][2]
    env_state = env.reset(jax.random.key(0))

    def up(cell: int, time: int) -> int:
        """Where a step up from a cell leads that `time` steps came before."""
        place = env_state.sim.state.place._replace(cell=jnp.array(cell, jnp.int32))
        state = grid.Changing(place, jnp.array(time, jnp.int32))
        obs = jnp.eye(env.obs_size)[cell]
        here = env_state._replace(obs=obs, sim=env_state.sim._replace(state=state))
        return int(env.step(here, jnp.array(UP)).obs.argmax())

    below, inside, above = (row * 9 + opens for row in (4, 3, 2))
    assert up(below, when - 1) == below
    assert up(below, when) == inside
    if name == "blocking_maze":
        below, inside, above = (row * 9 + 8 for row in (4, 3, 2))
        assert up(below, when - 1) == inside
        assert up(below, when) == below
        assert up(inside, when) == above  # out of the wall that rose there


def test_the_picture_has_the_walls_of_the_time():
    env = envs.make("blocking_maze")
    first = env.reset(jax.random.key(0))
    states = run(env, first, [DOWN] * 1001)
    frames = env.render(
        jax.tree.map(lambda x: x[jnp.array([0, 998, 999, 1000])], states)
    )
    view = 6.5 / frames.shape[1]  # cells per pixel

    def dark(row: int, column: int) -> list[bool]:
        y, x = (int((place + 0.75) / view) for place in (row, column))
        return [bool(x) for x in (frames[:, y, x] < 100).all(axis=-1)]

    # what is drawn are the walls that the next step meets
    assert dark(3, 0) == [True, True, False, False]
    assert dark(3, 8) == [False, False, True, True]
    assert dark(3, 4) == [True] * 4
    assert dark(2, 4) == [False] * 4


@pytest.mark.parametrize(
    ("texts", "changes", "options", "message"),
    [
        (("S.G", "S#G"), (), {}, "2 grids do not change 0 times"),
        (("S..G", "S.G."), (5,), {}, "other walls, and nothing else"),
        (("S..G", "S.\n.G"), (5,), {}, "other walls, and nothing else"),
        (("S..G", "S.#G"), (5,), {"slip": 0.1}, "does not slip, slip is 0.1"),
        (("S.G\n...", "S.G\n..G"), (5,), {}, "other walls, and nothing else"),
    ],
)
def test_what_cannot_change(texts, changes, options, message: str):
    grids = [grid.parse(text, **options) for text in texts]
    with pytest.raises(ValueError, match=message):
        grid.make_changing("world", grids, changes, episode_length=9)


def test_a_random_walk_solves_the_maze():
    env = envs.make("maze")
    evaluate = jax.jit(
        lambda key: rollout.evaluate(key, env, policies.uniform(env), 32)[0]
    )
    metrics = evaluate(jax.random.key(0))
    assert 600 < metrics["eval/length_mean"] < 1200
    assert metrics["eval/return_mean"] > 0.8


def test_where_things_are_in_the_picture():
    env = envs.make("maze")
    states = jax.tree.map(lambda x: x[None], env.reset(jax.random.key(0)))
    frame = env.render(states)[0] / 255
    view = 6.5 / frame.shape[0]  # cells per pixel

    def colour(row: float, column: float) -> np.ndarray:
        place = (np.array([row, column]) + 0.75) / view
        return np.asarray(frame[int(place[0]), int(place[1])])

    for place, expected in {
        (0, 7): raster.INK,
        (4, 5): raster.INK,
        (0, 8): raster.GREEN,
        (2, 0): raster.BLUE,
    }.items():
        np.testing.assert_allclose(colour(*place), expected, atol=0.01)
    light = [colour(0, 0), colour(5, 8), colour(2, 1)]
    assert np.min(light) > 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S..\n..", r"rows of one length, not \[3, 2\]"),
        ("", r"rows of one length, not \[\]"),
        ("..G", "has a start, S"),
    ],
)
def test_what_is_no_grid(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        grid.parse(text)
