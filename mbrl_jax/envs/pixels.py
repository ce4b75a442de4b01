"""Any environment that can be drawn, seen as pictures.

obs: the last `num_frames` pictures, [num_frames, size, size, channels] in [0, 1] as one
vector, the newest last; before there were as many, the first one again.  Grey is the
luminance (ITU-R BT.601).  Distractors are discs that wander about and have nothing to
do with the task.
"""

import dataclasses
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
    num_distractors: int = 0


class Sim(NamedTuple):
    """What `EnvState.sim` is."""

    inner: EnvState  # of the environment that is seen
    frames: Array  # [F, size, size, channels]
    distractors: Array  # [D, 3] x, y, heading (rad)
    key: Key


def make(env: Env, config: Config = Config()) -> Env:
    """Raises ValueError for an environment without a picture, and for what cannot be.

    It knows neither reward nor termination of an observation: models learn them.
    """
    checks.at_least(config, 1, "size", "num_frames")
    checks.at_least(config, 0, "num_distractors")
    paint = env.picture
    if paint is None:
        raise ValueError(f"{env.name} has no picture: its pixels cannot be seen")
    size, channels = config.size, 3 if config.colour else 1

    def frame(inner: EnvState, distractors: Array) -> Array:
        """[size, size, channels]"""
        image = paint(inner, size, size)
        if config.num_distractors:
            others = [raster.disc(x[:2], 0.12, raster.INK) for x in distractors]
            square = raster.View((0.0, 0.0), 1.0, size, size)
            image = raster.paint(raster.stack(others), square, background=image)
        if config.colour:
            return image
        return image @ jnp.array(LUMINANCE, image.dtype)[:, None]

    def seen(inner: EnvState, frames: Array, distractors: Array, key: Key) -> EnvState:
        sim = Sim(inner, frames, distractors, key)
        return inner._replace(obs=frames.reshape(-1), sim=sim)

    def first(inner: EnvState, key: Key) -> EnvState:
        place_key, key = jax.random.split(key)
        shape, dtype = (config.num_distractors, 3), inner.reward.dtype
        distractors = jax.random.uniform(place_key, shape, dtype, -1.0)
        distractors = distractors * jnp.array([[1.0, 1.0, jnp.pi]], dtype)
        frames = frame(inner, distractors)[None].repeat(config.num_frames, axis=0)
        return seen(inner, frames, distractors, key)

    def reset(key: Key) -> EnvState:
        inner_key, key = jax.random.split(key)
        return first(env.reset(inner_key), key)

    def step(env_state: EnvState, action: Array) -> EnvState:
        inner, frames, distractors, key = env_state.sim
        inner = env.step(inner, action)
        turn_key, key = jax.random.split(key)
        distractors = _wander(turn_key, distractors)
        newest = frame(inner, distractors)[None].astype(frames.dtype)
        frames = jnp.concatenate([frames[1:], newest])
        return seen(inner, frames, distractors, key)

    render, goal = env.render, env.goal
    return env._replace(
        name=f"pixels/{env.name}",
        reset=reset,
        step=step,
        obs_size=config.num_frames * size * size * channels,
        reward=None,
        terminal=None,
        belief=None,
        render=render and (lambda env_states: render(env_states.sim.inner)),
        picture=lambda env_state, *size: paint(env_state.sim.inner, *size),
        goal=goal and (lambda: first(goal(), jax.random.key(0))),
    )


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


def _wander(key: Key, distractors: Array) -> Array:
    """A step on, turned a little; what would leave the picture turns back."""
    x, heading = distractors[:, :2], distractors[:, 2]
    heading = heading + DRIFT * jax.random.normal(key, heading.shape, heading.dtype)
    ahead = x + PACE * jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=1)
    stays = (jnp.abs(ahead) > 1).any(axis=1)
    heading = jnp.where(stays, heading + jnp.pi, heading)
    x = jnp.where(stays[:, None], x, ahead)
    return jnp.concatenate([x, heading[:, None]], axis=1)
