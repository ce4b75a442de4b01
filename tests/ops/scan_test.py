import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import scan


@pytest.mark.parametrize("segment", [0, 1, 3, 12])
def test_values_and_gradients_are_those_of_a_scan(segment):
    xs = {"a": jnp.linspace(0.0, 1.0, 12), "b": jnp.arange(24.0).reshape(12, 2)}

    def body(carry, x):
        carry = jnp.sin(carry + x["a"]) + x["b"].sum()
        return carry, (carry, x["b"] * carry)

    def total(scan_of, start, xs):
        carry, (first, second) = scan_of(body, start, xs)
        return carry + (first**2).sum() + second.sum(), (first, second)

    def plain(body, carry, xs):
        return jax.lax.scan(body, carry, xs)

    def segmented(body, carry, xs):
        return scan.checkpointed(body, carry, xs, segment)

    expected, found = (
        jax.value_and_grad(total, argnums=(1, 2), has_aux=True)(which, 0.3, xs)
        for which in (plain, segmented)
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, expected
    )


@pytest.mark.parametrize("segment", [-1, 5, 13])
def test_segments_that_do_not_fit(segment):
    with pytest.raises(ValueError, match=f"{segment} does not divide the length 12"):
        scan.checkpointed(lambda c, x: (c, x), 0.0, jnp.arange(12), segment)
