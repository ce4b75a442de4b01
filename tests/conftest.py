"""What every test runs under: no implicit broadcasting, quick compilation, its cache.

Warnings are errors by pyproject.toml.  Most of the time goes into compiling small
programs, so XLA compiles them as quickly as it can (`compiling.py`), not as well;
`benchmarks.regression` trains as users do.  The cache makes a
second run quick and can be deleted at any time.
"""

import gc
import os
from pathlib import Path

import hypothesis
import jaxlib
import pytest

from tests import compiling

CACHE = Path(__file__).parents[1] / ".cache" / f"jaxlib-{jaxlib.__version__}"

# By the environment, so that subprocesses have it too; before the first import of jax.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("XLA_FLAGS", compiling.QUICKLY)
# On busy cores the threads of LAPACK wait for each other, and burn 60 times the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402

from tests import clock  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# The first call of a jitted function takes long, and a failure must come again.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clock", help="file for the time of each test file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(clock.Clock())


@pytest.fixture
def double():
    """float64 throughout the test; a whole file asks for it by `pytestmark`."""
    with jax.enable_x64(True):
        yield


def pytest_collection_finish() -> None:
    # A fifth of the time that tracing takes went into looking for garbage, which is
    # looked for after each file now.
    gc.collect()
    gc.freeze()  # what is imported stays
    gc.disable()


MAPS = Path("/proc/self/maps")  # of memory, where there is such a file
MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _few_compiled_programs_are_left():
    """Gigabytes of them, after some thousand tests, and hundreds of memory maps for
    each, of which Linux allows a process 65,530: then compiling crashes.  Until then
    the next files need the smallest again."""
    yield
    gc.collect()
    if not MAPS.exists() or len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()
