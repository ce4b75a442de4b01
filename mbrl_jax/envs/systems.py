"""Simulators whose physical constants can be changed by name, seen by observations.

`own` has the project's environments, `of_brax` makes one of any Brax environment.
"""

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs import (
    acrobot,
    cart_double_pendulum,
    cartpole,
    double_pendulum,
    pendulum,
    reacher,
    unicycle,
)
from mbrl_jax.types import Array, PyTree

Values = Mapping[str, Array]  # {name: []}, such as "mass" or "links.masses.0"
Dynamics = Callable[[PyTree, Array, Array], Array]
# (parameters, state [D], action [A]) -> next state [D]

STOP_MARGIN = 0.02  # for noise in the positions


def finite(obs: Array) -> Array:
    return jnp.isfinite(obs).all()


class ParametricSystem(NamedTuple):
    """For one example."""

    parameters: PyTree  # all constants, in NamedTuples, dataclasses and arrays
    dynamics: Dynamics
    observe: Callable[[Array], Array]  # state [D] -> obs [O]
    place: Callable[[Array], Array]  # obs [O] -> the state [D] that shows it
    holds: Callable[[Array], Array] = finite  # obs [O] -> [], are `dynamics` right?


def constants(parameters: PyTree, names: Iterable[str]) -> dict[str, Array]:
    """The numbers of these names.  Raises ValueError for a name that is not there."""
    leaves, places = jax.tree.leaves(parameters), _places(parameters, names)
    return {name: jnp.asarray(leaves[i])[at] for name, (i, at) in places.items()}


def replace(parameters: PyTree, values: Values) -> PyTree:
    """`parameters` with other `values`; they may be traced.  Errors as `constants`."""
    leaves, tree = jax.tree.flatten(parameters)
    for name, (i, at) in _places(parameters, values).items():
        leaves[i] = jnp.asarray(leaves[i]).at[at].set(values[name])
    return jax.tree.unflatten(tree, leaves)


def own(name: str) -> ParametricSystem:
    """One of the project's own environments.  Raises ValueError for others.

    Actions are taken as they are, also beyond the environment's limits.
    """
    if name not in _OWN:
        raise ValueError(f"no equations of {name!r}; there are: {', '.join(_OWN)}")
    return _OWN[name]


def of_brax(brax_env: Any) -> ParametricSystem:
    """A Brax environment of the generalized backend; the constants are its `sys`.

    States and observations are positions and velocities of the joints, (q, qd); actions
    are what the actuators get, which `step` of some tasks computes from [-1, 1].

    The joints have no stops here: at one, motion turns within a step, least squares
    have minima everywhere, and no derivative tells how far it holds.  So these dynamics
    hold where every joint stays off its stops, by `STOP_MARGIN` of its range, a step
    before and after.  With the `sys` of `brax_env` for parameters they have the stops.
    """
    sys, dt = brax_env.sys, brax_env.dt
    num_positions = sys.q_size()
    q_index, qd_index = sys.q_idx("123"), sys.qd_idx("123")  # not of free joints

    def holds(obs: Array) -> Array:
        if sys.dof.limit is None:
            return finite(obs)
        low, high = (limit[qd_index] for limit in sys.dof.limit)
        width = high - low
        margin = jnp.where(jnp.isfinite(width), STOP_MARGIN * width, 0.0)
        position = obs[:num_positions][q_index]
        way = jnp.abs(obs[num_positions:][qd_index]) * dt
        inside = (position - way > low + margin) & (position + way < high - margin)
        return finite(obs) & inside.all()

    def dynamics(sys: PyTree, state: Array, action: Array) -> Array:
        changed = copy.copy(brax_env)
        changed.sys = sys
        with jax.numpy_rank_promotion("allow"):  # in Brax's sources
            old = changed.pipeline_init(state[:num_positions], state[num_positions:])
            new = changed.pipeline_step(old, action)
        return jnp.concatenate([new.q, new.qd])

    free = sys.replace(dof=sys.dof.replace(limit=None))
    return ParametricSystem(free, dynamics, _same, _same, holds)


def _places(
    parameters: PyTree, names: Iterable[str]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """{name: (which leaf, which entry of it)} of all floats."""
    known: dict[str, tuple[int, tuple[int, ...]]] = {}
    for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(parameters)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            for at in np.ndindex(jnp.shape(leaf)):
                known[".".join(map(str, (name, *at)))] = i, at
    for name in (names := list(names)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5) or list(known)[:20]
            raise ValueError(
                f"unknown parameter {name!r}; there are: {', '.join(near)}"
            )
    return {name: known[name] for name in names}


def _same(x: Array) -> Array:
    return x


def _last(dynamics: Callable[..., Array]) -> Dynamics:
    return lambda parameters, state, action: dynamics(state, action, parameters)


def _reacher_state(state: Array) -> reacher.State:
    return reacher.State(state[:4], state[4:])


def _reacher_dynamics(
    state: Array, action: Array, parameters: reacher.Reacher
) -> Array:
    new = reacher.dynamics(_reacher_state(state), action, parameters)
    return jnp.concatenate(new)


_OWN = {
    "pendulum": ParametricSystem(
        pendulum.PENDULUM, _last(pendulum.dynamics), pendulum.observe, pendulum.place
    ),
    "cartpole_swingup": ParametricSystem(
        cartpole.SWINGUP,
        _last(cartpole.swingup_dynamics),
        cartpole.observe,
        cartpole.place,
    ),
    "cartpole_balance": ParametricSystem(
        cartpole.BALANCE, _last(cartpole.balance_dynamics), _same, _same
    ),
    "cartpole_pets": ParametricSystem(
        cartpole.PETS, _last(cartpole.pets_dynamics), cartpole.observe, cartpole.place
    ),
    "acrobot": ParametricSystem(
        acrobot.ACROBOT, _last(acrobot.dynamics), acrobot.observe, acrobot.place
    ),
    "reacher": ParametricSystem(
        reacher.REACHER,
        _last(_reacher_dynamics),
        lambda state: reacher.observe(_reacher_state(state)),
        lambda obs: jnp.concatenate(reacher.place(obs)),
    ),
    "pendulum_pilco": ParametricSystem(
        pendulum.PILCO, _last(pendulum.pilco_dynamics), _same, _same
    ),
    "cartpole_pilco": ParametricSystem(
        cartpole.PILCO, _last(cartpole.pilco_dynamics), _same, _same
    ),
    "double_pendulum": ParametricSystem(
        double_pendulum.LINKS, _last(double_pendulum.dynamics), _same, _same
    ),
    "pendubot": ParametricSystem(
        double_pendulum.LINKS, _last(double_pendulum.pendubot_dynamics), _same, _same
    ),
    "cart_double_pendulum": ParametricSystem(
        cart_double_pendulum.SYSTEM, _last(cart_double_pendulum.dynamics), _same, _same
    ),
    "unicycle": ParametricSystem(
        unicycle.UNICYCLE, _last(unicycle.dynamics), _same, _same
    ),
}
