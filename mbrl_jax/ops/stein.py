"""Stein variational gradient descent (Liu and Wang, 2016, arXiv 1608.04471)."""

import jax.numpy as jnp

from mbrl_jax.types import Array


def direction(particles: Array, scores: Array) -> Array:
    """Where the particles [M, D] go to stand for a density whose gradients of the log
    are `scores` [M, D] there: up, and away from each other, [M, D].

    The kernel is exp(-distance^2 / h) with the median heuristic, h = median^2 / log M,
    the median over the distances of different particles.  One particle alone climbs.
    Particles or scores that are not finite have no part in where the others go; their
    own direction is NaN.
    """
    good = jnp.isfinite(particles + scores).all(axis=1)  # [M]
    x, scores = (jnp.where(good[:, None], x, 0) for x in (particles, scores))
    squares = jnp.square(x[None] - x[:, None]).sum(axis=-1)  # [M, M]
    number = good.sum()
    pairs = jnp.outer(good, good) & ~jnp.eye(len(x), dtype=bool)
    middle = jnp.nanmedian(jnp.where(pairs, squares, jnp.nan))
    h = middle / jnp.log(jnp.maximum(number, 2))
    h = jnp.where(h > 0, h, 1)  # none, or all in one place
    kernel = jnp.where(good[:, None], jnp.exp(-squares / h), 0)  # [j, i]
    pull = kernel.T @ scores
    push = 2 / h * (kernel.sum(axis=0)[:, None] * x - kernel.T @ x)
    phi = (pull + push) / jnp.maximum(number, 1)  # Eq. (8)
    return jnp.where(good[:, None], phi, jnp.nan)
