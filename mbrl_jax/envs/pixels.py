"""Any environment that can be drawn, seen as pictures.

obs: the last `num_frames` frames, the newest last; before there were as many, the first
one again.  A picture is uint8 [size, size, num_frames * channels]; with `vector` it is
one in [0, 1] as a vector [num_frames * size * size * channels], frame by frame, which
has a gradient.  Grey is the luminance (ITU-R BT.601).  What has nothing to do with the
task: distractors, discs that wander about; occluders, discs that stay where they are
for an episode, in front of everything; a camera that stands elsewhere in each episode,
by up to `camera_shift` pixels in both directions.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import checks, raster
from mbrl_jax.types import Array, Env, EnvState, Key

LUMINANCE = (0.299, 0.587, 0.114)
DRIFT = 0.3  # rad, the standard deviation of a distractor's turn in a step
PACE = 0.08  # how far it goes in a step; the picture is from -1 to 1


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 32  # pixels, of each side
    num_frames: int = 2  # one picture has no velocities
    colour: bool = False
    vector: bool = False
    num_distractors: int = 0
    num_occluders: int = 0
    camera_shift: int = 0  # pixels


class Clutter(NamedTuple):
    """What is in the picture, and has nothing to do with the task."""

    distractors: Array  # [D, 3] x, y, heading (rad); the picture is from -1 to 1
    occluders: Array  # [K, 2] x, y
    shift: Array  # [2] int32, pixels down and to the right


class Sim(NamedTuple):
    """What `EnvState.sim` is."""

    inner: EnvState  # of the environment that is seen
    frames: Array  # [F, size, size, channels] in [0, 1]
    clutter: Clutter
    key: Key


def make(env: Env, config: Config = Config()) -> Env:
    """Raises ValueError for an environment without a picture, and for what cannot be.

    It knows neither reward nor termination of an observation: models learn them.
    """
    checks.at_least(config, 1, "size", "num_frames")
    checks.at_least(config, 0, "num_distractors", "num_occluders", "camera_shift")
    paint = env.picture
    if paint is None:
        raise ValueError(f"{env.name} has no picture: its pixels cannot be seen")
    size, num_frames = config.size, config.num_frames
    channels = 3 if config.colour else 1
    shape = (size, size, num_frames * channels)

    def discs(image: Array, places: Array, radius: float, colour: Any) -> Array:
        square = raster.View((0.0, 0.0), 1.0, size, size)
        shapes = raster.stack([raster.disc(x, radius, colour) for x in places])
        return raster.paint(shapes, square, background=image)

    def frame(inner: EnvState, clutter: Clutter) -> Array:
        """[size, size, channels]"""
        image = paint(inner, size, size)
        if config.num_distractors:
            image = discs(image, clutter.distractors[:, :2], 0.12, raster.INK)
        if config.num_occluders:
            image = discs(image, clutter.occluders, 0.2, raster.STEEL)
        if config.camera_shift:
            image = raster.shifted(image, clutter.shift, config.camera_shift)
        if config.colour:
            return image
        return image @ jnp.array(LUMINANCE, image.dtype)[:, None]

    def seen(inner: EnvState, frames: Array, clutter: Clutter, key: Key) -> EnvState:
        obs = frames.reshape(-1)
        if not config.vector:
            obs = raster.to_uint8(jnp.moveaxis(frames, 0, -2).reshape(shape))
        return inner._replace(obs=obs, sim=Sim(inner, frames, clutter, key))

    def first(inner: EnvState, key: Key) -> EnvState:
        clutter_key, key = jax.random.split(key)
        clutter = _clutter(clutter_key, config, inner.reward.dtype)
        frames = frame(inner, clutter)[None].repeat(num_frames, axis=0)
        return seen(inner, frames, clutter, key)

    def reset(key: Key) -> EnvState:
        inner_key, key = jax.random.split(key)
        return first(env.reset(inner_key), key)

    def step(env_state: EnvState, action: Array) -> EnvState:
        inner, frames, clutter, key = env_state.sim
        inner = env.step(inner, action)
        turn_key, key = jax.random.split(key)
        clutter = clutter._replace(distractors=_wander(turn_key, clutter.distractors))
        newest = frame(inner, clutter)[None].astype(frames.dtype)
        return seen(inner, jnp.concatenate([frames[1:], newest]), clutter, key)

    render, goal = env.render, env.goal
    return env._replace(
        name=f"pixels/{env.name}",
        reset=reset,
        step=step,
        obs_size=math.prod(shape) if config.vector else 0,
        obs_shape=() if config.vector else shape,
        num_frames=num_frames,
        reward=None,
        terminal=None,
        belief=None,
        render=render and (lambda env_states: render(env_states.sim.inner)),
        picture=lambda env_state, *size: paint(env_state.sim.inner, *size),
        goal=goal and (lambda: first(goal(), jax.random.key(0))),
    )


def newest(env: Env, obs: Array) -> Array:
    """The newest frame of what `env` shows, [height, width, channels] in [0, 1]; of
    pictures, any leading axes stay.

    Of vectors, that of a square picture.  Raises ValueError for what is none.
    """
    if env.obs_shape:
        newest = obs[..., -(obs.shape[-1] // env.num_frames) :]
        return raster.from_uint8(newest)
    size = env.obs_size // env.num_frames
    for channels in (1, 3):
        side = math.isqrt(size // channels)
        if side * side * channels * env.num_frames == env.obs_size:
            return obs[-size:].reshape(side, side, channels)
    raise ValueError(f"{env.name} shows no square pictures")


def parse(text: str) -> Config:
    """Of `SETTING=VALUE,...`, whole numbers; ValueError for what is none."""
    known = {field.name: field.type for field in dataclasses.fields(Config)}
    changes: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known or not value.isdecimal():
            raise ValueError(
                f"{part!r} is no setting of pixels; these are, and whole numbers: "
                + ", ".join(known)
            )
        changes[name] = int(value)
    return dataclasses.replace(Config(), **changes)


def _clutter(key: Key, config: Config, dtype: Any) -> Clutter:
    keys, most = jax.random.split(key, 3), config.camera_shift
    wandering = jax.random.uniform(keys[0], (config.num_distractors, 3), dtype, -1.0)
    return Clutter(
        wandering * jnp.array([[1.0, 1.0, jnp.pi]], dtype),
        jax.random.uniform(keys[1], (config.num_occluders, 2), dtype, -1.0),
        jax.random.randint(keys[2], (2,), -most, most + 1),
    )


def _wander(key: Key, distractors: Array) -> Array:
    """A step on, turned a little; what would leave the picture turns back."""
    x, heading = distractors[:, :2], distractors[:, 2]
    heading = heading + DRIFT * jax.random.normal(key, heading.shape, heading.dtype)
    ahead = x + PACE * jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=1)
    stays = (jnp.abs(ahead) > 1).any(axis=1)
    heading = jnp.where(stays, heading + jnp.pi, heading)
    x = jnp.where(stays[:, None], x, ahead)
    return jnp.concatenate([x, heading[:, None]], axis=1)
