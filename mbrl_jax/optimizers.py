"""What several methods descend with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mbrl_jax.ops import finite
from mbrl_jax.types import Array, Params


def clipped_adam(
    learning_rate: float | Array,
    max_norm: float | Array,
    *,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    decay_steps: int = 0,
) -> optax.GradientTransformation:
    """Adam on gradients of a norm of at most `max_norm`; others are scaled down.

    The learning rate falls linearly, to a hundredth after `decay_steps` (0: it stays).
    A gradient that is not finite is skipped, and counted in the state's `num_skipped`.
    """

    rate = _falling(learning_rate, decay_steps)
    return _clipped(optax.adam(rate, b1=b1, b2=b2), max_norm)


def clipped_rmsprop(
    learning_rate: float | Array,
    max_norm: float | Array,
    *,
    decay: float | Array = 0.99,
    decay_steps: int = 0,
) -> optax.GradientTransformation:
    """RMSProp in the same way, `decay` being that of its mean squares."""
    rate = _falling(learning_rate, decay_steps)
    return _clipped(optax.rmsprop(rate, decay=decay, eps=1e-5), max_norm)


def descend(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    opt_state: optax.OptState,
    params: Params,
) -> tuple[Params, optax.OptState]:
    """A step of `params` against `gradient`."""
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def ascend(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    opt_state: optax.OptState,
    params: Params,
) -> tuple[Params, optax.OptState]:
    """A step of `params` along `gradient`, where optax would go down."""
    down = jax.tree.map(jnp.negative, gradient)
    return descend(optimizer, down, opt_state, params)


def _falling(
    learning_rate: float | Array, decay_steps: int
) -> Callable[[Array], Array]:
    def schedule(count: Array) -> Array:
        done = count / max(decay_steps, 1) if decay_steps else 0.0 * count
        return learning_rate * (1 - 0.99 * done.clip(0, 1))

    return schedule


def _clipped(
    optimizer: optax.GradientTransformation, max_norm: float | Array
) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(max_norm)
    return finite.skip_non_finite(optax.chain(clip, optimizer))
