"""The unicycle against Lagrange's equations in all coordinates, held by multipliers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import unicycle
from mbrl_jax.types import Array, Env, EnvState

pytestmark = pytest.mark.usefixtures("double")

RADIUS, GRAVITY = 0.225, 9.82
HEIGHTS, MASSES = (0.0, 0.54, 0.81), (1.0, 23.5, 10.0)
INERTIAS = ((0.0242, 0.0484, 0.0242), (0.4608, 0.8292, 0.4248), (1.3, 1.3, 0.2))
# q: where it touches the ground (2), roll, yaw, wheel, pitch, table


def turn(axis: int, angle: Array) -> Array:
    """Anticlockwise about an axis, [3, 3]."""
    spin = np.zeros((3, 3))
    spin[(axis + 2) % 3, (axis + 1) % 3], spin[(axis + 1) % 3, (axis + 2) % 3] = 1, -1
    return np.eye(3) + jnp.sin(angle) * spin + (1 - jnp.cos(angle)) * spin @ spin


def bodies(q: Array) -> tuple[Array, Array]:
    """Centres of mass [3, 3], m, and orientations [3, 3, 3]."""
    _, _, roll, yaw, wheel, pitch, table = q
    up = jnp.array([0.0, 0.0, 1.0])
    rolled = turn(2, yaw) @ turn(0, -roll)
    frame = rolled @ turn(1, pitch)
    axle = jnp.stack([q[0], q[1], jnp.zeros_like(roll)]) + RADIUS * rolled @ up
    centres = jnp.stack([axle + height * frame @ up for height in HEIGHTS])
    return centres, jnp.stack([rolled @ turn(1, wheel), frame, frame @ turn(2, table)])


def energies(q: Array, q_dot: Array) -> tuple[Array, Array]:
    """Kinetic and potential, J."""
    (centres, _), (speeds, spins) = jax.jvp(bodies, (q,), (q_dot,))
    masses, inertias = np.array(MASSES), np.array(INERTIAS)
    spread = inertias.sum(axis=1, keepdims=True) / 2 - inertias  # of mass along axes
    kinetic = (masses * (speeds**2).sum(axis=1)).sum()
    kinetic += (spread[:, None] * spins**2).sum()
    return kinetic / 2, GRAVITY * masses @ centres[:, 2]


def slip(q: Array, q_dot: Array) -> Array:
    """The velocity of the wheel's point that touches the ground, [3], m/s."""
    (centres, frames), (speeds, spins) = jax.jvp(bodies, (q,), (q_dot,))
    touching = jnp.stack([q[0], q[1], jnp.zeros_like(q[0])])
    return speeds[0] + spins[0] @ frames[0].T @ (touching - centres[0])


def accelerations(q: Array, q_dot: Array, forces: Array) -> Array:
    """[7], with the forces that keep the wheel from slipping."""

    def lagrangian(q: Array, q_dot: Array) -> Array:
        kinetic, potential = energies(q, q_dot)
        return kinetic - potential

    momentum, level = jax.grad(lagrangian, argnums=1), lambda *x: slip(*x)[:2]
    mass, rows = jax.jacfwd(momentum, 1)(q, q_dot), jax.jacfwd(level, 1)(q, q_dot)
    still = lambda f: jax.jvp(lambda q: f(q, q_dot), (q,), (q_dot,))[1]
    push = forces + jax.grad(lagrangian)(q, q_dot) - still(momentum)
    whole = jnp.block([[mass, rows.T], [rows, jnp.zeros((2, 2))]])
    return jnp.linalg.solve(whole, jnp.concatenate([push, -still(level)]))[:7]


def in_world(obs: Array) -> tuple[Array, Array]:
    """q and q_dot; the turns of wheel and table, which are not observed, are 0."""
    x, y, roll, yaw, pitch, roll_dot, yaw_dot, wheel_dot, pitch_dot, table_dot = obs
    cos, sin, none = jnp.cos(yaw), jnp.sin(yaw), jnp.zeros_like(x)
    q = [y * sin - x * cos, -x * sin - y * cos, roll, yaw, none, pitch, none]
    speed = RADIUS * wheel_dot
    q_dot = [speed * cos, speed * sin, roll_dot, yaw_dot, wheel_dot, pitch_dot]
    return jnp.stack(q), jnp.stack([*q_dot, table_dot])


def observed(q: Array, q_dot: Array) -> Array:
    right, up, roll, yaw, _, pitch, _ = q
    cos, sin = jnp.cos(yaw), jnp.sin(yaw)
    place = [-right * cos - up * sin, right * sin - up * cos]
    return jnp.concatenate([jnp.stack([*place, roll, yaw, pitch]), q_dot[2:]])


def standing(number: int) -> tuple[np.ndarray, np.ndarray]:
    """States and actions, fast, that do not fall within a step."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-np.pi, np.pi, (number, 10))
    obs[:, [2, 4]] *= 0.2
    obs[:, [5, 8]] *= 0.5
    return obs, rng.uniform(-1, 1, (number, 2))


@pytest.mark.slow
def test_a_step_is_that_of_multipliers():
    @jax.jit
    @jax.vmap
    def derivative(state: Array, action: Array) -> Array:
        table, wheel = 10 * action[0], 50 * action[1]
        zero = jnp.zeros_like(table)
        forces = jnp.stack([zero, zero, zero, zero, wheel, -wheel, table])
        q, q_dot = state[:7], state[7:]
        return jnp.concatenate([q_dot, accelerations(q, q_dot, forces)])

    obs, actions = standing(50)
    state = np.concatenate(jax.vmap(in_world)(obs), axis=1)
    ahead = lambda k, dt: np.asarray(derivative(state + dt * k, actions))
    dt = 0.15 / 32
    for _ in range(32):  # of Runge and Kutta
        k1 = ahead(0 * state, 0.0)
        k2 = ahead(k1, dt / 2)
        k3 = ahead(k2, dt / 2)
        k4 = ahead(k3, dt)
        state += dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    found = jax.jit(jax.vmap(unicycle.dynamics))(obs, actions)
    expected = jax.vmap(lambda x: observed(x[:7], x[7:]))(state)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_wheel_does_not_slip_and_energy_is_conserved():
    obs, actions = standing(50)
    obs[:, 2:] *= 0.3
    step = jax.jit(jax.vmap(unicycle.dynamics))
    look = jax.jit(jax.vmap(lambda x: (slip(*in_world(x)), *energies(*in_world(x)))))
    slips, kinetic, potential = look(obs)
    np.testing.assert_allclose(slips, np.zeros((50, 3)), atol=1e-12)
    for _ in range(3):
        obs = step(obs, 0 * actions)
    assert (np.abs(obs[:, [2, 4]]) < unicycle.FALLEN).all()
    slips, *after = look(obs)
    np.testing.assert_allclose(slips, np.zeros((50, 3)), atol=1e-12)
    assert np.median(np.abs(after[0] - kinetic)) > 10  # J
    np.testing.assert_allclose(sum(after), kinetic + potential, rtol=1e-6)


def test_where_it_rolls_is_what_it_sees_of_the_origin():
    """Straight on, it comes nearer to what is ahead; turned on the spot, it circles."""
    step = jax.jit(unicycle.dynamics)
    upright = jnp.zeros(10)
    rolling = step(upright.at[0].set(1.0).at[7].set(2.0), jnp.zeros(2))
    np.testing.assert_allclose(rolling[:2], [1 - 2 * 0.225 * 0.15, 0], atol=1e-3)
    turning = step(upright.at[0].set(1.0).at[6].set(1.0), jnp.zeros(2))
    expected = [np.cos(0.15), -np.sin(0.15)]
    np.testing.assert_allclose(turning[:2], expected, atol=1e-3)


def test_motors_turn_what_they_say_and_their_mounts_the_other_way():
    step = jax.jit(unicycle.dynamics)
    table = step(jnp.zeros(10), jnp.array([0.1, 0.0]))
    assert table[9] > 0 > table[6]
    wheel = step(jnp.zeros(10), jnp.array([0.0, 0.01]))
    assert wheel[7] > 0 > wheel[8]


def test_upright_is_at_rest_but_falls():
    step = jax.jit(jax.vmap(unicycle.dynamics))
    after = step(1e-6 * np.eye(11, 10), np.zeros((11, 2)))  # the last is upright
    np.testing.assert_array_equal(after[-1], np.zeros(10))
    growth = np.sort(np.abs(np.linalg.eigvals(np.asarray(after[:10]) / 1e-6)))
    assert (growth[-2:] > 1.3).all()  # to the side, and ahead


def test_what_has_fallen_lies():
    env = unicycle.make()
    step = jax.jit(env.step)
    for entry in (2, 4):
        lies(env, step, entry)


def lies(env: Env, step: Callable[[EnvState, Array], EnvState], entry: int) -> None:
    env_state = env.reset(jax.random.key(0))
    state = env_state.sim.state.at[entry].set(1.0).at[entry + 3 + entry // 4].set(1.0)
    env_state = env_state._replace(sim=env_state.sim._replace(state=state))
    for _ in range(8):
        env_state = step(env_state, jnp.array([1.0, -1.0]))
    assert 1.4 <= env_state.obs[entry] < 1.5
    np.testing.assert_array_equal(env_state.obs[5:], np.zeros(5))
    assert -1 < env_state.reward < -0.8
    after = step(env_state, jnp.array([1.0, -1.0]))
    np.testing.assert_array_equal(after.obs, env_state.obs)


@pytest.mark.slow
def test_no_action_moves_what_has_fallen():
    lying = 1.45 * jnp.eye(10)[2]
    last = lambda action: unicycle.dynamics(lying, action).sum()
    np.testing.assert_array_equal(jax.jit(jax.grad(last))(jnp.ones(2)), np.zeros(2))
