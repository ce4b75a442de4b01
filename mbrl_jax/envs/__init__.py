"""Environments by name."""

import difflib
import importlib
from collections.abc import Callable

from mbrl_jax.envs import (
    acrobot,
    cartpole,
    grid,
    linear_quadratic,
    pendulum,
    point_mass,
    probes,
    reacher,
    t_maze,
)
from mbrl_jax.types import Env

_OWN: dict[str, Callable[[], Env]] = {
    "pendulum": pendulum.make,
    "pendulum_no_velocity": pendulum.no_velocity,
    "cartpole": cartpole.discrete,
    "cartpole_no_velocity": cartpole.no_velocity,
    "cartpole_swingup": cartpole.swingup,
    "cartpole_balance": cartpole.balance,
    "cartpole_pets": cartpole.pets,
    "acrobot": acrobot.make,
    "reacher": reacher.make,
    "point_mass": point_mass.make,
    "linear_quadratic": linear_quadratic.make,
    "maze": grid.maze,
    "gridworld": grid.gridworld,
    "blocking_maze": grid.blocking_maze,
    "shortcut_maze": grid.shortcut_maze,
    "t_maze": t_maze.make,
    "probe1": probes.probe1,
    "probe2": probes.probe2,
    "probe3": probes.probe3,
    "probe4": probes.probe4,
    "probe5": probes.probe5,
}
_ADAPTERS = ("brax/NAME", "brax/NAME/BACKEND", "gymnasium/ID")


def names() -> tuple[str, ...]:
    """The project's own environments."""
    return tuple(_OWN)


def make(name: str) -> Env:
    """One of `names()`, "brax/NAME", "brax/NAME/BACKEND" or "gymnasium/ID".

    Raises ValueError for any other name.
    """
    if name in _OWN:
        return _OWN[name]()
    library, _, rest = name.partition("/")
    if library == "brax" and rest:
        # Here and not above: importing brax or gymnasium takes seconds.
        brax = importlib.import_module("mbrl_jax.envs.brax")
        return brax.make(*rest.split("/", 1))
    if library == "gymnasium" and rest:
        return importlib.import_module("mbrl_jax.envs.gymnasium").make(rest)
    near = difflib.get_close_matches(name, _OWN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join((*_OWN, *_ADAPTERS))
    raise ValueError(f"unknown environment {name!r}; {hint}known are: {known}")
