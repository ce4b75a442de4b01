"""Early errors about hyperparameters.  Traced values, as under vmap, pass unseen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import Env


def under(name: str, validate: Callable[[Any], None], config: Any) -> None:
    """Checks what stands in the field `name`, and says so where it cannot be."""
    try:
        validate(config)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error


def at_least(config: Any, bound: float, *fields: str) -> None:
    """Raises ValueError, naming the field, where one is below `bound`."""
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, int | float) and not value >= bound:
            raise ValueError(f"{field} is {value}, must be at least {bound}")


def positive(config: Any, *fields: str) -> None:
    """Raises ValueError, naming the field, where one is not above 0."""
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{field} is {value}, must be positive")


def within(config: Any, low: float, high: float, *fields: str) -> None:
    """Raises ValueError, naming the field, where one is outside [low, high]."""
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, int | float) and not low <= value <= high:
            raise ValueError(f"{field} is {value}, must be from {low} to {high}")


def at_most(config: Any, field: str, bounding: str) -> None:
    """Raises ValueError, naming both fields, where one is above the other."""
    value, bound = getattr(config, field), getattr(config, bounding)
    if value > bound:
        raise ValueError(f"{field} is {value}, more than the {bound} of {bounding}")


def one_of(config: Any, field: str, known: Any) -> None:
    """Raises ValueError, naming the field and what it may be."""
    value = getattr(config, field)
    if value not in known:
        raise ValueError(f"{field} is {value!r}, must be one of: {', '.join(known)}")


def divides(config: Any, field: str, whole: str) -> None:
    """Raises ValueError, naming both, where one is neither 0 nor a divisor."""
    part, total = getattr(config, field), getattr(config, whole)
    if part and total % part:
        raise ValueError(f"{field} is {part}, must divide {whole}, {total}")


def holds_an_episode(config: Any, env: Env) -> None:
    """Raises ValueError, naming both, where `capacity` is less than an episode."""
    if config.capacity < env.episode_length:
        raise ValueError(
            f"capacity is {config.capacity}, less than the {env.episode_length} steps "
            f"of an episode of {env.name}"
        )


def vectors(env: Env, method: str = "this algorithm") -> None:
    """Raises ValueError, naming it, for an environment that shows pictures."""
    if env.obs_shape:
        raise ValueError(
            f"{env.name} shows pictures, {list(env.obs_shape)}, and {method} takes "
            "vectors, as of pixels/NAME/vector=1"
        )


def continuous(env: Env, method: str = "this algorithm") -> None:
    """Raises ValueError, naming it, for an environment with discrete actions."""
    if env.num_actions:
        raise ValueError(
            f"the actions of {env.name} are discrete, {env.num_actions} of them, and "
            f"{method} is for continuous ones"
        )


def discrete(env: Env) -> None:
    """Raises ValueError, naming it, for an environment with continuous actions."""
    if not env.num_actions:
        raise ValueError(
            f"the actions of {env.name} are continuous, {env.action_size} of them, and "
            "this algorithm is for discrete ones"
        )


def finite_limit(function: str, action_limit: Any) -> None:
    """Raises ValueError, naming the `function`, for actions without a limit."""
    if isinstance(action_limit, jax.core.Tracer):
        return
    if not np.isfinite(action_limit).all():
        raise ValueError(f"{function}: action_limit is {action_limit}, must be finite")


def double(method: str) -> None:
    """Raises ValueError, naming it, where floats are not float64."""
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"{method} needs float64: ask for --precision=x64, or jax_enable_x64"
        )
