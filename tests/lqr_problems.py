"""Linear-quadratic problems for the tests of what solves them."""

import numpy as np

from mbrl_jax.planners.lqr import LQRProblem


def drawn(rng: np.random.Generator, costs: np.ndarray, O: int, A: int) -> LQRProblem:
    """Time-varying, with every term; `costs` [T + 1, O + A, O + A] of state and
    control."""
    horizon = len(costs) - 1
    return LQRProblem(
        A=rng.normal(size=(horizon, O, O)) / np.sqrt(O),
        B=rng.normal(size=(horizon, O, A)),
        c=rng.normal(size=(horizon, O)),
        Q=costs[:, :O, :O],
        S=costs[:-1, O:, :O],
        R=costs[:-1, O:, O:],
        q=rng.normal(size=(horizon + 1, O)),
        r=rng.normal(size=(horizon, A)),
        constant=rng.normal(size=horizon + 1),
    )
