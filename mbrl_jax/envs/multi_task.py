"""Several environments as one: each episode is in one of them, drawn at random.

obs: that of the task, with zeros behind up to the longest, then which task it is as a
one-hot.  Actions are the same for all.  Rewards and terminations are known to the
members only, and a picture is that of the task.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import Array, Env, EnvState, Key

SIGN = "+"  # between the names of the members


class Sim(NamedTuple):
    """What `EnvState.sim` is here."""

    task: Array  # [] int32
    members: tuple[EnvState, ...]  # where each is; the others wait


def make(members: Sequence[Env]) -> Env:
    """Raises ValueError for fewer than two, and for such as do not go together."""
    _check(members)
    members, first = tuple(members), members[0]
    number = len(members)

    def reset(key: Key) -> EnvState:
        task_key, key = jax.random.split(key)
        return _start(
            members, key, jax.random.randint(task_key, (), 0, number, jnp.int32)
        )

    def step(env_state: EnvState, action: Array) -> EnvState:
        sim: Sim = env_state.sim

        def move(i: int) -> tuple[EnvState, ...]:
            after = members[i].step(sim.members[i], action)
            return (*sim.members[:i], after, *sim.members[i + 1 :])

        ways = [functools.partial(move, i) for i in range(number)]
        return _show(members, Sim(sim.task, jax.lax.switch(sim.task, ways)))

    def render(env_states: EnvState) -> Array:
        """The states of one episode."""
        task = int(np.ravel(env_states.sim.task)[0])
        draw = members[task].render
        assert draw is not None
        return draw(env_states.sim.members[task])

    return Env(
        name=SIGN.join(env.name for env in members),
        reset=reset,
        step=step,
        obs_size=max(env.obs_size for env in members) + number,
        action_size=first.action_size,
        action_limit=first.action_limit,
        num_actions=first.num_actions,
        episode_length=max(env.episode_length for env in members),
        render=render if all(env.render for env in members) else None,
        tasks=members,
    )


def at(env: Env, task: Array | int) -> Env:
    """`env`, made here, with this one of its tasks in every episode; it may be traced.

    Any other environment is its own only task.
    """
    if not env.tasks:
        return env
    number = jnp.asarray(task, jnp.int32)
    return env._replace(reset=lambda key: _start(env.tasks, key, number))


def which(env: Env, obs: Array) -> Array:
    """The task [] that an observation of `env` is of; 0 where there is only one."""
    if not env.tasks:
        return jnp.zeros((), jnp.int32)
    return obs[-len(env.tasks) :].argmax().astype(jnp.int32)


def _start(members: tuple[Env, ...], key: Key, task: Array) -> EnvState:
    keys = jax.random.split(key, len(members))
    states = [env.reset(key) for env, key in zip(members, keys, strict=True)]
    return _show(members, Sim(task, tuple(states)))


def _show(members: tuple[Env, ...], sim: Sim) -> EnvState:
    size, number = max(env.obs_size for env in members), len(members)

    def show(i: int) -> EnvState:
        state = sim.members[i]
        obs = jnp.pad(state.obs, (0, size - members[i].obs_size))
        one_hot = jax.nn.one_hot(i, number, dtype=obs.dtype)
        return state._replace(obs=jnp.concatenate([obs, one_hot]), sim=())

    ways = [functools.partial(show, i) for i in range(number)]
    return jax.lax.switch(sim.task, ways)._replace(sim=sim)


def _check(members: Sequence[Env]) -> None:
    if len(members) < 2:
        raise ValueError(f"there must be two tasks at least, not {len(members)}")
    first = members[0]
    for env in members:
        if env.host or env.tasks:
            kind = "steps outside jax" if env.host else "has several tasks itself"
            raise ValueError(f"{env.name} {kind}, and cannot be one of several tasks")
        for field in ("num_actions", "action_size", "action_limit"):
            one, other = getattr(first, field), getattr(env, field)
            if one != other:
                raise ValueError(
                    f"tasks need the same actions: {field} of {first.name} is {one}, "
                    f"of {env.name} {other}"
                )
