import logging

from mbrl_jax.ops import root_logger


def test_handlers_and_level_are_what_they_were() -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with root_logger.kept():
        root.addHandler(logging.NullHandler())
        root.setLevel(logging.DEBUG)
    assert (root.handlers, root.level) == (handlers, level)
