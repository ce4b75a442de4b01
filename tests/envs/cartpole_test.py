import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from mbrl_jax.envs import cartpole
from mbrl_jax.types import Array, Env, EnvState

PETS_XML = """
<mujoco>
  <compiler angle="radian"/>
  <option gravity="0 0 -9.81" integrator="RK4" timestep="{timestep}"/>
  <worldbody>
    <body>
      <joint type="slide" axis="1 0 0" limited="true" range="-2.5 2.5" damping="1"/>
      <geom type="capsule" size="0.1 0.1" euler="0 1.5707963 0" contype="0"
            conaffinity="0"/>
      <body name="pole">
        <joint type="hinge" axis="0 1 0" damping="1"/>
        <geom type="capsule" fromto="0 0 0 0.001 0 -0.6" size="0.049" contype="0"
              conaffinity="0"/>
        <site name="tip" pos="0 0 -0.6"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="slide" gear="100" ctrllimited="true" ctrlrange="-3 3"/>
  </actuator>
</mujoco>
""".replace('<joint type="slide"', '<joint name="slide" type="slide"')


def place(env: Env, state: list[float]) -> EnvState:
    env_state = env.reset(jax.random.key(0))
    return env_state._replace(sim=env_state.sim._replace(state=jnp.array(state)))


def states_after(env: Env, state: list[float], actions: np.ndarray) -> Array:
    """[T, 4] from `actions` [T]."""

    def step(env_state: EnvState, action: Array) -> tuple[EnvState, Array]:
        env_state = env.step(env_state, action[None])
        return env_state, env_state.sim.state

    return jax.lax.scan(step, place(env, state), jnp.array(actions))[1]


@pytest.mark.parametrize("seed", range(3))
def test_balance_is_cartpole_v1_step_for_step(seed: int):
    with jax.enable_x64(True):
        env, theirs = cartpole.balance(), CartPoleEnv()
        step = jax.jit(env.step)
        theirs.reset(seed=seed)
        ours = place(env, list(theirs.state))
        rng = np.random.default_rng(seed)
        for _ in range(200):
            push = int(rng.integers(2))
            ours = step(ours, jnp.array([2.0 * push - 1]))
            _, reward, terminated, _, _ = theirs.step(push)
            np.testing.assert_allclose(ours.sim.state, theirs.state, atol=1e-12)
            assert ours.reward == reward
            assert bool(ours.terminal) == terminated
            if terminated:
                return
    pytest.fail("a random policy should have dropped the pole")


@pytest.mark.parametrize(
    ("obs", "ended"),
    [
        ([2.39, 9.0, 0.2, 9.0], False),
        ([-2.41, 0.0, 0.0, 0.0], True),
        ([0.0, 0.0, 0.21, 0.0], True),
        ([0.0, 0.0, -0.2094, 0.0], False),
    ],
)
def test_balance_ends_off_the_track_or_beyond_12_degrees(obs: list[float], ended: bool):
    terminal = cartpole.balance().terminal
    assert terminal is not None
    assert terminal(jnp.zeros(4), jnp.zeros(1), jnp.array(obs)) == ended


@pytest.mark.parametrize(
    ("timestep", "tolerance"),
    [(0.01, 1e-7), (0.02, 1e-4)],  # s: our step of integration, and the paper's
)
def test_pets_is_the_mujoco_model(timestep: float, tolerance: float):
    model = mujoco.MjModel.from_xml_string(PETS_XML.format(timestep=timestep))
    data = mujoco.MjData(model)
    start = [0.1, -0.2, 0.3, 0.1]
    data.qpos[:], data.qvel[:] = start[0::2], start[1::2]
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, 50) * np.tile([1, -1], 25)
    with jax.enable_x64(True):
        env = cartpole.pets()
        states = np.asarray(states_after(env, start, actions))
        assert np.abs(states).max(axis=0)[[0, 2]] == pytest.approx([1.3, 1.3], abs=1.2)
        for action, (x, x_dot, th, th_dot) in zip(actions, states, strict=True):
            data.ctrl[:] = action
            mujoco.mj_step(model, data, nstep=round(0.04 / timestep))
            np.testing.assert_allclose(
                [x, th, x_dot, th_dot], [*data.qpos, *data.qvel], atol=tolerance
            )
            mujoco.mj_kinematics(model, data)
            tip = data.site("tip").xpos - np.array([0.0, 0.0, 0.6])
            obs = jnp.array([x, x_dot, np.cos(th), np.sin(th), th_dot])
            assert env.reward is not None
            np.testing.assert_allclose(
                env.reward(obs, jnp.array([action]), obs),
                np.exp(-(tip @ tip) / 0.36) - 0.01 * action**2,
                atol=tolerance,
            )


def test_pets_masses_are_those_of_mujoco():
    model = mujoco.MjModel.from_xml_string(PETS_XML.format(timestep=0.02))
    ours = cartpole.PETS
    np.testing.assert_allclose(
        [ours.cart_mass, ours.pole_mass, ours.pole_inertia],
        [*model.body_mass[1:], model.body_inertia[2, 0]],
        rtol=1e-9,
    )
    centre = np.linalg.norm(model.body("pole").ipos)
    assert ours.pole_centre == pytest.approx(centre, rel=1e-9)


@pytest.mark.parametrize(
    ("env", "buffers"),
    [
        (cartpole.swingup(), cartpole.SWINGUP_BUFFERS),
        (cartpole.pets(), cartpole.PETS_BUFFERS),
    ],
)
def test_the_track_ends(env: Env, buffers: cartpole.Buffers):
    """Full force from end to end, and at its worst: the cart stays, and calms down."""
    limit = env.action_limit
    push = np.concatenate([np.full(60, -limit), np.full(60, limit), np.zeros(80)])
    x, x_dot = np.asarray(states_after(env, [0.0] * 4, push))[:, :2].T
    assert x[:60].min() < -buffers.limit
    assert np.abs(x).max() < buffers.limit + 0.3
    arrival = np.abs(x_dot[60:120]).max()
    assert np.abs(x_dot[-40:]).max() < 0.5 * arrival
    random = limit * np.sign(np.random.default_rng(0).normal(size=1000))
    assert (
        np.abs(states_after(env, [0.0] * 4, random)[:, 0]).max() < buffers.limit + 0.5
    )


def test_buffers_lose_energy_and_vanish_inside():
    for buffers in (cartpole.SWINGUP_BUFFERS, cartpole.PETS_BUFFERS):
        middle = cartpole.buffer_force(buffers, jnp.array(0.5), jnp.array(3.0))
        assert abs(middle) < 1e-6
        at_end = [
            cartpole.buffer_force(buffers, jnp.array(x), jnp.array(0.0))
            for x in (buffers.limit + 0.2, -buffers.limit - 0.2)
        ]
        expected = -0.2 * buffers.stiffness
        np.testing.assert_allclose(at_end, [expected, -expected], rtol=1e-3)


def test_buffers_have_a_slope_where_they_begin():
    for buffers in (cartpole.SWINGUP_BUFFERS, cartpole.PETS_BUFFERS):
        x = jnp.array([-buffers.limit, buffers.limit])
        rest = jax.grad(
            lambda x, buffers=buffers: cartpole.buffer_force(buffers, x, 0.0)
        )
        slope = jax.vmap(rest)(x)  # of a softplus at 0
        np.testing.assert_allclose(slope, -buffers.stiffness / 2, rtol=1e-4)


@pytest.mark.parametrize(
    ("env", "upright"), [(cartpole.swingup(), 0.0), (cartpole.pets(), np.pi)]
)
def test_swing_up_pays_one_upright_in_the_middle(env: Env, upright: float):
    def reward(x: float, angle: float, action: float) -> Array:
        obs = jnp.array([x, 1.0, np.cos(angle), np.sin(angle), 1.0])
        assert env.reward is not None
        return env.reward(jnp.zeros(5), jnp.array([action]), obs)

    assert reward(0.0, upright, 0.0) == pytest.approx(1.0)
    assert reward(0.0, upright, 0.5) == pytest.approx(1.0 - 0.01 * 0.25)
    assert reward(0.0, upright + np.pi, 0.0) == pytest.approx(np.exp(-4))
    assert reward(0.6, upright, 0.0) < 0.5


def test_swing_up_needs_a_run_up():
    """The strongest push, until the track ends, does not lift the pole half way."""
    states = states_after(cartpole.swingup(), [0.0, 0.0, np.pi, 0.0], np.ones(15))
    assert 1.3 < states[-1, 0] < 1.5
    assert jnp.cos(states[:, 2]).max() < 0
