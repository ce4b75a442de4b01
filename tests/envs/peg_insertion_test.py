"""The peg, its hole, and what happens where they touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import arm, peg_insertion
from mbrl_jax.types import Array
from tests import lagrange
from tests.envs import mechanics_test

pytestmark = pytest.mark.usefixtures("double")

X, Y = peg_insertion.MOUTH
HALF, RADIUS = peg_insertion.HALF_WIDTH, peg_insertion.RADIUS
STILL = jnp.zeros(2)


def posture(
    end: tuple[float, float], velocity: tuple[float, float] = (0.0, 0.0)
) -> Array:
    """The state [4] in which the peg's end is there and moves so: elbow up, by the law
    of cosines."""
    x, y = end[0], end[1] + peg_insertion.LENGTH
    elbow = -np.arccos((x**2 + y**2 - 0.5) / 0.5)
    angles = jnp.array([np.arctan2(y, x) - elbow / 2, elbow])
    along = jax.jacobian(peg_insertion.end)(angles)
    return jnp.concatenate([angles, jnp.linalg.solve(along, jnp.array(velocity))])


def moved(state: Array, actions: Array) -> Array:
    """All states after it, [T, 4]."""

    def step(state: Array, action: Array) -> tuple[Array, Array]:
        state = peg_insertion.dynamics(state, action)
        return state, state

    return jax.lax.scan(step, state, actions)[1]


def held_to(state: Array, target: tuple[float, float], num_steps: int) -> Array:
    """Pulled by a spring from the end of the peg to there: the ends, [T, 2]."""

    def step(state: Array, _: None) -> tuple[Array, Array]:
        along = jax.jacobian(peg_insertion.end)(state[:2])
        pull = 20 * (jnp.array(target) - peg_insertion.end(state))
        pull = pull - 3 * along @ state[2:]
        action = jnp.clip(pull @ along / peg_insertion.ARM.gear, -1, 1)
        state = peg_insertion.dynamics(state, action)
        return state, peg_insertion.end(state)

    return jax.lax.scan(step, state, None, length=num_steps)[1]


def test_distances_of_points_around_the_hole():
    at = lambda x, y: peg_insertion.distances(jnp.array([X + x, Y + y]))
    depth = peg_insertion.DEPTH
    above = [np.hypot(2 * HALF + 0.03, 0.04), 0.04, depth + 0.04]
    np.testing.assert_allclose(at(HALF + 0.03, 0.04), above)
    np.testing.assert_allclose(at(HALF - 0.03, 0.04)[1], 0.05)  # 3, 4, 5
    inside = [HALF + 0.01, HALF - 0.01, depth - 0.1]
    np.testing.assert_allclose(at(0.01, -0.1), inside, atol=1e-12)
    np.testing.assert_allclose(at(HALF + 0.002, -0.1)[1], -0.002, atol=1e-12)
    np.testing.assert_allclose(at(HALF + 0.1, -0.002)[1], -0.002, atol=1e-12)


def test_walls_push_out_as_far_as_they_are_pressed_in_and_never_pull():
    force = lambda x, y, *velocity: peg_insertion.contact(
        jnp.array([X + x, Y + y]), jnp.array(velocity or (0.0, 0.0))
    )
    slack, depth = HALF - RADIUS, peg_insertion.DEPTH
    np.testing.assert_array_equal(force(0.99 * slack, -0.05), 0)
    np.testing.assert_array_equal(force(0.1, 1.01 * RADIUS, 0.0, -5.0), 0)
    pressed = lambda p: 1e4 * p**2 / (p + 1e-3)
    for p in (1e-4, 5e-3):
        np.testing.assert_allclose(force(slack + p, -0.05), [-pressed(p), 0])
        np.testing.assert_allclose(force(-slack - p, -0.05), [pressed(p), 0])
        floor = force(0.0, RADIUS - depth - p)
        np.testing.assert_allclose(floor, [0, pressed(p)], rtol=1e-9)
        # more while it goes in, less while it comes out, at 0.5 m/s nothing
        table = lambda speed, p=p: force(0.1, RADIUS - p, 0.3, speed)
        np.testing.assert_allclose(table(-0.25), [0, 1.5 * pressed(p)], rtol=1e-9)
        np.testing.assert_allclose(table(0.25), [0, 0.5 * pressed(p)], rtol=1e-9)
        np.testing.assert_array_equal(table(0.6), 0)


def test_a_collision_takes_energy_and_gives_none(monkeypatch: pytest.MonkeyPatch):
    """Of a peg that comes down on the table and leaves it again, the walls damping or
    not: by the kinetic energy of the two rods."""
    frictionless = peg_insertion.ARM._replace(damping=0.0)
    monkeypatch.setattr(peg_insertion, "ARM", frictionless)
    bodies = mechanics_test.arm(frictionless.links).bodies
    energy = lambda state: lagrange.energies(bodies, state[:2], state[2:])[0]
    before = posture((X + 0.08, Y + 0.05), (0.1, -0.8))
    actions = jnp.zeros((4, 2))
    kept = {}
    for damping in (0.0, peg_insertion.DAMPING):
        monkeypatch.setattr(peg_insertion, "DAMPING", damping)
        program = jax.jit(lambda *args: moved(*args))  # one for each
        after = program(before, actions)[-1]
        height = peg_insertion.end(after)[1] - Y
        speed = (jax.jacobian(peg_insertion.end)(after[:2]) @ after[2:])[1]
        assert height > RADIUS
        assert speed > 0.05
        kept[damping] = float(energy(after) / energy(before))
    assert kept[0.0] == pytest.approx(1, abs=1e-2)
    assert kept[peg_insertion.DAMPING] < 0.9


def test_nothing_gets_far_into_the_walls():
    """However the motors rage."""
    env = envs.make("peg_insertion")
    keys = jax.random.split(jax.random.key(0), 50)
    states = jax.vmap(env.reset)(keys).obs
    bang = jax.random.rademacher(keys[0], (50, 15, 2), float).repeat(4, axis=1)
    every = jax.jit(jax.vmap(moved))(states, bang)
    gaps = jax.vmap(jax.vmap(lambda x: peg_insertion.distances(peg_insertion.end(x))))
    deepest = RADIUS - float(gaps(every).min())
    assert 1e-3 < deepest < RADIUS / 2


def test_a_step_in_contact_has_the_derivative_of_finite_differences():
    corner = (X - HALF + 0.6 * RADIUS, Y + 0.8 * RADIUS - 1e-3)
    floor = (X + HALF - RADIUS + 1e-3, peg_insertion.PLACE[1] - 1e-3)
    free = (X - 0.2, Y + 0.2)
    states = [posture(corner, (0.3, -0.2)), posture(floor, (0.1, -0.4)), posture(free)]
    action, size = jnp.array([0.3, -0.6]), 1e-6
    derivative = jax.jit(jax.jacobian(peg_insertion.dynamics, (0, 1)))
    step = jax.jit(peg_insertion.dynamics)
    for state in states:
        found = np.concatenate(derivative(state, action), axis=1)
        both = np.concatenate([state, action])
        expected = [
            (step(z[:4], z[4:]) - step(y[:4], y[4:])) / (2 * size)
            for z, y in ((both + size * e, both - size * e) for e in np.eye(6))
        ]
        scale = np.abs(found).max()
        np.testing.assert_allclose(found, np.transpose(expected), atol=1e-5 * scale)


def test_only_through_its_mouth_one_gets_into_the_hole():
    """Pulled to the bottom from straight above, or from beside it."""
    pulled = jax.jit(held_to, static_argnums=(1, 2))
    place = peg_insertion.PLACE
    ends = pulled(posture((X, Y + 0.1)), place, 60)
    assert np.linalg.norm(ends[-1] - jnp.array(place)) < peg_insertion.NEAR
    for aside in (-0.06, 0.06):
        ends = pulled(posture((X + aside, Y + 0.1)), (X + aside, place[1]), 60)
        assert RADIUS - 3e-3 < ends[-1, 1] - Y < RADIUS
        np.testing.assert_allclose(ends[-1, 0], X + aside, atol=0.01)


def test_the_reward_is_largest_at_rest_where_the_peg_belongs():
    there = posture(peg_insertion.PLACE)
    reward = lambda obs, action: peg_insertion.reward(there, action, obs)
    assert reward(there, STILL) == pytest.approx(0, abs=1e-12)
    assert peg_insertion.inserted(there)
    for gradient in jax.grad(reward, (0, 1))(there, STILL):
        np.testing.assert_allclose(gradient, 0, atol=1e-10)
    x, y = peg_insertion.PLACE
    away = posture((x + 0.03, y + 0.04)).at[2:].set(jnp.array([1.0, -2.0]))
    assert not peg_insertion.inserted(away)
    expected = -2 * 0.05**2 - 0.1 * np.log(1 + 2.5**2) - 0.05 - 0.05 * 1.25
    assert reward(away, jnp.array([0.5, -1.0])) == pytest.approx(expected)


def test_starts_are_at_rest_above_the_table():
    env = envs.make("peg_insertion")
    keys = jax.random.split(jax.random.key(0), 200)
    starts = np.asarray(jax.vmap(env.reset)(keys).obs)
    assert not starts[:, 2:].any()
    away = np.abs(starts[:, :2] - np.array(peg_insertion.POSTURE))
    assert 0.14 < away.max() <= peg_insertion.SPREAD
    ends = np.asarray(jax.vmap(peg_insertion.end)(starts))
    assert ends[:, 1].min() > Y + RADIUS
    assert np.ptp(ends[:, 0]) > 0.1
    assert arm.hand(starts[0])[1] == pytest.approx(ends[0, 1] + peg_insertion.LENGTH)
