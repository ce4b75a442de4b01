"""Returns of trajectories, from rewards and values."""

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


def td_lambda(
    rewards: Array,
    next_values: Array,
    terminal: Array,
    cut: Array,
    discount: float | Array,
    lambda_: float | Array,
) -> Array:
    """The lambda-returns [T] (Sutton and Barto, 2018, Eq. 12.18), backwards:

        G_t = r_t + discount ((1 - lambda_) V(s_t+1) + lambda_ G_t+1)

    `next_values` [T] are V(s_t+1).  After a `terminal` [T] step nothing follows; where
    `cut` [T], as at a time limit, what follows is not here, and V stands for it.  It
    also does after the last step.
    """

    def back(later: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, value, terminal, cut = x
        later = jnp.where(cut, value, later)
        follows = (1 - lambda_) * value + lambda_ * later
        now = reward + jnp.where(terminal, 0, discount * follows)
        return now, now

    xs = (rewards, next_values, terminal, cut)
    return jax.lax.scan(back, next_values[-1], xs, reverse=True)[1]
