"""Small symmetric matrices, positive definite or made so: solve, project, minimise."""

import enum

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array

MAX_ITERATIONS = 20  # of the minimiser in a box
SIZES = tuple(0.6**i for i in range(10))  # of the steps it tries
ENOUGH = 0.1  # share of the decrease promised by the gradient that a step has to keep


class Status(enum.IntEnum):
    """Of what is computed by such matrices, as an int32."""

    SOLVED = 0
    NOT_CONVERGED = 1
    INDEFINITE = 2  # a matrix that has to be positive definite is not
    NOT_FINITE = 3


def solve(matrix: Array, right: Array) -> tuple[Array, Array]:
    """matrix^-1 right, of [D, D] and [D, ...], and whether `matrix` is definite.

    That is symmetric and positive definite: elimination needs no pivots then, and they
    are all positive, beyond the rounding of the diagonal entry that each comes from:
    so the units of the variables make no difference.  It is written out, since LAPACK
    takes longer for matrices this small.  The solution is 0 for one that is not
    definite, and NaN for NaN.
    """
    size = len(matrix)
    rows = jnp.column_stack([matrix, right])
    least = jnp.finfo(matrix.dtype).eps * jnp.abs(jnp.diag(matrix))
    definite = jnp.array(True)
    for i in range(size):
        definite &= rows[i, i] > least[i]  # false if it is NaN
        pivot = jnp.where(rows[i, i] <= least[i], 1.0, rows[i, i])
        row = rows[i] / pivot
        others = (jnp.arange(size) != i)[:, None]
        rows = jnp.where(others, rows - jnp.outer(rows[:, i], row), row[None])
    return rows[:, size:].reshape(right.shape) * definite, definite


@jax.custom_vjp
def inverse(matrix: Array) -> tuple[Array, Array]:
    """Of a symmetric positive definite matrix [D, D], and the log of its determinant.

    By sweeps, in a loop, so that it is a short program, and so is its gradient.  Both
    are NaN where it is not definite.
    """
    size = len(matrix)
    one = jnp.eye(size, dtype=matrix.dtype)

    def sweep(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        swept, log_det = carry
        pivot = swept[i, i]
        row = swept[i] / pivot
        here = one[i]  # 1 at i
        column = swept[:, i] * (1 - here) - here
        rest = swept * jnp.outer(1 - here, 1 - here)
        row = row * (1 - here) + here / pivot
        return rest - jnp.outer(column, row), log_det + jnp.log(pivot)

    start = matrix, jnp.zeros((), matrix.dtype)
    return jax.lax.fori_loop(0, size, sweep, start)


def _inverse_forward(matrix: Array) -> tuple[tuple[Array, Array], Array]:
    found = inverse(matrix)
    return found, found[0]


def _inverse_backward(inverse: Array, g: tuple[Array, Array]) -> tuple[Array]:
    return (inverse.T * g[1] - inverse.T @ g[0] @ inverse.T,)


inverse.defvjp(_inverse_forward, _inverse_backward)


def project(
    Q: Array, S: Array, R: Array, *, floor: float = 1e-6
) -> tuple[Array, Array, Array]:
    """The nearest [[Q, S'], [S, R]] without negative eigenvalues, cross term included.

    Nearest in the Frobenius norm; then the eigenvalues of R are raised to `floor`.
    """
    size = len(Q)
    joint = clip_eigenvalues(jnp.block([[Q, S.T], [S, R]]), 0.0)
    return (
        joint[:size, :size],
        joint[size:, :size],
        clip_eigenvalues(joint[size:, size:], floor),
    )


def minimise_in_box(H: Array, g: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """argmin over low <= k <= high of g'k + 1/2 k'Hk, and which entries are free, [A].

    The others are held at their limit by the gradient.  By projected Newton steps
    (Tassa, Mansard and Todorov, "Control-limited differential dynamic programming",
    2014, Sec. III) from 0, which is to be within the box; it stays where it is when the
    free part of H [A, A] is not positive definite.
    """
    if len(g) == 1:
        definite = H[0] > 0
        newton = jnp.where(definite, -g / jnp.where(definite, H[0], 1.0), 0.0)
        k = jnp.clip(newton, low, high)
        return k, _free(k, g + H[0] * k, low, high)
    sizes = jnp.array(SIZES, g.dtype)
    # written out, which is faster batched; H is symmetric
    times_H = lambda k: sum(k[..., i, None] * H[i] for i in range(len(g)))
    each_times_H = lambda k: sum(k[:, i, None] * H[i][None] for i in range(len(g)))

    def improve(carry: tuple) -> tuple:
        k, gradient, _, i = carry
        free = _free(k, gradient, low, high)
        step, _ = solve_free(H, free, -gradient)
        every = jnp.clip(k[None] + sizes[:, None] * step[None], low[None], high[None])
        change = every - k[None]
        promised = (change * gradient[None]).sum(axis=1)
        gained = promised + (change * each_times_H(change)).sum(axis=1) / 2
        enough = gained <= ENOUGH * promised
        new = jnp.where(enough.any(), every[jnp.argmax(enough)], k)
        still = jnp.abs(new - k) <= jnp.finfo(k.dtype).eps * jnp.abs(k)
        gradient = g + times_H(new)
        # a whole step to the minimum of what is free then, and still is
        there = (new == k + step) & (_free(new, gradient, low, high) == free)
        return new, gradient, ~(still.all() | there.all()), i + 1

    unfinished = lambda carry: carry[2] & (carry[3] < MAX_ITERATIONS)
    start = (jnp.zeros_like(g), g, jnp.array(True), jnp.zeros((), jnp.int32))
    k, gradient, _, _ = jax.lax.while_loop(unfinished, improve, start)
    return k, _free(k, gradient, low, high)


def _free(k: Array, gradient: Array, low: Array, high: Array) -> Array:
    return ~(((k <= low) & (gradient > 0)) | ((k >= high) & (gradient < 0)))


def solve_free(H: Array, free: Array, right: Array) -> tuple[Array, Array]:
    """H^-1 `right` [A, ...] among the free entries, 0 for the others; if definite."""
    among = jnp.where(jnp.outer(free, free), H, jnp.eye(len(H), dtype=H.dtype))
    mask = free.reshape(free.shape + (1,) * (right.ndim - 1))
    return solve(among, jnp.where(mask, right, 0.0))


def status(definite: Array, *results: Array) -> Array:
    """Whether all of `definite` holds, and all `results` are finite."""
    found = jnp.where(definite.all(), Status.SOLVED, Status.INDEFINITE)
    finite = jnp.stack([jnp.isfinite(result).all() for result in results]).all()
    return jnp.where(finite, found, Status.NOT_FINITE).astype(jnp.int32)


def clip_eigenvalues(matrix: Array, least: float) -> Array:
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, least)[None]) @ vectors.T


def positive_part(matrix: Array, num_iterations: int = 60) -> Array:
    """A symmetric matrix [D, D] with 0 for its negative eigenvalues: (S + |S|) / 2.

    |S| = S sign(S), by Newton and Schulz's iteration for the sign (Higham, "Functions
    of matrices", 2008, Sec. 5.3): products alone, whereas batches of `eigh` on several
    devices of one CPU can wait for each other for ever (jaxlib 0.10).  What is smaller
    than 1.5^-`num_iterations` of the largest eigenvalue may stay.
    """
    scale = jnp.sqrt(jnp.square(matrix).sum())
    sign = matrix / jnp.where(scale > 0, scale, 1)

    def improve(sign: Array, _: None) -> tuple[Array, None]:
        sign = 1.5 * sign - 0.5 * sign @ sign @ sign
        # rounding that is not symmetric would grow without end where there is nothing
        return (sign + sign.T) / 2, None

    sign, _ = jax.lax.scan(improve, sign, length=num_iterations)
    half = (matrix + matrix @ sign) / 2
    return (half + half.T) / 2
