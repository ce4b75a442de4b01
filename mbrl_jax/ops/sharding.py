"""One large computation over many devices, where the caller has said so.

    with jax.set_mesh(sharding.mesh()):
        state, metrics = jax.jit(algorithm.step)(key, state)

Without a mesh everything here is plain `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mbrl_jax.types import PyTree

AXIS = "example"


def mesh() -> Mesh:
    """All devices of this process, along one axis."""
    return Mesh(np.asarray(jax.local_devices()), AXIS)


def vmap(function: Callable[[Any], PyTree]) -> Callable[[Any], PyTree]:
    """`jax.vmap` of a function of one argument, shared by the devices of the mesh.

    Examples that the devices do not divide are filled up with copies of the last one.
    """

    def mapped(examples: Any) -> PyTree:
        current = jax.sharding.get_abstract_mesh()
        if AXIS not in current.axis_names:
            return jax.vmap(function)(examples)
        num_examples = len(jax.tree.leaves(examples)[0])
        num_missing = -num_examples % current.shape[AXIS]

        def spread(x: jax.Array) -> jax.Array:
            x = jnp.concatenate([x, jnp.repeat(x[-1:], num_missing, axis=0)])
            return jax.lax.with_sharding_constraint(x, PartitionSpec(AXIS))

        results = jax.vmap(function)(jax.tree.map(spread, examples))
        return jax.tree.map(lambda x: x[:num_examples], results)

    return mapped
