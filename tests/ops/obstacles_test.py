"""Exact checks next to dense sampling, the arm next to its own mechanics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import obstacles, two_link

DISCS = [(0.5, 0.5, 0.8), (-1.5, 1.0, 0.3)]
BOXES = [(-1.0, -2.0, 1.0, -1.0), (1.8, 0.0, 2.0, 2.5)]
ARM_DISCS = [(1.2, 0.9, 0.35), (-1.0, 0.8, 0.3), (-0.5, -1.3, 0.02)]
LENGTHS = (1.0, 0.8)


def clearance(points: np.ndarray, discs=DISCS, boxes=()) -> np.ndarray:
    """Signed distance of points [..., 2] to the nearest shape, [...]: < 0 inside."""
    found = [np.hypot(*np.moveaxis(points - d[:2], -1, 0)) - d[2] for d in discs]
    for box in boxes:
        out = np.maximum(box[:2] - points, points - box[2:])
        outside = np.linalg.norm(np.maximum(out, 0), axis=-1)
        found.append(outside + np.minimum(out.max(axis=-1), 0))
    return np.min(found, axis=0)


def segments(num: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(-scale, scale, (2, num, 2))


def between(start: np.ndarray, end: np.ndarray, num: int) -> np.ndarray:
    """[num, ..., D] along the straight way, ends included."""
    part = np.linspace(0, 1, num).reshape(-1, *[1] * start.ndim)
    return start + part * (end - start)


@pytest.mark.parametrize("scale", [3.0, 0.3])
def test_segments_are_clear_where_dense_samples_are(scale):
    middle, offset = segments(1000)
    start, end = middle + scale / 3 * offset, middle - scale / 3 * offset
    walls = obstacles.shapes(DISCS, BOXES)
    check = jax.vmap(obstacles.segment_is_clear, (None, 0, 0))
    clear = np.asarray(check(walls, jnp.asarray(start), jnp.asarray(end)))
    num = 501
    gap = clearance(between(start, end, num), boxes=np.array(BOXES)).min(axis=0)
    spacing = np.linalg.norm(end - start, axis=1) / (num - 1)
    assert not clear[gap < -1e-5].any()
    assert clear[gap > spacing].all()
    assert 0.1 < clear.mean() < 0.9


def test_what_touches_collides_and_what_passes_does_not():
    walls = obstacles.shapes([(0.0, 0.0, 1.0)], [(3.0, -1.0, 4.0, 1.0)])
    clear = lambda *ends: obstacles.segment_is_clear(walls, *jnp.array(ends))
    assert not clear([-2.0, 1.0], [2.0, 1.0])  # a tangent
    assert clear([-2.0, 1.001], [2.0, 1.001])
    assert not clear([2.0, -3.0], [3.0, -1.0])  # to a corner
    assert not clear([2.0, 1.0], [5.0, 1.0])  # along a side
    assert clear([2.0, 1.001], [5.0, 1.001])
    assert clear([2.5, 0.0], [2.5, 0.0])  # a point
    assert not clear([3.5, 0.0], [3.5, 0.0])
    nothing = obstacles.shapes()
    assert obstacles.segment_is_clear(nothing, jnp.zeros(2), jnp.ones(2))


def test_a_point_keeps_within_its_bounds():
    space = obstacles.point(obstacles.shapes(), (-1.0, -2.0), (1.0, 2.0))
    assert space.free(jnp.array([1.0, -2.0]))
    for outside in ([1.1, 0.0], [0.0, -2.1], [math.nan, 0.0]):
        assert not space.free(jnp.array(outside))
        assert not space.clear(jnp.zeros(2), jnp.array(outside))
        assert not space.clear(jnp.array(outside), jnp.zeros(2))


def test_joints_are_those_of_the_mechanics():
    for angles in segments(5)[0]:
        elbow, tip = obstacles.arm_joints(LENGTHS, jnp.asarray(angles))[1:]
        right, down = two_link.tip(LENGTHS, np.cos(angles), np.sin(angles))
        np.testing.assert_allclose(tip, [right, -down], atol=1e-6)
        upper = two_link.tip((LENGTHS[0], 0.0), np.cos(angles), np.sin(angles))
        np.testing.assert_allclose(elbow, [upper[0], -upper[1]], atol=1e-6)


def arm_clearance(angles: np.ndarray) -> np.ndarray:
    """Of the whole arm, 60 points on each link: angles [..., 2] -> [...]."""
    turned = np.cumsum(angles, axis=-1)
    elbow = LENGTHS[0] * np.stack([np.sin(turned), -np.cos(turned)], -1)[..., 0, :]
    tip = (
        elbow + LENGTHS[1] * np.stack([np.sin(turned), -np.cos(turned)], -1)[..., 1, :]
    )
    points = [between(0 * elbow, elbow, 60), between(elbow, tip, 60)]
    return clearance(np.concatenate(points), ARM_DISCS).min(axis=0)


def test_edges_of_an_arm_are_safe_between_the_looks():
    resolution = 0.2  # coarse, so that what is between matters
    margin = resolution / 2 * math.hypot(sum(LENGTHS), LENGTHS[1])
    walls = obstacles.shapes(ARM_DISCS)
    arm = obstacles.two_link_arm(LENGTHS, walls, resolution=resolution)
    start, offset = 2.5 * segments(150, 1.0)
    end = np.clip(start + 0.5 * offset, -2.5, 2.5)
    clear = jax.jit(jax.vmap(arm.clear))(jnp.asarray(start), jnp.asarray(end))
    gap = arm_clearance(between(start, end, 150)).min(axis=0)
    assert (gap[np.asarray(clear)] > 0).all()
    assert np.asarray(clear)[gap > margin + 0.02].all()
    assert 0.2 < np.mean(clear) < 0.8


def test_an_arm_has_limits_and_an_edge_of_nan_ends():
    arm = obstacles.two_link_arm(LENGTHS, obstacles.shapes(), limits=(1.0, 2.0))
    assert arm.free(jnp.array([-1.0, 2.0]))
    assert not arm.free(jnp.array([-1.1, 0.0]))
    assert not arm.clear(jnp.zeros(2), jnp.array([0.0, 2.1]))
    assert not jax.jit(arm.clear)(jnp.zeros(2), jnp.array([jnp.nan, 0.0]))


@pytest.mark.parametrize(("size", "unit"), [(2, math.pi), (3, 4 / 3 * math.pi)])
def test_a_ball_has_the_volume_within_the_bounds(size, unit):
    low, high = -jnp.ones(size), jnp.arange(1.0, size + 1)
    space = obstacles.Space(low, high, jnp.isfinite, jnp.isfinite)
    volume = np.prod(np.arange(2.0, size + 2))
    radius = obstacles.ball_radius(space)
    np.testing.assert_allclose(unit * radius**size, volume, rtol=1e-6)
