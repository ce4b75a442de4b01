"""Catch and dodge: how things fall, what counts, and that a pixel is a cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs, policies, rollout
from mbrl_jax.envs import catch, dodge
from mbrl_jax.types import Array, Key, Policy, PyTree


def test_a_ball_falls_at_its_slant_and_turns_at_a_wall():
    step = jax.jit(catch.dynamics)
    state, columns = jnp.array([0, 7, 1, 5]), []
    for _ in range(5):
        state = step(state, 1)
        columns.append(int(state[1]))
    assert columns == [8, 9, 8, 7, 6]
    assert list(np.asarray(state)) == [5, 6, -1, 5]
    np.testing.assert_array_equal(step(jnp.array([2, 0, -1, 0]), 0), [3, 1, 1, 0])
    np.testing.assert_array_equal(step(jnp.array([2, 4, 0, 9]), 2), [3, 4, 0, 9])


@pytest.mark.parametrize(
    ("paddle", "action", "reward"), [(3, 1, 1), (4, 0, 1), (3, 0, -1)]
)
def test_a_catch_is_where_paddle_and_ball_meet(paddle: int, action: int, reward: int):
    before, env = jnp.array([catch.SIZE - 2, 3, 0, paddle]), catch.make()
    obs = catch.observe(before)
    after = catch.observe(catch.dynamics(before, jnp.array(action)))
    assert not env.terminal(obs, action, obs)
    assert env.reward(obs, action, obs) == 0
    assert env.terminal(obs, action, after)
    assert env.reward(obs, action, after) == reward


def catcher() -> Policy:
    """Goes to where the ball will land."""

    def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
        row, column, _, paddle = jnp.round((obs + 1) / 2 * (catch.SIZE - 1))
        end = column + obs[2] * (catch.SIZE - 1 - row)
        end = jnp.abs(end)  # a wall turns it
        end = jnp.where(end >= catch.SIZE, 2 * (catch.SIZE - 1) - end, end)
        end = jnp.clip(end, paddle - 1, paddle + 1)
        return 1 + (end - paddle).astype(jnp.int32), memory

    return Policy(lambda: (), act)


def test_who_knows_where_the_ball_will_land_catches_it():
    env = catch.make()
    evaluate = lambda policy: jax.jit(
        lambda key: rollout.evaluate(key, env, policy, 100)[0]
    )(jax.random.key(0))
    known, random = evaluate(catcher()), evaluate(policies.uniform(env))
    assert known["eval/return_min"] == 1
    assert known["eval/length_mean"] == catch.SIZE - 1
    assert random["eval/return_mean"] < -0.5


def test_bars_fall_by_a_row_and_come_again_anywhere():
    env = dodge.make()
    start = jax.jit(env.reset)(jax.random.key(0))

    def step(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
        away = state.sim.state._replace(place=jnp.array(-9))  # of all that falls
        state = env.step(state._replace(sim=state.sim._replace(state=away)), 1)
        return state, state.sim.state

    states = jax.jit(lambda x: jax.lax.scan(step, x, None, length=2000)[1])(start)
    rows, columns = np.asarray(states.rows), np.asarray(states.columns)
    falls = rows[:-1] < dodge.SIZE - 1
    np.testing.assert_array_equal((np.diff(rows, axis=0) == 1)[falls], True)
    np.testing.assert_array_equal((np.diff(columns, axis=0) == 0)[falls], True)
    fresh = rows[1:][~falls]
    assert set(fresh) == set(range(-dodge.WAIT, 1))
    counts = np.bincount(columns[1:][~falls], minlength=dodge.SIZE)
    assert counts.min() > 0.5 * counts.mean()


@pytest.mark.parametrize(
    ("row", "column", "hit"), [(8, 4, True), (8, 6, True), (8, 7, False), (7, 5, False)]
)
def test_a_hit_is_a_bar_in_the_lowest_row_above_the_own_place(
    row: int, column: int, hit: bool
):
    rows = jnp.array([row, -3, -4])
    state = dodge.State(
        rows, jnp.array([column, 5, 5]), jnp.array(5), jax.random.key(0)
    )
    obs, after = dodge.observe(state), dodge.dynamics(state, jnp.array(1))
    env, next_obs = dodge.make(), dodge.observe(after)
    assert bool(env.terminal(obs, 1, next_obs)) == hit
    assert env.reward(obs, 1, next_obs) == 1 - hit


@pytest.mark.parametrize("name", ["catch", "dodge"])
def test_a_cell_is_a_pixel(name: str):
    """Of three colours in all: nothing is blurred."""
    env = envs.make(f"pixels/{name}/size=10,num_frames=1")
    state, step = jax.jit(env.reset)(jax.random.key(2)), jax.jit(env.step)
    for _ in range(6):
        state = step(state, jnp.array(1))
        picture = np.asarray(state.obs)[:, :, 0]
        assert set(np.unique(picture)) <= {244, 51, 146}
        assert picture[9, 5] != 244
        ink = (picture == 51).sum()
        if name == "catch":
            row, column = np.asarray(state.sim.inner.sim.state)[:2]
            assert (ink, picture[row, column]) == (1, 51)
        else:
            bars = state.sim.inner.sim.state
            for row, column in zip(bars.rows, bars.columns, strict=True):
                if 0 <= row < 10:
                    there = np.arange(max(column - 1, 0), min(column + 2, 10))
                    assert (picture[row, there] == 51).all()
