"""How long a call takes, next to the machine's own matrix product.

Both are timed in turn, so that whatever else the machine does slows both.  A CPU's
clock counts the seconds of all threads, since the cores may be shared with others; that
of any other device is the one on the wall.
"""

import functools
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Call = Callable[[], Any]


class Timing(NamedTuple):
    """Medians over the repeats."""

    seconds: float  # of one call, by the device's clock
    wall: float  # s, of one call
    product_rate: float  # FLOP/s of the matrix product, by the device's clock


class Row(NamedTuple):
    """One line of the results."""

    topic: str
    case: str
    figure: float
    unit: str
    wall: float | None = None  # s, of what was timed
    gflops: float | None = None  # GFLOP/s, by the device's clock
    ratio: float | None = None  # of that to the machine's matrix product


def measure(call: Call, num_calls: int = 1, num_repeats: int = 5) -> Timing:
    """Times `call`, which returns arrays; `num_calls` in a row are one repeat."""
    multiply, flop, num_products = product()
    jax.block_until_ready((call(), multiply()))  # compile
    calls, products = [], []
    for _ in range(num_repeats):
        products.append(time_calls(multiply, num_products)[0])
        calls.append(time_calls(call, num_calls))
    seconds, wall = (statistics.median(column) for column in zip(*calls, strict=True))
    return Timing(seconds, wall, flop / statistics.median(products))


def row(
    topic: str, case: str, figure: float, unit: str, timing: Timing, flop: float
) -> Row:
    """A row about a call that takes `flop` floating-point operations."""
    rate = flop / timing.seconds
    ratio = rate / timing.product_rate
    return Row(topic, case, figure, unit, timing.wall, rate / 1e9, ratio)


def time_calls(call: Call, num_calls: int = 1) -> tuple[float, float]:
    """Seconds of one call: by the device's clock, and on the wall."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    results = [call() for _ in range(num_calls)]
    jax.block_until_ready(results)
    cpu = (cpu_seconds() - cpu) / num_calls
    wall = (time.perf_counter() - wall) / num_calls
    return (cpu if on_cpu() else wall), wall


@functools.cache
def product() -> tuple[Call, float, int]:
    """A large matrix product, its floating-point operations, and how many to time."""
    size = 1024 if on_cpu() else 8192
    a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    return (lambda: multiply(a)), 2.0 * size**3, 10


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def seconds_unit() -> str:
    """What the device's clock counts."""
    return "CPU s" if on_cpu() else "s"


def cpu_seconds() -> float:
    """Of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_memory() -> float:
    """The most memory held so far, MB: the process's on a CPU, else the device's."""
    if on_cpu():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", float("nan")) / 1e6
