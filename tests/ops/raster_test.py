import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import raster
from mbrl_jax.types import Array

BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
VIEW = raster.View(centre=(0.3, -0.2), half_height=2.0, height=60, width=90)
PIXEL = 2 * VIEW.half_height / VIEW.height


def paint(*shapes: raster.Shapes) -> Array:
    return raster.paint(raster.stack(list(shapes)), VIEW, background=BLACK)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (raster.disc((0.5, 0.1), 0.7, WHITE), np.pi * 0.7**2),
        (
            raster.capsule((-0.5, 0.4), (0.7, -0.6), 0.2, WHITE),
            np.pi * 0.2**2 + 0.4 * np.hypot(1.2, 1.0),
        ),
        (raster.capsule((0.2, 0.1), (0.2, 0.1), 0.3, WHITE), np.pi * 0.3**2),
        (raster.box((0.1, 0.2), (0.8, 0.3), WHITE, angle=0.6), 4 * 0.8 * 0.3),
        (
            raster.box((0.1, 0.2), (0.8, 0.3), WHITE, radius=0.2),
            4 * 0.8 * 0.3 + 4 * 0.2 * (0.8 + 0.3) + np.pi * 0.2**2,
        ),
    ],
)
def test_area(shape: raster.Shapes, area: float):
    assert paint(shape)[..., 0].sum() * PIXEL**2 == pytest.approx(area, rel=0.02)


def test_distance_to_a_capsule_is_that_to_its_nearest_point():
    start, end = np.array([-0.5, 0.4]), np.array([0.7, -0.6])
    points = np.random.default_rng(0).uniform(-2, 2, (200, 2))
    along = np.linspace(0, 1, 2001)[:, None]
    segment = start * (1 - along) + end * along  # [2001, 2]
    nearest = np.linalg.norm(points[:, None] - segment[None], axis=-1).min(axis=1)
    distance = raster.signed_distance(
        raster.capsule(jnp.array(start), jnp.array(end), 0.2, WHITE), *points.T
    )
    np.testing.assert_allclose(distance, nearest - 0.2, atol=1e-3)


def test_distance_inside_and_at_a_corner_of_a_turned_box():
    box = raster.box((1.0, 0.0), (2.0, 1.0), WHITE, angle=jnp.pi / 2)
    x, y = np.array([1.0, 1.75, 1.0, 1 + 1 + 3]), np.array([0.0, 0.0, 1.9, 2 + 4])
    np.testing.assert_allclose(
        raster.signed_distance(box, x, y), [-1, -0.25, -0.1, 5], atol=1e-5
    )


def test_right_is_right_and_up_is_up():
    image = paint(raster.disc((2.8, 1.3), 0.2, WHITE))[..., 0]
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert (row, column) == pytest.approx(
        (30 - (1.3 + 0.2) / PIXEL, 45 + (2.8 - 0.3) / PIXEL), abs=4
    )


def test_later_shapes_cover_earlier_ones_as_far_as_they_are_opaque():
    below, above = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    image = paint(
        raster.disc((0.3, -0.2), 1.0, below),
        raster.disc((0.3, -0.2), 0.5, above, opacity=0.25),
    )
    np.testing.assert_allclose(image[30, 45], [0.75, 0.0, 0.25], atol=1e-6)
    np.testing.assert_allclose(image[30, 45 + 11], below, atol=1e-6)
    np.testing.assert_array_equal(raster.to_uint8(image[30, 45]), [191, 0, 64])


@pytest.mark.parametrize("length", [0.9, 0.0])
def test_gradient_is_that_of_finite_differences(length: float):
    target = jnp.linspace(0, 1, 60 * 90 * 3).reshape(60, 90, 3)

    @jax.jit
    def loss(position: Array) -> Array:
        end = position + jnp.array([length, length / 3])
        pole = raster.capsule(position, end, 0.3, (0.9, 0.5, 0.1))
        lid = raster.box(position, (0.6, 0.2), WHITE, angle=position[0], opacity=0.6)
        return ((paint(pole, lid) - target) ** 2).mean()

    with jax.enable_x64(True):
        position = jnp.array([0.123, -0.456])
        gradient = jax.jit(jax.grad(loss))(position)
        steps = 1e-6 * jnp.eye(2)
        numeric = jnp.stack(
            [(loss(position + s) - loss(position - s)) / 2e-6 for s in steps]
        )
        assert jnp.abs(gradient).min() > 1e-4
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5)


def test_vmapped_and_jitted_pictures_equal_single_ones():
    def picture(position: Array) -> Array:
        return paint(raster.disc(position, 0.5, WHITE), *raster.lanes(position, 1.0))

    positions = jnp.array([[0.0, 0.5], [-0.7, 3.0]])
    together = jax.jit(jax.vmap(picture))(positions)
    single = jnp.stack([picture(position) for position in positions])
    assert together.shape == (2, 60, 90, 3)
    np.testing.assert_allclose(together, single, atol=1e-4)
    assert together.min() >= 0
    assert together.max() <= 1
