"""Steps along the natural gradient (Amari, 1998; Kakade, 2001).

The Fisher matrix F is the Hessian of a divergence where it is 0.  The steepest ascent
per divergence, not per change of the parameters, is along F^-1 g, and

    step = sqrt(2 divergence / (x^T F x)) x,  x = F^-1 g

goes as far as `divergence` to second order (Schulman et al., 2015, App. C).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mbrl_jax.types import Array, Params

Divergence = Callable[[Params], Array]  # of parameters from those at hand -> []


def conjugate_gradient(
    divergence: Divergence,
    params: Params,
    gradient: Params,
    damping: float | Array,
    num_iterations: int,
) -> tuple[Params, Array]:
    """x = (F + damping I)^-1 g by products with F only, and x^T (F + damping I) x."""

    def product(x: Params) -> Params:
        return _damped(fisher_product(divergence, params, x), x, damping)

    x, _ = jax.scipy.sparse.linalg.cg(product, gradient, maxiter=num_iterations)
    return x, _dot(x, product(x))


def exact(
    divergence: Divergence,
    params: Params,
    gradient: Params,
    damping: float | Array,
    num_iterations: int = 0,
) -> tuple[Params, Array]:
    """The same by the whole matrix: for up to some thousand parameters."""
    flat, unravel = ravel_pytree(gradient)
    matrix = fisher(divergence, params) + damping * jnp.eye(flat.size)
    x = jax.scipy.linalg.solve(matrix, flat, assume_a="pos")
    return unravel(x), x @ matrix @ x


SOLVERS = {"cg": conjugate_gradient, "exact": exact}


def fisher(divergence: Divergence, params: Params) -> Array:
    """F [P, P], in the order of `ravel_pytree`."""
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda flat: divergence(unravel(flat)))(flat)


def fisher_product(divergence: Divergence, params: Params, x: Params) -> Params:
    """F x: the derivative of the divergence's gradient along x (Pearlmutter, 1994)."""
    return jax.jvp(jax.grad(divergence), (params,), (x,))[1]


def step(
    gain: Callable[[Params], Array],
    divergence: Divergence,
    params: Params,
    *,
    size: float | Array,
    solver: str,
    damping: float | Array,
    num_iterations: int,
) -> Params:
    """The change of `params` that goes up `gain` as far as a divergence of `size`.

    0 where there is nowhere to go, or the way is not finite.
    """
    gradient = jax.grad(gain)(params)
    x, curvature = SOLVERS[solver](
        divergence, params, gradient, damping, num_iterations
    )
    sound = jnp.isfinite(curvature) & (curvature > 0)
    scale = jnp.sqrt(2 * size / jnp.where(sound, curvature, 1))
    return jax.tree.map(lambda x: jnp.where(sound, scale * x, 0), x)


def _damped(product: Params, x: Params, damping: float | Array) -> Params:
    return jax.tree.map(lambda a, b: a + damping * b, product, x)


def _dot(a: Params, b: Params) -> Array:
    products = jax.tree.map(jnp.vdot, a, b)
    return sum(jax.tree.leaves(products), jnp.zeros(()))
