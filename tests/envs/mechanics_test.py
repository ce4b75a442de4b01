"""The equations of motion against Lagrange's, written down as energies and derived."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import acrobot, cartpole, reacher, simulator
from mbrl_jax.ops import two_link
from mbrl_jax.types import Array
from tests import lagrange


class System(NamedTuple):
    acceleration: Callable[[Array, Array, Array], Array]  # (q, q_dot, forces) -> [2]
    bodies: lagrange.Bodies


def arm(links: two_link.TwoLink) -> System:
    def bodies(q: Array) -> tuple[Array, Array]:
        angles = jnp.cumsum(q)
        down = jnp.stack([jnp.sin(angles), -jnp.cos(angles)], axis=-1)  # [2, 2]
        elbow = links.lengths[0] * down[0]
        second = elbow + links.centres[1] * down[1]
        return jnp.stack([links.centres[0] * down[0], second]), angles

    return System(
        lambda q, q_dot, forces: two_link.acceleration(links, q, q_dot, forces),
        lagrange.Bodies(bodies, links.masses, links.inertias, links.gravity),
    )


def cart(system: cartpole.CartPole) -> System:

    def acceleration(q: Array, q_dot: Array, forces: Array) -> Array:
        state = jnp.stack([q[0], q_dot[0], q[1], q_dot[1]])
        return jnp.stack(cartpole.accelerations(system, state, forces[0]))

    def bodies(q: Array) -> tuple[Array, Array]:
        hinge = jnp.stack([q[0], jnp.zeros_like(q[0])])
        up = jnp.stack([jnp.sin(q[1]), jnp.cos(q[1])])
        positions = jnp.stack([hinge, hinge + system.pole_centre * up])
        return positions, jnp.stack([jnp.zeros_like(q[1]), q[1]])

    masses, inertias = (system.cart_mass, system.pole_mass), (0.0, system.pole_inertia)
    return System(
        acceleration, lagrange.Bodies(bodies, masses, inertias, system.gravity)
    )


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


UNEVEN = two_link.TwoLink((0.7, 0.4), (1.3, 0.6), (0.3, 0.25), (0.05, 0.02), 9.0)


@pytest.mark.slow
@pytest.mark.parametrize("links", [acrobot.LINKS, reacher.LINKS, UNEVEN])
def test_two_links_obey_lagrange(links: two_link.TwoLink):
    system = arm(links)
    q, q_dot, forces = 2 * np.random.default_rng(0).normal(size=(3, 20, 2))
    expected = jax.vmap(functools.partial(lagrange.acceleration, system.bodies))(
        q, q_dot, forces
    )
    accelerations = jax.vmap(system.acceleration)(q, q_dot, forces)
    np.testing.assert_allclose(accelerations, expected, rtol=1e-8)


@pytest.mark.parametrize(
    "constants", [cartpole.SWINGUP, cartpole.BALANCE, cartpole.PETS]
)
def test_cart_and_pole_obey_lagrange(constants: cartpole.CartPole):
    system = cart(constants)
    q, q_dot, forces = 2 * np.random.default_rng(1).normal(size=(3, 20, 2))
    forces[:, 1] = 0
    friction = np.array([[constants.cart_damping, constants.pole_damping]]) * q_dot
    accelerations = jax.vmap(system.acceleration)(q, q_dot, forces)
    expected = jax.vmap(functools.partial(lagrange.acceleration, system.bodies))(
        q, q_dot, forces - friction
    )
    np.testing.assert_allclose(accelerations, expected, rtol=1e-8)


@pytest.mark.parametrize(
    "system",
    [
        arm(acrobot.LINKS),
        arm(UNEVEN),
        cart(cartpole.BALANCE),
        cart(cartpole.PETS._replace(cart_damping=0.0, pole_damping=0.0)),
    ],
)
def test_energy_is_conserved(system: System):
    def derivative(state: Array) -> Array:
        q, q_dot = state[:2], state[2:]
        return jnp.concatenate([q_dot, system.acceleration(q, q_dot, jnp.zeros(2))])

    def step(state: Array, _: None) -> tuple[Array, Array]:
        state = simulator.rk4(derivative, state, 2e-3)
        return state, sum(lagrange.energies(system.bodies, state[:2], state[2:]))

    start = jnp.array([1.0, 2.0, -0.5, 1.5])
    first = sum(lagrange.energies(system.bodies, start[:2], start[2:]))
    _, energy = jax.lax.scan(step, start, None, length=2000)
    np.testing.assert_allclose(energy, first, atol=1e-7)


def test_the_acrobot_keeps_its_energy_over_an_episode():
    env, system = acrobot.make(), arm(acrobot.LINKS)
    env_state = env.reset(jax.random.key(0))
    start = env_state.sim.state.at[:2].set(jnp.array([1.5, 0.5]))
    env_state = env_state._replace(sim=env_state.sim._replace(state=start))

    def step(env_state, _: None):
        env_state = env.step(env_state, jnp.zeros(1))
        state = env_state.sim.state
        return env_state, jnp.stack(
            lagrange.energies(system.bodies, state[:2], state[2:])
        )

    _, energy = jax.lax.scan(step, env_state, None, length=200)  # [200, 2]
    assert energy[:, 0].max() > 10  # J, it swings
    np.testing.assert_allclose(energy.sum(axis=1), energy[0].sum(), atol=0.02)
