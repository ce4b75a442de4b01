"""Dyna-Q against loops in numpy that read like the book, and against exact values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.envs import grid, simulator
from mbrl_jax.models import tabular
from mbrl_jax.ops import tabular as ops_tabular
from mbrl_jax.types import Array, Env

UP, RIGHT = 0, 3
GOAL, BELOW = 8, 17  # of the maze; there is no other way to its goal
T, COMPARED = 8000, 2500  # steps in the maze; the first ones are gone through by loops
MAZE = grid.make("maze", grid.parse(grid.MAZE), episode_length=10**6)
CHAIN = 12
HALL = grid.make("hall", grid.parse("S" + "." * (CHAIN - 2) + "G"), episode_length=9999)
FLOATS = [x.name for x in dataclasses.fields(dyna_q.Config) if x.type is float]


class Record(NamedTuple):
    """A run, real step by real step."""

    steps: list[tuple[int, int, float, int, bool]]  # s, a, r, s', terminal
    q_values: np.ndarray  # [T, S, A] after each
    keys: Array  # [T] of the steps of the algorithm


def run_of(env: Env, config: dyna_q.Config, num_steps: int, scale: float = 1.0) -> Any:
    """The first state, those after each step [num_steps, ...], the last one, metrics
    and keys; in double, on the host.  Observations are shown with a factor, `scale`."""
    floats = {name: getattr(config, name) for name in FLOATS}
    kind = dataclasses.replace(config, **dict.fromkeys(FLOATS, 0.0))
    with jax.enable_x64(True):
        found = _program(env, kind, num_steps)(jax.random.key(0), floats, scale)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), found)


@functools.cache
def _program(env: Env, kind: dyna_q.Config, num_steps: int) -> Callable[..., Any]:
    """One for all configurations that differ in nothing but floats."""

    @jax.jit
    def run(key: Array, floats: dict[str, Array], scale: Array) -> Any:
        blur = lambda env_state: env_state._replace(obs=scale * env_state.obs)
        seen = env._replace(
            reset=lambda key: blur(env.reset(key)),
            step=lambda env_state, action: blur(env.step(env_state, action)),
        )
        algorithm = dyna_q.make(seen, dataclasses.replace(kind, **floats))

        def step(state: dyna_q.State, key: Array) -> tuple[dyna_q.State, Any]:
            state, metrics = algorithm.step(key, state)
            kept = state._replace(model=state.model.tried_at, priorities=())
            return state, (kept, metrics)

        first, keys = algorithm.init(key), jax.random.split(key, num_steps)
        last, (states, metrics) = jax.lax.scan(step, first, keys)
        return first, states, last, metrics, keys

    return run


def record_of(config: dyna_q.Config, number: int = COMPARED) -> Record:
    """The first steps in the maze.  An episode that ended is known by the one way to
    its end."""
    first, states, _, _, keys = run_of(MAZE, config, T)
    cells = np.append(first.env_state.obs.argmax(), states.env_state.obs.argmax(axis=1))
    ended = np.diff(states.num_episodes, prepend=0)[:number] > 0
    steps = []
    for t in range(number):
        if ended[t]:
            assert cells[t] == BELOW
            steps.append((BELOW, UP, 1.0, GOAL, True))
        else:
            action = int(states.env_state.sim.action[t])
            assert states.env_state.reward[t] == 0
            steps.append((int(cells[t]), action, 0.0, int(cells[t + 1]), False))
    assert ended.sum() >= 2
    return Record(steps, states.q_values[:number], keys[:number])


def drawn_pairs(record: Record, config: dyna_q.Config) -> np.ndarray:
    """What the algorithm planned from [T, 2, K], by its keys."""
    tried_at = np.zeros((COMPARED, 54, 4), np.int32)
    for t, (s, a, *_) in enumerate(record.steps):
        tried_at[t:, s, a] = t + 1
    pairs = _pairs_of_each_step(config.num_planning)(
        record.keys, tried_at, config.kappa
    )
    return np.asarray(pairs)


@functools.cache
def _pairs_of_each_step(num_planning: int) -> Callable[..., Array]:
    def draw(key: Array, tried_at: Array, kappa: Array) -> Array:
        plan_key = jax.random.split(jax.random.split(jax.random.split(key)[1], 1)[0], 3)
        pair_key = jax.random.split(plan_key[1])[0]
        config = dyna_q.Config(num_planning=num_planning, kappa=kappa)
        return jnp.stack(dyna_q._pairs(pair_key, tried_at, config))

    return jax.jit(jax.vmap(draw, (0, 0, None)))


def learn(q: np.ndarray, s, a, r, next_s, end, config: dyna_q.Config) -> float:
    """The update of Q-learning, in place; the error before."""
    error = r + config.discount * (0 if end else q[next_s].max()) - q[s, a]
    q[s, a] += config.learning_rate * error
    return abs(error)


def uniform(record: Record, config: dyna_q.Config) -> np.ndarray:
    """Tabular Dyna-Q (Sutton and Barto, 2018, Sec. 8.2), and Dyna-Q+ (Sec. 8.3)."""
    pairs, q = drawn_pairs(record, config), np.zeros((54, 4))
    model, found = {}, []
    for t, (s, a, *outcome) in enumerate(record.steps, start=1):
        learn(q, s, a, *outcome, config)
        model[s, a] = (t, *outcome)
        for pair in pairs[t - 1].T.tolist():
            assert config.kappa or tuple(pair) in model
            unknown = (0, 0.0, pair[0], False)
            when, reward, next_s, end = model.get(tuple(pair), unknown)
            bonus = config.kappa * np.sqrt(t - when)
            learn(q, *pair, reward + bonus, next_s, end, config)
        found.append(q.copy())
    return np.stack(found)


def prioritised(record: Record, config: dyna_q.Config) -> np.ndarray:
    """Prioritised sweeping for a deterministic world (Sec. 8.4), with a dictionary for
    a queue; the first of several that are as urgent goes first."""
    q, queue, found = np.zeros((54, 4)), {}, []
    model: dict[tuple[int, int], tuple[float, int, bool]] = {}

    def insert(pair: tuple[int, int], priority: float) -> None:
        if priority > config.threshold:
            queue[pair] = max(priority, queue.get(pair, 0.0))

    for s, a, *outcome in record.steps:
        insert((s, a), learn(q, s, a, *outcome, config))
        model[s, a] = tuple(outcome)
        for _ in range(config.num_planning):
            if not queue:
                break
            pair = max(sorted(queue), key=queue.get)
            del queue[pair]
            learn(q, *pair, *model[pair], config)
            for before, (reward, next_s, end) in model.items():
                if next_s == pair[0]:
                    ahead = 0 if end else config.discount * q[pair[0]].max()
                    insert(before, abs(reward + ahead - q[before]))
        found.append(q.copy())
    return np.stack(found)


@pytest.mark.parametrize(
    ("loop", "options"),
    [
        (uniform, {"num_planning": 0}),  # Q-learning
        (uniform, {"num_planning": 4}),
        (uniform, {"num_planning": 4, "learning_rate": 1.0, "kappa": 1e-3}),
        (prioritised, {"num_planning": 3, "learning_rate": 0.5}),
        (prioritised, {"num_planning": 0}),
    ],
)
def test_the_same_numbers_as_the_book_given_what_happened(
    loop: Callable[[Record, dyna_q.Config], np.ndarray], options: dict
):
    """Q after each of the steps, from the same real steps and planned pairs."""
    config = dyna_q.Config(interval=1, planning=loop.__name__, **options)
    with jax.enable_x64(True):
        record = record_of(config)
        expected = loop(record, config)
    assert (expected[-1] != 0).sum() > 3
    np.testing.assert_allclose(record.q_values, expected, rtol=0, atol=1e-12)


def plain_lengths(seed: int, num_planning: int, num_episodes: int) -> list[int]:
    """Steps of each episode, by a loop of its own: maze, actions, model and all."""
    rng, q, model, lengths = np.random.default_rng(seed), np.zeros((54, 4)), {}, []
    neighbours, config = grid._neighbours(grid.parse(grid.MAZE)), dyna_q.Config()
    for _ in range(num_episodes):
        s, length = 18, 0
        while s != GOAL:
            if rng.random() < config.epsilon:
                a = int(rng.integers(4))
            else:
                a = int(rng.choice(np.flatnonzero(q[s] == q[s].max())))
            next_s = int(neighbours[s, a])
            model.setdefault(s, {})[a] = (float(next_s == GOAL), next_s, next_s == GOAL)
            learn(q, s, a, *model[s][a], config)
            for _ in range(num_planning):
                x = list(model)[rng.integers(len(model))]
                b = list(model[x])[rng.integers(len(model[x]))]
                learn(q, x, b, *model[x][b], config)
            s, length = next_s, length + 1
        lengths.append(length)
    return lengths


@pytest.mark.slow
def test_episodes_are_as_long_as_those_of_a_loop_of_its_own():
    """Means over runs, of the first episodes: within four standard errors."""
    config, num_episodes = dyna_q.Config(interval=1, num_planning=5), 6
    algorithm = dyna_q.make(MAZE, config)

    def step(state: dyna_q.State, key: Array) -> tuple[dyna_q.State, Array]:
        state, _ = algorithm.step(key, state)
        return state, state.num_episodes

    def run(key: Array) -> Array:
        keys = jax.random.split(key, 4000)
        return jax.lax.scan(step, algorithm.init(key), keys)[1]

    keys = jax.random.split(jax.random.key(1), 100)
    number = np.asarray(jax.jit(jax.vmap(run))(keys))
    ends = [np.searchsorted(row, np.arange(1, num_episodes + 1)) + 1 for row in number]
    ours = np.diff(ends, axis=1, prepend=0)
    theirs = np.array([plain_lengths(i, 5, num_episodes) for i in range(30)])
    assert number[:, -1].min() >= num_episodes
    error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()


# --- Where it leads to.


@pytest.mark.parametrize(("planning", "number"), [("uniform", 4), ("prioritised", 3)])
def test_q_of_the_maze_is_exact(planning: str, number: int):
    config = dyna_q.Config(
        interval=1,
        num_planning=number,
        learning_rate=1.0,
        epsilon=0.7,
        planning=planning,
    )
    last = run_of(MAZE, config, T)[2]
    exact = ops_tabular.value_iteration(
        grid.tables(grid.parse(grid.MAZE)), config.discount
    )
    tried = last.model.tried_at > 0
    assert tried.sum() == 4 * 46  # all actions of all cells but the goal
    np.testing.assert_allclose(
        last.q_values[tried], np.asarray(exact.q_values)[tried], atol=2e-3
    )
    assert (last.q_values[~tried] == 0).all()


def test_the_way_through_the_maze_is_learned():
    metrics = run_of(MAZE, dyna_q.Config(interval=1, num_planning=4), T)[3]
    assert metrics["episode/length"][-1] < 100
    assert metrics["episode/return"][-1] == 1


@functools.cache
def of_the_gridworld(planning: str) -> tuple[dyna_q.Config, dyna_q.State]:
    config = dyna_q.Config(
        num_planning=30,
        learning_rate={"uniform": 0.005, "prioritised": 1.0}[planning],
        epsilon=1.0,
        model="dirichlet",
        planning=planning,
    )
    return config, run_of(envs.make("gridworld"), config, 600)[2]


@pytest.mark.slow
@pytest.mark.parametrize("planning", ["uniform", "prioritised"])
def test_q_of_a_random_world_is_that_of_its_counts_and_nearly_exact(planning: str):
    """The counts solved by value iteration; 30,000 steps put these near the truth."""
    config, last = of_the_gridworld(planning)
    tables = grid.tables(grid.parse(grid.GRIDWORLD, slip=0.2, step_reward=-0.04))
    counts = last.model
    number = counts.outcomes.sum(axis=-1)
    tried = number > 0
    assert tried.sum() == 4 * 9
    seen = ops_tabular.Tables(
        counts.outcomes / np.maximum(number, 1)[..., None],
        counts.reward / np.maximum(number, 1),
        counts.terminal,
    )
    for expected, error in ((seen, 0.03), (tables, 0.1)):
        solved = ops_tabular.value_iteration(expected, config.discount).q_values
        np.testing.assert_allclose(
            last.q_values[tried], np.asarray(solved)[tried], atol=error
        )


def at_the_first_arrival(
    planning: str, num_planning: int
) -> tuple[np.ndarray, np.ndarray]:
    """Q of the hall [S, A] when its end has been reached once, and what was tried."""
    config = dyna_q.Config(
        interval=1, num_planning=num_planning, learning_rate=1.0, planning=planning
    )
    _, states, _, _, _ = run_of(HALL, config, 1000)
    when = int((states.num_episodes == 0).sum())
    return np.asarray(states.q_values[when]), np.asarray(states.model[when]) > 0


def test_prioritised_sweeping_wastes_no_update():
    """From the end of a hall backwards: each update after the first, which repeats that
    of what just happened, makes one more pair what it should be at last."""
    exact = ops_tabular.value_iteration(
        grid.tables(grid.parse("S" + "." * (CHAIN - 2) + "G")), 0.95
    ).q_values
    config = dyna_q.Config(
        interval=1, num_planning=20, learning_rate=1.0, planning="prioritised"
    )
    _, states, _, _, _ = run_of(HALL, config, 1000)
    when = int((states.num_episodes == 0).sum())  # it has been reached once
    q, tried = states.q_values[when], states.model[when] > 0
    right = np.abs(q - np.asarray(exact)) < 1e-5
    assert right[q != 0].all()
    reached = np.flatnonzero(q.any(axis=1))
    np.testing.assert_array_equal(reached, np.arange(reached[0], CHAIN - 1))
    assert (q != 0).sum() == 20 < tried.sum()


# --- Parts.


def test_actions_are_greedy_but_for_epsilon_and_ties_are_broken_at_random():
    row, number = np.array([1.0, 0.0, 1.0, 0.5]), 8000
    keys = jax.random.split(jax.random.key(0), number)
    act = jax.jit(jax.vmap(dyna_q._act, (0, None, None)))
    for epsilon, expected in ((0.2, [0.45, 0.05, 0.45, 0.05]), (0, [0.5, 0, 0.5, 0])):
        actions = np.asarray(act(keys, row, float(epsilon)))
        shares = np.bincount(actions, minlength=4) / number
        error = 5 * np.sqrt(np.multiply(expected, np.subtract(1, expected)) / number)
        assert (np.abs(shares - expected) <= error).all()


def test_the_policy_tells_the_values_that_it_acts_by():
    q_values = jnp.arange(8.0).reshape(4, 2)
    told = dyna_q._greedy(q_values).values(jnp.eye(4)[2])
    np.testing.assert_array_equal(told, [4, 5])


def test_the_policy_is_greedy():
    algorithm = dyna_q.make(HALL)

    @jax.jit
    def actions(key: Array) -> Array:
        state = algorithm.init(key)
        state = state._replace(q_values=state.q_values.at[4, 2].set(1))
        policy = algorithm.policy(state)
        act = lambda key, obs: policy.act(key, obs, policy.init())[0]
        one = jax.vmap(act, in_axes=(0, None))
        return jax.vmap(one, (None, 0))(jax.random.split(key, 50), jnp.eye(CHAIN))

    found = np.asarray(actions(jax.random.key(0)))
    np.testing.assert_array_equal(found[4], 2)
    assert set(found[3].tolist()) == {0, 1, 2, 3}  # nothing is known there


@pytest.mark.parametrize("kappa", [0.0, 1e-3])
def test_what_is_planned_from(kappa: float):
    """A state that was visited, each as likely; then an action that was tried there, or
    with a bonus any."""
    tried_at = np.zeros((5, 3), np.int32)
    tried_at[1, 0], tried_at[1, 2], tried_at[3, 1], number = 4, 1, 2, 6000
    pairs = _planned_from(tried_at, kappa)
    shares = np.zeros((5, 3))
    np.add.at(shares, tuple(np.asarray(x) for x in pairs), 1 / number)
    expected = np.zeros((5, 3))
    expected[[1, 3]] = 1 / 6 if kappa else [[1 / 4, 0, 1 / 4], [0, 1 / 2, 0]]
    error = 5 * np.sqrt(expected * (1 - expected) / number)
    assert (np.abs(shares - expected) <= error).all()
    none = _planned_from(np.zeros_like(tried_at), kappa)
    np.testing.assert_array_equal(none[0], 5)


@jax.jit
def _planned_from(tried_at: Array, kappa: Array) -> tuple[Array, Array]:
    config = dyna_q.Config(num_planning=6000, kappa=kappa)
    return dyna_q._pairs(jax.random.key(0), tried_at, config)


@pytest.mark.slow
def test_dyna_q_plus_finds_the_way_that_opens():
    """Rounds in the last 2,000 steps of the shortcut maze: at most 125 the long way,
    200 the short one."""
    env = envs.make("shortcut_maze")

    def rounds(kappa: Array, key: Array) -> Array:
        config = dyna_q.Config(2000, learning_rate=1.0, kappa=kappa)
        algorithm = dyna_q.make(env, config)
        keys = jax.random.split(key, 4)

        def step(state: dyna_q.State, x: tuple) -> tuple[dyna_q.State, Array]:
            key, last = x
            state = state._replace(so_far=jnp.where(last, 0, state.so_far))
            state, metrics = algorithm.step(key, state)
            return state, metrics["episode/return"]

        last = jnp.arange(3) == 2
        return jax.lax.scan(step, algorithm.init(keys[0]), (keys[1:], last))[1][-1]

    keys = jax.random.split(jax.random.key(0), 6)
    each = jax.jit(jax.vmap(jax.vmap(rounds, in_axes=(None, 0)), in_axes=(0, None)))
    found = each(jnp.array([0.0, 1e-3]), keys)
    assert found[0].max() <= 125
    assert found[1].mean() > 150


@pytest.mark.parametrize("model", ["deterministic", "dirichlet"])
@pytest.mark.parametrize("planning", ["uniform", "prioritised"])
@pytest.mark.parametrize("x64", [False, True])
def test_every_kind_keeps_its_types(model: str, planning: str, x64: bool):
    config = dyna_q.Config(model=model, planning=planning, prior=0.1)
    with jax.enable_x64(x64):
        algorithm, key = dyna_q.make(MAZE, config), jax.random.key(0)
        before = jax.eval_shape(algorithm.init, key)
        after, _ = jax.eval_shape(algorithm.step, key, before)
        describe = lambda x: (x.shape, x.dtype, x.weak_type)
        assert jax.tree.map(describe, after) == jax.tree.map(describe, before)


LIMITED = simulator.time_limit(
    grid.make("hall", grid.parse("S....", step_reward=-1.0), episode_length=99), 7
)


def test_nothing_is_learned_where_observations_are_not_one_hot():
    """Every step is acted and counted."""
    config = dyna_q.Config(interval=5)
    _, _, last, metrics, _ = run_of(LIMITED, config, 100, scale=0.5)
    steps = 5 * np.arange(1, 101)
    np.testing.assert_array_equal(metrics["env_steps"], steps)
    np.testing.assert_array_equal(metrics["episode/non_finite"], steps)
    np.testing.assert_array_equal(metrics["q/num_planned"], 0)
    assert (last.q_values == 0).all()
    assert all((x == 0).all() for x in (last.model.tried_at, last.priorities))


def test_episodes_and_the_steps_of_an_interval_are_counted():
    _, states, last, metrics, _ = run_of(LIMITED, dyna_q.Config(interval=5), 100)
    np.testing.assert_array_equal(metrics["env_steps"], 5 * np.arange(1, 101))
    np.testing.assert_array_equal(metrics["q/num_planned"], 10)
    np.testing.assert_array_equal(metrics["episode/non_finite"], 0)
    assert last.env_steps == 500
    first = {name: x[:5] for name, x in metrics.items()}
    np.testing.assert_array_equal(first["episode/num_finished"], [0, 1, 2, 2, 3])
    np.testing.assert_array_equal(first["episode/length"], [5, 7, 7, 7, 7])
    np.testing.assert_array_equal(first["episode/return"], [-5, -7, -7, -7, -7])
    assert states.env_state.time[4] == 4


def test_the_clock_ends_no_task():
    """Values go on, to -1 / (1 - discount) in the end."""
    config = dyna_q.Config(interval=5, discount=0.5, learning_rate=1.0)
    np.testing.assert_allclose(run_of(LIMITED, config, 100)[2].q_values, -2, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": 0}, "interval is 0, must be at least 1"),
        ({"num_planning": -1}, "num_planning is -1, must be at least 0"),
        ({"epsilon": 1.1}, "epsilon is 1.1, must be from 0 to 1"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1, must be from 0 to 1"),
        ({"kappa": -1.0}, "kappa is -1.0, must be at least 0"),
        ({"model": "gaussian"}, "must be one of: deterministic, dirichlet"),
        ({"planning": "some"}, "must be one of: uniform, prioritised"),
        ({"planning": "prioritised", "kappa": 0.1}, "kappa is 0.1, must be 0 if"),
    ],
)
def test_what_cannot_be(change: dict, message: str):
    config = dataclasses.replace(dyna_q.Config(), **change)
    with pytest.raises(ValueError, match=message):
        dyna_q.make(MAZE, config)


def test_an_environment_that_is_not_finite_is_refused():
    message = "finite worlds: observations of cartpole are not one-hot"
    with pytest.raises(ValueError, match=message):
        dyna_q.make(envs.make("cartpole"))


def test_the_model_is_what_happened_last():
    """The same steps, written one by one."""
    config = dyna_q.Config(interval=1, num_planning=0)
    tried_at, reward = np.zeros((54, 4), int), np.zeros((54, 4))
    next_state = np.tile(np.arange(54)[:, None], 4)
    terminal = np.zeros((54, 4), bool)
    for t, (s, a, *outcome) in enumerate(record_of(config, T).steps, start=1):
        tried_at[s, a] = t
        reward[s, a], next_state[s, a], terminal[s, a] = outcome
    expected = tabular.Last(
        tried_at, tabular.TabularOutcome(reward, next_state, terminal)
    )
    model = run_of(MAZE, config, T)[2].model
    jax.tree.map(np.testing.assert_array_equal, model, expected)
    assert (tried_at > 0).sum() > 100
    assert (reward != 0).sum() == 1
    assert next_state[18, RIGHT] == 19
