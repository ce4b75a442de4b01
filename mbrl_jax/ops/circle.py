"""Cosine and sine of an angle, whose derivatives are each other."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mbrl_jax.types import Array

NAME = "cos_sin"  # of what rematerialisation may keep, see `jax.checkpoint_policies`


@jax.custom_jvp
def cos_sin(angle: Array) -> tuple[Array, Array]:
    """`angle` in rad, of any shape.

    On a CPU they cost as much as a dozen products.  Differentiated in the usual way,
    each of them would be computed a second time, for the derivative of the other.
    """
    return jnp.cos(angle), jnp.sin(angle)


@cos_sin.defjvp
def _derivative(
    angles: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    cos, sin = checkpoint_name(cos_sin(*angles), NAME)
    (tangent,) = tangents
    return (cos, sin), (-sin * tangent, cos * tangent)
