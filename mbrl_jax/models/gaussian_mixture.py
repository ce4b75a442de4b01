"""A mixture of Gaussians, by expectation maximisation (Dempster, Laird, Rubin, 1977).

Rows may be masked, and so are clusters: as many are used as there are rows for, the
others have a weight of 0.  So the shapes are the same for any number of rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import clusters, definite, normalize
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, Key


class Mixture(NamedTuple):
    log_weight: Array  # [K] -inf of a cluster that is not used
    mean: Array  # [K, D]
    cov: Array  # [K, D, D]


def fit(
    key: Key,
    rows: Array,
    valid: Array,
    *,
    num_clusters: int = 20,
    rows_per_cluster: int = 20,
    num_iterations: int = 20,
) -> Mixture:
    """Of the rows [N, D] where `valid` [N], which are to be finite.

    Centres begin far from each other (k-means++, Arthur and Vassilvitskii, 2007), and
    with the covariance of all rows.  Covariances get a small ridge, in the units of the
    rows' own deviations.
    """
    rows = floats("gaussian_mixture.fit", rows)
    stats = normalize.statistics(rows, valid)
    rows = jnp.where(valid[:, None], (rows - stats.mean[None]) / stats.std[None], 0)
    num_rows, size = jnp.maximum(valid.sum(), 1), rows.shape[1]
    ridge = jnp.finfo(rows.dtype).eps ** (2 / 3) * jnp.eye(size, dtype=rows.dtype)
    used = jnp.arange(num_clusters) < jnp.maximum(num_rows // rows_per_cluster, 1)

    def improve(mixture: Mixture, _: None) -> tuple[Mixture, None]:
        weight = responsibilities(mixture, rows) * valid[:, None]  # [N, K]
        number = weight.sum(axis=0)
        share = weight / jnp.where(number > 0, number, 1)[None]
        mean = share.T @ rows
        gap = rows[None] - mean[:, None]  # [K, N, D]
        cov = jnp.einsum("nk,kni,knj->kij", share, gap, gap) + ridge[None]
        new = Mixture(jnp.log(number / num_rows), mean, cov)

        def keep(new: Array, old: Array, where: Array) -> Array:
            return jnp.where(where.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

        empty, none = number == 0, jnp.tile(~valid.any(), num_clusters)
        return Mixture(*map(keep, new, mixture, (none, empty, empty))), None

    covs = jnp.tile((rows.T @ rows / num_rows + ridge)[None], (num_clusters, 1, 1))
    log_weight = jnp.where(used, -jnp.log(used.sum()), -jnp.inf).astype(rows.dtype)
    start = Mixture(log_weight, clusters.apart(key, rows, valid, num_clusters), covs)
    found, _ = jax.lax.scan(improve, start, length=num_iterations)
    return Mixture(
        found.log_weight,
        found.mean * stats.std[None] + stats.mean[None],
        found.cov * jnp.outer(stats.std, stats.std)[None],
    )


def responsibilities(mixture: Mixture, rows: Array) -> Array:
    """The probability of each cluster, given each of the rows [N, D]: [N, K]."""
    return jax.nn.softmax(_joint_log_density(mixture, rows), axis=1)


def log_density(mixture: Mixture, rows: Array) -> Array:
    """Of each of the rows [N, D]: [N]."""
    return jax.nn.logsumexp(_joint_log_density(mixture, rows), axis=1)


def moments(mixture: Mixture, rows: Array, valid: Array) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of the clusters that the rows [N, D] belong to, in
    these shares; of all clusters if none is `valid` [N]."""
    every = jnp.where(valid[:, None], responsibilities(mixture, rows), 0)
    share = every.sum(axis=0) / jnp.maximum(valid.sum(), 1)
    share = jnp.where(valid.any(), share, jnp.exp(mixture.log_weight))
    mean = share @ mixture.mean
    gap = mixture.mean - mean[None]
    within = jnp.einsum("k,kij->ij", share, mixture.cov)
    return mean, within + jnp.einsum("k,ki,kj->ij", share, gap, gap)


def _joint_log_density(mixture: Mixture, rows: Array) -> Array:
    """log p(cluster, row), [N, K]."""
    precision, log_det = jax.vmap(definite.inverse)(mixture.cov)
    gap = rows[:, None] - mixture.mean[None]  # [N, K, D]
    distance = jnp.einsum("nki,kij,nkj->nk", gap, precision, gap)
    constant = mixture.log_weight - (log_det + rows.shape[1] * jnp.log(2 * jnp.pi)) / 2
    return constant[None] - distance / 2
