"""An episode of a run as a GIF, which any browser plays."""

from pathlib import Path

import jax
import numpy as np

from experiments.runs import files, registry
from mbrl_jax import rollout

MAX_FRAMES = 500
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
    one = (run.hyperparameters, run.state)
    if run.key.ndim:
        one = jax.tree.map(lambda x: x[which], one)

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
