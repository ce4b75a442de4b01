"""Constants by name, and Brax's dynamics with and without the stops of its joints."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import brax, systems
from mbrl_jax.types import Array


class Parameters(NamedTuple):
    mass: float
    frictions: np.ndarray
    grid: Array
    count: int


def parameters() -> Parameters:
    return Parameters(2.0, np.array([0.1, 0.2]), jnp.arange(6.0).reshape(2, 3), 3)


def test_constants_have_the_names_of_their_places():
    found = systems.constants(parameters(), ["mass", "frictions.1", "grid.1.0"])
    expected = {"mass": 2.0, "frictions.1": np.float32(0.2), "grid.1.0": 3.0}
    assert found == expected


def test_replace_changes_what_is_named_and_nothing_else():
    def changed(x: Array) -> Parameters:
        return systems.replace(parameters(), {"frictions.0": x, "grid.0.2": 2 * x})

    new = jax.jit(lambda x: changed(x)[:3])(jnp.array(7.0))
    assert new[0] == 2
    np.testing.assert_allclose(new[1], [7, 0.2])
    np.testing.assert_array_equal(new[2], [[0, 1, 14], [3, 4, 5]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mas", "unknown parameter 'mas'; there are: mass"),
        ("frictions", r"there are: frictions\.\d"),
        ("frictions.2", "there are: frictions"),
        ("count", "unknown parameter 'count'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        systems.constants(parameters(), [name])


def test_own_has_the_environments_with_equations():
    with pytest.raises(ValueError, match="there are: pendulum, cartpole_swingup"):
        systems.own("probe1")


@pytest.mark.slow
def test_braxs_dynamics_are_those_of_its_env_and_hold_off_the_stops():
    """The slider of inverted_pendulum is free within +-1 m; a step takes 0.04 s."""
    brax_env = brax.build("inverted_pendulum", "generalized")
    system = systems.of_brax(brax_env)

    @jax.jit
    def step(state: Array, action: Array) -> tuple[Array, ...]:
        with jax.numpy_rank_promotion("allow"):
            old = brax_env.pipeline_init(state[:2], state[2:])
            new = brax_env.pipeline_step(old, action)
        free = system.dynamics(system.parameters, state, action)
        whole = system.dynamics(brax_env.sys, state, action)
        return jnp.concatenate([new.q, new.qd]), whole, free

    away, near = jnp.array([0.3, 0.1, 1.0, -0.5]), jnp.array([0.99, 0.1, 1.0, -0.5])
    action = jnp.array([0.5])
    theirs, whole, free = step(away, action)
    np.testing.assert_allclose(whole, theirs, atol=1e-6)
    np.testing.assert_allclose(free, theirs, atol=1e-6)
    theirs, whole, free = step(near, action)
    np.testing.assert_allclose(whole, theirs, atol=1e-6)
    assert free[0] > 1.02
    assert jnp.abs(free - theirs).max() > 0.1
    held = [[0.9, 0, 1, 0], [0.9, 0, 2, 0], [0.9, 0, -2, 0], [0.97, 0, 0, 0]]
    expected = [True, False, False, False]
    np.testing.assert_array_equal(jax.vmap(system.holds)(jnp.array(held)), expected)
    assert not system.holds(away.at[1].set(jnp.nan))
