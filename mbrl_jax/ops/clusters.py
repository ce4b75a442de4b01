"""Clusters of rows: k-means, from centres that begin far from each other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ops import normalize
from mbrl_jax.types import Array, Key

FAR = 1e30  # squared distance from no centre at all


class Clusters(NamedTuple):
    centre: Array  # [K, D]
    scale: Array  # [D] distances are in units of it


def kmeans(
    key: Key, rows: Array, valid: Array, num_clusters: int, num_iterations: int = 20
) -> Clusters:
    """Of the rows [N, D] where `valid` [N] (Lloyd, 1982).

    Distances are in units of the rows' own deviations.  A centre that no row is nearest
    to stays.
    """
    stats = normalize.statistics(rows, valid)
    scaled = (rows - stats.mean[None]) / stats.std[None]
    rows = jnp.where(valid[:, None], scaled, 0)
    one = jnp.ones(rows.shape[1], rows.dtype)

    def improve(centre: Array, _: None) -> tuple[Array, None]:
        which = jax.vmap(lambda row: nearest(Clusters(centre, one), row))(rows)
        member = jax.nn.one_hot(which, num_clusters, axis=0) * valid[None]  # [K, N]
        number = member.sum(axis=1)
        mean = member @ rows / jnp.maximum(number, 1)[:, None]
        return jnp.where(number[:, None] > 0, mean, centre), None

    start = apart(key, rows, valid, num_clusters)
    centre, _ = jax.lax.scan(improve, start, length=num_iterations)
    return Clusters(centre * stats.std[None] + stats.mean[None], stats.std)


def nearest(clusters: Clusters, row: Array) -> Array:
    """The number [] of the cluster whose centre is nearest to a row [D]."""
    gap = (clusters.centre - row[None]) / clusters.scale[None]
    return jnp.square(gap).sum(axis=1).argmin().astype(jnp.int32)


def apart(key: Key, rows: Array, valid: Array, number: int) -> Array:
    """`number` of the rows [N, D], each likelier the farther from those before it
    (k-means++, Arthur and Vassilvitskii, 2007)."""

    def pick(nearest: Array, key: Key) -> tuple[Array, Array]:
        chances = jnp.where(valid, jnp.log(nearest), -jnp.inf)
        row = rows[jax.random.categorical(key, chances)]
        distance = jnp.square(rows - row[None]).sum(axis=1)
        return jnp.minimum(nearest, distance), row

    start = jnp.full(len(rows), FAR, rows.dtype)
    return jax.lax.scan(pick, start, jax.random.split(key, number))[1]
