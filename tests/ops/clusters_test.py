import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from mbrl_jax.ops import clusters

CENTRES = np.array([[0.0, 0.0], [300.0, 0.02], [0.0, 0.04], [300.0, 0.05]])


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Around four centres; the second column is as telling, in another unit."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 2)) * [20.0, 0.004]
    return CENTRES[rng.integers(4, size=200)] + noise


def test_it_is_the_k_means_of_scikit_learn(rows: np.ndarray):
    """Of standardised rows; those that are not valid may be anything."""
    more = np.concatenate([rows, np.full((50, 2), np.nan), np.full((50, 2), 1e8)])
    valid = np.arange(300) < 200
    found = jax.jit(clusters.kmeans, static_argnums=3)(
        jax.random.key(0), jnp.array(more, jnp.float32), valid, 4
    )
    std = rows.std(axis=0)
    np.testing.assert_allclose(found.scale, std, rtol=1e-4)
    oracle = KMeans(4, n_init=10, random_state=0).fit(rows / std)
    expected = oracle.cluster_centers_ * std
    in_order = lambda x: x[np.lexsort(np.round(x / std).T)]
    np.testing.assert_allclose(
        in_order(np.asarray(found.centre)) / std, in_order(expected) / std, atol=1e-4
    )
    which = jax.vmap(lambda row: clusters.nearest(found, row))(
        jnp.array(rows, jnp.float32)
    )
    for number in range(4):  # the same rows together, whatever the number
        assert len(set(oracle.labels_[np.asarray(which) == number])) == 1


def test_nearest_is_by_scaled_distance():
    some = clusters.Clusters(jnp.array([[0.0, 0.0], [4.0, 1.0]]), jnp.array([1.0, 0.1]))
    assert clusters.nearest(some, jnp.array([1.0, 0.9])) == 1
    assert clusters.nearest(some, jnp.array([3.0, 0.1])) == 0
    assert clusters.nearest(some, jnp.array([1.0, 0.4])) == 0


def test_a_centre_without_rows_stays():
    rows = jnp.tile(jnp.array([[2.0, 3.0]]), (5, 1))
    found = clusters.kmeans(jax.random.key(0), rows, jnp.ones(5, bool), 3)
    np.testing.assert_allclose(found.centre, np.tile([[2.0, 3.0]], (3, 1)))
    assert clusters.nearest(found, rows[0]) == 0
