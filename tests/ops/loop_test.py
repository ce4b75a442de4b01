"""The loop against Python's, and the work that it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops import loop

LENGTH = 7
STARTS = np.array([0.3, 1.5, 9.0, 2000.0], np.float32)  # 0, 1, 4 and, cut, 7 steps


def half(x):
    """Until at most 1, at most LENGTH times."""
    return loop.bounded(lambda x: x > 1, lambda x: x / 2, x, LENGTH)


def expected(x):
    """The result, and the number of steps."""
    number = 0
    while x > 1 and number < LENGTH:
        x, number = x / 2, number + 1
    return x, number


@pytest.mark.parametrize("batched", [False, True])
def test_value_and_both_derivatives(batched):
    along = lambda x: jax.jvp(half, (x,), (jnp.ones_like(x),))
    found = [half, jax.grad(half), lambda x: along(x)[1]]
    x = jnp.asarray(STARTS)
    over = jax.vmap if batched else lambda f: lambda x: jnp.stack([f(y) for y in x])
    values, *slopes = (over(f)(x) for f in found)
    results, numbers = zip(*map(expected, STARTS), strict=True)
    np.testing.assert_array_equal(values, results)
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0.5 ** np.array(numbers))


def test_two_batch_axes_are_as_one():
    square = jnp.asarray(STARTS).reshape(2, 2)
    twice = jax.vmap(jax.vmap(jax.grad(half)))(square)
    np.testing.assert_array_equal(
        twice.ravel(), jax.vmap(jax.grad(half))(square.ravel())
    )


@pytest.mark.parametrize(
    ("starts", "number"), [([0.1, 0.5], 0), ([0.1, 1.5], 1), ([9.0, 0.5], 4)]
)
def test_what_is_over_for_all_is_not_computed(starts, number):
    calls = []

    def body(x):
        jax.debug.callback(lambda: calls.append(1))
        return x / 2

    bounded = lambda x: loop.bounded(lambda x: x > 1, body, x, LENGTH)
    jax.block_until_ready(jax.jit(jax.vmap(bounded))(jnp.array(starts)))
    jax.effects_barrier()
    assert len(calls) == number


def test_what_is_over_does_not_become_nan():
    root = lambda x: loop.bounded(lambda x: x > 1, lambda x: jnp.sqrt(x), x, LENGTH)
    assert jax.vmap(root)(jnp.array([-1.0, 4.0]))[0] == -1


def test_a_report_of_what_is_left_out_is_0():
    body = lambda x: (x / 2, {"before": x, "number": jnp.int32(3)})
    run = jax.vmap(lambda due, x: loop.reporting(due, body, x))
    x, report = run(jnp.array([True, False]), jnp.array([8.0, 6.0]))
    np.testing.assert_array_equal(x, [4, 6])
    np.testing.assert_array_equal(report["before"], [8, 0])
    np.testing.assert_array_equal(report["number"], [3, 0])
    assert report["number"].dtype == jnp.int32
