import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import networks


def test_silu_is_flax_silu():
    x = jnp.linspace(-20, 20, 401)
    np.testing.assert_allclose(networks.silu(x), nn.silu(x), atol=1e-5)


def test_an_mlp_is_matrices_and_activations():
    network, x = networks.MLP((5, 4), 2), jnp.arange(3.0)
    params = network.init(jax.random.key(0), x)
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    assert [layer["kernel"].shape for layer in layers] == [(3, 5), (5, 4), (4, 2)]
    y = np.asarray(x)
    for i, layer in enumerate(layers):
        y = y @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        y = y / (1 + np.exp(-y)) if i < 2 else y
    np.testing.assert_allclose(network.apply(params, x), y, rtol=1e-5)


def test_weights_start_within_two_standard_deviations():
    """PETS: 1 / (2 sqrt(inputs)), which is that of the normal before truncation."""
    network = networks.MLP((400,), 3)
    params = network.init(jax.random.key(0), jnp.zeros(100))["params"]
    kernel = np.asarray(params["Dense_0"]["kernel"])
    assert kernel.std() == pytest.approx(0.05, rel=0.05)
    assert np.abs(kernel).max() < 2.3 * kernel.std()
    assert not params["Dense_0"]["bias"].any()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_log_variances_stay_between_their_bounds(scale: float):
    network = networks.GaussianMLP((8,), 3, min_log_var=-4.0, max_log_var=1.0)
    params = network.init(jax.random.key(0), jnp.zeros(2))
    x = scale * jax.random.normal(jax.random.key(1), (50, 2))
    mean, log_var = network.apply(params, x)
    assert mean.shape == log_var.shape == (50, 3)
    assert (log_var >= -4).all()
    assert (log_var <= 1.01).all()
    if scale == 1e4:
        assert log_var.min() < -3.9
        assert log_var.max() > 0.9
