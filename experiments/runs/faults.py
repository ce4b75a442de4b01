"""What went wrong, in one line."""

import logging

import jax

from mbrl_jax.envs import gymnasium


def line(error: BaseException) -> str:
    """What an error says; of one on the host that jax reports, what that said."""
    said = gymnasium.fault(error) or str(error)
    return " ".join(said.split()) or type(error).__name__


def is_users(error: BaseException) -> bool:
    """Whether a simulator of the user's failed: no place in our code says more."""
    known = isinstance(error, gymnasium.HostFault | jax.errors.JaxRuntimeError)
    return known and gymnasium.fault(error) is not None


def hide_traces() -> None:
    """Of what fails on the host: jax logs each, beside the error that it raises."""
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
