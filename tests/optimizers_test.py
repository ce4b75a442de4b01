import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import optimizers


def first_step(learning_rate: float, gradient: list[float], max_norm: float):
    optimizer = optimizers.clipped_adam(learning_rate, max_norm)
    params = jnp.zeros(2)
    updates, state = optimizer.update(
        jnp.array(gradient), optimizer.init(params), params
    )
    return updates, state


def test_a_long_gradient_is_scaled_down_and_a_short_one_left():
    """Adam's own first step is the same for both: look at what it averages."""
    for gradient, expected in (([3.0, 4.0], [0.3, 0.4]), ([0.1, 0.2], [0.1, 0.2])):
        _, state = first_step(0.1, gradient, 0.5)
        mean = optax.tree.get(state, "mu")
        np.testing.assert_allclose(mean, 0.1 * np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(bad):
    updates, state = first_step(0.1, [bad, 1.0], 0.5)
    np.testing.assert_array_equal(updates, 0)
    assert state.num_skipped == 1
    assert optax.tree.get(state, "mu").tolist() == [0, 0]


@pytest.mark.parametrize(
    ("decay_steps", "expected"),
    [(0, [0.1, 0.1, 0.1, 0.1]), (2, [0.1, 0.0505, 0.001, 0.001])],
)
def test_the_learning_rate_falls_to_a_hundredth(decay_steps, expected):
    """Of a constant gradient, each step of Adam is the learning rate long."""
    optimizer = optimizers.clipped_adam(0.1, 10.0, decay_steps=decay_steps)
    step = jax.jit(optimizer.update)
    state, found = optimizer.init(jnp.zeros(1)), []
    for _ in expected:
        updates, state = step(jnp.ones(1), state)
        found.append(-float(updates[0]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
