"""Quarantine: non-finite values lose, never spread, and are counted."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax.types import Array, Params, PyTree


def losing(x: Array) -> Array:
    """`x` with NaN and both infinities made -inf: worse than any finite value."""
    return jnp.where(jnp.isfinite(x), x, -jnp.inf)


def masked_mean(samples: PyTree) -> tuple[PyTree, Array]:
    """The mean over the leading axis of the samples that are finite in every leaf.

    Returns the mean (0 where no sample is finite) and how many samples were left out.
    """
    finite = all_finite(samples, num_batch_axes=1)  # [N]

    def mean(x: Array) -> Array:
        mask = jnp.reshape(finite, finite.shape + (1,) * (x.ndim - 1))
        return jnp.where(mask, x, 0).sum(axis=0) / jnp.maximum(finite.sum(), 1)

    return jax.tree.map(mean, samples), (~finite).sum()


def all_finite(tree: PyTree, num_batch_axes: int = 0) -> Array:
    """Whether every entry of every leaf is finite, for each index of the batch axes."""
    return _everywhere(jnp.isfinite, tree, num_batch_axes)


def usable(tree: PyTree, num_batch_axes: int = 0) -> Array:
    """Whether every entry is finite, and small enough for statistics of it to be, for
    each index of the batch axes."""
    return _everywhere(moderate, tree, num_batch_axes)


def moderate(x: Array) -> Array:
    """Which entries are finite, and not as large as only a broken sensor shows: above
    the largest float to the power of 0.4, where sums of squares overflow."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.isfinite(x)
    most = jnp.finfo(jnp.promote_types(x.dtype, jnp.float32)).max ** 0.4
    return jnp.abs(x) <= float(most)


def _everywhere(
    holds: Callable[[Array], Array], tree: PyTree, num_batch_axes: int
) -> Array:
    def one(x: Array) -> Array:
        return holds(x).all(axis=tuple(range(num_batch_axes, x.ndim)))

    return jnp.stack([one(x) for x in jax.tree.leaves(tree)]).all(axis=0)


def zeroed(where: Array, tree: PyTree) -> PyTree:
    """`tree` with 0 at those indices of the leading axis where `where` [N] is true."""

    def zero(x: Array) -> Array:
        mask = where.reshape(where.shape + (1,) * (x.ndim - 1))
        return jnp.where(mask, jnp.zeros_like(x), x)

    return jax.tree.map(zero, tree)


class GuardState(NamedTuple):
    inner: optax.OptState
    num_skipped: Array  # [] or [M] int32, updates skipped so far


def skip_non_finite(
    optimizer: optax.GradientTransformation, num_members: int | None = None
) -> optax.GradientTransformation:
    """Leaves parameters and optimiser state alone where the gradient is not finite.

    With `num_members`, every leaf has a leading axis M and each member is judged alone.
    Unlike `optax.apply_if_finite` it never gives up.  A gradient whose squared norm
    overflows counts as not finite.  Scalars of the optimiser state (step counts) are
    shared by all members and always advance.
    """
    shape = () if num_members is None else (num_members,)

    def init(params: Params) -> GuardState:
        return GuardState(optimizer.init(params), jnp.zeros(shape, jnp.int32))

    def update(
        grads: Params, state: GuardState, params: Params | None = None
    ) -> tuple[Params, GuardState]:
        finite = jnp.isfinite(_squared_norm(grads, shape))

        def plain() -> tuple[Params, optax.OptState]:
            return optimizer.update(grads, state.inner, params)

        def selective() -> tuple[Params, optax.OptState]:
            updates, inner = plain()
            skipped = (jax.tree.map(jnp.zeros_like, updates), state.inner)
            return jax.tree.map(select, (updates, inner), skipped)

        def select(new: Array, old: Array) -> Array:
            if new.ndim < len(shape):
                return new
            mask = jnp.reshape(finite, shape + (1,) * (new.ndim - len(shape)))
            return jnp.where(mask, new, old)

        # the branch spares the selects, a third of a small step on a CPU
        updates, inner = jax.lax.cond(finite.all(), plain, selective)
        return updates, GuardState(inner, state.num_skipped + ~finite)

    return optax.GradientTransformation(init, update)


def _squared_norm(grads: Params, shape: tuple[int, ...]) -> Array:
    """Of each member, [M], or of all, []."""
    total = jnp.zeros(shape)
    for leaf in jax.tree.leaves(grads):
        rows = leaf.reshape(*shape, -1)
        total += jnp.einsum("...i,...i->...", rows, rows)
    return total
