"""The probes, learned by an algorithm all in one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.types import Algorithm, Array, Env, Key, Metrics

PROBES = tuple(f"probe{i}" for i in range(1, 6))


class Trained(NamedTuple):
    first: Any  # state
    state: Any
    metrics: Metrics  # of each iteration


@pytest.fixture(scope="session")
def state_of() -> Callable[..., Any]:
    """The state of `module`'s algorithm after `num_steps` iterations in a probe, which
    is learned together with the others."""

    def pick(probe: str, module: Any, config: Any, num_steps: int) -> Any:
        states = train(module, config, num_steps, PROBES).state
        return jax.tree.map(lambda x: x[PROBES.index(probe)], states)

    return pick


@pytest.fixture(scope="session")
def trained() -> Callable[..., Trained]:
    """As `train` below."""
    return train


@functools.cache
def train(
    module: Any,
    config: Any,
    num_steps: int,
    among: tuple[str, ...],
    make: Callable[[str], Env] = envs.make,
    change: Callable[[Env, Array], Env] = lambda env, which: env,
) -> Trained:
    """In each environment `make(name)` for `name` of `among`, [len(among), ...]; first
    `change` may do something to it, knowing which it is."""

    def run(which: Array, key: Key) -> Trained:
        env = change(_one_of([make(name) for name in among], which), which)
        algorithm: Algorithm = module.make(env, config)
        keys = jax.random.split(key, num_steps)
        first, step = algorithm.init(key), lambda state, key: algorithm.step(key, state)
        state, metrics = jax.lax.scan(step, first, keys)
        return Trained(first, state, metrics)

    keys = jax.random.split(jax.random.key(0), len(among))
    found = jax.jit(jax.vmap(run))(np.arange(len(among)), keys)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), found)


def _one_of(among: list[Env], which: Array) -> Env:
    """The environment of an index that may be traced."""

    def switch(kind: str) -> Callable[..., Any]:
        branches = [getattr(env, kind) for env in among]
        return lambda *args: jax.lax.switch(which, branches, *args)

    longest = max(among, key=lambda env: env.episode_length)
    return longest._replace(
        **{kind: switch(kind) for kind in ("reset", "step", "reward", "terminal")}
    )
