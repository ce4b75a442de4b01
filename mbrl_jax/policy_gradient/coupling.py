"""Penalties that keep policies near each other, each with states of its own.

Of policy i of n, given the outputs of all of them at all states (Ghosh et al., 2018,
"Divide-and-conquer reinforcement learning", Sec. 5.1):

    pairwise    mean over j != i of
                    mean over the states of i of KL(pi_i || pi_j)
                    + mean over the states of j of KL(pi_j || pi_i)
    to_centre   mean over the states of i of KL(pi_i || centre)
                    (Teh et al., 2017, "Distral")

Only pi_i is differentiated; the others are as they acted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.distributions import Family
from mbrl_jax.policy_gradient.experience import masked_mean
from mbrl_jax.types import Array


class Seen(NamedTuple):
    """What all policies would have done at all states [N, T]; D outputs of a family."""

    outputs: Array  # [n, N, T, D] of each policy
    centre: Array  # [N, T, D] of one in their midst
    own: Array  # [n, N, T] bool, the states of each


def pairwise(family: Family, seen: Seen, i: Array, outputs: Array) -> Array:
    """Of policy `i` [], which has these `outputs` [N, T, D]."""
    divergence = jax.vmap(jax.vmap(family.divergence))

    def between(theirs: Array, own: Array) -> Array:
        here = masked_mean(divergence(outputs, theirs), seen.own[i])
        return here + masked_mean(divergence(theirs, outputs), own)

    each = jax.vmap(between)(seen.outputs, seen.own)  # [n]
    others = jnp.arange(len(each)) != i
    return jnp.where(others, each, 0).sum() / max(len(each) - 1, 1)


def to_centre(family: Family, seen: Seen, i: Array, outputs: Array) -> Array:
    divergence = jax.vmap(jax.vmap(family.divergence))
    return masked_mean(divergence(outputs, seen.centre), seen.own[i])


def nothing(family: Family, seen: Seen, i: Array, outputs: Array) -> Array:
    return jnp.zeros((), outputs.dtype)
