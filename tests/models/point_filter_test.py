"""Points followed from picture to picture: against numpy, and where nothing is seen."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.models import point_filter
from mbrl_jax.models.point_filter import Config, Track
from mbrl_jax.models.spatial_autoencoder import Points

pytestmark = pytest.mark.usefixtures("double")

CONFIG = Config(least_presence=0.3, acceleration_std=0.02, place_std=0.05)


def run(places: np.ndarray, presence: np.ndarray, config: Config = CONFIG) -> Track:
    """The tracks [T, ...] of places [T, P, 2]."""

    def step(track: Track, points: Points) -> tuple[Track, Track]:
        track = point_filter.follow(track, points, config)
        return track, track

    def go(points: Points) -> Track:
        first = point_filter.start(jax.tree.map(lambda x: x[0], points), config)
        rest = jax.lax.scan(step, first, jax.tree.map(lambda x: x[1:], points))[1]
        return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)

    points = Points(jnp.asarray(places), jnp.asarray(presence))
    return jax.tree.map(np.asarray, jax.jit(go)(points))


def test_it_is_the_kalman_filter():
    """In numpy, for each point and coordinate, with points that come and go."""
    rng = np.random.default_rng(0)
    places, presence = rng.normal(size=(12, 3, 2)), rng.uniform(size=(12, 3))
    found = run(places, presence)
    A, C = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]])
    push = 0.02 * np.array([[0.5], [1.0]])
    for p in range(3):
        for i in range(2):
            mean = np.array([places[0, p, i], 0.0])
            cov = np.diag([1.0, 0.02**2])
            for t in range(12):
                if t:
                    mean, cov = A @ mean, A @ cov @ A.T + push @ push.T
                if presence[t, p] >= 0.3:
                    gain = cov @ C.T / (C @ cov @ C.T + 0.05**2)
                    mean = mean + gain[:, 0] * (places[t, p, i] - mean[0])
                    cov = cov - gain @ C @ cov
                np.testing.assert_allclose(found.mean[t, p, :, i], mean, atol=1e-10)
                np.testing.assert_allclose(found.cov[t, p], cov, atol=1e-10)


def test_what_is_not_seen_goes_on_as_it_went():
    """A straight way, hidden for four pictures in which something else is found."""
    velocity = np.array([0.03, -0.02])
    places = np.array([-0.5, 0.2]) + np.arange(24)[:, None, None] * velocity
    presence = np.ones((24, 1))
    shown, presence[18:22] = places.copy(), 0.1
    shown[18:22] = 0.9
    found = run(shown, presence)
    np.testing.assert_allclose(found.place[18:], places[18:], atol=0.005)
    np.testing.assert_allclose(found.velocity[18:, 0], [velocity] * 6, atol=0.002)
    trusting = run(shown, np.ones((24, 1)))
    assert np.abs(trusting.place[18:22] - places[18:22]).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"least_presence": 1.5}, "least_presence is 1.5, must be from 0 to 1"),
        ({"acceleration_std": 0.0}, "acceleration_std is 0.0, must be positive"),
        ({"place_std": 0.0}, "place_std is 0.0, must be positive"),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        point_filter.validate(dataclasses.replace(CONFIG, **change))
