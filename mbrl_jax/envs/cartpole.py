"""Carts with a pole: `swingup`, `balance`, `discrete`, and those of papers.

`pets` is that of the PETS paper, `pilco` that of PILCO.

The equations are those of Barto, Sutton and Anderson, "Neuronlike adaptive elements
that can solve difficult learning control problems", 1983, corrected as in Florian,
"Correct equations for the dynamics of the cart-pole system", 2007, with viscous
friction and for a pole of any inertia.  Units: m, rad, s, N; th = 0 upright, positive
to the right.

The ends of a track are buffers: a spring and a damper that set in smoothly, so every
step can be differentiated.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import saturating, simulator
from mbrl_jax.ops import raster
from mbrl_jax.ops.circle import cos_sin
from mbrl_jax.types import Array, Env, Key

Motion = tuple[Array, Array, Array, Array]  # x, x_dot, th, th_dot, or their derivatives


class CartPole(NamedTuple):
    """Masses in kg, lengths in m."""

    cart_mass: float
    pole_mass: float
    pole_centre: float  # from the hinge to the pole's centre of mass
    pole_inertia: float  # kg m^2 about the centre of mass
    gravity: float  # m/s^2
    cart_damping: float  # N s/m
    pole_damping: float  # N m s/rad
    gear: float  # N at action 1


class Buffers(NamedTuple):
    """The ends of the track, at -limit and limit."""

    limit: float  # m
    stiffness: float  # N/m
    damping: float  # N s/m
    softness: float  # m, over which they set in


def accelerations(
    system: CartPole, state: Array | Motion, force: Array
) -> tuple[Array, Array]:
    """Of the cart (m/s^2) and the pole (rad/s^2); state (x, x_dot, th, th_dot)."""
    cart_mass, pole_mass, centre, inertia, gravity, cart_damping, pole_damping, _ = (
        system
    )
    _, x_dot, th, th_dot = state
    cos, sin = cos_sin(th)
    total_mass, moment = cart_mass + pole_mass, pole_mass * centre
    push = (force - cart_damping * x_dot + moment * th_dot**2 * sin) / total_mass
    turn = moment * (gravity * sin - push * cos) - pole_damping * th_dot
    th_ddot = turn / (inertia + moment * centre - (moment * cos) ** 2 / total_mass)
    return push - moment * th_ddot * cos / total_mass, th_ddot


def buffer_force(buffers: Buffers, x: Array, x_dot: Array) -> Array:
    """Pushes the cart back onto the track, N; fades exponentially off its ends."""
    limit, stiffness, damping, softness = buffers
    # of the nearer end: what the other one adds is lost in rounding
    beyond = (jnp.abs(x) - limit) / softness
    size = jnp.abs(beyond)
    # a softplus, in fewer steps than jax.nn's, and its derivative
    depth = (beyond + size) / 2 + jnp.log1p(jnp.exp(-size))
    contact = jax.nn.sigmoid(beyond)
    return -stiffness * softness * jnp.sign(x) * depth - damping * contact * x_dot


def integrate(
    system: CartPole,
    buffers: Buffers | None,  # None: a track without end
    state: Array,  # [4]
    action: Array,  # [1]
    dt: float,
    num_steps: int,
) -> Array:
    """The state after `num_steps` steps of `dt` (s)."""

    def derivative(state: Motion) -> Motion:
        x, x_dot, _, th_dot = state
        force = system.gear * action[0]
        if buffers is not None:
            force += buffer_force(buffers, x, x_dot)
        x_ddot, th_ddot = accelerations(system, state, force)
        return x_dot, x_ddot, th_dot, th_ddot

    # as scalars: to differentiate slices and stacks of vectors takes twice as long
    x, x_dot, th, th_dot = state
    return jnp.stack(simulator.rk4(derivative, (x, x_dot, th, th_dot), dt, num_steps))


# --- Swing-up: the cart and pole of PILCO (Deisenroth and Rasmussen, 2011), on a track.

SWINGUP = CartPole(
    cart_mass=0.5,
    pole_mass=0.5,
    pole_centre=0.25,
    pole_inertia=0.5 * 0.5**2 / 12,  # a uniform rod
    gravity=9.82,
    cart_damping=0.1,
    pole_damping=0.0,
    gear=5.0,  # PILCO has 10, with which one push is enough
)
SWINGUP_POLE_LENGTH = 0.5
SWINGUP_BUFFERS = Buffers(limit=1.5, stiffness=200.0, damping=10.0, softness=0.03)
SWINGUP_DT, SWINGUP_SUBSTEPS = 0.05, 2
SWINGUP_START_STD = 0.05  # around hanging at rest, of all four
SWINGUP_ACTION_COST = 0.01


def swingup(system: CartPole = SWINGUP) -> Env:
    """Swing the pole up and hold it over the middle of the track.

    Its constants may be traced; reward and drawing have their own.
    obs (x, x_dot, cos th, sin th, th_dot); action: the force, in units of 5 N.
    reward: exp(-(distance of the tip from its place upright over x = 0, in pole
    lengths)^2) - 0.01 action^2, so about 1 per step when solved and 0.02 hanging.
    """

    def initial(key: Key) -> Array:
        hanging = jnp.array([0.0, 0.0, jnp.pi, 0.0])
        return hanging + SWINGUP_START_STD * jax.random.normal(key, (4,))

    def reward(obs: Array, action: Array, next_obs: Array) -> Array:
        x, _, cos, sin, _ = next_obs
        distance = (x / SWINGUP_POLE_LENGTH + sin) ** 2 + (1 - cos) ** 2
        return jnp.exp(-distance) - SWINGUP_ACTION_COST * action[0] ** 2

    return simulator.make_env(
        "cartpole_swingup",
        initial=initial,
        dynamics=lambda state, action: swingup_dynamics(state, action, system),
        observe=observe,
        reward=reward,
        shapes=lambda state: _shapes(
            state, SWINGUP_POLE_LENGTH, SWINGUP_BUFFERS.limit, goal=True
        ),
        view=raster.View((0.0, 0.0), half_height=0.86, height=180, width=360),
        action_size=1,
        action_limit=1.0,
        episode_length=200,
    )


def swingup_dynamics(state: Array, action: Array, system: CartPole = SWINGUP) -> Array:
    dt = SWINGUP_DT / SWINGUP_SUBSTEPS
    return integrate(system, SWINGUP_BUFFERS, state, action, dt, SWINGUP_SUBSTEPS)


# --- Balance: Gymnasium's CartPole-v1 (Towers et al., 2024) with a continuous force.

BALANCE = CartPole(
    cart_mass=1.0,
    pole_mass=0.1,
    pole_centre=0.5,
    pole_inertia=0.1 * 1.0**2 / 12,  # a uniform rod
    gravity=9.8,
    cart_damping=0.0,
    pole_damping=0.0,
    gear=10.0,
)
BALANCE_POLE_LENGTH = 1.0
BALANCE_DT = 0.02
BALANCE_MAX_X = 2.4  # m
BALANCE_MAX_ANGLE = 12 * 2 * jnp.pi / 360  # rad
BALANCE_START = 0.05  # all four start uniform within +-


def balance(system: CartPole = BALANCE) -> Env:
    """Keep the pole within 12 degrees and the cart within 2.4 m; 1 per step.

    Its constants may be traced; reward and drawing have their own.
    obs (x, x_dot, th, th_dot); action: the force, in units of 10 N.  With actions of
    -1 and 1 this is CartPole-v1 step for step, its explicit Euler included; 200 steps
    as in mbrl-lib's PETS example.  The reward is constant: only `terminal` tells good
    from bad, and the gradient of the return is 0.
    """

    return _balancing(
        "cartpole_balance",
        lambda state, action: balance_dynamics(state, action, system),
        action_size=1,
        action_limit=1.0,
        episode_length=200,
    )


def discrete(system: CartPole = BALANCE) -> Env:
    """CartPole-v1 itself: `balance` with the actions 0 (left) and 1 (right), 500 steps.

    At the limit it only ends, and the last step is paid too, as there.
    """

    def dynamics(state: Array, action: Array) -> Array:
        return balance_dynamics(state, 2.0 * action[None] - 1, system)

    return _balancing("cartpole", dynamics, num_actions=2, episode_length=500)


def no_velocity() -> Env:
    """`discrete`, of which only the positions (x, th) are seen."""
    show = lambda obs: obs[jnp.array([0, 2])]
    return simulator.partly_observed(discrete(), "cartpole_no_velocity", show)


def _balancing(
    name: str, dynamics: Callable[[Array, Array], Array], **actions: Any
) -> Env:
    def initial(key: Key) -> Array:
        return jax.random.uniform(
            key, (4,), minval=-BALANCE_START, maxval=BALANCE_START
        )

    def terminal(obs: Array, action: Array, next_obs: Array) -> Array:
        off_track = jnp.abs(next_obs[0]) > BALANCE_MAX_X
        return off_track | (jnp.abs(next_obs[2]) > BALANCE_MAX_ANGLE)

    return simulator.make_env(
        name,
        initial=initial,
        dynamics=dynamics,
        observe=lambda state: state,
        reward=lambda obs, action, next_obs: jnp.ones((), obs.dtype),
        terminal=terminal,
        shapes=lambda state: _shapes(
            state, BALANCE_POLE_LENGTH, BALANCE_MAX_X, goal=False
        ),
        view=raster.View((0.0, 0.3), half_height=1.36, height=180, width=360),
        **actions,
    )


def balance_dynamics(state: Array, action: Array, system: CartPole = BALANCE) -> Array:
    x_ddot, th_ddot = accelerations(system, state, system.gear * action[0])
    return state + BALANCE_DT * jnp.stack([state[1], x_ddot, state[3], th_ddot])


# --- PETS: the cartpole of Chua et al., 2018, a MuJoCo model, as equations.


def _capsule(radius: float, length: float, density: float) -> tuple[float, float]:
    """Mass (kg) and inertia about the centre (kg m^2); `length` of the cylinder."""
    cylinder = density * jnp.pi * radius**2 * length
    ends = density * 4 / 3 * jnp.pi * radius**3  # two half balls
    inertia = cylinder * (length**2 / 12 + radius**2 / 4)
    inertia += ends * (2 * radius**2 / 5 + length**2 / 4 + 3 * radius * length / 8)
    return cylinder + ends, inertia


PETS_DENSITY = 1000.0  # kg/m^3, MuJoCo's default
PETS_POLE_END = (0.001, -0.6)  # of the capsule's axis, from the hinge, hanging
PETS_POLE_REACH = (PETS_POLE_END[0] ** 2 + PETS_POLE_END[1] ** 2) ** 0.5
PETS_POLE_TILT = PETS_POLE_END[0] / -PETS_POLE_END[1]  # rad, to first order
PETS_CART_MASS, _ = _capsule(0.1, 0.2, PETS_DENSITY)
PETS_POLE_MASS, PETS_POLE_INERTIA = _capsule(0.049, PETS_POLE_REACH, PETS_DENSITY)
PETS = CartPole(
    cart_mass=PETS_CART_MASS,
    pole_mass=PETS_POLE_MASS,
    pole_centre=PETS_POLE_REACH / 2,
    pole_inertia=PETS_POLE_INERTIA,
    gravity=9.81,
    cart_damping=1.0,
    pole_damping=1.0,
    gear=100.0,
)
PETS_BUFFERS = Buffers(limit=2.5, stiffness=10_000.0, damping=800.0, softness=0.02)
PETS_POLE_LENGTH = 0.6  # m, in the reward
PETS_DT, PETS_SUBSTEPS = 0.04, 4
PETS_START_STD = 0.1
PETS_ACTION_COST = 0.01


def pets(system: CartPole = PETS) -> Env:
    """The swing-up of the PETS paper: a cart and pole of 15.5 kg, pushed with 300 N.

    obs (x, x_dot, cos th, sin th, th_dot), here with th = 0 hanging and positive to the
    left, as in the paper's MuJoCo model; it observes th and hands its networks cos th
    and sin th.  action: in [-3, 3], in units of 100 N.  reward: as in the paper,
    exp(-(distance of the tip from (0, 0.6) / 0.6)^2) - 0.01 action^2.

    Deviations: MuJoCo stops the slider at +-2.5 m with a constraint solver; here
    buffers of about the same stiffness do (300 N press it 2 cm in), which slow the
    cart's way back as well.  The step of integration is 0.01 s in place of 0.02 s.
    Away from the ends both agree.

    Its constants may be traced; reward and drawing have their own.
    """

    def initial(key: Key) -> Array:
        return PETS_START_STD * jax.random.normal(key, (4,))

    def reward(obs: Array, action: Array, next_obs: Array) -> Array:
        x, _, cos, sin, _ = next_obs
        distance = (x / PETS_POLE_LENGTH - sin) ** 2 + (1 + cos) ** 2
        return jnp.exp(-distance) - PETS_ACTION_COST * action[0] ** 2

    return simulator.make_env(
        "cartpole_pets",
        initial=initial,
        dynamics=lambda state, action: pets_dynamics(state, action, system),
        observe=observe,
        reward=reward,
        shapes=lambda state: _shapes(
            state.at[2].add(jnp.pi), PETS_POLE_LENGTH, PETS_BUFFERS.limit, goal=True
        ),
        view=raster.View((0.0, 0.0), half_height=1.42, height=180, width=360),
        action_size=1,
        action_limit=3.0,
        episode_length=200,
    )


def pets_dynamics(state: Array, action: Array, system: CartPole = PETS) -> Array:
    # The centre of mass hangs to the right of the axis that th measures.
    upright = jnp.pi - PETS_POLE_TILT
    state, dt = state.at[2].add(upright), PETS_DT / PETS_SUBSTEPS
    state = integrate(system, PETS_BUFFERS, state, action, dt, PETS_SUBSTEPS)
    return state.at[2].add(-upright)


# --- PILCO: the cart and pole of Deisenroth, McHutchon, Hall and Rasmussen, 2013.

PILCO = SWINGUP._replace(gear=1.0)
PILCO_DT, PILCO_SUBSTEPS = 0.1, 16
PILCO_START, PILCO_START_STD = (0.0, 0.0, math.pi, 0.0), (0.1, 0.1, 0.1, 0.1)
PILCO_GOAL = saturating.Goal(
    angles=(2,),
    # the tip, m, of x, x_dot, th_dot, sin th, cos th
    point=(
        (1.0, 0.0, 0.0, SWINGUP_POLE_LENGTH, 0.0),
        (0.0, 0.0, 0.0, 0.0, SWINGUP_POLE_LENGTH),
    ),
    place=(0.0, SWINGUP_POLE_LENGTH),
    width=0.25,
)


def pilco(system: CartPole = PILCO) -> Env:
    """Swing the pole up over the middle of a track without end, within 4 s.

    Its constants may be traced; reward and drawing have their own.
    obs (x, x_dot, th, th_dot), the angle not wrapped; action: the force in N, to 10.
    reward: see `saturating`, of the tip, with a width of 0.25 m: 0 upright over x = 0,
    -1 hanging.
    Deviation: observations are without noise; the original's has a std of 0.01.
    """

    return simulator.make_env(
        "cartpole_pilco",
        dynamics=lambda state, action: pilco_dynamics(state, action, system),
        shapes=lambda state: _shapes(state, SWINGUP_POLE_LENGTH, None, goal=True),
        view=raster.View((0.0, 0.0), half_height=0.86, height=180, width=360),
        action_size=1,
        action_limit=10.0,
        episode_length=40,
        **saturating.task(PILCO_GOAL, PILCO_START, PILCO_START_STD),
    )


def pilco_dynamics(state: Array, action: Array, system: CartPole = PILCO) -> Array:
    dt = PILCO_DT / PILCO_SUBSTEPS
    return integrate(system, None, state, action, dt, PILCO_SUBSTEPS)


def observe(state: Array) -> Array:
    """Of `swingup` and `pets`; `balance` shows the state as it is."""
    x, x_dot, th, th_dot = state
    return jnp.stack([x, x_dot, jnp.cos(th), jnp.sin(th), th_dot])


def place(obs: Array) -> Array:
    """The state that shows `obs`."""
    x, x_dot, cos, sin, th_dot = obs
    return jnp.stack([x, x_dot, jnp.arctan2(sin, cos), th_dot])


def _shapes(
    state: Array, pole_length: float, limit: float | None, *, goal: bool
) -> list[raster.Shapes]:
    """The track, the place of the tip when solved, the cart and pole."""
    size = 0.05 + 0.06 * pole_length  # m, half the height of the cart
    hinge = jnp.stack([state[0], jnp.zeros_like(state[0])])
    tip = hinge + pole_length * jnp.stack([jnp.sin(state[2]), jnp.cos(state[2])])
    target = jnp.array([0.0, pole_length])
    marks = [
        raster.disc(target, 1.5 * size, raster.GREEN, opacity=0.35),
        raster.disc(target, 0.4 * size, raster.GREEN),
    ]
    return (
        (marks if goal else [])
        + _track(limit, size)
        + [
            raster.box(
                hinge, jnp.array([1.7, 0.7]) * size, raster.INK, radius=0.3 * size
            ),
            raster.capsule(hinge, tip, 0.4 * size, raster.AMBER),
            raster.disc(hinge, 0.25 * size, raster.PAPER),
        ]
    )


def _track(limit: float | None, size: float) -> list[raster.Shapes]:
    """With its ends, if it has some, where the cart's sides are at the limits."""
    if limit is None:
        far = 100.0 * size
        return [raster.capsule((-far, 0.0), (far, 0.0), 0.12 * size, raster.STEEL)]
    end = limit + 2 * size
    left, right = jnp.array([-end, 0.0]), jnp.array([end, 0.0])
    up = jnp.array([0.0, size])
    return [
        raster.capsule(left, right, 0.12 * size, raster.STEEL),
        raster.capsule(left, left + up, 0.2 * size, raster.STEEL),
        raster.capsule(right, right + up, 0.2 * size, raster.STEEL),
    ]
