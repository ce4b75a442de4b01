import jax
import jax.numpy as jnp
import pytest

from tests import keys

draw = jax.random.normal


def every_turn(key):
    one = lambda i, total: total + draw(jax.random.fold_in(key, i))
    return jax.lax.fori_loop(0, 3, one, 0.0)


def twice(key):
    return draw(key) + jax.random.uniform(key)


def twice_from_a_split(key):
    several = jax.random.split(key, 3)
    return draw(several[0]) + draw(several[0])


def twice_by_a_function(key):
    inner = jax.jit(lambda key: draw(key))
    return inner(key) + inner(key)


def drawn_from_and_folded(key):
    return draw(key) + draw(jax.random.fold_in(key, 1))


def split_and_folded_within(key):
    return every_turn(key) + draw(jax.random.split(key)[0])


def used_and_given_back(key):
    return draw(key), key


def each_once(key):
    first, second, third = jax.random.split(key, 3)
    either = lambda key: jax.lax.cond(True, draw, jax.random.uniform, key)
    many = jax.vmap(draw)(jax.random.split(second, 3))
    return every_turn(first) + many.sum() + either(third)


def the_same_draws_are_meant(key):
    shared = jnp.zeros(3) + draw(jax.random.clone(key))
    return shared + draw(jax.random.clone(key))


def trace(function):
    return jax.jit(function).trace(jax.random.key(0)).jaxpr


@pytest.mark.parametrize(
    "function",
    [
        twice,
        twice_from_a_split,
        twice_by_a_function,
        drawn_from_and_folded,
        split_and_folded_within,
        used_and_given_back,
    ],
)
def test_what_is_not_independent_is_found(function):
    with pytest.raises(AssertionError, match="used"):
        keys.check(trace(function))


@pytest.mark.parametrize("function", [every_turn, each_once, the_same_draws_are_meant])
def test_what_is_fine_is_let_pass(function):
    keys.check(trace(function))
