"""Points of a picture: where a mass is, that it moves as the picture does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import spatial

pytestmark = pytest.mark.usefixtures("double")

H, W = 4, 8


def point(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    mass = spatial.softmax(jnp.asarray(scores), temperature)
    np.testing.assert_allclose(mass.sum(), 1, rtol=1e-12)
    return np.asarray(spatial.expected_place(mass))


@pytest.mark.parametrize(
    ("row", "column", "place"),
    [
        (0, 0, (-7 / 8, 3 / 4)),  # the top left
        (3, 7, (7 / 8, -3 / 4)),
        (1, 5, (3 / 8, 1 / 4)),
    ],
)
def test_a_peak_is_at_the_centre_of_its_pixel(row: int, column: int, place: tuple):
    """x to the right, y up, the edges of the picture at +-1."""
    scores = np.zeros((H, W))
    scores[row, column] = 500.0
    np.testing.assert_allclose(point(scores), place, atol=1e-12)


def test_what_is_the_same_everywhere_is_in_the_middle():
    np.testing.assert_allclose(point(np.full((H, W), 3.0)), (0, 0), atol=1e-12)


def test_a_point_moves_as_its_picture_does():
    """A blob, moved two pixels to the right and one up."""
    rng = np.random.default_rng(0)
    scores = np.full((16, 16), -300.0)
    scores[6:9, 5:9] = rng.normal(size=(3, 4))
    moved = np.roll(scores, (-1, 2), axis=(0, 1))
    gap = point(moved) - point(scores)
    np.testing.assert_allclose(gap, (2 * 2 / 16, 1 * 2 / 16), atol=1e-12)


def test_a_temperature_divides_the_scores():
    """Two pixels of a row, whose scores differ by 1: 1 / (1 + exp(-1 / T)) of the mass
    is in the better one; nearly all where it is cold, half where it is hot."""
    scores = np.array([[1.0, 0.0]])
    for temperature in (0.05, 0.7, 100.0):
        share = 1 / (1 + np.exp(-1 / temperature))
        expected = -0.5 * share + 0.5 * (1 - share)
        np.testing.assert_allclose(point(scores, temperature), (expected, 0))


def test_presence_is_the_mass_within_reach():
    """In numpy, pixel by pixel, for places and reaches of all kinds."""
    rng = np.random.default_rng(1)
    mass = rng.uniform(size=(H, W))
    mass /= mass.sum()
    for reach in (0.1, 0.3, 0.6, 2.1):
        x0, y0 = rng.uniform(-0.9, 0.9, 2)
        expected = sum(
            mass[i, j]
            for i in range(H)
            for j in range(W)
            if abs((2 * j + 1) / W - 1 - x0) <= reach
            and abs(1 - (2 * i + 1) / H - y0) <= reach
        )
        found = spatial.presence(jnp.asarray(mass), jnp.array([x0, y0]), reach)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert spatial.presence(jnp.asarray(mass), jnp.zeros(2), 2.1) == pytest.approx(1)


def test_the_acceleration_is_what_is_not_straight():
    start, velocity = np.array([[0.1, -0.3], [0.2, 0.4]]), np.array([0.05, -0.02])
    straight = np.stack([start + i * velocity for i in range(3)])
    np.testing.assert_allclose(spatial.acceleration(straight), 0, atol=1e-15)
    bent = straight + 0.5 * 0.03 * np.array([0, 1, 4])[:, None, None]
    np.testing.assert_allclose(spatial.acceleration(bent), 0.03)
    np.testing.assert_allclose(spatial.acceleration(bent[::-1]), 0.03)


def test_the_soft_argmax_has_a_gradient_toward_what_scores_more():
    scores = jnp.zeros((H, W))
    x = lambda scores: spatial.expected_place(spatial.softmax(scores, 1.0))[0]
    slope = np.asarray(jax.grad(x)(scores))
    assert (slope[:, W // 2 :] > 0).all()
    assert (slope[:, : W // 2] < 0).all()
