"""A loop that ends when it is done, also under vmap, and has a gradient.

`jax.lax.while_loop` has none in reverse; a scan of `jax.lax.cond` has one, but under
vmap computes both branches, to the last step, however early all are done.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, PyTree


def bounded(
    going: Callable[[PyTree], Array],  # carry -> [] bool
    body: Callable[[PyTree], PyTree],
    carry: PyTree,
    length: int,
) -> PyTree:
    """`while going(carry): carry = body(carry)`, at most `length` times.

    Under vmap each example stops by its own `going`; what is over for all of them is
    not computed.  Forward mode and reverse mode are those of the iterations done.
    """
    going_on = lambda carry: going(jax.lax.stop_gradient(carry))

    def move(carry: PyTree) -> PyTree:
        on, new = going_on(carry), body(carry)
        return jax.tree.map(lambda x, y: jnp.where(on, x, y), new, carry)

    def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
        return jax.lax.cond(_some(going_on(carry)), move, lambda x: x, carry), None

    def run(carry: PyTree) -> PyTree:
        return jax.lax.scan(step, carry, length=length)[0]

    # A whole loop that is left out costs less than all of its steps left out.  What its
    # gradient needs is computed again: kept, it would be written even where it is.
    again = jax.checkpoint(run)
    return jax.lax.cond(_some(going_on(carry)), again, lambda x: x, carry)


@jax.custom_batching.custom_vmap
def _some(x: Array) -> Array:
    """[] bool; under vmap whether any is true, one answer for all examples."""
    return x


@_some.def_vmap
def _some_of_all(size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return _some(x.any(axis=0)), False
