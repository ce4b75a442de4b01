"""A branch and a loop that leave out what is not needed, also under vmap.

There `jax.lax.cond` computes both branches, if the predicate is batched.  A loop of it
has a gradient in reverse, which `jax.lax.while_loop` has not, but goes on to its last
step, however early all examples are done.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, PyTree


def when(due: Array, body: Callable[[PyTree], PyTree], carry: PyTree) -> PyTree:
    """`body(carry)` where `due` [], else `carry`; computed if due for any example."""

    def move(carry: PyTree) -> PyTree:
        return jax.tree.map(lambda x, y: jnp.where(due, x, y), body(carry), carry)

    return jax.lax.cond(_some(due), move, lambda x: x, carry)


def reporting(
    due: Array, body: Callable[[PyTree], tuple[PyTree, PyTree]], carry: PyTree
) -> tuple[PyTree, PyTree]:
    """`when`, of a body that also returns a report: zeros where it is left out."""
    shapes = jax.eval_shape(body, carry)[1]
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return when(due, lambda both: body(both[0]), (carry, blank))


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

    def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
        return when(going_on(carry), body, carry), None

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
