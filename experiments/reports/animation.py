"""An episode of a run as a GIF, which any browser plays, and what a model foresaw."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs import files, registry
from mbrl_jax import rollout
from mbrl_jax.envs import pixels

MAX_FRAMES = 500
PANELS = ("seen", "reconstructed", "predicted")
LEAST_SIDE = 120  # pixels, of what a model sees in few
FRAME_TIME = 40  # ms; browsers slow down what is faster than 20 ms


def episode(run: registry.Run, path: Path, seed: int = 0, which: int = 0) -> None:
    """Writes one episode, under the policy of seed number `which`, as a GIF.

    Raises ValueError if the environment has no picture or there is no such seed.
    """
    render = run.env.render
    if render is None:
        raise ValueError(f"{run.env.name} has no picture")
    if which >= max(1, run.key.size):
        raise ValueError(f"run is {which}, but there are {run.key.size} seeds")
    one = _one(run, which)

    def trajectory(
        key: jax.Array, varied: registry.Floats, state: object
    ) -> tuple[object, jax.Array]:
        return rollout.trajectory(key, run.env, run.algorithm(varied).policy(state))

    states, valid = jax.jit(trajectory)(jax.random.key(seed), *one)
    times = np.flatnonzero(valid)
    stride = -(-len(times) // MAX_FRAMES)
    shown = np.unique(np.append(times[::stride], times[-1]))  # the end too
    frames = np.asarray(render(jax.tree.map(lambda x: x[shown], states)))
    write_gif(path, frames)


def foreseen(run: registry.Run, path: Path, seed: int = 0) -> None:
    """Writes an episode side by side as it was seen and as a model of pictures shows
    it: reconstructed, and predicted from the first picture and the actions alone.

    Raises ValueError if there is no such model.
    """
    env = run.env

    def pictures(
        key: jax.Array, varied: registry.Floats, state: object
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        algorithm = run.algorithm(varied)
        if algorithm.foresee is None:
            raise ValueError(f"{run.record['algorithm']} has no model of pictures")
        policy = algorithm.policy(state)
        steps, valid = rollout.episode(key, env, policy)
        obs = jnp.concatenate([steps.obs[:1], steps.next_obs])
        seen = jax.vmap(lambda obs: pixels.newest(env, obs))(obs)
        return {"seen": seen, **algorithm.foresee(state, key, obs, steps.action)}, valid

    found, valid = jax.jit(pictures)(jax.random.key(seed), *_one(run, 0))
    length = 1 + int(valid.sum())
    panels = [found[name] for name in PANELS if name in found]
    write_gif(path, _side_by_side([np.asarray(x)[:length] for x in panels]))


def is_foreseen(run: registry.Run) -> bool:
    """Whether there is a model of pictures."""
    varied: Any = _one(run, 0)[0]
    return run.algorithm(varied).foresee is not None


def _one(run: registry.Run, which: int) -> tuple[object, object]:
    """The hyperparameters and the state of one of several runs."""
    one = (run.hyperparameters, run.state)
    return jax.tree.map(lambda x: x[which], one) if run.key.ndim else one


def _side_by_side(films: list[np.ndarray]) -> np.ndarray:
    """Pictures [T, height, width, 1 or 3] in [0, 1], made larger, with a gap; some may
    be smaller than the first ones, by a whole factor."""
    height = films[0].shape[1] * -(-LEAST_SIDE // films[0].shape[1])
    gap = np.ones((len(films[0]), height, 4, 3))
    shown = []
    for film in films:
        factor = height // film.shape[1]
        large = film.repeat(factor, axis=1).repeat(factor, axis=2)
        shown += [np.broadcast_to(large, (*large.shape[:3], 3)), gap]
    joined = np.concatenate(shown[:-1], axis=2)
    return np.round(255 * joined.clip(0, 1)).astype(np.uint8)


def write_gif(path: Path, frames: np.ndarray) -> None:
    """Writes frames [T, height, width, 3] uint8 as an endless GIF."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    # One palette for all: with one each, still parts of the picture would flicker.
    sample = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)]))
    palette = sample.quantize(128, dither=Image.Dither.NONE)
    images = [x.quantize(palette=palette, dither=Image.Dither.NONE) for x in images]
    with files.replacing(path) as file:
        images[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=images[1:],
            duration=FRAME_TIME,
            loop=0,
            optimize=False,
        )
