"""What the tests of linear-quadratic control share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.planners.lqr import LQRProblem
from tests import lqr_problems


@pytest.fixture
def random_problem() -> Callable[..., LQRProblem]:
    """(seed, horizon, O, A) -> a problem."""
    return _random_problem


def _random_problem(seed: int, horizon: int, O: int = 3, A: int = 2) -> LQRProblem:
    """Time-varying, with every term; the costs are jointly convex."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(horizon + 1, O + A, O + A))
    costs = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(O + A)
    return jax.tree.map(jnp.asarray, lqr_problems.drawn(rng, costs, O, A))
