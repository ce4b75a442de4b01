"""Flow: what it moves where, what it keeps, and what is read off a distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import flow

HEIGHT, WIDTH, SIZE = 6, 7, 5


def one_hot(rows: int, columns: int) -> np.ndarray:
    """The kernel that draws from so many rows below and columns to the right."""
    kernel = np.zeros((SIZE, SIZE), np.float32)
    kernel[SIZE // 2 + rows, SIZE // 2 + columns] = 1
    return kernel.reshape(-1)


def spike(row: int, column: int) -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    image[row, column] = 1
    return image


def random_kernels(*shape: int) -> jax.Array:
    logits = jax.random.normal(jax.random.key(1), (*shape, SIZE**2))
    return jax.nn.softmax(2 * logits)


@pytest.mark.parametrize("rows", [-2, 0, 1])
@pytest.mark.parametrize("columns", [-1, 0, 2])
def test_a_kernel_of_one_weight_moves_a_pixel_by_whole_pixels(rows: int, columns: int):
    """By as much as it draws from, the other way: up and to the left for positive."""
    parts = flow.around(jnp.asarray(spike(3, 3)), SIZE, repeat_edges=False)
    kernel = jnp.asarray(one_hot(rows, columns))
    expected = spike(3 - rows, 3 - columns)
    each = jnp.broadcast_to(kernel, (HEIGHT, WIDTH, SIZE**2))
    np.testing.assert_array_equal(flow.of_each_pixel(parts, each), expected)
    both = jnp.stack([jnp.asarray(one_hot(0, 0)), kernel])
    images = flow.of_all_pixels(parts, both)
    np.testing.assert_array_equal(images, [spike(3, 3), expected])


def test_each_pixel_has_a_kernel_of_its_own():
    """By the double sum of the paper."""
    image = jax.random.uniform(jax.random.key(0), (HEIGHT, WIDTH, 2))
    kernels = random_kernels(HEIGHT, WIDTH)
    parts = flow.around(image, SIZE, repeat_edges=True)
    moved = np.asarray(flow.of_each_pixel(parts, kernels))
    image, kernels = np.asarray(image), np.asarray(kernels)
    kernels = kernels.reshape(HEIGHT, WIDTH, SIZE, SIZE)
    for row, column in ((0, 0), (2, 3), (5, 6)):
        expected = np.zeros(2)
        for i in range(SIZE):
            for j in range(SIZE):
                y = np.clip(row + i - 2, 0, HEIGHT - 1)
                x = np.clip(column + j - 2, 0, WIDTH - 1)
                expected += kernels[row, column, i, j] * image[y, x]
        np.testing.assert_allclose(moved[row, column], expected, rtol=1e-5)


def test_a_picture_stays_as_bright_and_goes_on_at_its_edges():
    white = jnp.ones((HEIGHT, WIDTH, 3))
    parts = flow.around(white, SIZE, repeat_edges=True)
    moved = flow.of_each_pixel(parts, random_kernels(HEIGHT, WIDTH))
    np.testing.assert_allclose(moved, white, rtol=1e-5)


def test_probability_is_kept_away_from_the_edges_and_nothing_comes_from_outside():
    kernels = random_kernels(1)
    carry = lambda image: flow.of_all_pixels(
        flow.around(jnp.asarray(image), SIZE, repeat_edges=False), kernels
    )[0]
    assert float(carry(spike(2, 3)).sum()) == pytest.approx(1, abs=1e-6)
    corner = carry(spike(0, WIDTH - 1))
    assert 0.05 < float(corner.sum()) < 0.95  # the rest has left
    assert float(flow.normalised(corner[..., 0]).sum()) == pytest.approx(1, abs=1e-6)
    out = flow.around(jnp.asarray(spike(0, 3)), SIZE, repeat_edges=False)
    gone = flow.of_all_pixels(out, jnp.asarray(one_hot(1, 0))[None])[0]
    assert float(gone.sum()) == 0
    np.testing.assert_allclose(flow.normalised(gone[..., 0]), 1 / (HEIGHT * WIDTH))


def test_what_is_normalised_keeps_its_shares():
    found = flow.normalised(jnp.array([[0.1, 0.3], [0.0, 0.4]]))
    np.testing.assert_allclose(found, [[0.125, 0.375], [0.0, 0.5]], rtol=1e-6)
    found = flow.normalised(jnp.array([[1.0, 2.0], [4.0, 3.0]]))
    np.testing.assert_allclose(found, [[0.1, 0.2], [0.4, 0.3]], rtol=1e-6)


def test_masks_choose_among_images():
    images = jax.random.uniform(jax.random.key(0), (3, HEIGHT, WIDTH, 2))
    masks = jax.nn.softmax(jax.random.normal(jax.random.key(1), (HEIGHT, WIDTH, 3)))
    found = flow.composite(images, masks)
    expected = sum(np.asarray(images[i] * masks[..., i : i + 1]) for i in range(3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_centre_and_distance_count_rows_first_and_in_pixels():
    sure = jnp.asarray(spike(1, 5)[..., 0])
    np.testing.assert_allclose(flow.centre(sure), [1, 5])
    half = (sure + jnp.asarray(spike(3, 5)[..., 0])) / 2
    np.testing.assert_allclose(flow.centre(half), [2, 5])
    place = jnp.array([4.0, 1.0])
    assert float(flow.expected_distance(sure, place)) == pytest.approx(5)
    expected = (5 + np.hypot(1, 4)) / 2
    assert float(flow.expected_distance(half, place)) == pytest.approx(expected)
    found = flow.expected_distance(0.4 * half, place, 2.0)
    assert float(found) == pytest.approx(0.4 * expected + 0.6 * 2)
    assert float(flow.expected_distance(half, place, 9.0)) == pytest.approx(expected)
    slope = jax.grad(flow.expected_distance, (0, 1))(sure, jnp.array([1.0, 5.0]))
    assert all(np.isfinite(x).all() for x in slope)
