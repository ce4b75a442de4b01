"""The search against closed forms, scipy, and what breaks searches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from mbrl_jax.ops import bfgs
from mbrl_jax.types import Array

pytestmark = pytest.mark.usefixtures("double")


def rosenbrock(x: Array) -> Array:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_a_quadratic_takes_few_steps_in_any_unit() -> None:
    """Its inverse is learned: the conditions of these problems are 1e2 and 1e8."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    for spread in (1, 4):
        matrix = basis @ np.diag(10.0 ** np.linspace(-spread, spread, 6)) @ basis.T
        place = rng.normal(size=6)
        loss = lambda x, A=matrix, b=place: (x - b) @ A @ (x - b) / 2
        found = jax.jit(lambda x, f=loss: bfgs.minimise(f, x, 200, 1e-9))(jnp.zeros(6))
        np.testing.assert_allclose(found.params, place, atol=1e-4)
        assert found.num_evaluations < 100


def test_a_long_valley_as_scipy_finds_its_end() -> None:
    start = jnp.array([-1.2, 1.0, -0.5, 0.8])
    found = bfgs.minimise(rosenbrock, start, 300, 1e-8)
    theirs = optimize.minimize(
        lambda x: float(rosenbrock(jnp.array(x))),
        np.array(start),
        jac=lambda x: np.array(jax.grad(rosenbrock)(jnp.array(x))),
        method="BFGS",
    )
    np.testing.assert_allclose(found.params, theirs.x, atol=1e-4)
    assert found.loss < 1e-10
    assert found.gradient_norm < 1e-8
    assert found.num_evaluations < 3 * theirs.nfev


def test_one_steep_direction_does_not_shorten_the_steps_along_others() -> None:
    """As in the search for PILCO's policies: it comes first, and says nothing of them.

    Scipy needs 25 evaluations, a first estimate by Nocedal and Wright's Eq. (6.20) 215.
    """
    curvature = jnp.append(jnp.linspace(0.1, 1, 19), 1e4)
    start = jnp.zeros(20).at[-1].set(0.9)
    loss = lambda x: (curvature * (x - 1) ** 2).sum() / 2
    assert bfgs.minimise(loss, start, 40).loss < 1e-6


def test_the_unit_of_the_loss_makes_little_difference() -> None:
    """Steps of the size of the gradient get lost where that is 1e6."""
    start = jnp.array([-1.2, 1.0, -0.5, 0.8])
    for unit in (1e-4, 1e4):
        found = bfgs.minimise(lambda x, u=unit: u * rosenbrock(x), start, 150, 1e-8)
        np.testing.assert_allclose(found.params, 1, atol=1e-4)


def test_it_never_takes_more_evaluations_nor_a_higher_point() -> None:
    start = jnp.array([-1.2, 1.0, -0.5, 0.8])
    losses = [
        float(bfgs.minimise(rosenbrock, start, n).loss) for n in (1, 2, 5, 10, 20, 40)
    ]
    assert losses[0] == rosenbrock(start)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 10
    assert bfgs.minimise(rosenbrock, start, 7).num_evaluations == 7


def test_what_is_not_finite_is_too_long_a_step() -> None:
    """log x - 2 x is NaN below 0, where the first step from 3 leads."""
    loss = lambda x: -(jnp.log(x["x"]) - 2 * x["x"]).sum()
    found = bfgs.minimise(loss, {"x": jnp.array([3.0, 0.01])}, 100)
    np.testing.assert_allclose(found.params["x"], 0.5, atol=1e-4)
    hopeless = bfgs.minimise(lambda x: jnp.log(x - 9).sum(), jnp.zeros(2), 100)
    assert hopeless.loss == jnp.inf
    np.testing.assert_array_equal(hopeless.params, 0)


def test_a_kink_ends_the_search_at_the_kink() -> None:
    found = bfgs.minimise(lambda x: jnp.abs(x - 0.3).sum(), jnp.array([2.0]), 300)
    np.testing.assert_allclose(found.params, 0.3, atol=1e-3)
    assert found.num_evaluations < 300


def test_several_searches_do_not_disturb_each_other() -> None:
    starts = jnp.array([[-1.2, 1.0], [0.5, 2.0], [1.0, 1.0]])
    one = lambda x: bfgs.minimise(rosenbrock, x, 100)
    every = jax.vmap(one)(starts)
    for i, start in enumerate(starts):
        alone = one(start)
        np.testing.assert_allclose(every.params[i], alone.params, atol=1e-6)
        assert every.num_evaluations[i] == alone.num_evaluations
    few = jax.vmap(lambda x: bfgs.minimise(rosenbrock, x, 3))(starts)
    best = bfgs.best(few)
    np.testing.assert_array_equal(best.params, [1, 1])
    assert best.num_evaluations == few.num_evaluations.sum()
