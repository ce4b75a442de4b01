"""Pictures, and distributions over their pixels, carried along by the same flow.

A flow says of each pixel where what is shown there comes from: `size` x `size` weights
around it, a kernel, either one for each pixel (dynamic neural advection, DNA) or a few
for all, of which masks choose (convolutional, CDNA); Finn, Goodfellow and Levine, 2016,
"Unsupervised learning for physical interaction through video prediction", Sec. 3.

The weights of a kernel add up to 1, which keeps a picture as bright as it was.  The
probability in a distribution is not kept by that: a pixel may be drawn from by several
others, or by none, where something else is in front of it.  What is read off it, is
read off `normalised`.  Rows are counted downwards, columns to the right.
"""

import jax.numpy as jnp

from mbrl_jax.types import Array

LEAST = 1e-6  # probability, below which nothing is known of where it is


def around(image: Array, size: int, *, repeat_edges: bool) -> Array:
    """What lies around each pixel of [H, W, C]: [size^2, H, W, C].

    Number i size + j is i - (size - 1) / 2 rows below it and j - (size - 1) / 2 columns
    to its right; `size` is odd.  Beyond the edges it looks as at the edge, or there is
    nothing: pictures go on there, but nothing that is outside is ever designated.
    """
    height, width, _ = image.shape
    reach, mode = size // 2, "edge" if repeat_edges else "constant"
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode=mode)
    return jnp.stack(
        [
            padded[i : i + height, j : j + width]
            for i in range(size)
            for j in range(size)
        ]
    )


def of_each_pixel(parts: Array, kernels: Array) -> Array:
    """DNA: parts [K, H, W, C] of `around`, kernels [H, W, K] -> [H, W, C]."""
    return jnp.einsum("khwc,hwk->hwc", parts, kernels)  # Eq. (2)


def of_all_pixels(parts: Array, kernels: Array) -> Array:
    """CDNA: parts [K, H, W, C] of `around`, kernels [N, K] -> [N, H, W, C]."""
    return jnp.einsum("khwc,nk->nhwc", parts, kernels)


def composite(images: Array, masks: Array) -> Array:
    """Images [N, H, W, C] by masks [H, W, N] that add up to 1 -> [H, W, C]; Eq. (3)."""
    return jnp.einsum("nhwc,hwn->hwc", images, masks)


def normalised(distribution: Array) -> Array:
    """[H, W] that adds up to 1: as much of each pixel as there is in all; the same
    everywhere where hardly anything is left."""
    total = distribution.sum()
    left = total > LEAST
    return jnp.where(
        left, distribution / jnp.where(left, total, 1), 1 / distribution.size
    )


def centre(distribution: Array) -> Array:
    """The mean (row, column) [2] of what adds up to 1."""
    height, width = distribution.shape
    rows, columns = distribution.sum(axis=1), distribution.sum(axis=0)
    return jnp.stack([rows @ jnp.arange(height), columns @ jnp.arange(width)])


def expected_distance(
    distribution: Array, place: Array, unseen: Array | float = 0.0
) -> Array:
    """Of a pixel of [H, W] to `place` [2], in pixels; [].  What is missing to 1 in all
    is out of sight, and as far away as `unseen`."""
    height, width = distribution.shape
    rows = (jnp.arange(height) - place[0])[:, None]
    columns = (jnp.arange(width) - place[1])[None]
    square = rows**2 + columns**2
    away = jnp.sqrt(jnp.where(square > 0, square, 1.0))  # 0 has no slope
    seen = (distribution * jnp.where(square > 0, away, 0.0)).sum()
    return seen + jnp.maximum(1 - distribution.sum(), 0) * unseen
