"""Episodes of pictures: what is kept, and which triples are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.models import footage
from mbrl_jax.models.footage import Footage

pytestmark = pytest.mark.usefixtures("double")


def made(valid: np.ndarray) -> Footage:
    """Pictures of one pixel, whose grey is 100 times the episode plus the time."""
    E, T = valid.shape
    grey = 100.0 * np.arange(E)[:, None] + np.arange(T)[None]
    return jax.tree.map(
        jnp.asarray, Footage(grey[..., None, None, None], grey[..., None], valid)
    )


def test_the_newest_are_first_and_the_oldest_go():
    empty = footage.none(3, 4, (1, 1, 1), 1)
    assert not empty.valid.any()
    one = made(np.ones((2, 4), bool))
    twice = footage.append(footage.append(empty, one), one._replace(action=-one.action))
    assert twice.valid.all()
    np.testing.assert_array_equal(twice.action[:2], -one.action)
    np.testing.assert_array_equal(twice.action[2], one.action[0])
    once = footage.append(empty, one)
    np.testing.assert_array_equal(once.valid.all(axis=1), [True, True, False])


def test_triples_are_three_valid_pictures_in_a_row():
    valid = np.ones((4, 6), bool)
    valid[1, 2], valid[2], valid[3, 3:] = False, False, False
    found = footage.triples(jax.random.key(0), made(valid), 500)
    assert found.shape == (500, 3, 1, 1, 1)
    rows = np.asarray(found)[..., 0, 0, 0]
    np.testing.assert_array_equal(rows[:, 1:], rows[:, :1] + [[1, 2]])
    begins = {0, 1, 2, 3, 103, 300}
    assert set(rows[:, 0]) == begins
    counts = np.unique(rows[:, 0], return_counts=True)[1]
    assert counts.min() > 0.5 * 500 / len(begins)
    where = np.argwhere(footage.in_a_row(made(valid)))
    assert {100 * i + j for i, j in where} == begins


def test_statistics_are_of_valid_pixels():
    rng = np.random.default_rng(0)
    image, valid = rng.uniform(size=(3, 4, 2, 2, 3)), rng.uniform(size=(3, 4)) < 0.5
    found = footage.statistics(Footage(image, image[..., 0, 0, :1], jnp.asarray(valid)))
    pixels = image[valid].reshape(-1, 3)
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0))
    np.testing.assert_allclose(found.std, pixels.std(axis=0))
