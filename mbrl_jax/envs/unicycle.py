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
from mbrl_jax.types import Array, Env

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
        dynamics=lambda state, action: dynamics(state, action, unicycle),
        shapes=shapes,
        view=raster.View((0.0, 0.45), half_height=0.9, height=180, width=360),
        action_size=2,
        action_limit=1.0,
        episode_length=EPISODE_LENGTH,
        **saturating.task(GOAL, START, START_STD, ()),
    )


class Turns(NamedTuple):
    """Along axes that yaw and roll, but do not pitch: ahead, the axle, up the wheel.

    They turn by (a, b, c) themselves, the wheel by (a, w, c), the frame by (a, f, c)
    and the turntable by `spin` more about the long axis of the frame, rad/s.
    """

    a: Array
    b: Array
    c: Array
    w: Array
    f: Array
    spin: Array
    pitch_dot: Array
    cos: Array  # of the pitch
    sin: Array


class Loads(NamedTuple):
    """masses (a_dot, c_dot) = pushes, and masses (w_dot, f_dot) = pushes."""

    aa: Array
    ac: Array
    cc: Array
    ww: Array
    wf: Array
    ff: Array
    a: Array
    c: Array
    w: Array
    f: Array


def accelerations(
    unicycle: Unicycle, lean: Rates, rates: Rates, torques: Rates
) -> Rates:
    """Of the five rates, rad/s^2, by Kane's equations.

    `lean` (roll, pitch), rad; `torques` (turntable, wheel), N m.  What a, c, w and f do
    in the velocity of each body, and in how it turns, is what weight and inertia do to
    them.  a and c meet w and f in none, and the turntable obeys its own torque: two
    pairs of equations are left.  Kane and Levinson, "Dynamics: theory and
    applications", 1985, Ch. 6.
    """
    (roll, pitch), (drive, motor) = lean, torques
    roll_dot, yaw_dot, wheel_dot, pitch_dot, spin = rates
    (roll_cos, roll_sin), (cos, sin) = cos_sin(roll), cos_sin(pitch)
    a, b, c = -roll_dot, -yaw_dot * roll_sin, yaw_dot * roll_cos
    turns = Turns(a, b, c, b + wheel_dot, b + pitch_dot, spin, pitch_dot, cos, sin)
    weight = -unicycle.gravity * roll_sin, unicycle.gravity * roll_cos
    loads = [
        _of_mass(mass, height, unicycle.radius, turns, weight)
        for mass, height in zip(unicycle.masses, unicycle.heights, strict=True)
    ]
    loads += [_of_wheel(unicycle, turns), _of_frame_and_table(unicycle, turns, drive)]
    total = jax.tree.map(lambda *parts: sum(parts), *loads)
    a_dot, c_dot = _solve(total.aa, total.ac, total.cc, total.a, total.c)
    push_w, push_f = total.w + motor, total.f - motor
    w_dot, f_dot = _solve(total.ww, total.wf, total.ff, push_w, push_f)
    yaw_ddot = (c_dot + yaw_dot * roll_sin * roll_dot) / roll_cos
    b_dot = -yaw_ddot * roll_sin - c * roll_dot
    long_dot = a_dot * sin + c_dot * cos + (a * cos - c * sin) * pitch_dot
    spin_dot = drive / unicycle.table_inertias[0] - long_dot
    return -a_dot, yaw_ddot, w_dot - b_dot, f_dot - b_dot, spin_dot


def _of_mass(
    mass: float, height: float, radius: float, turns: Turns, weight: Rates
) -> Loads:
    """Of a body whose centre is so high above the axle."""
    a, b, c, w, f, _, pitch_dot, cos, sin = turns
    ahead, lift = height * cos, height * sin
    side = radius + ahead
    x, y, z = radius * w + ahead * f, lift * c - side * a, -lift * f  # its velocity
    # how that changes as the frame pitches and the axes turn, less the weight
    x_dot = -lift * pitch_dot * f + b * z - c * y
    y_dot = (lift * a + ahead * c) * pitch_dot + c * x - a * z + weight[0]
    z_dot = -ahead * pitch_dot * f + a * y - b * x + weight[1]
    zero = jnp.zeros_like(a)
    return Loads(
        aa=mass * side**2,
        ac=-mass * side * lift,
        cc=mass * lift**2,
        ww=mass * radius**2 + zero,
        wf=mass * radius * ahead,
        ff=mass * height**2 + zero,
        a=mass * side * y_dot,
        c=-mass * lift * y_dot,
        w=-mass * radius * x_dot,
        f=-mass * (ahead * x_dot - lift * z_dot),
    )


def _of_wheel(unicycle: Unicycle, turns: Turns) -> Loads:
    """Of its inertia."""
    a, b, c, w, *_ = turns
    axle, across = unicycle.wheel_inertias
    zero = jnp.zeros_like(a)
    return Loads(
        aa=across + zero,
        ac=zero,
        cc=across + zero,
        ww=axle + zero,
        wf=zero,
        ff=zero,
        a=c * axle * w - b * across * c,
        c=b * across * a - a * axle * w,
        w=zero,
        f=zero,
    )


def _of_frame_and_table(unicycle: Unicycle, turns: Turns, drive: Array) -> Loads:
    """Of their inertia, and of the torque between them."""
    a, _, c, _, f, spin, pitch_dot, cos, sin = turns
    (nose, axle, long), (table, across) = (
        unicycle.frame_inertias,
        unicycle.table_inertias,
    )
    nose, axle = nose + across, axle + across
    # along the axes of the frame: it turns by (n, f, l)
    n, l = a * cos - c * sin, a * sin + c * cos
    held = long * l + table * (l + spin)  # angular momentum about the long axis
    of_n = f * held - l * axle * f - nose * pitch_dot * l
    of_l = n * axle * f - f * nose * n + long * pitch_dot * n + drive
    zero = jnp.zeros_like(a)
    return Loads(
        aa=nose * cos**2 + long * sin**2,
        ac=(long - nose) * sin * cos,
        cc=nose * sin**2 + long * cos**2,
        ww=zero,
        wf=zero,
        ff=axle + zero,
        a=-cos * of_n - sin * of_l,
        c=sin * of_n - cos * of_l,
        w=zero,
        f=n * held - l * nose * n,
    )


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
