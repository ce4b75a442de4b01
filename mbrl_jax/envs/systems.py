"""Simulators whose physical constants can be changed by name, seen by observations.

`own` has the project's environments, `of_brax` makes one of any Brax environment.
"""

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import acrobot, cartpole, pendulum, reacher
from mbrl_jax.types import Array, PyTree

Values = Mapping[str, Array]  # {name: []}, such as "mass" or "links.masses.0"
Dynamics = Callable[[PyTree, Array, Array], Array]
# (parameters, state [D], action [A]) -> next state [D]


class System(NamedTuple):
    """For one example."""

    parameters: PyTree  # all constants, in NamedTuples, dataclasses and arrays
    dynamics: Dynamics
    observe: Callable[[Array], Array]  # state [D] -> obs [O]
    place: Callable[[Array], Array]  # obs [O] -> the state [D] that shows it


def constants(parameters: PyTree, names: Iterable[str]) -> dict[str, Array]:
    """The numbers of these names.  Raises ValueError for a name that is not there."""
    leaves, places = jax.tree.leaves(parameters), _places(parameters, names)
    found = {name: (leaves[i], j) for name, (i, j) in places.items()}
    return {name: x if j is None else x[j] for name, (x, j) in found.items()}


def replace(parameters: PyTree, values: Values) -> PyTree:
    """`parameters` with other `values`; they may be traced.  Errors as `constants`."""
    leaves, tree = jax.tree.flatten(parameters)
    for name, (i, j) in _places(parameters, values).items():
        new = values[name]
        leaves[i] = new if j is None else jnp.asarray(leaves[i]).at[j].set(new)
    return jax.tree.unflatten(tree, leaves)


def own(name: str) -> System:
    """One of the project's own environments.  Raises ValueError for others.

    Actions are taken as they are, also beyond the environment's limits.
    """
    if name not in _OWN:
        raise ValueError(f"no equations of {name!r}; there are: {', '.join(_OWN)}")
    return _OWN[name]


def of_brax(brax_env: Any) -> System:
    """A Brax environment of the generalized backend; the constants are its `sys`.

    States and observations are positions and velocities of the joints, (q, qd); actions
    are what the actuators get, which `step` of some tasks computes from [-1, 1].
    """
    num_positions = brax_env.sys.q_size()

    def dynamics(sys: PyTree, state: Array, action: Array) -> Array:
        changed = copy.copy(brax_env)
        changed.sys = sys
        with jax.numpy_rank_promotion("allow"):  # in Brax's sources
            old = changed.pipeline_init(state[:num_positions], state[num_positions:])
            new = changed.pipeline_step(old, action)
        return jnp.concatenate([new.q, new.qd])

    return System(brax_env.sys, dynamics, _same, _same)


def _places(
    parameters: PyTree, names: Iterable[str]
) -> dict[str, tuple[int, int | None]]:
    """{name: (which leaf, which entry of it)} of float scalars and vectors."""
    known: dict[str, tuple[int, int | None]] = {}
    for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(parameters)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            continue
        if jnp.ndim(leaf) == 0:
            known[name] = i, None
        elif jnp.ndim(leaf) == 1:
            known |= {f"{name}.{j}": (i, j) for j in range(len(leaf))}
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
    "pendulum": System(
        pendulum.PENDULUM, _last(pendulum.dynamics), pendulum.observe, pendulum.place
    ),
    "cartpole_swingup": System(
        cartpole.SWINGUP,
        _last(cartpole.swingup_dynamics),
        cartpole.observe,
        cartpole.place,
    ),
    "cartpole_balance": System(
        cartpole.BALANCE, _last(cartpole.balance_dynamics), _same, _same
    ),
    "cartpole_pets": System(
        cartpole.PETS, _last(cartpole.pets_dynamics), cartpole.observe, cartpole.place
    ),
    "acrobot": System(
        acrobot.ACROBOT, _last(acrobot.dynamics), acrobot.observe, acrobot.place
    ),
    "reacher": System(
        reacher.REACHER,
        _last(_reacher_dynamics),
        lambda state: reacher.observe(_reacher_state(state)),
        lambda obs: jnp.concatenate(reacher.place(obs)),
    ),
}
