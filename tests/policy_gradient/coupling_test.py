"""Couplings of policies: by hand, by differences, and where there is nothing to say."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import distributions
from mbrl_jax.policy_gradient import coupling
from mbrl_jax.types import Array

pytestmark = pytest.mark.usefixtures("double")

FAMILY = distributions.gaussian(2, 1.0)
NUMBER, N, T = 3, 4, 5


def drawn() -> coupling.Seen:
    """Episodes 0 and 3 are of policy 0, the second half of 3 is not valid."""
    rng = np.random.default_rng(0)
    outputs = 0.5 * rng.normal(size=(NUMBER, N, T, 4))
    own = np.zeros((NUMBER, N, T), bool)
    own[0, 0] = own[1, 1] = own[2, 2] = own[0, 3, :2] = True
    centre = 0.5 * rng.normal(size=(N, T, 4))
    return coupling.Seen(*map(jnp.asarray, (outputs, centre, own)))


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of normal distributions, their outputs [..., 4]."""
    (m, s), (n, t) = np.split(p, 2, -1), np.split(q, 2, -1)
    return (t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5).sum(-1)


@pytest.mark.parametrize("i", range(NUMBER))
def test_they_are_what_they_say(i: int):
    seen = drawn()
    outputs, centre, own = map(np.asarray, seen)
    expected = 0.0
    for j in set(range(NUMBER)) - {i}:
        expected += kl(outputs[i], outputs[j])[own[i]].mean() / 2
        expected += kl(outputs[j], outputs[i])[own[j]].mean() / 2
    mine, index = seen.outputs[i], jnp.asarray(i)
    found = coupling.pairwise(FAMILY, seen, index, mine)
    np.testing.assert_allclose(found, expected)
    found = coupling.to_centre(FAMILY, seen, index, mine)
    np.testing.assert_allclose(found, kl(outputs[i], centre)[own[i]].mean())
    assert coupling.nothing(FAMILY, seen, index, mine) == 0


@pytest.mark.parametrize("kind", [coupling.pairwise, coupling.to_centre])
def test_the_gradient_is_that_of_differences(kind: Callable):
    """Of the policy's own outputs alone: what it did is one of the others' then."""
    seen, i = drawn(), jnp.asarray(1)
    towards = jax.random.normal(jax.random.key(0), seen.outputs[1].shape)

    @jax.jit
    def both(step: Array) -> tuple[Array, Array]:
        moved = seen.outputs[1] + step * towards
        return jax.value_and_grad(lambda x: kind(FAMILY, seen, i, x))(moved)

    up, down = both(jnp.asarray(1e-5))[0], both(jnp.asarray(-1e-5))[0]
    slope = (both(jnp.asarray(0.0))[1] * towards).sum()
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-7)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("kind", [coupling.pairwise, coupling.to_centre])
def test_equal_policies_are_not_pulled(kind: Callable):
    """At 0 with its gradient, and anywhere else it is more."""
    seen, i = drawn(), jnp.asarray(2)
    one = seen.outputs[0]
    same = seen._replace(outputs=jnp.stack([one] * NUMBER), centre=one)
    value, gradient = jax.value_and_grad(lambda x: kind(FAMILY, same, i, x))(one)
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    assert kind(FAMILY, same, i, one + 0.1) > 1e-3


def test_one_policy_alone_has_nobody_to_be_near():
    seen = drawn()
    alone = seen._replace(outputs=seen.outputs[:1], own=seen.own[:1])
    found = coupling.pairwise(FAMILY, alone, jnp.asarray(0), seen.outputs[1])
    np.testing.assert_array_equal(found, 0)
