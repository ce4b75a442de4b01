"""Cosine and sine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.ops.circle import NAME, cos_sin
from mbrl_jax.types import Array

ANGLES = jnp.linspace(-10.0, 10.0, 41)


def test_it_is_the_cosine_and_the_sine():
    np.testing.assert_array_equal(cos_sin(ANGLES), (jnp.cos(ANGLES), jnp.sin(ANGLES)))


def test_derivatives_of_first_and_second_order():
    entries = lambda order: np.stack([jax.vmap(order(f))(ANGLES) for f in PARTS])
    cos, sin = np.cos(ANGLES), np.sin(ANGLES)
    np.testing.assert_allclose(entries(jax.grad), (-sin, cos), atol=1e-6)
    np.testing.assert_allclose(entries(jax.jacfwd), (-sin, cos), atol=1e-6)
    twice = lambda f: jax.grad(jax.grad(f))
    np.testing.assert_allclose(entries(twice), (-cos, -sin), atol=1e-6)


PARTS = (lambda angle: cos_sin(angle)[0], lambda angle: cos_sin(angle)[1])


def test_where_they_are_kept_they_are_not_computed_again():
    def turn(angle: Array) -> Array:
        cos, sin = cos_sin(angle)
        return jnp.exp(cos) + sin**2

    def count(policy: Any) -> list[int]:
        gradient = jax.grad(jax.checkpoint(turn, policy=policy))
        text = str(jax.make_jaxpr(gradient)(1.0))
        return [text.count(f" = {name} ") for name in ("cos", "sin")]

    assert count(jax.checkpoint_policies.save_only_these_names(NAME)) == [1, 1]
    assert count(None) == [2, 2]
