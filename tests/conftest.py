"""What every test runs under: no implicit broadcasting, quick compilation, its cache.

Warnings are errors by pyproject.toml.  Most of the time goes into compiling small
programs, so XLA optimises less than it does for users; `benchmarks.regression` trains
as they do.  The cache makes a second run quick and can be deleted at any time.
"""

import os
from pathlib import Path

import hypothesis
import jaxlib
import pytest

CACHE = Path(__file__).parents[1] / ".cache" / f"jaxlib-{jaxlib.__version__}"

# By the environment, so that subprocesses have it too; before the first import of jax.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true",
)

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# The first call of a jitted function takes long, and a failure must come again.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def _no_compiled_programs_are_left():
    """Gigabytes of them, after some thousand tests, and hundreds of memory maps for
    each, of which Linux allows a process 65,530: then compiling crashes."""
    yield
    jax.clear_caches()
