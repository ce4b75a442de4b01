"""The model and the policy along real transitions, with the noise inferred."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import svg
from mbrl_jax.models import outcomes
from mbrl_jax.types import Array, Gaussian, Transition

WINDOW = Transition(
    obs=jnp.array([[0.3], [0.9], [-0.4]]),
    action=jnp.array([[0.2], [-0.7], [0.5]]),
    reward=jnp.array([1.0, -2.0, 0.5]),
    next_obs=jnp.array([[0.9], [-0.4], [1.3]]),
    terminal=jnp.zeros(3, bool),
    truncated=jnp.zeros(3, bool),
)


def gone_through(
    params: dict[str, Array], window: Transition, valid: Array, std: float = 0.3
) -> tuple[Array, Array, Array]:
    """The model: x' = sin(a x) + u; the policy: u = b x + noise; reward x' u + x."""

    def act(obs: Array, real: Array) -> Array:
        spread = jnp.exp(params["c"]) * jnp.ones(1)
        return svg._with_inferred_noise(Gaussian(params["b"] * obs, spread), real)

    def predict(obs: Array, action: Array) -> Gaussian:
        mean = jnp.sin(params["a"] * obs) + action
        return Gaussian(mean, std * (1 + obs**2))

    def decode(obs: Array, action: Array, y: Array) -> outcomes.Outcome:
        return outcomes.Outcome(y, y[0] * action[0] + obs[0], jnp.zeros((), bool))

    return svg._retrace(act, predict, decode, window, valid, 0.9)


@pytest.mark.parametrize("std", [0.3, 0.0])
def test_a_model_along_the_data_gives_the_data(std: float):
    """And its gradient is that of the rollout with the inferred noise held fixed."""
    params = {"a": jnp.array(1.3), "b": jnp.array(-0.4), "c": jnp.array(-0.2)}
    with jax.enable_x64(True):
        params, window = jax.tree.map(
            lambda x: x if x.dtype == bool else jnp.asarray(x, float), (params, WINDOW)
        )
        valid = jnp.ones(3, bool)
        total, weight, obs = gone_through(params, window, valid, std)
        x, u, y = (x[:, 0] for x in (window.obs, window.action, window.next_obs))
        rewards = y * u + x
        np.testing.assert_allclose(total, rewards @ 0.9 ** np.arange(3), rtol=1e-12)
        np.testing.assert_allclose((weight, obs[0]), (0.9**3, y[-1]), rtol=1e-12)

        act_noise = (u - params["b"] * x) / jnp.exp(params["c"])
        rest = y - jnp.sin(params["a"] * x) - u  # of std noise, which depends on x
        noise = rest / (std * (1 + x**2)) if std else jnp.zeros(3)

        def simulated(params: dict[str, Array]) -> Array:
            state, result = x[0], 0.0
            for t in range(3):
                action = params["b"] * state + jnp.exp(params["c"]) * act_noise[t]
                after = jnp.sin(params["a"] * state) + action
                after += std * (1 + state**2) * noise[t] if std else rest[t]
                result += 0.9**t * (after * action + state)
                state = after
            return result

        expected = jax.grad(simulated)(params)
        found = jax.grad(lambda params: gone_through(params, window, valid, std)[0])
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-9), found(params), expected
        )


def test_a_window_stops_where_it_is_not_valid_and_nothing_follows_an_end():
    params = {"a": jnp.array(1.3), "b": jnp.array(-0.4), "c": jnp.array(-0.2)}
    valid = jnp.array([True, True, False])
    total, weight, obs = gone_through(params, WINDOW, valid)
    first = jax.tree.map(lambda x: x[:2], WINDOW)
    expected = gone_through(params, first, valid[:2])
    jax.tree.map(np.testing.assert_array_equal, (total, weight, obs), expected)
    ended = WINDOW._replace(terminal=jnp.array([False, True, False]))
    again = gone_through(params, ended, valid)
    assert (again[0], again[1]) == (total, 0)
