"""The spatial autoencoder: its points and its loss by hand, what its decoder sees."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import optimizers
from mbrl_jax.models import footage, spatial_autoencoder
from mbrl_jax.models.footage import Footage
from mbrl_jax.models.spatial_autoencoder import Config
from mbrl_jax.networks import Convolution
from mbrl_jax.ops import spatial
from mbrl_jax.ops.normalize import Statistics

pytestmark = pytest.mark.usefixtures("double")

SIZE, P = 8, 3
CONFIG = Config(
    num_points=P,
    channels=(4, 5),
    kernel_sizes=(3, 3, 1),
    stride=1,
    temperature=0.5,
    decoded_size=4,
    slowness=0.7,
    decay=0.2,
    reach=0.3,
)


def drawn(channels: int = 1) -> tuple[Any, Statistics, np.ndarray]:
    """Parameters, units, and three pictures."""
    rng = np.random.default_rng(0)
    model = spatial_autoencoder.make((SIZE, SIZE, channels), CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), shapes)
    units = Statistics(rng.uniform(size=channels), rng.uniform(0.2, 0.4, channels))
    return params, units, rng.uniform(size=(3, SIZE, SIZE, channels))


def test_the_loss_by_hand():
    """Means over the three pictures of squares summed over pixels, in units of the
    pixels; the places' second difference, and the decoder's weights."""
    params, units, images = drawn()
    model = spatial_autoencoder.make((SIZE, SIZE, 1), CONFIG)
    total, terms = jax.jit(model.loss)(params, units, images)
    points = [model.encode(params, units, x) for x in images]
    places = np.stack([x.place for x in points])
    kernel = params["decoder"]["params"]["kernel"]
    bias = params["decoder"]["params"]["bias"]
    small = images[..., 0].reshape(3, 4, 2, 4, 2).mean(axis=(2, 4))
    aims = (small - units.mean[0]) / units.std[0]
    said = places.reshape(3, -1) @ kernel + bias
    expected = {
        "reconstruction": ((said.reshape(3, 4, 4) - aims) ** 2).sum() / 3,
        "slowness": 0.7 * ((places[2] - 2 * places[1] + places[0]) ** 2).sum(),
        "decay": 0.2 * (kernel**2).sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-7)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-7)
    grey = model.decode(params, units, places[0])
    decoded = units.mean[0] + units.std[0] * said[0].reshape(4, 4)
    np.testing.assert_allclose(grey, decoded, rtol=1e-9)


def test_points_are_those_of_the_scores_in_their_temperature():
    """Which is learned, as a logarithm."""
    params, units, images = drawn(3)
    model = spatial_autoencoder.make((SIZE, SIZE, 3), CONFIG)
    found = model.encode(params, units, images[0])
    x = (images[0] - units.mean) / units.std
    layers = params["scores"]["params"]
    for i, (channels, size) in enumerate(
        zip((4, 5, P), CONFIG.kernel_sizes, strict=True)
    ):
        own = {"params": layers[f"Convolution_{i}"]}
        x = np.maximum(x, 0) if i else x
        x = np.asarray(
            Convolution(channels, size, bias=i < 2).apply(own, jnp.asarray(x))
        )
    for i in range(P):
        mass = np.exp(x[..., i] / np.exp(params["log_temperature"]))
        mass = jnp.asarray(mass / mass.sum())
        place = spatial.expected_place(mass)
        np.testing.assert_allclose(found.place[i], place, rtol=1e-7)
        expected = spatial.presence(mass, place, 0.3)
        np.testing.assert_allclose(found.presence[i], expected, rtol=1e-7)
    first = model.init(jax.random.key(0))["log_temperature"]
    np.testing.assert_allclose(first, np.log(0.5), rtol=1e-7)


def test_the_decoder_sees_the_points_alone():
    """And is linear: what is drawn between two sets of points is half of both."""
    params, units, images = drawn()
    model = spatial_autoencoder.make((SIZE, SIZE, 1), CONFIG)
    places = [np.asarray(model.encode(params, units, x).place) for x in images[:2]]
    ends = [np.asarray(model.decode(params, units, x)) for x in places]
    middle = model.decode(params, units, (places[0] + places[1]) / 2)
    np.testing.assert_allclose(middle, (ends[0] + ends[1]) / 2, rtol=1e-9)
    assert params["decoder"]["params"]["kernel"].shape == (2 * P, 16)


def test_grey_is_the_luminance_and_small_pictures_are_means():
    colour = np.array(
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0], [1, 1, 1]]]
    )
    grey = spatial_autoencoder.grey(jnp.asarray(colour))
    np.testing.assert_allclose(grey, [[0.299, 0.587], [0.114, 1.0]])
    np.testing.assert_allclose(spatial_autoencoder.downsampled(grey, 1), [[0.5]])
    one = spatial_autoencoder.grey(jnp.asarray(colour[..., :1]))
    np.testing.assert_array_equal(one, colour[..., 0])


@pytest.mark.slow
def test_a_fit_goes_down_the_loss_and_finds_a_square():
    """That goes straight through pictures of 8 by 8: its place is a linear function of
    the points, within half a pixel."""
    rng = np.random.default_rng(3)
    start, way = rng.uniform(2, 4, (40, 1, 2)), rng.uniform(-0.5, 0.5, (40, 1, 2))
    centre = start + way * np.arange(5)[None, :, None]  # pixels from the top left
    pixel = np.arange(SIZE)
    near = lambda c: np.clip(1.5 - np.abs(pixel - c[..., None]), 0, 1)
    image = near(centre[..., 1])[..., :, None] * near(centre[..., 0])[..., None, :]
    seen = Footage(image[..., None], np.zeros((40, 5, 1)), np.ones((40, 5), bool))
    config = dataclasses.replace(CONFIG, slowness=10.0, decay=0.01)
    model = spatial_autoencoder.make((SIZE, SIZE, 1), config)
    optimizer = optimizers.clipped_adam(1e-2, 1e3)

    @jax.jit
    def run(seen: Footage) -> Any:
        params = model.init(jax.random.key(0))
        fit = lambda key, params, number: spatial_autoencoder.fit(
            key,
            model,
            optimizer,
            params,
            optimizer.init(params),
            seen,
            num_updates=number,
            batch_size=8,
        )
        first = fit(jax.random.key(1), params, 1)[2]
        params, _, last = fit(jax.random.key(2), params, 300)
        units = footage.statistics(seen)
        encode = lambda x: model.encode(params, units, x).place.ravel()
        return first, last, jax.vmap(jax.vmap(encode))(seen.image)

    first, last, places = run(jax.tree.map(jnp.asarray, seen))
    assert last["reconstruction"] < 0.8 * first["reconstruction"]
    inputs = np.concatenate([np.reshape(places, (200, -1)), np.ones((200, 1))], axis=1)
    aims = centre.reshape(200, 2)
    gain = np.linalg.lstsq(inputs, aims, rcond=None)[0]
    assert (
        np.abs(inputs @ gain - aims).mean() < 0.25 * np.abs(aims - aims.mean(0)).mean()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_points": 0}, "num_points is 0, must be at least 1"),
        ({"slowness": -1.0}, "slowness is -1.0, must be at least 0"),
        ({"decay": -1.0}, "decay is -1.0, must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0, must be positive"),
        ({"reach": 0.0}, "reach is 0.0, must be positive"),
        ({"kernel_sizes": (3, 3)}, "kernel_sizes are 2, must be one more than the 2"),
        ({"kernel_sizes": (3, 4, 1)}, "kernel_sizes has 4, must be odd"),
        ({"decoded_size": 3}, "decoded_size is 3, must divide the 8 and 8 pixels"),
        ({"stride": 3}, "stride is 3, must divide the 8 and 8 pixels"),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        spatial_autoencoder.make((SIZE, SIZE, 1), dataclasses.replace(CONFIG, **change))


def test_pictures_are_grey_or_in_colour():
    with pytest.raises(ValueError, match="pictures have 2 channels, must have 1 or 3"):
        spatial_autoencoder.make((SIZE, SIZE, 2), CONFIG)
