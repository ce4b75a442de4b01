import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops.floats import floats


def test_whatever_numbers_they_are_they_get_one_float_type():
    given = (np.eye(2, dtype=int), [[1, 2]], 3, jnp.ones(2, jnp.uint8), np.float64(0.1))
    found = floats("f", given)
    assert all(x.dtype == jnp.float32 for x in found)
    for x, y in zip(given, found, strict=True):
        np.testing.assert_allclose(y, np.asarray(x))
    with jax.enable_x64(True):
        halves = jnp.ones(1, jnp.float32)
        assert floats("f", (halves, 1))[1].dtype == jnp.float32
        assert floats("f", (halves, np.ones(1)))[0].dtype == jnp.float64
        assert floats("f", 1).dtype == jnp.float64


@pytest.mark.parametrize("wrong", [1j, np.ones(2) * 1j, np.array(["a"]), "a"])
def test_what_is_no_real_number_is_refused(wrong):
    with pytest.raises(TypeError, match="f takes real numbers, not"):
        floats("f", (1.0, wrong))
