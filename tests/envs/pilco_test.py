"""PILCO's tasks: their mechanics against Lagrange's, and rewards of Gaussians."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

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
    unicycle,
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
each_and_unicycle = pytest.mark.parametrize("name", [*TASKS, "unicycle"])
NUMBER = 200  # of states, which one program moves in all tests


def made(name: str) -> tuple[Env, Belief]:
    env = envs.make(name)
    assert env.belief is not None
    return env, env.belief


def states_and_actions(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Anywhere, as fast as in a swing-up; unicycles stand: [N, O], [N, A]."""
    env, _ = made(name)
    rng = np.random.default_rng(0)
    states = rng.uniform(-np.pi, np.pi, (NUMBER, env.obs_size))
    if name == "unicycle":
        states[:, [2, 4, 5, 8]] *= 0.15
    else:
        states[:, TASKS[name].q_dot] *= 2
    actions = rng.uniform(-1, 1, (NUMBER, env.action_size))
    return states, env.action_limit * actions


def best_and_worst(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "unicycle":
        return np.zeros(10), 1.39 * np.eye(10)[2]  # it lies
    return np.array(TASKS[name].goal), np.array(made(name)[1].mean)


Step = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


@functools.cache
def stepping(name: str) -> Step:
    """(parameters, states, actions) -> states, all at once."""
    step = jax.jit(jax.vmap(systems.own(name).dynamics, in_axes=(None, 0, 0)))
    return lambda *args: np.asarray(step(*args))


def stepped(name: str, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return stepping(name)(systems.own(name).parameters, states, actions)


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

    states, actions = states_and_actions(name)
    found, expected = stepped(name, states, actions), expected(states, actions)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@each_and_unicycle
def test_half_the_step_of_integration_changes_nothing(name: str, monkeypatch):
    """Where motion is not so chaotic that it changes everything."""
    states, actions = states_and_actions(name)
    before = stepped(name, states, actions)
    module, substeps = TASKS[name].substeps if name in TASKS else (unicycle, "SUBSTEPS")
    monkeypatch.setattr(module, substeps, 2 * getattr(module, substeps))
    system = systems.own(name)
    again = jax.jit(jax.vmap(functools.partial(system.dynamics, system.parameters)))
    changes = np.abs(again(states, actions) - before).max(axis=1)
    assert changes.max() > 0
    assert np.quantile(changes, 0.95) < 1e-6
    assert changes.max() < 1e-4


@pytest.mark.parametrize("name", ["double_pendulum", "cart_double_pendulum"])
def test_spun_up_it_stays_finite(name: str):
    """Nothing limits the speed of those that spin the fastest."""
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
    parameters = systems.replace(system.parameters, dict.fromkeys(task.frictions, 0.0))
    q, q_dot = jnp.array(task.q), jnp.array(task.q_dot)

    @jax.jit
    @jax.vmap
    def energies(state: Array) -> Array:
        return jnp.stack(lagrange.energies(task.bodies, state[q], state[q_dot]))

    states, actions = states_and_actions(name)
    found = [np.asarray(energies(states))]
    for _ in range(20):
        states = stepping(name)(parameters, states, 0 * actions)
        found.append(np.asarray(energies(states)))
    found = np.stack(found)  # [21, N, 2]
    assert np.median(np.ptp(found[..., 1], axis=0)) > 0.5  # J, they swing
    total = found.sum(axis=2)
    change = np.abs(total - total[0]).max(axis=0)
    assert np.quantile(change, 0.9) < 1e-4


@each
def test_hanging_stays_and_upright_falls(name: str):
    env, belief = made(name)
    small = 1e-6 * np.eye(env.obs_size)
    growth = []
    for rest in (np.array(belief.mean), np.array(TASKS[name].goal)):
        states = np.tile(rest, (NUMBER, 1))
        states[: len(small)] += small
        after = stepped(name, states, np.zeros((NUMBER, env.action_size)))
        np.testing.assert_allclose(after[-1], rest, atol=1e-12)
        slopes = (after[: len(small)] - rest) / 1e-6
        growth.append(np.abs(np.linalg.eigvals(slopes)).max())
    assert growth[0] < 1.001
    assert growth[1] > 1.1


@each_and_unicycle
def test_the_first_observation_is_what_is_believed(name: str):
    env, belief = made(name)
    keys = jax.random.split(jax.random.key(0), 4000)
    obs = np.asarray(jax.jit(jax.vmap(env.reset))(keys).obs)
    std = np.array(belief.std)
    assert (np.abs(obs.mean(axis=0) - belief.mean) < 5 * std / 4000**0.5).all()
    np.testing.assert_allclose(obs.std(axis=0), std, rtol=0.06)
    correlation = np.corrcoef(obs.T) - np.eye(env.obs_size)
    assert np.abs(correlation).max() < 0.08


def squared_distance(name: str, obs: Array) -> Array:
    """Of the tip from its place, over the square of the width."""
    zero = jnp.zeros_like(obs[0])
    cart = jnp.stack([obs[0], zero])
    if name == "unicycle":
        x, y, roll, yaw, pitch, *_ = obs
        height = 0.225 * jnp.cos(roll) + 0.81 * jnp.cos(roll) * jnp.cos(pitch)
        ahead, left = x - 0.81 * jnp.sin(pitch), y - 1.035 * jnp.sin(roll)
        away = ahead**2 / 2 + left**2 / 2 + 8 * (height - 1.035) ** 2
        return away + (yaw / (4 * np.pi)) ** 2
    tip, up, width = {
        "pendulum_pilco": lambda: (link(0 * cart, 1.0, obs[0], -1.0), 1.0, 0.5),
        "cartpole_pilco": lambda: (link(cart, 0.5, obs[2], 1.0), 0.5, 0.25),
        "double_pendulum": lambda: (arm_tip(obs), 1.0, 0.5),
        "pendubot": lambda: (arm_tip(obs), 1.0, 0.25),
        "cart_double_pendulum": lambda: (
            link(link(cart, 0.6, obs[1], 1.0), 0.6, obs[2], 1.0),
            1.2,
            0.5,
        ),
    }[name]()
    return ((tip - jnp.array([0.0, up])) ** 2).sum() / width**2


def arm_tip(obs: Array) -> Array:
    return link(link(jnp.zeros(2), 0.5, obs[0], -1.0), 0.5, obs[1], -1.0)


@each_and_unicycle
def test_the_reward_saturates_in_the_distance_of_the_tip(name: str):
    env, _ = made(name)
    assert env.reward is not None
    obs, actions = states_and_actions(name)
    obs = np.concatenate([obs, best_and_worst(name)[0] + 0.1 * obs])
    actions = np.concatenate([actions, actions])
    found = jax.jit(jax.vmap(env.reward))(0 * obs, actions, obs)
    distance = jax.vmap(functools.partial(squared_distance, name))(obs)
    expected = np.exp(-np.asarray(distance) / 2) - 1
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.ptp(expected) > 0.3


@each_and_unicycle
def test_rewards_of_the_goal_of_the_start_and_of_gaussians(name: str):
    env, belief = made(name)
    size = env.obs_size
    assert env.reward is not None
    own = env.reward
    still, (goal, worst) = jnp.zeros(env.action_size), best_and_worst(name)
    reward = jax.jit(lambda obs: own(obs, still, obs))
    rewards, slope = jax.jit(jax.vmap(reward)), jax.jit(jax.grad(reward))
    expected = jax.jit(belief.reward)
    slopes = jax.jit(jax.grad(belief.reward, (0, 1)))
    assert reward(goal) == pytest.approx(0, abs=1e-12)
    turn = 2 * np.pi * np.isin(np.arange(size), belief.angles)
    assert reward(goal + turn) == pytest.approx(0, abs=1e-12)
    assert -1 <= reward(worst) < -0.95
    rng = np.random.default_rng(0)
    root = 0.1 * rng.normal(size=(size, size)) / size**0.5
    normal = rng.normal(size=(40_000, size))
    for centre in (goal + 0.1, goal - 0.3, 0.7 * goal + 0.3 * worst):
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
