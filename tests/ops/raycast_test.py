"""Frames of models whose picture is known."""

import mujoco
import numpy as np
import pytest

from mbrl_jax.ops import raycast

BALL = """
<mujoco>
  <worldbody>
    {floor}
    <body name="ball" pos="0 0 5">
      {joint}
      <geom type="sphere" size="1" rgba="1 0 0 1" {geom}/>
    </body>
    {camera}
  </worldbody>
</mujoco>
"""
FLOOR = '<geom type="plane" size="50 50 1"/>'
FREE, TRACKING = "<freejoint/>", '<camera mode="trackcom" pos="0 -3 0"/>'


def ball(floor="", joint=FREE, geom="", camera=""):
    xml = BALL.format(floor=floor, joint=joint, geom=geom, camera=camera)
    return mujoco.MjModel.from_xml_string(xml)


def red(frames):
    """[T, height, width] bool."""
    return (frames[..., 0] > 50) & (frames[..., 1] == 0)


def at(*positions):
    return np.array([[*position, 1, 0, 0, 0] for position in positions], float)


def test_a_ball_is_a_disc_of_the_right_size_in_the_middle():
    frames = raycast.frames(ball(), at((0, 0, 5)), height=120, width=160)
    assert frames.shape == (1, 120, 160, 3)
    mask = red(frames)[0]
    rows, columns = np.nonzero(mask)
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (119, 159)
    # The camera stands where the whole ball fills 1 / 1.4 of the height, and one radius
    # further away; a tangent ray has the slope r / sqrt(d^2 - r^2).
    slope = np.tan(np.pi / 8)
    tall = 2 * (np.sin(np.deg2rad(12)) + np.cos(np.deg2rad(12)))
    distance = 0.7 * tall / slope + 1
    radius = 60 / slope / np.sqrt(distance**2 - 1)
    assert mask.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    assert (frames[0, 0, 0] == np.round(255 * raycast.SKY)).all()


def test_what_faces_the_lamp_is_brightest():
    frame = raycast.frames(ball(), at((0, 0, 5)), height=120, width=160)[0]
    edge = np.nonzero(red(frame))[1].min()
    assert frame[60, 80, 0] == 255
    assert frame[60, edge, 0] < 150


@pytest.mark.parametrize("camera", ["", TRACKING])
def test_the_camera_follows_if_the_models_own_does(camera):
    model = ball(floor=FLOOR, camera=camera)
    mask = red(raycast.frames(model, at((0, 0, 5), (1.5, 0, 5))))
    columns = [np.nonzero(picture)[1].mean() for picture in mask]
    if camera:
        assert columns[1] == pytest.approx(columns[0], abs=0.5)
    else:
        assert columns[1] > columns[0] + 30


def test_the_floor_has_tiles_of_both_kinds():
    frame = raycast.frames(ball(floor=FLOOR), at((0, 0, 5)))[0]
    for tile in raycast.TILES:
        assert (frame == np.round(255 * tile)).all(axis=-1).sum() > 1000


def test_a_geom_that_collides_with_nothing_is_seen():
    """MuJoCo leaves it out of the boxes by which it culls."""
    tail = '/><geom type="sphere" size="0.2" pos="0 0 1.2" rgba="0 1 0 1" '
    mask = {}
    for ghost in ("", 'contype="0" conaffinity="0"'):
        model = ball(geom=tail + ghost)
        frame = raycast.frames(model, at((0, 0, 5)))[0]
        mask[ghost] = (frame[..., 1] > 50) & (frame[..., 0] == 0)
    assert mask[""].sum() > 50
    np.testing.assert_array_equal(*mask.values())


def test_the_model_is_left_as_it_was():
    model = ball()
    before = model.body_bvhnum.copy()
    raycast.frames(model, at((0, 0, 5)), height=2, width=2)
    np.testing.assert_array_equal(model.body_bvhnum, before)
