"""Movement primitives: where they end, what they repeat, how well they are solved."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.local_policies import movement_primitives as primitives
from mbrl_jax.types import Array

pytestmark = pytest.mark.usefixtures("double")

DECAY, T, K = 3.0, 50, 12
START, GOAL = np.array([0.5, -1.0]), np.array([2.0, 0.25])


def shape_of(weights: Array, goal: np.ndarray = GOAL) -> primitives.Shape:
    return primitives.Shape(weights, jnp.array(goal), jnp.array(goal - START), DECAY)


@jax.jit
def followed(shape: primitives.Shape) -> primitives.State:
    return primitives.unroll(shape, primitives.start(jnp.array(START)), T)


def shown(times: np.ndarray) -> np.ndarray:
    """With least jerk to the goal (Flash and Hogan, 1985), and a bow on the way."""
    share = 10 * times**3 - 15 * times**4 + 6 * times**5
    bow = np.sin(np.pi * times) ** 3
    away = GOAL - START
    return START + share[:, None] * away + bow[:, None] * [0.4, -0.6]


def test_without_weights_it_is_the_critically_damped_spring():
    """y = goal - away (1 + w t) exp(-w t), w = alpha / 2; it is there at the end."""
    found = followed(shape_of(jnp.zeros((2, K))))
    times = np.arange(1, T + 1) / T
    w = primitives.ALPHA / 2
    left = (1 + w * times) * np.exp(-w * times)
    expected = GOAL - left[:, None] * (GOAL - START)
    np.testing.assert_allclose(found.position, expected, atol=1e-4)
    np.testing.assert_allclose(found.position[-1], GOAL, atol=1e-3)
    np.testing.assert_allclose(found.phase, np.exp(-DECAY * times), atol=1e-6)
    speed = w**2 * times * np.exp(-w * times)
    expected = speed[:, None] * (GOAL - START)
    np.testing.assert_allclose(found.velocity, expected, atol=3e-3)


def test_halving_the_steps_of_the_integration_hardly_matters():
    """Of fourth order: half the step, a sixteenth of the error."""
    weights = jax.random.normal(jax.random.key(0), (2, 5))

    @partial(jax.jit, static_argnums=0)
    def after(halvings: int) -> Array:
        state = primitives.start(jnp.array(START))
        dt = 1 / T
        for _ in range(3):
            state = primitives.advance(shape_of(weights), state, dt, halvings)
        return state.position

    once, twice, often = (np.asarray(after(i)) for i in (0, 1, 4))
    first, second = np.abs(once - often).max(), np.abs(twice - often).max()
    assert first < 1e-3
    assert 10 < first / second < 24


def test_a_shown_motion_is_repeated_and_scales_with_its_goal():
    positions = jnp.asarray(shown(np.linspace(0, 1, T + 1)))
    fit = jax.jit(partial(primitives.fit, num_basis=K, decay=DECAY))
    found = fit(positions, GOAL, GOAL - START)
    again = np.asarray(followed(found).position)
    np.testing.assert_allclose(again, positions[1:], atol=0.03)
    bow = np.abs(shown(np.array([0.5])) - (START + GOAL) / 2)
    assert bow.min() > 0.3  # which a spring would miss
    # twice as far, the same way (Ijspeert et al., 2013, Sec. 2.1.4)
    twice = followed(shape_of(found.weights, START + 2 * (GOAL - START)))
    np.testing.assert_allclose(
        twice.position - START[None], 2 * (again - START[None]), atol=1e-9
    )


def test_features_share_the_phase():
    rows = jax.vmap(partial(primitives.features, num_basis=K, decay=DECAY))
    phases = jnp.exp(-DECAY * jnp.linspace(0, 1, K))
    found = rows(phases)
    np.testing.assert_allclose(found.sum(axis=1), phases)
    np.testing.assert_array_equal(found.argmax(axis=1), np.arange(K))
    np.testing.assert_allclose(primitives.features(phases[3], 1, DECAY), [phases[3]])


def test_it_ends_at_its_goal_whatever_the_weights():
    """The phase fades: long after its duration nothing is left of the weights."""
    weights = jnp.full((2, K), 3.0)

    @jax.jit
    def long_after() -> Array:
        shape = shape_of(weights)
        state = followed(shape)
        last = jax.tree.map(lambda x: x[-1], state)
        for _ in range(2):
            last = jax.tree.map(lambda x: x[-1], primitives.unroll(shape, last, T))
        return last.position

    np.testing.assert_allclose(long_after(), GOAL, atol=2e-3)
    assert np.abs(followed(shape_of(weights)).position[-1] - GOAL).max() > 0.01
