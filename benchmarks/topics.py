"""Measures one topic in a process of its own and prints JSON; see `speed.py`.

python -m benchmarks.topics planning
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax

from benchmarks import (
    ablations,
    compiling,
    fitting,
    imagining,
    planning,
    seeds,
    timing,
    updating,
)
from benchmarks.timing import Row
from experiments.runs import jax_settings

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def machine() -> list[Row]:
    """The matrix product that all ratios are about."""
    multiply, flop, num_products = timing.product()
    took = timing.measure(multiply, num_products)
    size = round((flop / 2) ** (1 / 3))
    unit = f"GFLOP per {timing.seconds_unit()}"
    rate = flop / took.seconds / 1e9
    case = f"{size} x {size} float32 product"
    return [Row("machine", case, rate, unit, took.wall)]


TOPICS: dict[str, Callable[[], list[Row]]] = {
    "machine": machine,
    "planning": planning.measure,
    "fitting": fitting.measure,
    "imagining": imagining.measure,
    "updating": updating.measure,
    "compiling": compiling.measure,
    "seeds": seeds.measure,
    "main_job_alone": lambda: seeds.main_job(1),
    "main_job_64_seeds": lambda: seeds.main_job(64),
    "sharded": seeds.sharded,
    "searches": ablations.searches,
    "fit_parts": ablations.fit_parts,
    "guards": ablations.guards,
    "random_numbers": ablations.random_numbers,
    "activations": ablations.activations,
}
WITH_MEMORY = ("planning", "fitting", "imagining", "seeds")  # of which it is reported


def measure(name: str) -> dict[str, Any]:
    """The rows of a topic, and on what they were measured."""
    rows = TOPICS[name]()
    if name in WITH_MEMORY:
        rows.append(Row("memory", name, timing.peak_memory(), "MB"))
    return {"rows": [row._asdict() for row in rows], "machine": surroundings()}


def surroundings() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "cpu": _cpu_model(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line for line in lines if line.startswith("model name")]
    except OSError:
        return platform.processor()
    return names[0].partition(":")[2].strip() if names else platform.machine()


def main(argv: Sequence[str]) -> None:
    jax_settings.apply("fast", compilation_cache=False)
    print(json.dumps(measure(argv[1])))


if __name__ == "__main__":
    main(sys.argv)
