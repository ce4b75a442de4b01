"""Perfect tic-tac-toe in plain Python: what searches are held against.

Boards are tuples of 9 as `mbrl_jax.envs.tic_tac_toe` has them: 1 own, -1 the other's.
"""

import functools

import numpy as np

Board = tuple[int, ...]

EMPTY: Board = (0,) * 9


def moves(board: Board) -> list[int]:
    """The legal ones; none when the game is over."""
    return [] if lost(board) else [move for move in range(9) if board[move] == 0]


def after(board: Board, move: int) -> Board:
    """What the other player sees then."""
    return tuple(-(1 if i == move else x) for i, x in enumerate(board))


def lost(board: Board) -> bool:
    rows = [board[i : i + 3] for i in (0, 3, 6)]
    columns = [board[i::3] for i in range(3)]
    return (-1, -1, -1) in (*rows, *columns, board[::4], board[2:7:2])


@functools.cache
def value(board: Board) -> int:
    """1 if the player to move wins, 0 for a draw, -1; both play perfectly."""
    if lost(board):
        return -1
    return max((-value(after(board, move)) for move in moves(board)), default=0)


def best(board: Board) -> list[int]:
    """All perfect moves."""
    return [m for m in moves(board) if -value(after(board, m)) == value(board)]


def positions(num: int, seed: int) -> list[Board]:
    """Reached by 0 to 7 random moves, with the game still going on."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < num:
        board = EMPTY
        for _ in range(rng.integers(0, 8)):
            if moves(board):
                board = after(board, rng.choice(moves(board)))
        if moves(board):
            found.append(board)
    return found
