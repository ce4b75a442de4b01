"""That the estimators agree, but for what is special of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.gradients import by_name, closed_loop
from mbrl_jax.gradients.closed_loop import DynamicalSystem, ExpectedReturn
from mbrl_jax.types import Array

pytestmark = pytest.mark.usefixtures("double")

KEY = jax.random.key(0)
NOISE = 0.3
each = pytest.mark.parametrize("name", by_name.ESTIMATORS)


def scattering() -> DynamicalSystem:
    """x' = x + action + noise, of two numbers."""
    density = lambda x, action, new: jax.scipy.stats.norm.logpdf(
        new, x + action, NOISE
    ).sum()
    return DynamicalSystem(
        reset=lambda key: 1 + NOISE * jax.random.normal(key, (2,)),
        step=lambda key, x, action: x + action + NOISE * jax.random.normal(key, (2,)),
        observe=lambda x: x,
        reward=lambda x, action, new: -jnp.square(new).sum(),
        terminal=lambda *moved: jnp.zeros((), bool),
        log_prob=density,
    )


@each
def test_every_estimator_has_the_same_gradient_on_average(name: str) -> None:
    """Of E sum_t -|x_t|^2 under the action k x: with g = 1 + k,
    E |x_t|^2 = g^2 E |x_t-1|^2 + 2 NOISE^2."""
    actor = closed_loop.deterministic(lambda k, x: k * x)
    problem, k = ExpectedReturn(scattering(), actor, horizon=3), jnp.array(-0.4)

    def exact(k: Array) -> Array:
        square, total = 2 * (1 + NOISE**2), jnp.zeros(())
        for _ in range(3):
            square = (1 + k) ** 2 * square + 2 * NOISE**2
            total -= square
        return total

    one = lambda key: by_name.ESTIMATORS[name](key, k, problem, 100)
    gradients, totals = jax.jit(jax.vmap(one))(jax.random.split(KEY, 200))
    value, slope = jax.value_and_grad(exact)(k)
    for found, expected in ((gradients, slope), (totals, value)):
        error = found.std() / np.sqrt(200)
        assert abs(found.mean() - expected) < 4 * error + 0.02 * abs(expected)
    assert gradients.std() > 0


def test_only_gaussian_resampling_takes_the_particles_for_gaussian() -> None:
    """Of points at -1 and 1, E x^4 is 1; of a Gaussian with their moments 3."""
    start = lambda key: jnp.sign(jax.random.normal(key, (1,)))
    quartic = lambda x, action, new: new[0] ** 4
    system = scattering()._replace(
        reset=start,
        step=lambda key, x, action: x + 1e-3 * jax.random.normal(key, (1,)),
        reward=quartic,
        log_prob=lambda x, action, new: -jnp.square(new - x).sum(),
    )
    actor = closed_loop.deterministic(lambda k, x: k * x)
    problem = ExpectedReturn(system, actor, horizon=1)
    for name, estimate in by_name.ESTIMATORS.items():
        _, total = estimate(KEY, jnp.array(0.0), problem, 4000)
        expected = 3 if name == "gaussian_resampling" else 1
        assert float(total) == pytest.approx(expected, rel=0.15)
