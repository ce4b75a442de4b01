"""The root logger belongs to the user: what libraries do to it is undone.

A handler that an import leaves there makes the user's own `logging.basicConfig(...)` a
call without effect, and their lines are lost.
"""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Its handlers and its level are afterwards what they were."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
