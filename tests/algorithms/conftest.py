"""The five probes, learned by an algorithm all five in one program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax import envs
from mbrl_jax.types import Algorithm, Array, Env, Key

PROBES = tuple(f"probe{i}" for i in range(1, 6))


@pytest.fixture(scope="session")
def state_of() -> Callable[..., Any]:
    """The state of `module`'s algorithm after `num_steps` iterations in a probe."""
    return lambda probe, *args: jax.tree.map(
        lambda x: x[PROBES.index(probe)], _trained(*args)
    )


@functools.cache
def _trained(module: Any, config: Any, num_steps: int) -> Any:
    """The states [5, ...]."""

    def run(which: Array, key: Key) -> Any:
        algorithm: Algorithm = module.make(_one_of_all(which), config)
        keys = jax.random.split(key, num_steps)
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        return jax.lax.scan(step, algorithm.init(key), keys)[0]

    keys = jax.random.split(jax.random.key(0), len(PROBES))
    return jax.jit(jax.vmap(run))(jnp.arange(len(PROBES)), keys)


def _one_of_all(which: Array) -> Env:
    """The probe of an index that may be traced."""
    probes = [envs.make(name) for name in PROBES]

    def switch(kind: str) -> Callable[..., Any]:
        branches = [getattr(probe, kind) for probe in probes]
        return lambda *args: jax.lax.switch(which, branches, *args)

    return probes[2]._replace(  # whose episodes are the longest
        reset=switch("reset"), step=switch("step"), reward=None, terminal=None
    )
