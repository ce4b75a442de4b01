"""A ring buffer of transitions: fixed shapes, on the device, part of the state.

Of pictures, each row keeps the newest frame alone, and where the others of its stack
are; what came next is that of the row after.  So a frame is kept once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import finite
from mbrl_jax.types import Array, Env, Key, Transition


class Frames(NamedTuple):
    """Where the frames of a picture are, by the rows that keep them."""

    stack: Array  # [C, F] int32, the oldest first; the first one again where there
    # were not as many in the episode
    after: Array  # [C] int32, the row of the next step of the episode; -1: none is in


class Replay(NamedTuple):
    data: Transition  # [C, ...]
    # of pictures `obs` is the newest frame alone, and `next_obs` empty
    position: Array  # [] int32, where the next transition goes
    size: Array  # [] int32, how many are in
    number: Array  # [C] int32, each row's among all that were offered
    offered: Array  # [] int32, how many were, those that were left out too
    frames: Frames | None = None  # of pictures

    @property
    def capacity(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]


def init(
    obs_size: int, action_size: int, capacity: int, *, discrete: bool = False
) -> Replay:
    """Empty.  Discrete actions are numbers [C], and `action_size` is not used."""
    flag = jnp.zeros(capacity, bool)
    obs = jnp.zeros((capacity, obs_size))
    action = jnp.zeros((capacity, action_size))
    if discrete:
        action = jnp.zeros(capacity, jnp.int32)
    data = Transition(obs, action, jnp.zeros(capacity), obs, flag, flag)
    zero = jnp.zeros((), jnp.int32)
    return Replay(data, zero, zero, jnp.zeros(capacity, jnp.int32), zero)


def of(env: Env, capacity: int) -> Replay:
    """Empty, for what `env` shows and is told."""
    discrete = env.num_actions > 0
    if not env.obs_shape:
        return init(env.obs_size, env.action_size, capacity, discrete=discrete)
    empty = init(0, env.action_size, capacity, discrete=discrete)
    *size, channels = env.obs_shape
    shape = (capacity, *size, channels // env.num_frames)
    data = empty.data._replace(
        obs=jnp.zeros(shape, jnp.uint8), next_obs=jnp.zeros((capacity, 0), jnp.uint8)
    )
    stack = jnp.zeros((capacity, env.num_frames), jnp.int32)
    frames = Frames(stack, jnp.full(capacity, -1, jnp.int32))
    return empty._replace(data=data, frames=frames)


def valid(replay: Replay) -> Array:
    """Which rows are in, [C] bool."""
    return jnp.arange(replay.capacity) < replay.size


def insert(
    replay: Replay, transitions: Transition, valid: Array, stride: int = 1
) -> Replay:
    """Appends the transitions [T, ...] where `valid` [T], oldest out first.

    Those of `stride` environments side by side take turns, which matters to pictures
    alone: whose frames are whose.

    A transition that is not finite, as of a simulator that blew up, or next to that
    (`finite.usable`), is left out; the numbers of its neighbours tell that they do not
    follow each other.
    Raises ValueError if T exceeds the capacity, and TypeError for complex numbers.
    """
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(transitions)):
        raise TypeError("replay.insert takes real numbers, not complex ones")
    if valid.shape[0] > replay.capacity:
        raise ValueError(
            f"{valid.shape[0]} transitions do not fit a capacity of {replay.capacity}"
        )
    number = replay.offered + jnp.cumsum(valid, dtype=jnp.int32)  # 1 for the first
    usable = finite.usable(transitions, num_batch_axes=1)
    if replay.frames is None:
        valid = valid & usable
    else:
        transitions = _newest_frames(replay, transitions, usable)
    slot = (replay.position + jnp.cumsum(valid) - 1) % replay.capacity
    slot = jnp.where(valid, slot, replay.capacity)  # out of range, hence dropped
    data, numbers = jax.tree.map(
        lambda old, new: old.at[slot].set(new, mode="drop"),
        (replay.data, replay.number),
        (transitions, number),
    )
    count = valid.sum(dtype=jnp.int32)
    new = Replay(
        data,
        (replay.position + count) % replay.capacity,
        jnp.minimum(replay.size + count, replay.capacity),
        numbers,
        number[-1],
        replay.frames,
    )
    return new if new.frames is None else _linked(new, slot, stride)


def _newest_frames(replay: Replay, steps: Transition, usable: Array) -> Transition:
    """As they are kept.  One that is not finite is not left out, since its frame is
    what the step before came to: the clock has run out there, so it is never drawn."""
    newest = steps.obs[..., -replay.data.obs.shape[-1] :]
    nothing = jnp.zeros((len(usable), 0), jnp.uint8)
    over = steps.truncated | ~usable
    steps = finite.zeroed(~usable, steps)
    return steps._replace(obs=newest, next_obs=nothing, truncated=over)


def _linked(replay: Replay, slot: Array, stride: int) -> Replay:
    """With the `frames` of the rows that were put at `slot` [T]; C is for none."""
    assert replay.frames is not None
    stack, after = replay.frames
    capacity, num_frames = stack.shape
    ended = replay.data.terminal | replay.data.truncated
    own = replay.number[slot % capacity]
    row, follows, rows = slot, slot < capacity, [slot]
    for back in range(1, max(num_frames, 2)):
        before = (slot - back * stride) % capacity
        number = own - back * stride  # of the row before, if it is in
        follows &= (number > 0) & (replay.number[before] == number) & ~ended[before]
        row = jnp.where(follows, before, row)
        rows.append(row)
        if back == 1:
            previous = jnp.where(follows, before, capacity)
    frames = jnp.stack(rows[:num_frames][::-1], axis=1).astype(jnp.int32)
    after = after.at[slot].set(-1, mode="drop")
    after = after.at[previous].set(slot.astype(jnp.int32), mode="drop")
    return replay._replace(
        frames=Frames(stack.at[slot].set(frames, mode="drop"), after)
    )


def _whole(replay: Replay) -> Array:
    """Which rows are in with all of their frames, and know what came next or that
    nothing did, [C] bool."""
    assert replay.frames is not None
    stack, after = replay.frames
    kept = replay.number[stack[:, 0]] <= replay.number
    return valid(replay) & kept & ((after >= 0) | replay.data.terminal)


def _rows(replay: Replay, index: Array) -> Transition:
    """Those at `index`, whose pictures are put together."""
    rows = jax.tree.map(lambda x: x[index], replay.data)
    if replay.frames is None:
        return rows
    stack, after = replay.frames

    def picture(index: Array) -> Array:
        frames = jnp.moveaxis(replay.data.obs[stack[index]], -4, -2)  # [..., F, C]
        return frames.reshape(*frames.shape[:-2], -1)

    # nothing follows an end: nobody looks at what stands there
    follows = jnp.where(after[index] < 0, index, after[index])
    return rows._replace(obs=picture(index), next_obs=picture(follows))


def newest(replay: Replay, number: int) -> Replay:
    """A buffer of the last `number` transitions alone, which are of vectors."""
    assert replay.frames is None
    size = jnp.minimum(replay.size, number)
    index = replay.position - size + jnp.arange(number)
    data, numbers = jax.tree.map(
        lambda x: x[index % replay.capacity], (replay.data, replay.number)
    )
    return Replay(data, size % number, size, numbers, replay.offered)


def times(replay: Replay) -> Array:
    """How many steps of its episode came before each row, [C] int32, for those of one
    environment.

    They are counted from the oldest row, and from one after a row that was left out;
    where nothing is, they mean nothing.
    """
    order = jnp.arange(replay.capacity, dtype=jnp.int32)
    index = (replay.position - replay.size + order) % replay.capacity  # oldest first
    number = replay.number[index]
    ended = (replay.data.terminal | replay.data.truncated)[index]
    follows = jnp.diff(number) == 1
    begins = jnp.pad(ended[:-1] | ~follows, (1, 0), constant_values=True)
    first = jax.lax.cummax(jnp.where(begins, order, 0))
    return jnp.zeros_like(order).at[index].set(order - first)


def sample(
    key: Key, replay: Replay, batch_size: int, newest: Array | int | None = None
) -> Transition:
    """A batch [B, ...], uniform with replacement, of all or of the `newest` ones.

    Of pictures, what came next is known of a step when the one after it is in, hence
    never of one at which the clock ran out: those are not drawn.
    """
    size = replay.size if newest is None else jnp.minimum(replay.size, newest)
    oldest = replay.position - size
    if replay.frames is not None:
        age = (jnp.arange(replay.capacity) - oldest) % replay.capacity
        return _rows(replay, _any_of(key, _whole(replay) & (age < size), batch_size))
    index = oldest + jax.random.randint(key, (batch_size,), 0, size)
    return _rows(replay, index % replay.capacity)


def _any_of(key: Key, among: Array, number: int) -> Array:
    """`number` indices where `among` [C], uniformly, with replacement."""
    total = jnp.cumsum(among, dtype=jnp.int32)
    drawn = jax.random.randint(key, (number,), 0, total[-1])
    return jnp.searchsorted(total, drawn, side="right")


def mixed(
    keys: tuple[Key, Key],
    real: Replay,
    imagined: Replay,
    batch_size: int,
    real_share: float | Array,
    newest: Array | int | None = None,
) -> Transition:
    """A batch [B, ...] of which `real_share`, rounded to rows, is real, and the rest of
    the `newest` imagined ones, each drawn with a key of its own."""
    drawn = sample(keys[0], real, batch_size)
    if isinstance(real_share, int | float) and real_share == 1:
        return drawn
    others = sample(keys[1], imagined, batch_size, newest)
    is_real = jnp.arange(batch_size) < jnp.round(real_share * batch_size)

    def mix(x: Array, y: Array) -> Array:
        return jnp.where(is_real.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(mix, drawn, others)


def sample_sequences(
    key: Key, replay: Replay, batch_size: int, length: int, stride: int = 1
) -> tuple[Transition, Array]:
    """Consecutive transitions [B, length, ...], and which of them are `valid`.

    A sequence that meets the end of an episode is valid up to and including it, and
    one that meets a transition which was left out, up to that.
    Those of `stride` environments side by side take turns in the buffer.  It must hold
    at least `length` transitions of each.
    """
    oldest, span = replay.position - replay.size, (length - 1) * stride
    start = jax.random.randint(key, (batch_size,), 0, replay.size - span)
    index = oldest + start[:, None] + stride * jnp.arange(length)[None]  # [B, length]
    index = index % replay.capacity
    sequences, number = _rows(replay, index), replay.number[index]
    follows = jnp.diff(number, axis=1) == stride
    ended = (sequences.terminal | sequences.truncated)[:, :-1]
    goes_on = jnp.pad(follows & ~ended, ((0, 0), (1, 0)), constant_values=True)
    if replay.frames is not None:
        goes_on &= _whole(replay)[index]
    return sequences, jnp.cumprod(goes_on, axis=1) > 0
