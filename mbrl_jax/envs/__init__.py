"""Environments by name."""

import difflib
import importlib
import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.envs import (
    acrobot,
    arm,
    cart_double_pendulum,
    cartpole,
    catch,
    dodge,
    double_pendulum,
    driving,
    grid,
    linear_quadratic,
    multi_task,
    peg_insertion,
    pendulum,
    pixels,
    planar,
    point_mass,
    probes,
    pushing,
    reacher,
    returned,
    simulator,
    t_maze,
    two_discs,
    two_peaks,
    unicycle,
)
from mbrl_jax.types import Env

_OWN: dict[str, Callable[[], Env]] = {
    "pendulum": pendulum.make,
    "pendulum_no_velocity": pendulum.no_velocity,
    "pendulum_pilco": pendulum.pilco,
    "cartpole": cartpole.discrete,
    "cartpole_no_velocity": cartpole.no_velocity,
    "cartpole_swingup": cartpole.swingup,
    "cartpole_balance": cartpole.balance,
    "cartpole_pets": cartpole.pets,
    "cartpole_pilco": cartpole.pilco,
    "acrobot": acrobot.make,
    "catch": catch.make,
    "dodge": dodge.make,
    "driving": driving.make,
    "double_pendulum": double_pendulum.make,
    "pendubot": double_pendulum.pendubot,
    "cart_double_pendulum": cart_double_pendulum.make,
    "unicycle": unicycle.make,
    "reacher": reacher.make,
    "arm": arm.make,
    "peg_insertion": peg_insertion.make,
    "planar": planar.make,
    "pushing": pushing.make,
    "pushing_occluded": pushing.occluded,
    "point_mass": point_mass.make,
    "windy_point_mass": point_mass.windy,
    "turned_point_mass": point_mass.turned,
    "linear_quadratic": linear_quadratic.make,
    "maze": grid.maze,
    "gridworld": grid.gridworld,
    "detour1": lambda: grid.detour(1),
    "detour2": lambda: grid.detour(2),
    "detour3": lambda: grid.detour(3),
    "detour4": lambda: grid.detour(4),
    "two_rooms1": lambda: grid.two_rooms(1),
    "two_rooms2": lambda: grid.two_rooms(2),
    "two_rooms3": lambda: grid.two_rooms(3),
    "two_rooms4": lambda: grid.two_rooms(4),
    "blocking_maze": grid.blocking_maze,
    "shortcut_maze": grid.shortcut_maze,
    "t_maze": t_maze.make,
    "two_discs": two_discs.make,
    "two_peaks": two_peaks.make,
    "probe1": probes.probe1,
    "probe2": probes.probe2,
    "probe3": probes.probe3,
    "probe4": probes.probe4,
    "probe5": probes.probe5,
}
OTHERS = (
    "brax/NAME",
    "brax/NAME/BACKEND",
    "gymnasium/ID",
    "MODULE:FUNCTION",
    "NAME+NAME",
    "pixels/NAME",
    "pixels/NAME/SETTING=VALUE,...",
)


def names() -> tuple[str, ...]:
    """The project's own environments."""
    return tuple(_OWN)


def names_a_module(name: str) -> bool:
    """Whether `make` imports a module because the name says so, and so runs code."""
    return ":" in name  # of "gymnasium/MODULE:ID" too


def make(name: str, episode_length: int | None = None) -> Env:
    """One of `names()`, or of `OTHERS`; MODULE:FUNCTION() returns an `Env`.

    NAME+NAME is each of them, from episode to episode, see `multi_task`;
    pixels/NAME/SETTING=VALUE,... is NAME seen as pictures, see `pixels`.
    `episode_length` is in place of its own.  Raises ValueError for any other name and
    for what cannot be made.
    """
    library, _, rest = name.partition("/")
    if library == "gymnasium" and rest:
        gymnasium = importlib.import_module("mbrl_jax.envs.gymnasium")
        own = {"episode_length": episode_length} if episode_length else {}
        return gymnasium.make(rest, **own)
    env = _made(name)
    return simulator.time_limit(env, episode_length) if episode_length else env


def _made(name: str) -> Env:
    if multi_task.SIGN in name:
        return multi_task.make([make(x) for x in name.split(multi_task.SIGN)])
    if name in _OWN:
        return _OWN[name]()
    library, _, rest = name.partition("/")
    if library == "brax" and rest:
        # Here and not above: importing brax or gymnasium takes seconds.
        brax = importlib.import_module("mbrl_jax.envs.brax")
        return brax.make(*rest.split("/", 1))
    if library == "pixels" and rest:
        seen, _, settings = rest.partition("/")
        return pixels.make(make(seen), pixels.parse(settings))
    if names_a_module(name):
        return _of_module(name)
    near = difflib.get_close_matches(name, _OWN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join((*_OWN, *OTHERS))
    raise ValueError(f"unknown environment {name!r}; {hint}known are: {known}")


def _of_module(name: str) -> Env:
    module, _, function = name.partition(":")
    try:
        env = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever happens in other people's code
        said = returned.in_a_line(error)
        raise ValueError(f"{name} is not made: {said}{_place(error)}") from error
    if not isinstance(env, Env):
        raise ValueError(f"{name} returned a {type(env).__name__}, no mbrl_jax Env")
    _check_types(name, env)
    return env


def _check_types(name: str, env: Env) -> None:
    """Raises ValueError unless `step` keeps the types of a state, which are as said.

    Those of `simulator` and the adapters do; others would fail far from here.
    """
    kind = jnp.int32 if env.num_actions else jnp.result_type(float)
    action = jnp.zeros(() if env.num_actions else env.action_size, kind)
    reset = returned.named(f"{name}: reset", env.reset)
    step = returned.named(f"{name}: step", lambda state: env.step(state, action))
    first = jax.eval_shape(reset, jax.random.key(0))
    blank = jax.eval_shape(env.blank_obs)
    kind = first.obs.dtype.kind == ("u" if env.obs_shape else "f")
    if first.obs.shape != blank.shape or not kind:
        shape, dtype = first.obs.shape, first.obs.dtype
        due = f"uint8 {list(env.obs_shape)}" if env.obs_shape else f"[{env.obs_size}]"
        raise ValueError(f"{name}: obs are {dtype} of shape {shape}, not {due}")
    lasting = returned.lasting_types(reset, step, f"{name}: step")
    for (path, old), new in zip(
        jax.tree.leaves_with_path(first), jax.tree.leaves(lasting), strict=True
    ):
        if old.dtype != new.dtype:
            part = jax.tree_util.keystr(path)
            raise ValueError(f"{name}: step makes {part} {new.dtype} of {old.dtype}")


def _place(error: Exception) -> str:
    """Where in other people's code it was raised: its traceback is not shown."""
    ours = (__file__, "<frozen ")
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [x for x in frames if not x.filename.startswith(ours)]
    if not theirs:
        return ""
    return f" ({theirs[-1].filename.rpartition('/')[2]}, line {theirs[-1].lineno})"
