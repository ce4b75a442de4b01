"""What the commands set in jax, before anything is computed."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import jaxlib

PRECISIONS = ("fast", "highest", "x64")
COMPILATION = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_seconds = dict.fromkeys(COMPILATION, 0.0)


def apply(precision: str, compilation_cache: bool = True) -> None:
    """Sets the precision, and keeps compiled programs for the next process.

    fast: the device's default matrix products; highest: full float32 in them; x64:
    float64 throughout.  The cache is below XDG_CACHE_HOME or ~/.cache, a folder for
    each jaxlib, unless jax has been told another place by JAX_COMPILATION_CACHE_DIR.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, must be one of {PRECISIONS}")
    jax.config.update(
        "jax_default_matmul_precision", None if precision == "fast" else "highest"
    )
    jax.config.update("jax_enable_x64", precision == "x64")
    if not compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "mbrl_jax" / f"jaxlib-{jaxlib.__version__}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a cache is a convenience
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def use_cores(num_runs: int) -> None:
    """Makes each core of a CPU a device, as far as there are runs for them.

    Without effect once jax has computed something.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with contextlib.suppress(RuntimeError):  # the devices are in use
        jax.config.update("jax_num_cpu_devices", min(num_cores, num_runs))


def device_memory() -> int:
    """Bytes that a program may take on each device, by what is free now."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _free_memory() // len(jax.local_devices())  # those of a CPU share it


def compile_seconds() -> float:
    """What this process has spent on lowering and compiling programs, so far."""
    return sum(_seconds.values())


def _free_memory() -> int:
    """Bytes of the machine, or of the container, that nothing uses."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):  # no Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = dict(line.split(":", 1) for line in lines)
        free = min(free, 1024 * int(known["MemAvailable"].split()[0]))
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def _listen(event: str, duration_secs: float, **more: Any) -> None:
    if event in _seconds:
        _seconds[event] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)
