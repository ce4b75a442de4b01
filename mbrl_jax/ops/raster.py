"""A small anti-aliased rasteriser: pictures of environments, inside jit.

Every shape is a rounded box, given by its signed distance (Quilez, "2D distance
functions", 2020): a disc is a box of no size, a capsule one of no width.  A pixel is
covered as far as the distance of its centre from the edge says, over the width of one
pixel, so pictures are differentiable in the positions of what they show.  World
coordinates: x to the right, y up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array

Colour = tuple[float, float, float]  # red, green, blue in [0, 1]
Point = Array | tuple[float, float]  # [2]

PAPER: Colour = (0.965, 0.957, 0.937)  # the background
INK: Colour = (0.169, 0.204, 0.259)
STEEL: Colour = (0.733, 0.757, 0.784)
AMBER: Colour = (0.910, 0.471, 0.204)
BLUE: Colour = (0.173, 0.443, 0.690)
GREEN: Colour = (0.227, 0.639, 0.431)


class Shapes(NamedTuple):
    """Rounded boxes, painted in order.  One shape has no leading axis K."""

    centre: Array  # [K, 2]
    axis: Array  # [K, 2] unit vector along the first side
    half_size: Array  # [K, 2] of the sharp box
    radius: Array  # [K] the shape is all within this distance of the sharp box
    colour: Array  # [K, 4] red, green, blue, opacity


class View(NamedTuple):
    """The part of the world that is shown, and in how many pixels."""

    centre: tuple[float, float]
    half_height: float
    height: int = 200
    width: int = 200


MANY = 32  # shapes, from which on a loop compiles in a tenth of the time
LANES = View(centre=(0.0, 0.0), half_height=1.0, height=200, width=300)


def box(
    centre: Point,
    half_size: Point,
    colour: Colour,
    *,
    angle: float | Array = 0.0,
    radius: float = 0.0,
    opacity: float = 1.0,
) -> Shapes:
    """A box turned by `angle` (anticlockwise, rad) and grown by `radius`."""
    axis = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return _shape(centre, axis, half_size, radius, colour, opacity)


def disc(
    centre: Point, radius: float, colour: Colour, *, opacity: float = 1.0
) -> Shapes:
    return _shape(centre, (1.0, 0.0), (0.0, 0.0), radius, colour, opacity)


def capsule(
    start: Point, end: Point, radius: float, colour: Colour, *, opacity: float = 1.0
) -> Shapes:
    """All points within `radius` of the segment from `start` to `end`."""
    start, end = jnp.asarray(start), jnp.asarray(end)
    length = _norm(end - start)
    along = (end - start) / jnp.where(length > 0, length, 1.0)
    axis = jnp.where(length > 0, along, jnp.array([1.0, 0.0], along.dtype))
    half_size = jnp.stack([length / 2, jnp.zeros_like(length)])
    return _shape((start + end) / 2, axis, half_size, radius, colour, opacity)


def stack(shapes: list[Shapes]) -> Shapes:
    """Single shapes, the undermost first -> [K]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *shapes)


def lanes(values: Array, limit: float) -> list[Shapes]:
    """A diagram of numbers without a picture of their own: one lane each, 0 in green.

    `values` [V]; `limit` is drawn near the edge, what lies beyond stays there.
    """
    offsets = jnp.clip(values / limit, -1.1, 1.1)
    shapes = [capsule((0.0, -0.7), (0.0, 0.9), 0.012, GREEN)]
    for i in range(values.shape[0]):
        height = 0.9 - 1.6 * (i + 0.5) / values.shape[0]
        at = jnp.stack([offsets[i], jnp.full_like(offsets[i], height)])
        shapes += [
            capsule((-1.1, height), (1.1, height), 0.012, STEEL),
            disc(at, 0.08, BLUE),
        ]
    return shapes


def resized(view: View, height: int, width: int) -> View:
    """All that `view` shows, and what is beside that if the sides' ratio is another."""
    least = view.half_height * view.width / view.height * height / width
    half_height = max(view.half_height, least)
    return view._replace(half_height=half_height, height=height, width=width)


def paint(shapes: Shapes, view: View, *, background: Colour | Array = PAPER) -> Array:
    """The picture, [height, width, 3] in [0, 1]; row 0 is the top.

    `background` is a colour, or another picture of the same size."""
    pixel = 2 * view.half_height / view.height  # world units
    columns, rows = jnp.arange(view.width), jnp.arange(view.height)
    x = view.centre[0] + (columns + 0.5 - view.width / 2) * pixel  # [width]
    y = view.centre[1] - (rows + 0.5 - view.height / 2) * pixel  # [height]
    image = jnp.broadcast_to(
        jnp.asarray(background, shapes.centre.dtype), (view.height, view.width, 3)
    )

    def over(image: Array, shape: Shapes) -> tuple[Array, None]:
        edge = signed_distance(shape, x[None, :], y[:, None]) / pixel
        inside = jnp.clip(0.5 - edge, 0.0, 1.0)
        cover = inside**2 * (3 - 2 * inside)  # smoothstep: continuous slope
        opacity = (cover * shape.colour[3])[..., None]  # [height, width, 1]
        return image + opacity * (shape.colour[None, None, :3] - image), None

    if shapes.radius.shape[0] > MANY:
        return jax.lax.scan(over, image, shapes)[0]
    for k in range(shapes.radius.shape[0]):
        image, _ = over(image, jax.tree.map(lambda leaf, k=k: leaf[k], shapes))
    return image


def to_uint8(image: Array) -> Array:
    """[..., 3] in [0, 1] -> bytes."""
    return jnp.round(255 * jnp.clip(image, 0.0, 1.0)).astype(jnp.uint8)


def from_uint8(image: Array) -> Array:
    """Back to [0, 1], of any shape."""
    return image.astype(jnp.result_type(float)) / 255


def shifted(image: Array, shift: Array, most: int) -> Array:
    """The picture [height, width, channels] moved down and to the right by `shift` [2]
    pixels, at most `most`; at the edges its outermost pixels are repeated."""
    wide = jnp.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
    start = jnp.array([most, most]) - shift
    return jax.lax.dynamic_slice(wide, (*start, 0), image.shape)


def signed_distance(shape: Shapes, x: Array, y: Array) -> Array:
    """From the edge of one shape to the points (x, y), negative inside."""
    x, y = x - shape.centre[0], y - shape.centre[1]
    along = jnp.abs(x * shape.axis[0] + y * shape.axis[1]) - shape.half_size[0]
    across = jnp.abs(y * shape.axis[0] - x * shape.axis[1]) - shape.half_size[1]
    outside = _norm(jnp.stack([jnp.maximum(along, 0.0), jnp.maximum(across, 0.0)]))
    return outside + jnp.minimum(jnp.maximum(along, across), 0.0) - shape.radius


def _norm(vector: Array) -> Array:
    """[2, ...] -> [...], with gradient 0 at 0."""
    square = (vector**2).sum(axis=0)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _shape(
    centre: Point,
    axis: Point,
    half_size: Point,
    radius: float,
    colour: Colour,
    opacity: float,
) -> Shapes:
    dtype = jnp.result_type(float)
    parts = (centre, axis, half_size, radius, (*colour, opacity))
    return Shapes(*(jnp.asarray(part, dtype) for part in parts))
