"""What returns [P] of particles are worth, to those who fear the worse ones."""

from collections.abc import Callable

import jax.numpy as jnp

from mbrl_jax.types import Array


def mean_minus_std(coefficient: float | Array) -> Callable[[Array], Array]:
    """Risk aversion: mean - coefficient * std over the particles."""
    return lambda returns: returns.mean() - coefficient * returns.std()


def cvar(fraction: float | Array) -> Callable[[Array], Array]:
    """Conditional value at risk: the mean of the worst `fraction` of the particles.

    Rockafellar and Uryasev (2000): the particle on the border counts in part.
    """

    def risk(returns: Array) -> Array:
        ordered = jnp.sort(returns)
        share = fraction * returns.shape[0] - jnp.arange(returns.shape[0])
        weight = jnp.clip(share, 0.0, 1.0)
        return (weight * ordered).sum() / weight.sum()

    return risk


# the worth of an action sequence, from its particles' returns: level -> [P] -> []
RISKS: dict[str, Callable[[float | Array], Callable[[Array], Array]]] = {
    "mean": lambda level: jnp.mean,
    "mean_minus_std": mean_minus_std,
    "cvar": cvar,
}
