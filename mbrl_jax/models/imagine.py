"""Model x policy -> imagined futures: windows, branches into a buffer, paths."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import replay
from mbrl_jax.models.outcomes import Decode
from mbrl_jax.replay import Replay
from mbrl_jax.types import Act, Array, Key, Model, Policy, PyTree, Transition, Window

BLOCK = 1000  # rows of a member at once, so that what is between layers stays in cache


Sampler = Callable[[Key, Array, Array], Array]
# (key, obs [N, O], action [N, A]) -> outcomes [N, D], drawn


def sample_ts1(model: Model, members: PyTree) -> Sampler:
    """The rows are dealt to the members [M, ...] anew at every call (TS1), N / M each;
    where M does not divide N, some members have fewer."""
    num_members = jax.tree.leaves(members)[0].shape[0]
    predict = jax.vmap(jax.vmap(model.predict, in_axes=(None, 0, 0)))

    def sample(key: Key, obs: Array, action: Array) -> Array:
        deal_key, noise_key = jax.random.split(key)
        number = len(obs)
        num_blocks = -(-number // (num_members * BLOCK))
        total = number + -number % (num_members * num_blocks)  # some are done twice
        order = jax.random.permutation(deal_key, total)
        shape = num_blocks, num_members, -1
        deal = lambda x: x[order % number].reshape(*shape, *x.shape[1:])

        def block(x: tuple[Key, Array, Array]) -> Array:
            key, obs, action = x
            mean, std = predict(members, obs, action)
            return mean + std * jax.random.normal(key, mean.shape, mean.dtype)

        keys = jax.random.split(noise_key, num_blocks)
        y = jax.lax.map(block, (keys, deal(obs), deal(action)))
        return y.reshape(total, -1)[jnp.argsort(order)[:number]]

    return sample


def sample_member(model: Model, member: PyTree) -> Sampler:
    """Every row by the same member."""
    predict = jax.vmap(model.predict, in_axes=(None, 0, 0))

    def sample(key: Key, obs: Array, action: Array) -> Array:
        mean, std = predict(member, obs, action)
        return mean + std * jax.random.normal(key, mean.shape, mean.dtype)

    return sample


def advance(
    key: Key, sample: Sampler, decode: Decode, obs: Array, action: Array
) -> Transition:
    """One step of N futures, [N, ...]."""
    result = jax.vmap(decode)(obs, action, sample(key, obs, action))
    never = jnp.zeros_like(result.terminal)
    return Transition(
        obs, action, result.reward, result.next_obs, result.terminal, never
    )


def rollouts(
    key: Key,
    model: Model,
    members: PyTree,
    decode: Decode,
    policy: Policy,
    starts: Array,
    horizon: int,
) -> Window:
    """`policy` in the model, from `starts` [N, O] on for `horizon` steps: [N, H, ...].

    The members [M, ...] share the rollouts, dealt anew at every step.  A rollout is
    valid up to its termination; what follows its last step is not known.
    """
    sample = sample_ts1(model, members)

    def step(
        now: tuple[Array, Array, PyTree], key: Key
    ) -> tuple[tuple[Array, Array, PyTree], tuple[Transition, Array]]:
        (obs, alive, memory), (act_key, key) = now, jax.random.split(key)
        keys = jax.random.split(act_key, len(obs))
        action, memory = jax.vmap(policy.act)(keys, obs, memory)
        data = advance(key, sample, decode, obs, action)
        return (data.next_obs, alive & ~data.terminal, memory), (data, alive)

    memory = _memories(policy, len(starts))
    start = (starts, jnp.ones(len(starts), bool), memory)
    keys = jax.random.split(key, horizon)
    _, (data, alive) = jax.lax.scan(step, start, keys)
    data, alive = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (data, alive))
    return Window(data, alive, memory)


def branches(
    key: Key,
    sample: Sampler,
    decode: Decode,
    policy: Policy,
    starts: Array,
    length: int | Array,
    buffer: Replay,
    first: Array | None = None,
) -> Replay:
    """As `rollouts`, `length` steps from `starts` [N, O] on, into a buffer.

    The length may be traced: nothing is compiled again when it grows.  The `first`
    actions [N, A], where they are given, are taken in place of the policy's.
    """

    def step(i: Array, now: tuple) -> tuple:
        obs, alive, memory, buffer = now
        act_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        keys = jax.random.split(act_key, len(obs))
        action, memory = jax.vmap(policy.act)(keys, obs, memory)
        if first is not None:
            action = jnp.where(i == 0, first, action)
        data = advance(step_key, sample, decode, obs, action)
        buffer = replay.insert(buffer, data, alive)
        return data.next_obs, alive & ~data.terminal, memory, buffer

    memory = _memories(policy, len(starts))
    start = (starts, jnp.ones(len(starts), bool), memory, buffer)
    return jax.lax.fori_loop(0, length, step, start)[-1]


class ImaginedPath(NamedTuple):
    """N futures in a model, of H steps; and the action at their end."""

    obs: Array  # [H + 1, N, O]
    action: Array  # [H + 1, N, A]
    bonus: Array  # [H + 1, N] of acting, see `value_learning`
    reward: Array  # [H, N]
    alive: Array  # [H + 1, N] bool, not over before this state


def imagined_path(
    key: Key, sample: Sampler, decode: Decode, act: Act, starts: Array, horizon: int
) -> ImaginedPath:
    """From `starts` [N, O] on, acting by `act(key, obs) -> (action, bonus)`.

    The actions at the starts are those that `act` gives for `jax.random.split(key, N)`.
    """
    keys = jax.random.split(key, len(starts) + 1)  # those N, and one more

    def step(
        now: tuple[Array, Array, tuple[Array, Array]], keys: Array
    ) -> tuple[tuple, ImaginedPath]:
        obs, alive, (action, bonus) = now
        data = advance(keys[0], sample, decode, obs, action)
        act_keys = jax.random.split(keys[1], len(obs))
        acted = jax.vmap(act)(act_keys, data.next_obs)
        later = data.next_obs, alive & ~data.terminal, acted
        return later, ImaginedPath(obs, action, bonus, data.reward, alive)

    start = starts, jnp.ones(len(starts), bool), jax.vmap(act)(keys[:-1], starts)
    keys = jax.random.split(keys[-1], (horizon, 2))
    (obs, alive, (action, bonus)), steps = jax.lax.scan(step, start, keys)
    close = lambda xs, x: jnp.concatenate([xs, x[None]])
    return ImaginedPath(
        close(steps.obs, obs),
        close(steps.action, action),
        close(steps.bonus, bonus),
        steps.reward,
        close(steps.alive, alive),
    )


def _memories(policy: Policy, number: int) -> PyTree:
    spread = lambda x: jnp.broadcast_to(x, (number, *jnp.shape(x)))
    return jax.tree.map(spread, policy.init())
