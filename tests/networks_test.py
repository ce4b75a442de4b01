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


def test_a_trunk_is_all_but_the_last_layer():
    """Of a network that takes two inputs more, which do not count then."""
    network, x = networks.MLP((5, 4), 2), jnp.arange(3.0)
    params = network.init(jax.random.key(0), x)
    other = networks.MLP((5, 4), 6)
    trunk = other.init(jax.random.key(1), jnp.zeros(5))
    found = networks.with_trunk(params, trunk)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    np.testing.assert_allclose(
        networks.features(network, found, x),
        networks.features(other, trunk, jnp.append(x, jnp.zeros(2))),
        rtol=1e-6,
    )
    last = params["params"]["Dense_2"]
    assert found["params"]["Dense_2"] == last


@pytest.mark.parametrize(
    ("hidden_sizes", "num_inputs", "error"),
    [
        ((5,), 3, "3 layers cannot have a trunk of 2"),
        ((5, 3), 3, r"hidden layer 1 is \[5, 4\], of the trunk \[5, 3\]"),
        ((5, 4), 2, r"hidden layer 0 is \[3, 5\], of the trunk \[2, 5\]"),
    ],
)
def test_a_trunk_that_does_not_fit(hidden_sizes, num_inputs: int, error: str):
    params = networks.MLP((5, 4), 2).init(jax.random.key(0), jnp.zeros(3))
    other = networks.MLP(hidden_sizes, 2)
    trunk = other.init(jax.random.key(0), jnp.zeros(num_inputs))
    with pytest.raises(ValueError, match=error):
        networks.with_trunk(params, trunk)


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


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_a_convolution_is_that_of_lax(size: int, stride: int):
    """Padded by as much on both sides as the patch reaches."""
    network = networks.Convolution(4, size, stride)
    x = jax.random.normal(jax.random.key(0), (7, 6, 3))
    params = network.init(jax.random.key(1), x)
    params = jax.tree.map(lambda y: y + 0.1, params)
    layer, reach = params["params"]["Dense_0"], size // 2
    expected = jax.lax.conv_general_dilated(
        x[None],
        layer["kernel"].reshape(size, size, 3, 4),
        (stride, stride),
        [(reach, reach)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]
    found = network.apply(params, x)
    assert found.shape == (-(-7 // stride), -(-6 // stride), 4)
    np.testing.assert_allclose(found, expected + layer["bias"][None, None], rtol=1e-4)
