"""The probes, learned by an algorithm all in one program."""

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
    """The state of `module`'s algorithm after `num_steps` iterations in a probe, which
    is learned together with the others of `among`."""

    def pick(
        probe: str,
        module: Any,
        config: Any,
        num_steps: int,
        among: tuple[str, ...] = PROBES,
    ) -> Any:
        states = _trained(module, config, num_steps, among)
        return jax.tree.map(lambda x: x[among.index(probe)], states)

    return pick


@functools.cache
def _trained(module: Any, config: Any, num_steps: int, among: tuple[str, ...]) -> Any:
    """The states [len(among), ...]."""

    def run(which: Array, key: Key) -> Any:
        algorithm: Algorithm = module.make(_one_of(among, which), config)
        keys = jax.random.split(key, num_steps)
        step = lambda state, key: (algorithm.step(key, state)[0], None)
        return jax.lax.scan(step, algorithm.init(key), keys)[0]

    keys = jax.random.split(jax.random.key(0), len(among))
    return jax.jit(jax.vmap(run))(jnp.arange(len(among)), keys)


def _one_of(among: tuple[str, ...], which: Array) -> Env:
    """The probe of an index that may be traced."""
    probes = [envs.make(name) for name in among]

    def switch(kind: str) -> Callable[..., Any]:
        branches = [getattr(probe, kind) for probe in probes]
        return lambda *args: jax.lax.switch(which, branches, *args)

    longest = max(probes, key=lambda probe: probe.episode_length)
    return longest._replace(
        **{kind: switch(kind) for kind in ("reset", "step", "reward", "terminal")}
    )
