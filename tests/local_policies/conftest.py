"""Random systems for the tests of local policies."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.local_policies.controllers import Controller, System
from mbrl_jax.planners.lqg import Belief
from tests import lqr_problems


@pytest.fixture
def random_system() -> Callable[..., tuple[System, Controller]]:
    """(seed, horizon, least curvature of the costs) -> a system, and one that acts."""
    return _random_system


def _random_system(
    seed: int, horizon: int, least: float = 0.1, O: int = 3, A: int = 2
) -> tuple[System, Controller]:
    rng = np.random.default_rng(seed)

    def definite(number: int, size: int, least: float) -> np.ndarray:
        root = rng.normal(size=(number, size, size)) / np.sqrt(size)
        return root @ root.transpose(0, 2, 1) + least * np.eye(size)

    costs = definite(horizon + 1, O + A, least)
    problem = lqr_problems.drawn(rng, costs, O, A)
    start = Belief(rng.normal(size=O), definite(1, O, 0.1)[0])
    system = System(problem, 0.1 * definite(horizon, O, 0.1), start)
    controller = Controller(
        0.3 * rng.normal(size=(horizon, A, O)),
        rng.normal(size=(horizon, A)),
        definite(horizon, A, 0.1),
    )
    return jax.tree.map(jnp.asarray, (system, controller))
