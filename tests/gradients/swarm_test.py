"""Swarms: redrawn as a Gaussian or not, and the gradient through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.gradients import closed_loop, swarm
from mbrl_jax.gradients.closed_loop import DynamicalSystem, ExpectedReturn
from mbrl_jax.types import Array, Key

pytestmark = pytest.mark.usefixtures("double")
KEY = jax.random.key(0)


def moving(resample: bool, num_particles: int = 4) -> DynamicalSystem:
    """Particle i starts at (0, 1) and goes by (i, action) at each step."""
    return swarm.system(
        first=lambda key: jnp.array([0.0, 1.0]),
        draw=lambda key, i, obs, action: obs + jnp.stack([1.0 * i, action[0]]),
        reward=lambda obs, action, new: new[0] + 10 * action[0] + 100 * obs[0],
        num_particles=num_particles,
        resample=resample,
    )


def test_a_gaussian_has_the_moments_of_the_particles() -> None:
    rng = np.random.default_rng(0)
    particles = rng.normal(size=(20_000, 2)) ** 2 @ np.array([[1.0, 0.5], [0, 2]])
    drawn = swarm.gaussian(KEY, jnp.array(particles))
    scale = particles.std(axis=0)
    away = np.abs(drawn.mean(axis=0) - particles.mean(axis=0)) / scale
    assert away.max() < 0.03
    cov = np.abs(np.cov(drawn.T) - np.cov(particles.T)) / np.outer(scale, scale)
    assert cov.max() < 0.05
    normal = lambda x: ((x - x.mean(axis=0)) / x.std(axis=0)) ** 3
    assert np.abs(normal(particles).mean(axis=0)).min() > 1
    assert np.abs(normal(np.array(drawn)).mean(axis=0)).max() < 0.1


def test_a_gaussian_of_what_does_not_vary() -> None:
    still = jnp.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    drawn = swarm.gaussian(KEY, still)
    np.testing.assert_allclose(drawn[:, 1], 2, atol=0.02)
    same = swarm.gaussian(KEY, jnp.ones((3, 2)))
    np.testing.assert_allclose(same, 1, atol=1e-6)


def test_an_entry_that_hardly_varies_beside_one_that_does() -> None:
    """In float32.  And what it is drawn from has a gradient, as if each were alone."""
    noise = np.random.default_rng(0).normal(size=(500, 2)) @ [[1.0, 0.6], [0, 0.8]]
    scales = jnp.array([1e-3, 1e3], jnp.float32)

    def spread(scales: Array) -> Array:
        return swarm.gaussian(KEY, scales[None] * noise.astype(np.float32)).std(axis=0)

    np.testing.assert_allclose(spread(scales), scales, rtol=0.1)
    slopes = jax.jacobian(spread)(scales)
    np.testing.assert_allclose(jnp.diag(slopes), 1, rtol=0.1)
    np.testing.assert_allclose(slopes[0, 1] * scales[1] / scales[0], 0, atol=0.01)


def test_particles_keep_their_numbers_unless_they_are_redrawn() -> None:
    system, action = moving(resample=False), jnp.full((4, 1), 0.5)
    state = system.reset(KEY)
    np.testing.assert_array_equal(state, [[0, 1]] * 4)
    once = system.step(KEY, state, action)
    twice = system.step(KEY, once, action)
    np.testing.assert_array_equal(twice[:, 0], [0, 2, 4, 6])
    np.testing.assert_array_equal(twice[:, 1], [2, 2, 2, 2])
    # means: of new[0] 3, of the action 0.5, of obs[0] 1.5
    assert system.reward(once, action, twice) == 3 + 5 + 150
    redrawn = moving(resample=True).step(KEY, state, action)
    assert not np.isin(redrawn[:, 0], [0.0, 1, 2, 3]).any()


def test_noise_differs_between_particles_and_steps() -> None:
    system = swarm.system(
        first=lambda key: jax.random.normal(key, (1,)),
        draw=lambda key, i, obs, action: jax.random.normal(key, (1,)),
        reward=lambda obs, action, new: new[0],
        num_particles=50,
        resample=False,
    )
    actor = closed_loop.deterministic(lambda params, obs: obs)
    problem = ExpectedReturn(system, actor, horizon=3)
    steps = closed_loop.rollout(KEY, None, problem, system.reset(KEY))[1].steps
    assert len(np.unique(steps.obs)) == 3 * 50


@pytest.mark.parametrize("resample", [True, False])
def test_the_gradient_against_finite_differences(resample: bool) -> None:
    """Through the moments, too: where particles are redrawn, what matters of them are
    only these."""

    def draw(key: Key, number: Array, obs: Array, action: Array) -> Array:
        noise = jax.random.normal(key, (2,))
        return 0.9 * obs + 0.1 * jnp.sin(obs[::-1]) + action * (1 + noise)

    system = swarm.system(
        first=lambda key: 1 + 0.3 * jax.random.normal(key, (2,)),
        draw=draw,
        reward=lambda obs, action, new: -(new[0] ** 2) * jnp.exp(new[1]),
        num_particles=10,
        resample=resample,
    )
    act = lambda params, obs: params[0] * obs + params[1]
    actor = closed_loop.deterministic(jax.vmap(act, (None, 0)))
    problem = ExpectedReturn(system, actor, horizon=4)
    params = jnp.array([-0.2, 0.1])
    found, total = swarm.pathwise(problem, KEY, params)
    value = jax.jit(lambda params: swarm.pathwise(problem, KEY, params)[1])
    assert float(total) == pytest.approx(float(value(params)))
    for i in range(2):
        nudge = jnp.zeros(2).at[i].set(1e-5)
        slope = (value(params + nudge) - value(params - nudge)) / 2e-5
        assert float(found[i]) == pytest.approx(float(slope), rel=1e-6)
