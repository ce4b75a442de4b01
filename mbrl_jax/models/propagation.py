"""How uncertainty travels through a model (PETS, Chua et al., 2018, Sec. 5, App. A.2).

A propagation moves a set of particles one step: `step(key, obs [P, O], action [A],
alive [P])` returns sampled outcomes [P, D], see `types.Model`.  The noise depends on
the key alone, so that candidates of a planner that share a key are compared on the same
futures.  Particles that are not alive have met their end: moments leave them out.

The P particles stand in M equal groups, group m before member m; `expectation` needs no
groups.  All of a member's particles go through its network in one matrix product.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Gaussian, Key, Model, PyTree

Propagate = Callable[
    [Key, Array, Array, Array], Array
]  # (key, obs [P, O], action [A], alive [P]) -> [P, D]


def expectation(model: Model, state: PyTree) -> Propagate:
    """E: each particle moves to the mean over the members' means.  One is enough."""
    members = model.members(state)

    def step(key: Key, obs: Array, action: Array, alive: Array) -> Array:
        one = jax.vmap(model.predict, in_axes=(None, 0, None))
        every = jax.vmap(one, in_axes=(0, None, None))
        return every(members, obs, action).mean.mean(axis=0)

    return step


def ts_inf(model: Model, state: PyTree) -> Propagate:
    """TS-infinity: a particle stays with one member for the whole horizon."""
    members = model.members(state)

    def step(key: Key, obs: Array, action: Array, alive: Array) -> Array:
        return _sample(key, _grouped(model, members, obs, action)).reshape(
            obs.shape[0], -1
        )

    return step


def ts1(model: Model, state: PyTree) -> Propagate:
    """TS1: the particles are dealt to the members anew at every step."""
    follow = ts_inf(model, state)

    def step(key: Key, obs: Array, action: Array, alive: Array) -> Array:
        deal_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(deal_key, obs.shape[0])
        moved = follow(noise_key, obs[order], action, alive)
        return moved[jnp.argsort(order)]  # particles keep their places, and returns

    return step


def distribution_sampling(model: Model, state: PyTree) -> Propagate:
    """DS: each member's particles are redrawn from the Gaussian with their moments."""
    members = model.members(state)

    def step(key: Key, obs: Array, action: Array, alive: Array) -> Array:
        grouped = _grouped(model, members, obs, action)
        group = _moments(grouped, alive, axis=1)  # [M, 1, D]
        num_groups, _, size = group.mean.shape
        shape = (num_groups, obs.shape[0] // num_groups, size)
        return _sample(key, _repeat(group, shape)).reshape(-1, size)

    return step


def moment_matching(model: Model, state: PyTree) -> Propagate:
    """MM: all particles are redrawn from one Gaussian with their mean and variance."""
    members = model.members(state)

    def step(key: Key, obs: Array, action: Array, alive: Array) -> Array:
        grouped = _grouped(model, members, obs, action)
        every = _moments(grouped, alive, axis=(0, 1))
        size = every.mean.shape[-1]
        return _sample(key, _repeat(every, (1, obs.shape[0], size)))[0]

    return step


PROPAGATIONS = {
    "expectation": expectation,
    "distribution_sampling": distribution_sampling,
    "moment_matching": moment_matching,
    "ts1": ts1,
    "ts_inf": ts_inf,
}


def _grouped(model: Model, members: PyTree, obs: Array, action: Array) -> Gaussian:
    """Each group of particles through its own member, [M, P/M, D]."""
    num_members = jax.tree.leaves(members)[0].shape[0]
    groups = obs.reshape(num_members, -1, obs.shape[-1])
    group = jax.vmap(model.predict, in_axes=(None, 0, None))
    return jax.vmap(group, in_axes=(0, 0, None))(members, groups, action)


def _moments(x: Gaussian, alive: Array, axis: int | tuple[int, ...]) -> Gaussian:
    """The mean and the std, over `axis`, which is kept, of the equal mixture of those
    of the particles [M, P/M, D] that are alive; 0 where none is."""
    mask = alive.reshape(*x.mean.shape[:2], 1)
    count = jnp.maximum(mask.sum(axis, keepdims=True), 1)
    average = lambda x: jnp.where(mask, x, 0).sum(axis, keepdims=True) / count
    mean = average(x.mean)
    var = average(jnp.square(x.std) + jnp.square(x.mean - mean))
    return Gaussian(mean, jnp.sqrt(var))


def _repeat(x: Gaussian, shape: tuple[int, ...]) -> Gaussian:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), x)


def _sample(key: Key, x: Gaussian) -> Array:
    return x.mean + x.std * jax.random.normal(key, x.mean.shape, x.mean.dtype)
