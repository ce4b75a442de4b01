"""Pictures of a MuJoCo model without any graphics library.

One ray per pixel, cast by MuJoCo itself (`mj_multiRay`), so that every kind of geom is
seen as the simulator has it, on machines without a screen, EGL or OSMesa.  Lit by a
lamp on the camera; the floor is a chequerboard, so that motion is visible.
"""

import copy
from typing import Any, NamedTuple

import numpy as np

SKY = np.array([0.82, 0.89, 0.95])
TILES = np.array([[0.86, 0.85, 0.82], [0.74, 0.75, 0.75]])
VISIBLE = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # geom groups, as in MuJoCo's viewer
PLANE = 0  # mujoco.mjtGeom.mjGEOM_PLANE
FIXED = 0  # mujoco.mjtCamLight.mjCAMLIGHT_FIXED


class Camera(NamedTuple):
    eye: np.ndarray  # [3]
    rays: np.ndarray  # [height * width, 3] unit vectors, row 0 at the top
    tile: float  # side of a tile of the floor


def frames(
    model: Any, qpos: np.ndarray, *, height: int = 240, width: int = 320
) -> np.ndarray:
    """`model` a `mujoco.MjModel`, `qpos` [T, nq] -> uint8 [T, height, width, 3].

    The camera takes in all that `qpos[0]` shows.  It follows the first body sideways if
    the model's own cameras move.
    """
    import mujoco

    model = copy.copy(model)
    # Culling by bounding boxes would lose the geoms that collide with nothing: these
    # are in no box.
    model.body_bvhadr[:], model.body_bvhnum[:] = -1, 0
    data = mujoco.MjData(model)

    def place(q: np.ndarray) -> np.ndarray:
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        return data.xpos[1].copy()

    start = place(qpos[0])
    camera = _camera(model, data, height, width)
    follow = model.ncam > 0 and FIXED not in model.cam_mode
    images = []
    for q in qpos:
        moved = (place(q) - start) * [follow, follow, 0]
        seen = camera._replace(eye=camera.eye + moved)
        images.append(_cast(model, data, seen).reshape(height, width, 3))
    return np.stack(images)


def _camera(model: Any, data: Any, height: int, width: int) -> Camera:
    """Looks along y, a little down; at a mechanism that lies flat, from above."""
    solid = model.geom_type != PLANE
    turn = data.geom_xmat[solid].reshape(-1, 3, 3)
    box = model.geom_aabb[solid]  # centre and half sizes, in the frame of the geom
    centres = data.geom_xpos[solid] + np.einsum("gij,gj->gi", turn, box[:, :3])
    halves = np.einsum("gij,gj->gi", np.abs(turn), box[:, 3:])
    low, high = (centres - halves).min(axis=0), (centres + halves).max(axis=0)
    wide, deep, tall = high - low
    down = np.deg2rad(75 if tall < 0.3 * deep else 12)
    forward = np.array([0, np.cos(down), -np.sin(down)])
    up = np.array([0, np.sin(down), np.cos(down)])
    slope = np.tan(np.deg2rad(45) / 2)  # of the uppermost ray
    y = slope * (1 - (2 * np.arange(height) + 1) / height)
    x = slope * (2 * np.arange(width) + 1 - width) / height
    rays = forward + y[:, None, None] * up + x[:, None] * np.array([1, 0, 0])
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    upright = deep * np.sin(down) + tall * np.cos(down)
    distance = 0.7 * float(max(upright, wide * height / width)) / slope + deep / 2
    eye = (low + high) / 2 - distance * forward
    return Camera(eye, rays.reshape(-1, 3), tile=distance / 8)


def _cast(model: Any, data: Any, camera: Camera) -> np.ndarray:
    """-> uint8 [height * width, 3]."""
    import mujoco

    num_rays = len(camera.rays)
    geom = np.zeros(num_rays, np.int32)  # -1 where nothing is hit
    distance, normal = np.zeros(num_rays), np.zeros(3 * num_rays)
    mujoco.mj_multiRay(
        model,
        data,
        pnt=camera.eye,
        vec=camera.rays.reshape(-1),
        geomgroup=VISIBLE,
        flg_static=True,
        bodyexclude=-1,
        geomid=geom,
        dist=distance,
        normal=normal,
        nray=num_rays,
        cutoff=1e3,
    )
    hits = camera.eye + distance[:, None] * camera.rays
    odd = np.floor(hits[:, :2] / camera.tile).sum(axis=-1) % 2
    floor = (model.geom_type[geom] == PLANE)[:, None]
    colour = np.where(floor, TILES[odd.astype(int)], model.geom_rgba[geom, :3])
    facing = np.abs((normal.reshape(-1, 3) * camera.rays).sum(axis=-1))
    lit = colour * np.where(floor, 1.0, 0.35 + 0.65 * facing[:, None])
    image = np.where(geom[:, None] >= 0, lit, SKY)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
