"""Renders an episode of a run's last checkpoint.

    python -m experiments.render --run_dir=FOLDER

Writes episode.gif, which any browser plays, into the run folder.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import command_flags, progress, registry
from mbrl_jax import rollout

MAX_FRAMES = 500
FRAME_TIME = 40  # ms; browsers slow down what is faster than 20 ms


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("run_dir", None, "folder of the run", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the episode", 0, flag_values=values)
    flags.DEFINE_integer("run", 0, "which of several seeds", 0, flag_values=values)
    flags.DEFINE_string("output", "", "default: episode.gif", flag_values=values)
    if command_flags.parse_or_help(values, argv, __doc__, required="run_dir"):
        return
    folder = Path(values.run_dir).expanduser()
    run = registry.load(folder, progress.report)
    path = Path(values.output) if values.output else folder / "episode.gif"
    episode(run, path, values.seed, values.run)
    print(path)


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
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=FRAME_TIME,
        loop=0,
        optimize=False,
    )


if __name__ == "__main__":
    command_flags.command(main)
