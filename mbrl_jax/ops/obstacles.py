"""Spaces to plan motions in: a point, or an arm of two links, among shapes in a plane.

    walls = shapes(discs=[(0.0, 0.0, 1.0)], boxes=[(2.0, -1.0, 3.0, 1.0)])
    space = point(walls, low=(-4.0, -4.0), high=(4.0, 4.0))
    space.free(x), space.clear(x, y)

Motions are quasistatic: a path is anything continuous, whatever the time it takes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


class Shapes(NamedTuple):
    """Closed obstacles: what touches one collides."""

    centres: Array  # [J, 2] of discs
    radii: Array  # [J]
    lows: Array  # [K, 2] of boxes along the axes
    highs: Array  # [K, 2]


class Space(NamedTuple):
    """Configurations [D] within bounds; the straight way between two is an edge."""

    low: Array  # [D]
    high: Array  # [D]
    free: Callable[[Array], Array]  # [D] -> [] bool
    clear: Callable[[Array, Array], Array]  # (from [D], to [D]) -> [] bool, ends too


def shapes(
    discs: Sequence[tuple[float, float, float]] = (),
    boxes: Sequence[tuple[float, float, float, float]] = (),
) -> Shapes:
    """Discs (x, y, radius) and boxes (least x, least y, largest x, largest y)."""
    disc = jnp.asarray(discs, float).reshape(-1, 3)
    box = jnp.asarray(boxes, float).reshape(-1, 4)
    return Shapes(disc[:, :2], disc[:, 2], box[:, :2], box[:, 2:])


def grown(walls: Shapes, margin: float | Array) -> Shapes:
    """Discs of larger radius; boxes that hold all points within `margin` of them."""
    return Shapes(
        walls.centres, walls.radii + margin, walls.lows - margin, walls.highs + margin
    )


def segment_is_clear(walls: Shapes, start: Array, end: Array) -> Array:
    """Whether the segment between two points [2] meets no shape, [] bool.

    Without sampling: discs by their distance, boxes by their three separating axes
    (Ericson, "Real-time collision detection", 2005, Sec. 5.1.2 and 5.3.3).
    """
    start, end = (jnp.asarray(x, walls.radii.dtype) for x in (start, end))
    along, offset = end - start, walls.centres - start[None]  # [2], [J, 2]
    square = jnp.maximum((along**2).sum(), jnp.finfo(along.dtype).tiny)
    nearest = jnp.clip((offset * along[None]).sum(axis=1) / square, 0, 1)  # [J]
    gap = jnp.linalg.norm(offset - nearest[:, None] * along[None], axis=1)
    middle = (start + end)[None] / 2 - (walls.lows + walls.highs) / 2  # [K, 2]
    half, extent = along[None] / 2, (walls.highs - walls.lows) / 2
    beside = (jnp.abs(middle) > extent + jnp.abs(half)).any(axis=1)
    cross = jnp.abs(half[:, 0] * middle[:, 1] - half[:, 1] * middle[:, 0])
    aslant = cross > (extent * jnp.abs(half[:, ::-1])).sum(axis=1)
    return (gap > walls.radii).all() & (beside | aslant).all()


def point(walls: Shapes, low: Sequence[float], high: Sequence[float]) -> Space:
    """The configuration is where the point is, [2]; edges are checked exactly."""
    bounds = jnp.asarray(low, float), jnp.asarray(high, float)

    def clear(start: Array, end: Array) -> Array:
        start, end = (jnp.asarray(x, bounds[0].dtype) for x in (start, end))
        inside = _within(start, *bounds) & _within(end, *bounds)
        return inside & segment_is_clear(walls, start, end)

    return Space(*bounds, lambda position: clear(position, position), clear)


def two_link_arm(
    lengths: tuple[float, float],
    walls: Shapes,
    *,
    limits: tuple[float, float] = (math.pi, 0.9 * math.pi),
    resolution: float = 0.05,
) -> Space:
    """A thin arm that turns about the origin; the configuration is its angles, [2].

    The first is from hanging, the second from the first link, each up to its limit on
    both sides; they are not wrapped.  Edges are looked at every `resolution` rad.
    Between two looks no point of the arm moves further than this times the norm of its
    largest arms, so that shapes grown by half of that make an edge safe all along.
    Configurations within that margin of a shape count as not free.
    """
    high = jnp.asarray(limits, float)
    margin = resolution / 2 * math.hypot(lengths[0] + lengths[1], lengths[1])
    kept_off = grown(walls, margin)

    def free(angles: Array) -> Array:
        angles = jnp.asarray(angles, high.dtype)
        joints = arm_joints(lengths, angles)
        links = jax.vmap(segment_is_clear, (None, 0, 0))
        outside = links(kept_off, joints[:-1], joints[1:]).all()
        return _within(angles, -high, high) & outside

    def clear(start: Array, end: Array) -> Array:
        start, end = (jnp.asarray(x, high.dtype) for x in (start, end))
        most = jnp.ceil(2 * jnp.linalg.norm(high) / resolution)
        looks = jnp.ceil(jnp.linalg.norm(end - start) / resolution)
        looks = jnp.clip(looks, 1, most).astype(int)
        look = lambda i, ok: ok & free(start + (end - start) * (i / looks))
        return jax.lax.fori_loop(0, looks + 1, look, jnp.array(True))

    return Space(-high, high, free, clear)


def arm_joints(lengths: tuple[float, float], angles: Array) -> Array:
    """Where the links begin and end, to the right and upwards, [3, 2]."""
    turned = jnp.cumsum(angles)
    links = jnp.stack([jnp.sin(turned), -jnp.cos(turned)], axis=1)
    links = links * jnp.asarray(lengths, angles.dtype)[:, None]
    return jnp.concatenate([jnp.zeros_like(links[:1]), jnp.cumsum(links, axis=0)])


def ball_radius(space: Space) -> Array:
    """Of the ball [D] of the volume within the bounds: (mu / zeta_D)^(1/D), []."""
    size = space.low.shape[0]
    unit_ball = math.pi ** (size / 2) / math.gamma(size / 2 + 1)
    return (jnp.prod(space.high - space.low) / unit_ball) ** (1 / size)


def _within(x: Array, low: Array, high: Array) -> Array:
    return ((low <= x) & (x <= high)).all()
