"""Peg insertion: a two-link arm puts a peg into a hole that is hardly wider.

The task of Levine and Abbeel, "Learning neural network policies with guided policy
search under unknown dynamics", 2014, in a plane without gravity, by the arm of `arm`
with joints that damp ten times as much.  A parallelogram linkage keeps the peg upright
below the hand, so where its round end is, and how that moves, says all about what it
touches.  Walls push like springs with dampers, by a force whose derivative is
continuous, never pull, and have no friction.  A collision is shorter than the steps of
the other environments: `NUM_SUBSTEPS` are taken in one.

obs (q1, q2, q1_dot, q2_dot), rad and rad/s, as in `arm`.  action: the torques at
shoulder and elbow, in units of its `gear`.
reward: -2 d^2 - 0.1 log(1 + d^2 / (2 cm)^2) - 0.01 |joint speeds|^2 - 0.05 |action|^2
after the step, d being how far, in m, the end of the peg is from where it belongs: the
square brings it near, the logarithm makes the last centimetres count.  Starts are at
rest, uniform within +-`SPREAD` of a posture above the hole and beside it.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.envs import arm, reacher, simulator
from mbrl_jax.ops import raster, two_link
from mbrl_jax.types import Array, Env, Key

ARM = arm.ARM._replace(damping=1.0)
MOUTH = (0.55, -0.3)  # m from the shoulder; the table is as high as it
HALF_WIDTH, DEPTH = 0.025, 0.12  # m, of the hole
RADIUS, LENGTH = 0.02, 0.2  # m, of the peg; from the hand to the centre of its end
PLACE = (MOUTH[0], MOUTH[1] - DEPTH + RADIUS)  # m, of that centre, where it belongs
STIFFNESS, DAMPING = 10000.0, 2.0  # N/m; s/m, the share of the force per speed
SOFT = 1e-3  # m, by which a wall gives way before it is as stiff as that
POSTURE, SPREAD = (1.35, -2.0), 0.15  # rad, of the middle of the starts
DISTANCE_COST, LOG_COST, LOG_SCALE = 2.0, 0.1, 0.02  # the last in m
SPEED_COST, ACTION_COST = 0.01, 0.05
NEAR = 0.005  # m, within which the peg is in its place
NUM_SUBSTEPS = 10
EPISODE_LENGTH = 60  # of `reacher.DT`


def make() -> Env:
    return simulator.make_env(
        "peg_insertion",
        initial=initial,
        dynamics=dynamics,
        observe=lambda state: state,
        reward=reward,
        shapes=shapes,
        view=raster.View(centre=(0.4, -0.1), half_height=0.75),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
    )


def initial(key: Key) -> Array:
    angles = jax.random.uniform(key, (2,), minval=-SPREAD, maxval=SPREAD)
    return jnp.concatenate([jnp.array(POSTURE) + angles, jnp.zeros(2)])


def dynamics(state: Array, action: Array) -> Array:
    def derivative(state: Array) -> Array:
        angles, speeds = state[:2], state[2:]
        along = jax.jacobian(end)(angles)
        push = contact(end(angles), along @ speeds)
        torques = ARM.gear * action - ARM.damping * speeds + push @ along
        acceleration = two_link.acceleration(ARM.links, angles, speeds, torques)
        return jnp.concatenate([speeds, acceleration])

    return simulator.rk4(derivative, state, reacher.DT / NUM_SUBSTEPS, NUM_SUBSTEPS)


def end(obs: Array) -> Array:
    """The centre of the peg's round end, [2], m from the shoulder."""
    return arm.hand(obs) - jnp.array([0.0, LENGTH])


def contact(end: Array, velocity: Array) -> Array:
    """What the walls do to the peg, [2], N; m, m/s.

    A force k p^2 / (p + soft) at a penetration of p, and (1 - damping v) times that
    while the peg leaves at a speed of v (Hunt and Crossley, "Coefficient of restitution
    interpreted as damping in vibroimpact", 1975), but never a pull.
    """
    inside = jnp.maximum(RADIUS - distances(end), 0)  # [3]
    away = jax.jacobian(distances)(end)  # [3, 2] unit vectors out of the walls
    spring = STIFFNESS * inside**2 / (inside + SOFT)
    return (spring * jnp.maximum(1 - DAMPING * away @ velocity, 0)) @ away


def distances(point: Array) -> Array:
    """From the table left of the hole, right of it, and from its floor: [3], m.

    Negative within them.
    """
    x, y = point - jnp.array(MOUTH)
    corners = [_from_corner(across + HALF_WIDTH, y) for across in (x, -x)]
    return jnp.stack([*corners, y + DEPTH])


def inserted(obs: Array) -> Array:
    """Whether the peg is in its place, [] bool."""
    return jnp.linalg.norm(end(obs) - jnp.array(PLACE)) < NEAR


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    square = ((end(next_obs) - jnp.array(PLACE)) ** 2).sum()
    cost = DISTANCE_COST * square + LOG_COST * jnp.log1p(square / LOG_SCALE**2)
    cost = cost + SPEED_COST * (next_obs[2:] ** 2).sum()
    return -cost - ACTION_COST * (action**2).sum()


def shapes(state: Array) -> list[raster.Shapes]:
    x, y = MOUTH
    half, far = (0.5, 0.15), HALF_WIDTH + 0.5
    tip, hand = end(state), arm.hand(state)
    place = jnp.array([x, y + LENGTH - DEPTH + RADIUS])  # of the hand
    return [
        raster.box((x - far, y - half[1]), half, raster.INK),
        raster.box((x + far, y - half[1]), half, raster.INK),
        raster.box((x, y - DEPTH - half[1]), half, raster.INK),
        *reacher.shapes(reacher.State(state, place))[1:],
        raster.capsule(hand, tip, RADIUS, raster.GREEN),
    ]


def _from_corner(across: Array, up: Array) -> Array:
    """The distance from the quarter of the plane where both are negative."""
    outside = jnp.stack([jnp.maximum(across, 0), jnp.maximum(up, 0)])
    square = (outside**2).sum()
    length = jnp.sqrt(jnp.where(square > 0, square, 1))  # its slope at 0 is not finite
    return jnp.where(square > 0, length, 0) + jnp.minimum(jnp.maximum(across, up), 0)
