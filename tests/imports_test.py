"""Importing the library does nothing but define."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, jax, mbrl_jax
for module in pkgutil.walk_packages(mbrl_jax.__path__, "mbrl_jax."):
    importlib.import_module(module.name)
    assert not jax.live_arrays(), f"{module.name} makes an array when it is imported"
"""


def test_no_module_makes_an_array():
    """It would take a device before the caller has said which, and how many."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
