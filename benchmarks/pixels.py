"""What pictures cost: frames per second, and the share of training that painting takes.

    python -m benchmarks.pixels

Of each environment that can be drawn, CPU nanoseconds per pixel of a grey picture of 32
x 32, painted 64 at once as in a rollout.  Then an iteration of SAC and of PPO on
pictures, the presets' sizes, and beside it the painting of all frames that it sees.
Writes results/pixels.json.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app

from experiments.runs import jax_settings, run_folder
from mbrl_jax import envs, replay
from mbrl_jax.algorithms import ppo, sac
from mbrl_jax.envs import pixels
from mbrl_jax.ops import raster
from mbrl_jax.types import Algorithm, Array, Env, EnvState
from mbrl_jax.value_learning import off_policy

RESULTS = Path(__file__).parent / "results" / "pixels.json"
SIZE, NUM_AT_ONCE, NUM_REPEATS = 32, 64, 5
TASK = f"pixels/cartpole_swingup/size={SIZE},num_frames=3"
ITERATIONS: dict[str, tuple[Callable[[Env], Algorithm], int]] = {  # and its frames
    "sac": (
        lambda env: sac.make(
            env, sac.Config(off_policy.Config(capacity=2000, warmup=1, interval=50))
        ),
        50,
    ),
    "ppo": (lambda env: ppo.make(env, ppo.Config(num_envs=16, window=64)), 16 * 64),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    found: dict[str, Any] = {"size": SIZE, "painting": {}, "iteration": {}}
    for name in envs.names():
        env = envs.make(name)
        if env.picture is None:
            continue
        seconds = cpu_seconds(*painting(env, NUM_AT_ONCE)) / NUM_AT_ONCE
        found["painting"][name] = {
            "ns_per_pixel": 1e9 * seconds / SIZE**2,
            "frames_per_cpu_second": 1 / seconds,
        }
        print(name, found["painting"][name], flush=True)
    env = envs.make(TASK)
    for name, (make, num_frames) in ITERATIONS.items():
        whole = iteration(make(env))
        paint = cpu_seconds(*painting(env, num_frames))
        found["iteration"][name] = {
            "task": TASK,
            "cpu_seconds": whole,
            "of_painting": paint,
            "share": paint / whole,
        }
        print(name, found["iteration"][name], flush=True)
    large = envs.make("pixels/planar/size=64,num_frames=3,colour=1")
    kept = jax.eval_shape(lambda: replay.of(large, 100_000))
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(kept)]
    found["bytes_of_100000_frames_of_64x64x3"] = sum(sizes)
    run_folder.write_json(RESULTS, {**found, **run_folder.surroundings()})


def painting(env: Env, number: int) -> tuple[Callable[[Any], Array], Any]:
    """A compiled function that paints so many states in grey bytes, and them."""
    paint = env.picture
    assert paint is not None

    def grey(state: EnvState) -> Array:
        image = paint(state, SIZE, SIZE) @ jnp.array(pixels.LUMINANCE)[:, None]
        return raster.to_uint8(image)

    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), number))
    return jax.jit(jax.vmap(grey)), states


def iteration(algorithm: Algorithm) -> float:
    key = jax.random.key(0)
    step = jax.jit(algorithm.step)
    state, _ = step(key, jax.jit(algorithm.init)(key))
    return cpu_seconds(lambda state: step(key, state), state)


def cpu_seconds(function: Callable[[Any], Any], argument: Any) -> float:
    """The least of a few calls, after one that compiles."""
    jax.block_until_ready(function(argument))
    found = []
    for _ in range(NUM_REPEATS):
        start = time.process_time()
        jax.block_until_ready(function(argument))
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    jax_settings.apply("fast")
    app.run(main)
