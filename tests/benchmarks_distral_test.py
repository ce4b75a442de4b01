"""What the benchmark of Distral makes of returns and of a centroid."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import distral
from mbrl_jax.algorithms import distral as algorithm
from mbrl_jax.networks import MLP


def test_steps_until_the_return_is_good_enough():
    good, bad = distral.ENOUGH + 0.1, distral.ENOUGH - 0.1
    returns = [[bad, bad, good], [good, bad, bad], [bad, bad, good]]
    curve = {"env_steps": [10, 20, 30], "return": returns}
    np.testing.assert_array_equal(distral.until_enough(curve), [20, np.inf, 10])


def test_who_repeats_the_last_action_goes_on():
    """By a centroid whose logits are log 2 more for it, of four; and in no seed by one
    that knows nothing."""
    params = MLP((), 4).init(jax.random.key(0), jnp.zeros(104))
    zeros = jax.tree.map(jnp.zeros_like, params)
    kernel = zeros["params"]["Dense_0"]["kernel"].at[100:].set(jnp.log(2) * jnp.eye(4))
    repeats = {"params": {"Dense_0": {**zeros["params"]["Dense_0"], "kernel": kernel}}}
    both = jax.tree.map(lambda x, y: jnp.stack([x, y]), repeats, zeros)
    state = algorithm.State(None, both, None, None)  # type: ignore[arg-type]
    np.testing.assert_allclose(distral.goes_on(state), [2 / 5, 1 / 4], rtol=1e-6)
