"""What the benchmark of Actor-Mimic makes of returns and of networks."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import actor_mimic
from mbrl_jax.networks import MLP


def test_steps_until_the_return_is_good_enough():
    """Of three seeds, one of which it never is."""
    good, bad = actor_mimic.ENOUGH + 0.1, actor_mimic.ENOUGH - 0.1
    found = actor_mimic.until_enough(
        np.array([[bad, bad, good], [good, bad, bad], [bad, bad, good]])
    )
    last = actor_mimic.NUM_POINTS
    np.testing.assert_array_equal(found, actor_mimic.EVERY * np.array([2, last, 1]))


def test_parameters_are_those_of_the_network():
    params = MLP((10,), 12).init(jax.random.key(0), jnp.zeros(28))
    assert actor_mimic.num_params(params) == 422
    assert actor_mimic.num_params({"network": params, "maps": [jnp.zeros(9)]}) == 422
