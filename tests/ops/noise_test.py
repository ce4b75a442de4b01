from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops.noise import coloured_noise
from mbrl_jax.types import Array

N, A = 5000, 2
STANDARD_ERROR = (2 / (N * A)) ** 0.5  # of a variance estimated from N A normals


@partial(jax.jit, static_argnums=0)
def sample(length: int, exponent: float) -> Array:
    key = jax.random.key(0)
    return coloured_noise(key, (N, length, A), exponent, jnp.float32)


def draw(length: int, exponent: float) -> np.ndarray:
    return np.asarray(sample(length, exponent))


@pytest.mark.parametrize("length", [1, 2, 31, 32])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_every_moment_in_time_has_unit_variance(length: int, exponent: float):
    noise = draw(length, exponent)
    assert noise.shape == (N, length, A)
    np.testing.assert_allclose(
        np.square(noise).mean(axis=(0, 2)), 1, atol=5 * STANDARD_ERROR
    )
    np.testing.assert_allclose(noise.mean(axis=(0, 2)), 0, atol=5 / (N * A) ** 0.5)


@pytest.mark.parametrize("length", [31, 32])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
def test_the_power_falls_as_the_exponent_says(length: int, exponent: float):
    """The slope of log power over log frequency, by numpy's own transform.

    It comes out within 0.02 with any key; rounding one frequency off moves it by 0.1.
    """
    noise = draw(length, exponent)
    power = np.square(np.abs(np.fft.rfft(noise, axis=1))).mean(axis=(0, 2))
    frequency = np.arange(1, power.shape[0])
    slope, _ = np.polyfit(np.log(frequency), np.log(power[1:]), 1)
    assert slope == pytest.approx(-exponent, abs=0.02)
    assert power[0] == pytest.approx(power[1], rel=0.1)  # the mean: as frequency 1


def test_exponent_0_is_white():
    noise = draw(31, 0.0)[..., 0]
    np.testing.assert_allclose(noise.T @ noise / N, np.eye(31), atol=0.1)  # 5 sigma


def test_the_dimensions_of_an_action_are_independent():
    noise = draw(32, 2.0)
    cross = np.einsum("nt,ns->ts", noise[..., 0], noise[..., 1]) / N
    np.testing.assert_allclose(cross, 0, atol=0.1)


def test_the_type_is_the_one_asked_for():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            make = partial(coloured_noise, shape=(2, 4, 1), exponent=2.0, dtype=dtype)
            assert jax.eval_shape(make, jax.random.key(0)).dtype == dtype
