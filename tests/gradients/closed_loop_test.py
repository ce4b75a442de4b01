"""Systems to optimise in: a model's density, and what cannot be one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax import envs
from mbrl_jax.gradients import closed_loop
from mbrl_jax.types import Array, Gaussian, Model

pytestmark = pytest.mark.usefixtures("double")
STD, SHIFT = 0.1, 0.3  # of two members


def test_the_density_of_a_model_is_the_mixture_of_its_members():
    """Which also predict a third number, without noise."""

    def predict(member: Array, obs: Array, action: Array) -> Gaussian:
        mean = 0.9 * obs + action + member * SHIFT
        std = jnp.array([STD, STD, 0.0])
        return Gaussian(jnp.append(mean, -1.0), std)

    no = lambda *_: None
    model = Model(no, no, lambda state: state, predict)
    system = closed_loop.from_model(
        model, jnp.arange(2.0), no, starts=jnp.ones((1, 2)), action_size=1
    )
    y, action = np.array([0.5, -0.2, 0.0]), np.array([0.7])

    @jax.jit
    @jax.vmap
    def draw(key: Array) -> tuple[Array, Array]:
        after = system.step(key, y, action)
        return after, system.log_prob(y, action, after)

    states, log_prob = draw(jax.random.split(jax.random.key(0), 2000))
    states = np.asarray(states[:, :2])
    mean = 0.9 * y[:2] + action
    each_member = [
        scipy.stats.norm.pdf(states, mean + shift, STD).prod(axis=1)
        for shift in (0.0, SHIFT)
    ]
    np.testing.assert_allclose(
        np.exp(log_prob), np.mean(each_member, axis=0), rtol=1e-9
    )
    above = (states > mean + SHIFT / 2).mean()
    assert 0.45 < above < 0.55  # both members are asked


def test_an_environment_on_the_host_has_no_gradient():
    env = envs.make("pendulum")._replace(host=True)
    with pytest.raises(ValueError, match="pendulum steps outside jax"):
        closed_loop.from_env(env)
