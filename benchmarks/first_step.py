"""Compiles and takes the first step of the default main job; prints JSON.

    python -m benchmarks.first_step

A process of its own: jax compiles a program once per process.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import timing
from mbrl_jax import envs
from mbrl_jax.algorithms import pets
from mbrl_jax.training import train

CACHE = "/jax/compilation_cache/cache_"


def main(argv: Sequence[str]) -> None:
    events: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    env = envs.make("cartpole_swingup")
    key = train.seeds(0)
    jax.block_until_ready(jax.random.split(key))  # the device is up
    loop = train.build(key, pets.make(env), env)

    clock = timing.cpu_seconds(), time.perf_counter()
    state = loop.init(key)
    step_of: Any = loop.step
    traced = step_of.func.lower(*step_of.args, key, 0, state)
    step = traced.compile()
    compiled = timing.cpu_seconds(), time.perf_counter()
    _, metrics = jax.block_until_ready(step(*step_of.args, key, 0, state))
    run = time.perf_counter()
    found = {
        "cpu": compiled[0] - clock[0],
        "wall": compiled[1] - clock[1],
        "run": run - compiled[1],
        "epochs": int(metrics["model/num_epochs"]),
        "peak_memory": timing.peak_memory(),
        "cache_hits": events[f"{CACHE}hits"],
        "cache_misses": events[f"{CACHE}misses"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv)
