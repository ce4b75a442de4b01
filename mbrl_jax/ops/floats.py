"""Numbers as given, of any kind, in one float type."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def floats(function: str, tree: Any) -> Any:
    """All leaves as arrays of the float type that they lead to together.

    Integers, NumPy's float64 and plain Python numbers become what floats are here:
    float32, or float64 where jax is in that mode or a leaf is.  Raises TypeError,
    naming `function`, for complex numbers and what is no number.
    """
    is_list = lambda x: isinstance(x, list)  # as a matrix may be written
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_list)
    leaves = [np.asarray(x) if is_list(x) else x for x in leaves]
    for leaf in leaves:
        kind = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not (
            jnp.issubdtype(kind, jnp.floating)
            or jnp.issubdtype(kind, jnp.integer)
            or jnp.issubdtype(kind, jnp.bool_)
        ):
            raise TypeError(f"{function} takes real numbers, not {kind}")
    dtype = jnp.result_type(*leaves, float)
    return jax.tree.unflatten(structure, [jnp.asarray(x, dtype) for x in leaves])
