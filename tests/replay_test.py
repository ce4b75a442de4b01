from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_jax import replay
from mbrl_jax.types import Env, Transition

CAPACITY, ROWS = 7, 4  # slots, and rows offered at once
insert = jax.jit(replay.insert)


def numbered(ids: np.ndarray, end: np.ndarray | None = None) -> Transition:
    """Transitions that tell who they are in every entry; `end` truncates."""
    x = ids.astype(np.float32)
    end = np.zeros(ids.shape, bool) if end is None else end
    obs = np.stack([x, -x], axis=1)
    return Transition(obs, x[:, None], 10 * x, obs + 0.5, ids % 2 == 1, end)


def stored(buffer: replay.Replay) -> Transition:
    """What is in, oldest first."""
    start = int(buffer.position) - int(buffer.size)
    index = np.arange(start, start + int(buffer.size)) % buffer.capacity
    return jax.tree.map(lambda x: np.asarray(x)[index], buffer.data)


@given(st.lists(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS), max_size=8))
@settings(max_examples=40)
def test_a_buffer_is_a_deque(batches: list[list[bool]]):
    buffer, reference = replay.init(2, 1, CAPACITY), deque(maxlen=CAPACITY)
    for i, valid in enumerate(batches):
        ids = ROWS * i + np.arange(ROWS)
        buffer = insert(buffer, numbered(ids), np.array(valid))
        reference.extend(ids[valid])
        expected = numbered(np.array(reference, int))
        jax.tree.map(np.testing.assert_array_equal, stored(buffer), expected)


def full(num: int, ends: list[int] | None = None) -> replay.Replay:
    """The transitions 0 to num - 1 one after the other, the last CAPACITY of them."""
    buffer = replay.init(2, 1, CAPACITY)
    for i in range(num):
        end = np.array([i in (ends or [])])
        one = numbered(np.array([i]), end)._replace(terminal=np.zeros(1, bool))
        buffer = insert(buffer, one, np.ones(1, bool))
    return buffer


@pytest.mark.parametrize("num", [1, 5, 7, 17])
def test_samples_are_uniform_over_what_is_in(num: int):
    batch = replay.sample(jax.random.key(0), full(num), 4000)
    assert batch.obs.shape == (4000, 2)
    ids, counts = np.unique(batch.obs[:, 0], return_counts=True)
    size = min(num, CAPACITY)
    np.testing.assert_array_equal(ids, np.arange(num - size, num))
    tolerance = 5 * (4000 / size) ** 0.5  # standard errors of a count
    np.testing.assert_allclose(counts, 4000 / size, atol=tolerance)
    whole = numbered(np.asarray(batch.obs[:, 0]).astype(int))
    np.testing.assert_array_equal(batch.reward, whole.reward)
    np.testing.assert_array_equal(batch.next_obs, whole.next_obs)


@pytest.mark.parametrize("num", [3, 7, 17])
@pytest.mark.parametrize("ends", [[], [0, 2, 12, 14], [1, 11, 16]])
def test_sequences_follow_each_other_up_to_the_end_of_an_episode(
    num: int, ends: list[int]
):
    length = 3
    draw = jax.jit(replay.sample_sequences, static_argnums=(2, 3))
    batch, valid = draw(jax.random.key(0), full(num, ends), 1000, length)
    ids = np.asarray(batch.obs[..., 0], int)
    assert ids.shape == valid.shape == (1000, length)
    np.testing.assert_array_equal(ids, ids[:, :1] + np.arange(length))
    first = num - min(num, CAPACITY)
    starts, counts = np.unique(ids[:, 0], return_counts=True)
    np.testing.assert_array_equal(starts, np.arange(first, num - length + 1))
    tolerance = 5 * (1000 / len(starts)) ** 0.5
    np.testing.assert_allclose(counts, 1000 / len(starts), atol=tolerance)
    for row, flags in zip(ids, np.asarray(valid), strict=True):
        over = [i for i in row if i in ends][:1]
        np.testing.assert_array_equal(flags, row <= (over or [row[-1]])[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_no_sequence_goes_on_over_what_was_left_out(stride: int):
    """Nor do two environments that take turns change places after it."""
    buffer = replay.init(2, 1, 16)
    for ids in np.split(np.arange(20), 20 // stride):
        rows = numbered(ids)._replace(terminal=np.zeros(stride, bool))
        lost = np.isin(ids, [5, 10])[:, None]
        rows = rows._replace(next_obs=np.where(lost, np.nan, rows.next_obs))
        buffer = insert(buffer, rows, np.ones(stride, bool))
    draw = jax.jit(replay.sample_sequences, static_argnums=(2, 3, 4))
    batch, valid = draw(jax.random.key(0), buffer, 500, 4, stride)
    for row, flags in zip(np.asarray(batch.obs[..., 0]), valid, strict=True):
        follows = row == row[0] + stride * np.arange(4)
        np.testing.assert_array_equal(flags, np.cumprod(follows))
    assert 0 < valid[:, -1].mean() < 1


def test_a_terminal_ends_a_sequence_as_a_time_limit_does():
    buffer = full(4)
    data = buffer.data._replace(terminal=buffer.data.terminal.at[1].set(True))
    _, valid = replay.sample_sequences(
        jax.random.key(0), buffer._replace(data=data), 1, 4
    )
    np.testing.assert_array_equal(valid, [[True, True, False, False]])


def test_what_does_not_fit_is_refused():
    buffer, ids = replay.init(2, 1, CAPACITY), np.arange(CAPACITY + 1)
    with pytest.raises(ValueError, match="8 transitions do not fit a capacity of 7"):
        replay.insert(buffer, numbered(ids), jnp.zeros(8, bool))


@pytest.mark.parametrize("x64", [False, True])
def test_inserting_keeps_all_types(x64: bool):
    with jax.enable_x64(x64):
        buffer = jax.eval_shape(partial(replay.init, 2, 1, CAPACITY))
        rows = numbered(np.arange(3))
        valid = jax.ShapeDtypeStruct((3,), bool)
        assert jax.eval_shape(replay.insert, buffer, rows, valid) == buffer


@pytest.mark.parametrize("num", [1, 5, 7, 17])
@pytest.mark.parametrize("number", [1, 3, 7, 9])
def test_the_newest_are_a_buffer_of_their_own(num: int, number: int):
    """Also where fewer are in, and it goes on as any other."""
    buffer = replay.newest(full(num), number)
    size = min(num, CAPACITY, number)
    assert (buffer.capacity, int(buffer.size)) == (number, size)
    expected = numbered(np.arange(num - size, num))
    expected = expected._replace(terminal=np.zeros(size, bool))
    jax.tree.map(np.testing.assert_array_equal, stored(buffer), expected)
    buffer = insert(buffer, numbered(np.array([num])), np.ones(1, bool))
    size = min(size + 1, number)
    np.testing.assert_array_equal(
        stored(buffer).obs[:, 0], np.arange(num + 1 - size, num + 1)
    )


@pytest.mark.parametrize("num", [5, 7, 17])
@pytest.mark.parametrize("newest", [1, 3, 7, 100])
def test_a_sample_of_the_newest_is_uniform_over_them(num: int, newest: int):
    draw = jax.jit(replay.sample, static_argnums=2)
    batch = draw(jax.random.key(0), full(num), 2000, newest)
    ids, counts = np.unique(batch.obs[:, 0], return_counts=True)
    size = min(num, CAPACITY, newest)
    np.testing.assert_array_equal(ids, np.arange(num - size, num))
    np.testing.assert_allclose(counts, 2000 / size, atol=5 * (2000 / size) ** 0.5)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e30])
def test_a_row_that_statistics_would_not_survive_is_left_out(bad: float):
    rows = numbered(np.arange(ROWS))
    rows = rows._replace(obs=np.where(np.arange(ROWS)[:, None] == 2, bad, rows.obs))
    found = insert(replay.init(2, 1, CAPACITY), rows, np.ones(ROWS, bool))
    np.testing.assert_array_equal(stored(found).action[:, 0], [0, 1, 3])


def test_complex_numbers_are_refused():
    rows = numbered(np.arange(ROWS))
    with pytest.raises(TypeError, match=r"replay\.insert takes real numbers"):
        insert(
            replay.init(2, 1, CAPACITY), rows._replace(obs=1j * rows.obs), rows.terminal
        )


def test_times_are_those_since_the_episode_began():
    """Around the ring; an episode whose start is gone is counted from its oldest row,
    and one goes on after a row that was left out as if it began there."""
    buffer = replay.init(2, 1, CAPACITY)
    ends = [False, False, False, False, True, False, False, False, False, True]
    ids = 2 * np.arange(10)  # those of even ones are not terminal
    rows = numbered(ids, np.array(ends))
    rows.reward[7] = np.nan  # left out
    for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
        some = jax.tree.map(lambda x, part=part: x[part], rows)
        buffer = insert(buffer, some, np.ones(len(some.reward), bool))
    start = int(buffer.position) - int(buffer.size)
    found = np.asarray(replay.times(buffer))[np.arange(start, start + 7) % CAPACITY]
    #                               2  3  4 |5  6 |8  9
    np.testing.assert_array_equal(found, [0, 1, 2, 0, 1, 0, 1])


NUM_FRAMES = 3


def pictures(num_envs: int, seed: int, num_steps: int) -> list[Transition]:
    """What `num_envs` environments show side by side, step by step: each frame has a
    number of its own, 1 x 1 pixels in two channels; some rewards are not finite."""
    rng, count = np.random.default_rng(seed), 0

    def frame() -> list[int]:
        nonlocal count
        count += 1
        return [count // 256, count % 256]

    stacks, steps = [frame() * NUM_FRAMES for _ in range(num_envs)], []
    for _ in range(num_steps):
        after = [stack[2:] + frame() for stack in stacks]
        chance = rng.uniform(size=num_envs)
        terminal, truncated = chance < 0.15, (chance >= 0.15) & (chance < 0.3)
        reward = np.where((chance >= 0.3) & (chance < 0.35), np.nan, chance)
        shown = [np.array(x, np.uint8)[:, None, None] for x in (stacks, after)]
        steps.append(
            Transition(shown[0], chance[:, None], reward, shown[1], terminal, truncated)
        )
        ended = terminal | truncated | np.isnan(reward)
        stacks = [
            frame() * NUM_FRAMES if end else stack
            for end, stack in zip(ended, after, strict=True)
        ]
    return steps


PICTURED = Env(
    name="pictured",
    reset=lambda key: None,
    step=lambda state, action: None,
    obs_size=0,
    action_size=1,
    action_limit=1.0,
    episode_length=1000,
    obs_shape=(1, 1, 2 * NUM_FRAMES),
    num_frames=NUM_FRAMES,
)


def seen(steps: list[Transition], capacity: int) -> replay.Replay:
    put = jax.jit(replay.insert, static_argnames="stride")
    buffer = replay.of(PICTURED, capacity)
    num_envs = len(steps[0].reward)
    for step in steps:
        buffer = put(buffer, step, np.ones(num_envs, bool), stride=num_envs)
    return buffer


def told(steps: Transition) -> set[tuple]:
    """Rows that can be compared, without what comes after an end."""
    parts = steps._replace(
        next_obs=np.where(steps.terminal[:, None, None, None], 0, steps.next_obs)
    )
    flat = [np.asarray(x).reshape(len(steps.reward), -1) for x in parts]
    return {tuple(row) for row in np.concatenate(flat, axis=1).astype(np.float32)}


@pytest.mark.parametrize(("num_envs", "seed"), [(1, 0), (1, 1), (3, 0), (3, 1)])
def test_pictures_are_kept_once_and_come_back_whole(num_envs: int, seed: int):
    """Every row that is drawn was there, and all are drawn that are known: not the last
    of an environment, one at which the clock ran out, one that is not finite, and the
    oldest, whose frames are gone."""
    steps, capacity = pictures(num_envs, seed, 60), 40
    buffer = seen(steps, capacity)
    assert buffer.data.obs.shape == (capacity, 1, 1, 2)
    assert buffer.data.next_obs.size == 0
    batch = jax.tree.map(
        np.asarray,
        jax.jit(replay.sample, static_argnums=2)(jax.random.key(0), buffer, 2000),
    )
    rows = jax.tree.map(lambda *x: np.stack(x, axis=1), *steps)  # [N, T, ...]
    left_out = np.isnan(rows.reward)
    order = np.arange(60 * num_envs).reshape(-1, num_envs).T  # as they were put in
    recent = order >= 60 * num_envs - capacity
    last = np.arange(60)[None] == 59
    unknown = rows.truncated | (last & ~rows.terminal)
    first_frame = rows.obs[:, :, 0, 0, :2].astype(int) @ [256, 1]
    newest_frame = rows.obs[:, :, 0, 0, -2:].astype(int) @ [256, 1]
    kept = set(newest_frame[recent])
    whole = np.isin(first_frame, list(kept))
    due = recent & ~left_out & ~unknown & whole
    expected = jax.tree.map(lambda x: x[due], rows)
    assert 10 < due.sum() < capacity
    assert told(batch) == told(expected)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_sequences_of_pictures_end_where_they_are_not_known(num_envs: int):
    steps = pictures(num_envs, 2, 60)
    rows = jax.tree.map(lambda *x: np.concatenate(x), *steps)
    everything = told(rows._replace(reward=np.nan_to_num(rows.reward)))
    draw = jax.jit(replay.sample_sequences, static_argnums=(2, 3, 4))
    found, valid = draw(jax.random.key(0), seen(steps, 40), 200, 4, num_envs)
    found, valid = jax.tree.map(np.asarray, (found, valid))
    assert 0.2 < valid.mean() < 0.95
    assert (np.diff(valid.astype(int), axis=1) <= 0).all()
    flat = jax.tree.map(lambda x: x[valid], found)
    assert told(flat) <= everything
    both = valid[:, 1:]
    np.testing.assert_array_equal(found.next_obs[:, :-1][both], found.obs[:, 1:][both])


def test_a_whole_episode_at_once_is_put_as_step_by_step():
    steps = pictures(1, 3, 30)
    one = seen(steps, 64)
    rows = jax.tree.map(lambda *x: np.concatenate(x), *steps)
    other = jax.jit(replay.insert)(replay.of(PICTURED, 64), rows, np.ones(30, bool))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_hundred_thousand_pictures_fit_1_3_gigabytes():
    env = PICTURED._replace(obs_shape=(64, 64, 9))
    empty = jax.eval_shape(lambda: replay.of(env, 100_000))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(empty))
    assert size < 1.3e9
