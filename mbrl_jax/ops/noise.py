"""Noise that is correlated in time."""

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Key


def coloured_noise(
    key: Key, shape: tuple[int, ...], exponent: float | Array, dtype: jnp.dtype
) -> Array:
    """Normal noise [..., H, A] of unit variance and power frequency^-exponent along H.

    Timmer and Koenig (1995): independent normal Fourier coefficients, scaled, and
    transformed back by a matrix product, since H is small.  Exponent 0 is white, 1
    pink, 2 red.  The mean gets the power of the lowest frequency, 1 / H.
    """
    length = shape[-2]
    index = jnp.arange(length)
    frequency = (index + 1) // 2  # 0, 1, 1, 2, 2, ...: cosine and sine of each
    angle = 2 * jnp.pi * frequency[:, None] * index[None] / length
    basis = jnp.where((index % 2 == 1)[:, None], jnp.cos(angle), jnp.sin(angle))
    basis = basis.at[0].set(1.0)
    basis = basis / jnp.linalg.norm(basis, axis=1, keepdims=True)  # [F, H], orthonormal
    scale = (jnp.maximum(frequency, 1) / length) ** (-exponent / 2)
    scale = scale * jnp.sqrt(length / jnp.square(scale).sum())
    coefficients = jax.random.normal(key, shape, dtype)
    transform = (scale[:, None] * basis).astype(dtype)
    return jnp.einsum("...fa,fh->...ha", coefficients, transform)
