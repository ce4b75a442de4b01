"""Points of a picture: where the mass of a map lies, and how much of it is there.

A map [H, W] spans a square of +-1, x to the right and y up: the centre of the pixel in
row i and column j is at x = (2 j + 1) / W - 1, y = 1 - (2 i + 1) / H.  Formulas of
Finn et al., 2016, "Deep spatial autoencoders for visuomotor learning", Sec. IV; the
coordinates are their own in units of half a picture.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


def softmax(scores: Array, temperature: float | Array) -> Array:
    """The mass [H, W] of scores [H, W], which sums to 1."""
    return jax.nn.softmax(scores / temperature, axis=(0, 1))


def expected_place(mass: Array) -> Array:
    """(x, y) [2], the mean of a mass [H, W]: with `softmax`, the soft-argmax."""
    x, y = centres(*mass.shape)
    return jnp.stack([mass.sum(axis=0) @ x, mass.sum(axis=1) @ y])


def presence(mass: Array, place: Array, reach: float | Array) -> Array:
    """[]: how much of a mass [H, W] is within `reach` of a place [2], along x and y."""
    x, y = centres(*mass.shape)
    column, row = jnp.abs(x - place[0]) <= reach, jnp.abs(y - place[1]) <= reach
    return row.astype(mass.dtype) @ mass @ column.astype(mass.dtype)


def acceleration(places: Array) -> Array:
    """(f'' - f') - (f' - f) of three places in a row, [3, ...] -> [...]."""
    before, now, after = places
    return (after - now) - (now - before)


def centres(height: int, width: int) -> tuple[Array, Array]:
    """x [W] and y [H] of the pixels' centres, y from the top down."""
    x = (2 * jnp.arange(width) + 1) / width - 1
    y = 1 - (2 * jnp.arange(height) + 1) / height
    return x, y
