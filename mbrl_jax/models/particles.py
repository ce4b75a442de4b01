"""The worth of action sequences in a model, over particles (PETS)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.models.outcomes import Outcome
from mbrl_jax.models.propagation import Propagate
from mbrl_jax.types import Array, Key, Simulation


class Futures(NamedTuple):
    """Particles in a model, between two steps."""

    obs: Array  # [P, O]
    alive: Array  # [P] bool


def particle_returns(
    key: Key,
    step: Propagate,
    decode: Callable[[Array, Array, Array], Outcome],
    obs: Array,
    actions: Array,
    num_particles: int,
) -> Array:
    """The returns [P] of the actions [H, A] from `obs` [O], each up to its own end."""

    def advance(
        carry: tuple[Futures, Array], x: tuple[Key, Array]
    ) -> tuple[tuple[Futures, Array], None]:
        (key, action), (futures, total) = x, carry
        futures, rewards = _advance(key, step, decode, futures, action)
        return (futures, total + rewards), None

    start = _spread(obs, num_particles), jnp.zeros(num_particles, obs.dtype)
    keys = jax.random.split(key, actions.shape[0])
    (_, total), _ = jax.lax.scan(advance, start, (keys, actions))
    return total


def particle_mean(
    key: Key,
    step: Propagate,
    decode: Callable[[Array, Array, Array], Outcome],
    obs: Array,
    num_particles: int = 1,
) -> Simulation:
    """The mean of the particles' rewards, step by step; of one, the one future."""

    def advance(
        now: tuple[Key, Futures], action: Array
    ) -> tuple[tuple[Key, Futures], Array]:
        key, futures = now
        step_key, key = jax.random.split(key)
        futures, rewards = _advance(step_key, step, decode, futures, action)
        return (key, futures), rewards.mean()

    return Simulation((key, _spread(obs, num_particles)), advance)


def _spread(obs: Array, num_particles: int) -> Futures:
    particles = jnp.broadcast_to(obs, (num_particles, *obs.shape))
    return Futures(particles, jnp.ones(num_particles, bool))


def _advance(
    key: Key,
    step: Propagate,
    decode: Callable[[Array, Array, Array], Outcome],
    now: Futures,
    action: Array,
) -> tuple[Futures, Array]:
    """One step later, and the rewards [P] on the way: none after an end."""
    y = step(key, now.obs, action, now.alive)  # [P, D]
    result = jax.vmap(decode, in_axes=(0, None, 0))(now.obs, action, y)
    later = Futures(result.next_obs, now.alive & ~result.terminal)
    return later, jnp.where(now.alive, result.reward, 0)
