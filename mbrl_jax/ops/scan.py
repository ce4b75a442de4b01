"""A scan whose reverse mode needs memory for the square root of its length."""

from collections.abc import Callable
from typing import Any

import jax

from mbrl_jax.types import PyTree


def checkpointed(
    body: Callable[[Any, Any], tuple[Any, PyTree]], carry: Any, xs: PyTree, segment: int
) -> tuple[Any, PyTree]:
    """`jax.lax.scan(body, carry, xs)`; its gradient keeps every `segment`-th carry.

    What lies between is computed again, a segment at a time, so that memory is that of
    length / segment carries and of the intermediate values of `segment` steps: least
    where `segment` is near the square root of the length.  It costs one more run of
    `body`.  0 keeps everything.  (Chen et al., "Training deep nets with sublinear
    memory cost", 2016, Sec. 4.)
    """
    if segment == 0:
        return jax.lax.scan(body, carry, xs)

    @jax.checkpoint
    def run(carry: Any, xs: PyTree) -> tuple[Any, PyTree]:
        return jax.lax.scan(body, carry, xs)

    carry, ys = jax.lax.scan(run, carry, segments(xs, segment))
    return carry, jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), ys)


def segments(xs: PyTree, segment: int) -> PyTree:
    """[length, ...] as [length / segment, segment, ...].

    Raises ValueError if `segment` does not divide the length.
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    if segment < 1 or length % segment:
        raise ValueError(f"segment {segment} does not divide the length {length}")
    return jax.tree.map(lambda x: x.reshape(-1, segment, *x.shape[1:]), xs)
