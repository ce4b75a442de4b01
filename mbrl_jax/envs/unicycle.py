"""PILCO's unicycle: balance on one wheel near the origin, by its motor and a turntable.

A wheel rolls without slip; a frame stands on its axle; a turntable spins about the long
axis of the frame, above it.  By Deisenroth and Rasmussen, "PILCO: a model-based and
data-efficient approach to policy search", 2011, Sec. 3.3, with the constants of
Deisenroth, McHutchon, Hall and Rasmussen, "PILCO code documentation", 2013.

obs (x, y, roll, yaw, pitch, roll_dot, yaw_dot, wheel_dot, pitch_dot, table_dot): x, y
(m) is the origin as seen from where the wheel touches the ground, ahead and to the
left; roll is positive to the left, yaw anticlockwise from above, pitch ahead, not
wrapped, rad and rad/s.  wheel_dot and pitch_dot turn about the axle, seen by one who
yaws and rolls along, table_dot against the frame.  How far the wheel and the turntable
have turned does not matter and is not observed.
action: torques between turntable and frame, of up to 10 N m, and between wheel and
frame, of up to 50 N m, as fractions.

reward: see `saturating`, of the original's point in four dimensions: sqrt(1/2) of how
far the top is from over the origin, ahead and to the left, sqrt(8) of its height, m,
and yaw / 4 pi, with a width of 1; so 0 upright at the origin, about -1 lying.

Deviations: what leans by 1.4 rad has fallen and lies there until the episode is over;
the original's simulation ends at pi / 2, where its equations are singular.  The cost
has the wheel's radius of the dynamics, 0.225 m, not 0.22 m.  Observations are without
noise; the original's has stds of 0.01 and 0.003.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import saturating, simulator
from mbrl_jax.ops import raster
from mbrl_jax.ops.circle import cos_sin
from mbrl_jax.types import Array, Env, Key

Rates = tuple[Array, ...]  # numbers


class Unicycle(NamedTuple):
    """Lengths in m, masses in kg, moments of inertia about centres in kg m^2."""

    radius: float  # of the wheel
    heights: tuple[float, float, float]  # of wheel, frame, turntable above the axle
    masses: tuple[float, float, float]
    wheel_inertias: tuple[float, float]  # about its axle, and across
    frame_inertias: tuple[float, float, float]  # about ahead, the axle, the long axis
    table_inertias: tuple[float, float]  # about the long axis, and across
    gravity: float  # m/s^2
    gears: tuple[float, float]  # N m at an action of 1, of turntable and wheel


RADIUS, TOP = 0.225, 0.81  # m, of the top above the axle
UNICYCLE = Unicycle(
    radius=RADIUS,
    heights=(0.0, 0.54, TOP),
    masses=(1.0, 23.5, 10.0),
    wheel_inertias=(0.0484, 0.0242),
    frame_inertias=(0.4608, 0.8292, 0.4248),
    table_inertias=(0.2, 1.3),
    gravity=9.82,
    gears=(10.0, 50.0),
)
DT, SUBSTEPS = 0.15, 32  # s, and steps of integration in it
FALLEN = 1.4  # rad
EPISODE_LENGTH = 67  # 10 s
START = (0.0,) * 10
START_STD = (0.1, 0.1, *(0.02,) * 8)


def _goal() -> saturating.Goal:
    def row(scale: float, **parts: float) -> tuple[float, ...]:
        return tuple(scale * parts.get(name, 0.0) for name in features)

    rates = [f"rate{i}" for i in range(5)]
    angles = ["sin_roll", "cos_roll", "sin_pitch", "cos_pitch"]
    angles += ["sin_minus", "cos_minus", "sin_plus", "cos_plus"]
    features = ["x", "y", "yaw", *rates, *angles]
    # cos roll cos pitch = (cos(roll - pitch) + cos(roll + pitch)) / 2
    height = row(8**0.5, cos_roll=RADIUS, cos_minus=TOP / 2, cos_plus=TOP / 2)
    return saturating.Goal(
        angles=(2, 4, 10, 11),
        point=(
            row(0.5**0.5, x=1.0, sin_pitch=-TOP),
            row(0.5**0.5, y=1.0, sin_roll=-(TOP + RADIUS)),
            height,
            row(1 / (4 * math.pi), yaw=1.0),
        ),
        place=(0.0, 0.0, 8**0.5 * (TOP + RADIUS), 0.0),
        width=1.0,
        sums=tuple((0.0, 0.0, 1.0, 0.0, sign, *(0.0,) * 5) for sign in (-1.0, 1.0)),
    )


GOAL = _goal()


def make(unicycle: Unicycle = UNICYCLE) -> Env:
    """The constants may be traced; reward and drawing have their own.

    Its belief has no angles: as in the original all are seen as they are.
    """
    return simulator.make_env(
        "unicycle",
        initial=initial,
        dynamics=lambda state, action: dynamics(state, action, unicycle),
        observe=lambda state: state,
        reward=lambda obs, action, next_obs: saturating.reward(GOAL, next_obs),
        shapes=shapes,
        view=raster.View((0.0, 0.45), half_height=0.9, height=180, width=360),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
        belief=saturating.belief(GOAL, START, START_STD, ()),
    )


def initial(key: Key) -> Array:
    """The physical state, which is what is observed, [10]."""
    return jnp.array(START) + jnp.array(START_STD) * jax.random.normal(key, (10,))


def accelerations(
    unicycle: Unicycle, lean: Rates, rates: Rates, torques: Rates
) -> Rates:
    """Of the five rates, rad/s^2, by Kane's equations.

    `lean` (roll, pitch), rad; `torques` (turntable, wheel), N m.  All is seen along
    axes that yaw and roll, but do not pitch: ahead, the axle, up along the wheel.
    There the carrier of these turns by (a, b, c), wheel and frame by (a, w, c) and
    (a, f, c), the turntable by `spin` more, and a body at height h above the axle has
    the velocity (x, y, z).  So what a, c, and the turntable do and what w and f do
    meet in the drift alone, and both are 2 x 2 equations once the turntable is
    eliminated.  Kane and Levinson, "Dynamics: theory and applications", 1985, Ch. 6.
    """
    radius, heights, masses, wheel, frame, table, gravity, _ = unicycle
    (roll, pitch), (drive, motor) = lean, torques
    roll_dot, yaw_dot, wheel_dot, pitch_dot, spin = rates
    (roll_cos, roll_sin), (cos, sin) = cos_sin(roll), cos_sin(pitch)
    a, b, c = -roll_dot, -yaw_dot * roll_sin, yaw_dot * roll_cos
    w, f = b + wheel_dot, b + pitch_dot

    # masses times accelerations, less weights, where a, c, w and f stay
    push_a = push_c = push_w = push_f = jnp.zeros_like(a)
    m_aa = m_ac = m_cc = m_ww = m_wf = m_ff = jnp.zeros_like(a)
    for mass, h in zip(masses, heights, strict=True):
        side, lift = radius + h * cos, h * sin
        # the velocity, and how it changes as the frame pitches and the carrier turns
        x, y, z = radius * w + h * cos * f, lift * c - side * a, -lift * f
        change_x = -lift * pitch_dot * f + b * z - c * y
        change_y = (lift * a + h * cos * c) * pitch_dot + c * x - a * z
        change_z = -h * cos * pitch_dot * f + a * y - b * x
        change_y -= gravity * roll_sin
        change_z += gravity * roll_cos
        push_a += mass * side * change_y
        push_c -= mass * lift * change_y
        push_w -= mass * radius * change_x
        push_f -= mass * (h * cos * change_x - lift * change_z)
        m_aa, m_ac, m_cc = (
            m_aa + mass * side**2,
            m_ac - mass * side * lift,
            m_cc + mass * lift**2,
        )
        m_ww, m_wf, m_ff = (
            m_ww + mass * radius**2,
            m_wf + mass * radius * h * cos,
            m_ff + mass * h**2,
        )

    # the wheel turns
    axle, across = wheel
    push_a += c * axle * w - b * across * c
    push_c += b * across * a - a * axle * w
    m_aa, m_cc, m_ww = m_aa + across, m_cc + across, m_ww + axle

    # frame and turntable turn; along the frame's own axes: by (n, f, l)
    along, beside, long = frame[0] + table[1], frame[1] + table[1], frame[2]
    n, l = a * cos - c * sin, a * sin + c * cos
    held = long * l + table[0] * (l + spin)  # angular momentum about the long axis
    moment_n = f * held - l * beside * f - along * pitch_dot * l
    moment_f = l * along * n - n * held
    moment_l = n * beside * f - f * along * n + long * pitch_dot * n + drive
    push_a -= cos * moment_n + sin * moment_l
    push_c -= cos * moment_l - sin * moment_n
    push_w += motor
    push_f -= motor + moment_f
    m_aa += along * cos**2 + long * sin**2
    m_ac += (long - along) * sin * cos
    m_cc += along * sin**2 + long * cos**2
    m_ff += beside

    a_dot, c_dot = _solve(m_aa, m_ac, m_cc, push_a, push_c)
    w_dot, f_dot = _solve(m_ww, m_wf, m_ff, push_w, push_f)
    yaw_ddot = (c_dot + yaw_dot * roll_sin * roll_dot) / roll_cos
    b_dot = -yaw_ddot * roll_sin - c * roll_dot
    l_dot = a_dot * sin + c_dot * cos + n * pitch_dot
    return -a_dot, yaw_ddot, w_dot - b_dot, f_dot - b_dot, drive / table[0] - l_dot


def _solve(
    m11: Array, m12: Array, m22: Array, push1: Array, push2: Array
) -> tuple[Array, Array]:
    determinant = m11 * m22 - m12**2
    first, second = m22 * push1 - m12 * push2, m11 * push2 - m12 * push1
    return first / determinant, second / determinant


def dynamics(state: Array, action: Array, unicycle: Unicycle = UNICYCLE) -> Array:
    torques = unicycle.gears[0] * action[0], unicycle.gears[1] * action[1]

    def derivative(state: Rates) -> Rates:
        stands = _stands(state)
        # zeros where it has fallen, so that nothing is singular there
        x, y, roll, _, pitch, *rates = (jnp.where(stands, part, 0.0) for part in state)
        roll_dot, yaw_dot, wheel_dot, pitch_dot, _ = rates
        place = yaw_dot * y - unicycle.radius * wheel_dot, -yaw_dot * x
        changes = accelerations(unicycle, (roll, pitch), tuple(rates), torques)
        changes = tuple(jnp.where(stands, change, 0.0) for change in changes)
        return *place, roll_dot, yaw_dot, pitch_dot, *changes

    # as scalars: to differentiate slices and stacks of vectors takes twice as long
    after = simulator.rk4(derivative, tuple(state), DT / SUBSTEPS, SUBSTEPS)
    stands = _stands(after)
    rates = [jnp.where(stands, rate, 0.0) for rate in after[5:]]
    return jnp.stack([*after[:5], *rates])


def _stands(state: Rates) -> Array:
    return (jnp.abs(state[2]) < FALLEN) & (jnp.abs(state[4]) < FALLEN)


def shapes(state: Array) -> list[raster.Shapes]:
    """From behind, and from the right, riding to the right.

    The green disc is over the origin, at the height of the top when upright.
    """
    (roll_cos, cos), (roll_sin, sin) = cos_sin(state[2:5:2])
    # up along the wheel and along the frame: ahead, to the left, up
    rolled = jnp.stack([jnp.zeros_like(sin), roll_sin, roll_cos])
    long = jnp.stack([sin, cos * roll_sin, cos * roll_cos])
    found = [raster.capsule((-2.0, 0.0), (2.0, 0.0), 0.01, raster.STEEL)]
    for middle, across, sign in ((-0.75, 1, -1.0), (0.75, 0, 1.0)):
        sight = jnp.eye(3)[jnp.array([across, 2])] * jnp.array([sign, 1.0])[:, None]
        ground = jnp.array([middle, 0.0])
        axle = ground + RADIUS * (sight @ rolled)
        top = axle + TOP * (sight @ long)
        flat = 0.27 * (sight @ long)[::-1] * jnp.array([1.0, -1.0])
        goal = ground + jnp.stack([sign * state[across], jnp.array(RADIUS + TOP)])
        found += [
            raster.disc(goal, 0.12, raster.GREEN, opacity=0.35),
            raster.disc(goal, 0.035, raster.GREEN),
        ]
        if across:
            found += [raster.capsule(ground, 2 * axle - ground, 0.03, raster.INK)]
        else:
            found += [raster.disc(axle, RADIUS, raster.INK)]
        found += [
            raster.capsule(axle, top, 0.045, raster.BLUE),
            raster.capsule(top - flat, top + flat, 0.03, raster.AMBER),
            raster.disc(axle, 0.03, raster.PAPER),
        ]
    return found
