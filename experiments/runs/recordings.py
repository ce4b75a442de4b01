"""Episodes that were recorded, or are made, to identify a simulator from."""

import importlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import envs
from mbrl_jax.envs import systems
from mbrl_jax.gradients import identification
from mbrl_jax.types import Array, Key, PyTree


class Source(NamedTuple):
    """Where episodes can come from."""

    system: systems.ParametricSystem
    parameters: PyTree  # all of them, also what `system` leaves out
    start: Callable[[Key], Array]  # [D]
    low: Array  # [A] limits of the actions
    high: Array  # [A]


def make_source(name: str) -> Source:
    """Raises ValueError for what has no equations of motion."""
    library, _, task = name.partition("/")
    if library != "brax":
        system, env = systems.own(name), envs.make(name)
        limit = jnp.full(env.action_size, env.action_limit)
        first = lambda key: system.place(env.reset(key).obs)
        return Source(system, system.parameters, first, -limit, limit)
    brax = importlib.import_module("mbrl_jax.envs.brax")  # takes seconds
    if task not in brax.TASKS:
        raise ValueError(f"unknown Brax task {task!r}; known: {', '.join(brax.TASKS)}")
    try:
        brax_env = brax.build(task, "generalized")
        system = systems.of_brax(brax_env)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{name} cannot be simulated here: {error}") from error

    def start(key: Key) -> Array:
        with jax.numpy_rank_promotion("allow"):
            state = brax_env.reset(jax.random.key_data(key)).pipeline_state
        return jnp.concatenate([state.q, state.qd])

    low, high = brax_env.sys.actuator.ctrl_range.T
    return Source(system, brax_env.sys, start, low, high)


def record(
    key: Key,
    source: Source,
    true: systems.Values,
    shape: tuple[int, int],
    noise: float,
    push: float = 1.0,
) -> tuple[Array, Array]:
    """obs [E, T + 1, O] and action [E, T, A], uniform, for `shape` = (E, T).

    Actions are within their limits times `push`.
    """
    system = source.system._replace(parameters=source.parameters)
    start_key, action_key, noise_key = jax.random.split(key, 3)
    starts = jax.jit(jax.vmap(source.start))(jax.random.split(start_key, shape[0]))
    uniform = jax.random.uniform(action_key, (*shape, len(source.low)))
    low, high = (push * x[None, None] for x in (source.low, source.high))
    action = low + (high - low) * uniform
    run = lambda start, action: identification.simulate(system, true, start, action)
    obs = jax.jit(jax.vmap(run))(starts, action)
    return obs + noise * jax.random.normal(noise_key, obs.shape), action


def read(path: Path, source: Source) -> tuple[Array, Array]:
    """The arrays of --data.  Raises OSError or ValueError if it does not hold them."""
    wrong = (KeyError, TypeError, ValueError, AttributeError, EOFError)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            obs, action = (np.asarray(file[name], float) for name in ("obs", "action"))
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror or error}") from error
    except (*wrong, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz with obs and action: {error}") from error
    sizes = jax.eval_shape(source.start, jax.random.key(0))
    expected = (jax.eval_shape(source.system.observe, sizes).size, source.low.size)
    if obs.ndim != 3 or action.ndim != 3 or (obs.shape[2], action.shape[2]) != expected:
        raise ValueError(
            f"{path}: obs must be [E, T + 1, {expected[0]}] and action [E, T, "
            f"{expected[1]}], not {obs.shape} and {action.shape}"
        )
    if not (np.isfinite(obs).all() and np.isfinite(action).all()):
        raise ValueError(f"{path} holds numbers that are not finite")
    return jnp.asarray(obs), jnp.asarray(action)
