"""How long the default main job's first step takes to compile: cold, and cached."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.timing import Row

ROOT = Path(__file__).parents[1]


def measure() -> list[Row]:
    """Two fresh processes, which share a new compilation cache.  The device is left to
    them: nothing here may touch it before."""
    with tempfile.TemporaryDirectory() as cache:
        found = {"cold": first_step(cache), "from the cache": first_step(cache)}
    unit = timing.seconds_unit()
    key = "cpu" if timing.on_cpu() else "wall"
    rows = [
        Row("compiling", case, process[key], unit, process["wall"])
        for case, process in found.items()
    ]
    memory = found["from the cache"]["peak_memory"]
    return [*rows, Row("memory", "first step of the main job", memory, "MB")]


def first_step(cache: str) -> dict[str, Any]:
    """What `first_step.py` prints, with the compilation cache in the folder `cache`."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_step"],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])
