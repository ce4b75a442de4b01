"""Tic-tac-toe (noughts and crosses) as pure functions: three in a row win.

A board [9] int32, rows from the top, is what the player to move sees: 1 own, -1 the
other's, 0 free.  Only the other can have three in a row on it.
"""

import jax.numpy as jnp

from mbrl_jax.types import Array

LINES = (
    *((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    *((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    *((0, 4, 8), (2, 4, 6)),
)


def start() -> Array:
    return jnp.zeros(9, jnp.int32)


def legal(board: Array) -> Array:
    """Which of the 9 moves can be made: [9] bool, none when the game is over."""
    return (board == 0) & ~lost(board)


def play(board: Array, move: Array) -> Array:
    """The board after a legal move, as the other player sees it."""
    return -board.at[move].set(1)


def lost(board: Array) -> Array:
    """Whether the other player has three in a row, [] bool."""
    return (board[jnp.array(LINES)] == -1).all(axis=1).any()
