"""PILCO's tasks: their mechanics against Lagrange's, and rewards of Gaussians."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import (
    cart_double_pendulum,
    cartpole,
    double_pendulum,
    pendulum,
    simulator,
    systems,
)
from mbrl_jax.types import Array, Belief, Env
from tests import lagrange

pytestmark = pytest.mark.usefixtures("double")


class Task(NamedTuple):
    bodies: lagrange.Bodies
    q: list[int]  # the entries of a state that are positions
    q_dot: list[int]  # and velocities
    damping: list[float]  # [Q]
    drive: list[list[float]]  # [Q, A], forces of an action
    frictions: tuple[str, ...]  # names of constants
    goal: list[float]  # at rest, the tip is where it should be
    dt: float
    substeps: tuple[ModuleType, str]  # the name of their number


def rod(mass: float, length: float) -> float:
    return mass * length**2 / 12


def link(start: Array, length: float, angle: Array, sign: float) -> Array:
    """Where a link ends, (right, up), that stands from `start`; angles from upright."""
    return start + length * jnp.stack([sign * jnp.sin(angle), jnp.cos(angle)])


def pendulum_places(q: Array) -> tuple[Array, Array]:
    return link(jnp.zeros(2), 0.5, q[0], -1.0)[None], q


def cartpole_places(q: Array) -> tuple[Array, Array]:
    cart = jnp.stack([q[0], jnp.zeros_like(q[0])])
    places = jnp.stack([cart, link(cart, 0.25, q[1], 1.0)])
    return places, jnp.stack([jnp.zeros_like(q[1]), q[1]])


def arm_places(q: Array) -> tuple[Array, Array]:
    elbow = link(jnp.zeros(2), 0.5, q[0], -1.0)
    inner = link(jnp.zeros(2), 0.25, q[0], -1.0)
    return jnp.stack([inner, link(elbow, 0.25, q[1], -1.0)]), q


def cart_with_arm_places(q: Array) -> tuple[Array, Array]:
    cart = jnp.stack([q[0], jnp.zeros_like(q[0])])
    elbow, inner = link(cart, 0.6, q[1], 1.0), link(cart, 0.3, q[1], 1.0)
    places = jnp.stack([cart, inner, link(elbow, 0.3, q[2], 1.0)])
    return places, q * jnp.array([0.0, 1.0, 1.0])


ARM = Task(
    lagrange.Bodies(arm_places, (0.5, 0.5), (rod(0.5, 0.5),) * 2, 9.82),
    q=[0, 1],
    q_dot=[2, 3],
    damping=[0.0, 0.0],
    drive=[[1.0, 0.0], [0.0, 1.0]],
    frictions=(),
    goal=[0.0, 0.0, 0.0, 0.0],
    dt=0.1,
    substeps=(double_pendulum, "SUBSTEPS"),
)

TASKS = {
    "pendulum_pilco": Task(
        lagrange.Bodies(pendulum_places, (1.0,), (rod(1.0, 1.0),), 9.82),
        q=[0],
        q_dot=[1],
        damping=[0.01],
        drive=[[1.0]],
        frictions=("damping",),
        goal=[0.0, 0.0],
        dt=0.1,
        substeps=(pendulum, "PILCO_SUBSTEPS"),
    ),
    "cartpole_pilco": Task(
        lagrange.Bodies(cartpole_places, (0.5, 0.5), (0.0, rod(0.5, 0.5)), 9.82),
        q=[0, 2],
        q_dot=[1, 3],
        damping=[0.1, 0.0],
        drive=[[1.0], [0.0]],
        frictions=("cart_damping",),
        goal=[0.0, 0.0, 0.0, 0.0],
        dt=0.1,
        substeps=(cartpole, "PILCO_SUBSTEPS"),
    ),
    "double_pendulum": ARM,
    "pendubot": ARM._replace(
        drive=[[1.0], [0.0]],
        dt=0.05,
        substeps=(double_pendulum, "PENDUBOT_SUBSTEPS"),
    ),
    "cart_double_pendulum": Task(
        lagrange.Bodies(
            cart_with_arm_places, (0.5, 0.5, 0.5), (0.0, *(rod(0.5, 0.6),) * 2), 9.82
        ),
        q=[0, 1, 2],
        q_dot=[3, 4, 5],
        damping=[0.1, 0.0, 0.0],
        drive=[[1.0], [0.0], [0.0]],
        frictions=("damping",),
        goal=[0.0] * 6,
        dt=0.05,
        substeps=(cart_double_pendulum, "SUBSTEPS"),
    ),
}
each = pytest.mark.parametrize("name", TASKS)


def made(name: str) -> tuple[Env, Belief]:
    env = envs.make(name)
    assert env.belief is not None
    return env, env.belief


def states_and_actions(name: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Anywhere, as fast as in a swing-up: [N, O], [N, A]."""
    env, _ = made(name)
    rng, task = np.random.default_rng(0), TASKS[name]
    states = rng.uniform(-np.pi, np.pi, (number, env.obs_size))
    states[:, task.q_dot] *= 2
    actions = rng.uniform(-1, 1, (number, env.action_size))
    return states, env.action_limit * actions


def stepping(name: str) -> Callable[[Array, Array], Array]:
    system = systems.own(name)
    return jax.jit(jax.vmap(functools.partial(system.dynamics, system.parameters)))


@each
def test_a_step_obeys_lagrange(name: str):
    task = TASKS[name]
    q, q_dot = jnp.array(task.q), jnp.array(task.q_dot)

    @jax.jit
    @jax.vmap
    def expected(state: Array, action: Array) -> Array:
        def derivative(state: Array) -> Array:
            push = jnp.array(task.drive) @ action
            push = push - jnp.array(task.damping) * state[q_dot]
            q_ddot = lagrange.acceleration(task.bodies, state[q], state[q_dot], push)
            return state.at[q].set(state[q_dot]).at[q_dot].set(q_ddot)

        return simulator.rk4(derivative, state, task.dt / 64, 64)

    states, actions = states_and_actions(name, 20)
    np.testing.assert_allclose(
        stepping(name)(states, actions), expected(states, actions), atol=1e-4
    )


@each
def test_half_the_step_of_integration_changes_nothing(name: str, monkeypatch):
    """Where motion is not so chaotic that it changes everything."""
    states, actions = states_and_actions(name, 200)
    before = stepping(name)(states, actions)
    module, substeps = TASKS[name].substeps
    monkeypatch.setattr(module, substeps, 2 * getattr(module, substeps))
    after = stepping(name)(states, actions)
    assert (after != before).any()
    changes = np.abs(after - before).max(axis=1)
    assert np.quantile(changes, 0.95) < 1e-6
    assert changes.max() < 1e-4


@each
def test_spun_up_it_stays_finite(name: str):
    """Nothing else limits the speed, and energy."""
    env, _ = made(name)
    full = env.action_limit * jnp.array([1.0, -1.0])[: env.action_size]

    def play(key: Array) -> Array:
        step = lambda state, _: (env.step(state, full), state.obs)
        return jax.lax.scan(step, env.reset(key), length=env.episode_length)[1]

    obs = np.asarray(jax.jit(play)(jax.random.key(0)))
    assert np.isfinite(obs).all()
    assert np.abs(obs).max() > 3


@each
def test_energy_is_conserved_without_friction(name: str):
    task, system = TASKS[name], systems.own(name)
    free = {name: jnp.zeros(()) for name in task.frictions}
    parameters = systems.replace(system.parameters, free)
    env, belief = made(name)

    def step(state: Array, _: None) -> tuple[Array, Array]:
        state = system.dynamics(parameters, state, jnp.zeros(env.action_size))
        q, q_dot = state[jnp.array(task.q)], state[jnp.array(task.q_dot)]
        return state, jnp.stack(lagrange.energies(task.bodies, q, q_dot))

    start = jnp.array(belief.mean) + 1.0
    energy = jax.jit(lambda x: jax.lax.scan(step, x, None, length=40)[1])(start)
    assert np.ptp(energy[:, 1]) > 0.5  # J, it swings
    total = energy.sum(axis=1)
    np.testing.assert_allclose(total, np.full(40, total[0]), rtol=1e-5)


@each
def test_hanging_stays_and_upright_falls(name: str):
    env, belief = made(name)
    still, rest = jnp.zeros(env.action_size), np.array([belief.mean, TASKS[name].goal])
    system = systems.own(name)

    def step(state: Array) -> tuple[Array, Array]:
        state = system.dynamics(system.parameters, state, still)
        return state, state

    slopes, after = jax.jit(jax.vmap(jax.jacfwd(step, has_aux=True)))(rest)
    np.testing.assert_allclose(after, rest, atol=1e-12)
    hanging, upright = np.abs(np.linalg.eigvals(np.asarray(slopes))).max(axis=1)
    assert hanging < 1.001
    assert upright > 1.1


@each
def test_the_first_observation_is_what_is_believed(name: str):
    env, belief = made(name)
    keys = jax.random.split(jax.random.key(0), 4000)
    obs = np.asarray(jax.jit(jax.vmap(env.reset))(keys).obs)
    std = np.array(belief.std)
    assert (np.abs(obs.mean(axis=0) - belief.mean) < 5 * std / 4000**0.5).all()
    np.testing.assert_allclose(obs.std(axis=0), std, rtol=0.06)
    correlation = np.corrcoef(obs.T) - np.eye(env.obs_size)
    assert np.abs(correlation).max() < 0.08


@each
def test_rewards_of_the_goal_of_the_start_and_of_gaussians(name: str):
    env, belief = made(name)
    task, size = TASKS[name], env.obs_size
    assert env.reward is not None
    own = env.reward
    still, goal = jnp.zeros(env.action_size), np.array(task.goal)
    reward = jax.jit(lambda obs: own(obs, still, obs))
    rewards, slope = jax.jit(jax.vmap(reward)), jax.jit(jax.grad(reward))
    expected = jax.jit(belief.reward)
    slopes = jax.jit(jax.grad(belief.reward, (0, 1)))
    start = np.array(belief.mean)
    assert reward(goal) == pytest.approx(0, abs=1e-12)
    turn = 2 * np.pi * np.isin(np.arange(size), belief.angles)
    assert reward(goal + turn) == pytest.approx(0, abs=1e-12)
    assert -1 <= reward(start) < -0.99
    rng = np.random.default_rng(0)
    root = 0.1 * rng.normal(size=(size, size)) / size**0.5
    normal = rng.normal(size=(40_000, size))
    for centre in (goal + 0.1, goal - 0.3, 0.7 * goal + 0.3 * start):
        for small in (0.0, 1e-8):
            sharp = expected(centre, small * jnp.eye(size))
            np.testing.assert_allclose(sharp, reward(centre), atol=1e-6)
        samples = rewards(centre + normal @ root.T)
        error = samples.std() / 40_000**0.5
        difference = samples.mean() - expected(centre, root @ root.T)
        assert abs(difference) < 5 * error + 1e-3
        in_mean, in_cov = slopes(centre, 0 * jnp.eye(size))
        np.testing.assert_allclose(in_mean, slope(centre), atol=1e-9)
        assert np.isfinite(in_cov).all()


def test_what_is_about_other_observations_has_no_belief():
    env, belief = made("pendulum_pilco")
    assert simulator.time_limit(env, 7).belief is belief
    assert simulator.observe_all(env).belief is None
    first = simulator.partly_observed(env, "first", lambda obs: obs[:1])
    assert first.belief is None
    assert envs.make("pendulum").belief is None
