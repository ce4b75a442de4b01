import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from mbrl_jax.envs import linear_quadratic
from mbrl_jax.envs.linear_quadratic import TWO_MASSES, LinearQuadratic
from mbrl_jax.types import Array, EnvState

RANDOM = LinearQuadratic(
    A=0.5 * np.random.default_rng(0).normal(size=(3, 3)),
    B=np.random.default_rng(1).normal(size=(3, 2)),
    Q=np.diag([1.0, 0.3, 2.0]),
    R=np.array([[0.5, 0.1], [0.1, 0.2]]),
)
problems = pytest.mark.parametrize("problem", [TWO_MASSES, RANDOM])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def episode(
    problem: LinearQuadratic, gains: Array, key: Array
) -> tuple[EnvState, EnvState]:
    """Start, and the states after each action of a linear controller."""
    env = linear_quadratic.make(problem, episode_length=gains.shape[0])

    def step(env_state: EnvState, gain: Array) -> tuple[EnvState, EnvState]:
        env_state = env.step(env_state, -gain @ env_state.obs)
        return env_state, env_state

    start = env.reset(key)
    return start, jax.lax.scan(step, start, gains)[1]


@problems
def test_return_of_the_optimal_controller(problem: LinearQuadratic):
    best = linear_quadratic.optimum(problem, 30)
    start, states = episode(problem, best.gains, jax.random.key(0))
    np.testing.assert_allclose(
        states.reward.sum(), linear_quadratic.optimal_return(best, start.obs), rtol=1e-9
    )
    assert states.truncated[-1]


@problems
def test_no_action_can_better_the_optimum(problem: LinearQuadratic):
    """The return is concave in the actions, so a zero gradient is proof."""
    best = linear_quadratic.optimum(problem, 20)
    start, states = episode(problem, best.gains, jax.random.key(0))
    env = linear_quadratic.make(problem)

    @jax.jit
    @jax.grad
    def slope(actions: Array) -> Array:
        step = lambda state, action: (env.step(state, action),) * 2
        return jax.lax.scan(step, start, actions)[1].reward.sum()

    np.testing.assert_allclose(slope(states.sim.action), 0, atol=1e-12)
    assert jnp.abs(slope(0.9 * states.sim.action)).max() > 1e-3


@problems
def test_long_horizons_meet_the_algebraic_riccati_equation(problem: LinearQuadratic):
    best = linear_quadratic.optimum(problem, 400)
    P = scipy.linalg.solve_discrete_are(*map(np.asarray, problem[:4]))
    np.testing.assert_allclose(best.costs[0], P, rtol=1e-7)


def test_expected_return_under_noise():
    problem = TWO_MASSES._replace(noise_std=0.1)
    best = linear_quadratic.optimum(problem, 30)
    keys = jax.random.split(jax.random.key(0), 2000)
    start, states = jax.jit(jax.vmap(lambda key: episode(problem, best.gains, key)))(
        keys
    )
    expected = jax.vmap(linear_quadratic.optimal_return, (None, 0))(best, start.obs)
    error = states.reward.sum(axis=1) - expected
    standard_error = error.std() / len(keys) ** 0.5
    assert abs(error.mean()) < 4 * standard_error
    assert standard_error < 0.01 * abs(expected.mean())
    assert best.noise_costs[0] > 0.1 * abs(expected.mean())  # the noise counts


@problems
def test_the_limit_leaves_the_optimum_alone(problem: LinearQuadratic):
    """From every corner of the cube of starts; what lies between is a mixture."""
    A, B = jnp.asarray(problem.A), jnp.asarray(problem.B)
    corners = jnp.array(list(itertools.product([-1.0, 1.0], repeat=A.shape[0])))

    def step(x: Array, gain: Array) -> tuple[Array, Array]:
        u = -x @ gain.T  # [corners, A]
        return x @ A.T + u @ B.T, u

    gains = linear_quadratic.optimum(problem, 50).gains
    _, actions = jax.lax.scan(step, linear_quadratic.START * corners, gains)
    assert jnp.abs(actions).max() < 0.7 * linear_quadratic.ACTION_LIMIT


@pytest.mark.parametrize(
    "problem",
    [
        TWO_MASSES._replace(R=np.eye(2)),
        TWO_MASSES._replace(A=np.eye(3)),
        TWO_MASSES._replace(B=np.ones(4)),
    ],
)
def test_matrices_must_fit(problem: LinearQuadratic):
    with pytest.raises(ValueError, match="A, B, Q, R of a problem do not fit"):
        linear_quadratic.make(problem)
