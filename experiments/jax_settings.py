"""What the commands set in jax, before anything is computed."""

import os
from pathlib import Path

import jax
import jaxlib

PRECISIONS = ("fast", "highest", "x64")


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
